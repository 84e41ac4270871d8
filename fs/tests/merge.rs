//! Merging layers where they are many, or far apart.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::sync::Arc;

use undermount_fs::index::LayerTree;
use undermount_fs::layer::Indexer;
use undermount_fs::tree::{ImageTree, Target};

/// The tree of a layer of empty members: path, type flag, link target.
fn layer(members: impl IntoIterator<Item = (String, u8, String)>) -> Arc<LayerTree> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, target) in members {
        let records = [("path", path.as_bytes()), ("linkpath", target.as_bytes())];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    }
    let mut indexer = Indexer::new();
    indexer.write_all(&builder.into_inner().unwrap()).unwrap();
    let index = indexer.finish().unwrap();
    Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap())
}

fn file(path: impl ToString) -> (String, u8, String) {
    (path.to_string(), b'0', String::new())
}

fn refusal(layers: Vec<Arc<LayerTree>>) -> String {
    ImageTree::merge(layers).err().expect("it is too much").to_string()
}

#[test]
fn regression_a_large_layer_repeated_hundreds_of_times_is_refused() {
    let copies = 400;
    let large = layer((0..170_000).map(file));
    assert!(ImageTree::merge(vec![large.clone(); 3]).is_ok());
    assert_eq!(refusal(vec![large; copies]), "the image has too many names in its layers");
}

#[test]
fn regression_links_to_what_lies_deep_in_many_layers_are_refused() {
    let deep = "d/".repeat(1_000);
    let link = |number| (format!("h{number}"), b'1', format!("{deep}f"));
    let lower = layer([file(format!("{deep}f"))]);
    let image =
        |links: usize| [vec![lower.clone(); 400], vec![layer((0..links).map(link))]].concat();
    assert!(ImageTree::merge(image(10)).is_ok());
    assert!(refusal(image(30)).contains("on the ways to the targets of its hard links"));
}

#[test]
fn an_image_without_layers_is_refused() {
    assert_eq!(refusal(Vec::new()), "the image has no layers");
}

#[test]
fn of_one_name_the_topmost_layer_counts() {
    let layers = [&["a", "c", "m"][..], &["b", "c"], &["c", "z"]];
    let layers = layers.map(|names| layer(names.iter().map(file)));
    let tree = ImageTree::merge(layers.to_vec()).unwrap();
    let found: Vec<(&[u8], u16)> = tree
        .list(0, 0)
        .map(|(name, target)| match target {
            Target::Leaf { layer, .. } => (name, layer),
            Target::Directory(_) => unreachable!("there are files only"),
        })
        .collect();
    let expected: [(&[u8], u16); 5] = [(b"a", 0), (b"b", 1), (b"c", 2), (b"m", 0), (b"z", 2)];
    assert_eq!(found, expected);
}
