//! Layers as overlayfs is to see them.

#![allow(clippy::unwrap_used)]

mod machine;

use std::collections::BTreeMap;
use std::sync::Arc;

use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::LayerTree;
use undermount_fs::source::Scope;
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{LayerView, Lookup, NodeId, SlotTable, View};

use machine::{Machine, MemorySource, archive, gzip, publish};

/// Everything below `root` by path: `d` for a directory, `c` for a whiteout, `f` for the rest.
fn shape(view: &View, root: NodeId) -> BTreeMap<String, char> {
    let mut found = BTreeMap::new();
    let mut stack = vec![(root, String::new())];
    while let Some((directory, path)) = stack.pop() {
        let mut offset = 2;
        // One entry at a time, so that every offset is used.
        loop {
            let mut next = None;
            view.readdir(directory, offset, |entry| {
                next = Some((String::from_utf8(entry.name.to_vec()).unwrap(), entry.attr));
                offset = entry.next_offset;
                true
            })
            .unwrap();
            let Some((name, attr)) = next else { break };
            let looked_up = view.lookup(directory, name.as_bytes()).unwrap();
            assert_eq!(looked_up, Lookup::Found(attr), "{path}/{name}");
            let path = format!("{path}/{name}");
            let kind = match attr.mode & libc::S_IFMT {
                libc::S_IFDIR => 'd',
                libc::S_IFCHR => 'c',
                _ => 'f',
            };
            if kind == 'd' {
                stack.push((attr.node, path.clone()));
            }
            found.insert(path, kind);
        }
    }
    found
}

#[tokio::test]
async fn an_opaque_directory_is_shown_by_whiteouts_for_what_is_below_or_by_markers() {
    let source = Arc::new(MemorySource::default());
    let text = |text: &str| text.as_bytes().to_vec();
    let lower = archive(&[
        ("d/a", text("a")),
        ("d/both", text("lower")),
        ("d/sub/x", text("x")),
        ("d/sub/both", text("lower")),
        ("d/lone/z", text("z")),
        ("other", text("other")),
    ]);
    let upper = archive(&[
        ("d/.wh..wh..opq", text("")),
        ("d/both", text("upper")),
        ("d/sub/both", text("upper")),
        ("d/sub/.wh.gone", text("")),
        ("d/new/y", text("y")),
    ]);
    let indexes = [publish(&source, gzip(&lower)), publish(&source, gzip(&upper))];
    let machine = Machine::new(source.clone());
    let trees: Vec<Arc<LayerTree>> = indexes
        .iter()
        .map(|index| Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap()))
        .collect();
    let scope = Scope::new("registry/image");
    let layer = Arc::new(Layer::new(trees[1].clone(), scope));
    let below = ImageTree::merge(vec![trees[0].clone()]).unwrap();
    let mut slots = SlotTable::open(&machine.directory.path().join("slots")).unwrap();
    let mut show = |view: LayerView| {
        let name = machine.view.add_layer(view, &mut slots).unwrap();
        machine.child(NodeId::LAYERS, name.hex().as_bytes()).unwrap()
    };
    let own = [
        ("/d", 'd'),
        ("/d/both", 'f'),
        ("/d/new", 'd'),
        ("/d/new/y", 'f'),
        ("/d/sub", 'd'),
        ("/d/sub/both", 'f'),
        ("/d/sub/gone", 'c'),
    ];
    let by_path = |entries: &[(&str, char)]| -> BTreeMap<String, char> {
        entries.iter().map(|(path, kind)| ((*path).to_owned(), *kind)).collect()
    };

    let view = LayerView::with_markers(layer.clone());
    assert!(view.needs_xattrs());
    let markers = show(view);
    assert_eq!(shape(&machine.view, markers), by_path(&own));
    let d = machine.child(markers, b"d").unwrap();
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        let value = machine.view.xattr(d, name.as_bytes()).unwrap();
        assert_eq!(value.as_deref(), Some(&b"y"[..]), "{name}");
    }

    let view = LayerView::with_whiteouts(layer.clone(), Some(&below)).unwrap();
    assert!(!view.needs_xattrs());
    let whiteouts = show(view);
    let hiding = [("/d/a", 'c'), ("/d/lone", 'c'), ("/d/sub/x", 'c')];
    assert_eq!(shape(&machine.view, whiteouts), by_path(&[&own[..], &hiding].concat()));
    assert_eq!(machine.view.xattr_names(machine.child(whiteouts, b"d").unwrap()).unwrap(), b"");

    // The two ways have directories of their own and files in common.
    let file = |root| machine.find(root, "d/new/y").unwrap();
    assert_eq!(file(markers), file(whiteouts));
    assert_ne!(d, machine.child(whiteouts, b"d").unwrap());
    assert_eq!(machine.read(file(whiteouts), 0, 10).await.unwrap(), "y");

    let again = LayerView::with_whiteouts(layer, Some(&below)).unwrap();
    assert_eq!(show(again), whiteouts, "what shows the same is the same");
}

#[tokio::test]
async fn a_layer_looks_as_an_ordinary_pull_leaves_it() {
    let source = Arc::new(MemorySource::default());
    let mut archive = tar::Builder::new(Vec::new());
    let mut directory = |path: &str, mode| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_size(0);
        archive.append_data(&mut header, path, &b""[..]).unwrap();
    };
    directory("./", 0o700);
    directory("listed", 0o710);
    directory("implied/listed", 0o711);
    let index = publish(&source, archive.into_inner().unwrap());
    let machine = Machine::new(source);
    let tree = Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap());
    let layer = Arc::new(Layer::new(tree, Scope::new("registry/image")));
    let mut slots = SlotTable::open(&machine.directory.path().join("slots")).unwrap();
    let name = machine.view.add_layer(LayerView::with_markers(layer), &mut slots).unwrap();
    let root = machine.child(NodeId::LAYERS, name.hex().as_bytes()).unwrap();
    let attr = |path: &str| {
        let node = if path.is_empty() { root } else { machine.find(root, path).unwrap() };
        let attr = machine.view.getattr(node).unwrap();
        (attr.mode & 0o7777, attr.uid)
    };
    assert_eq!(attr(""), (0o555, 0), "podman leaves out what an archive says of its root");
    assert_eq!(attr("listed"), (0o710, 7));
    assert_eq!(attr("implied"), (0o755, 0));
    assert_eq!(attr("implied/listed"), (0o711, 7));
}

#[tokio::test]
async fn nothing_but_names_of_layers_is_ever_looked_up_twice() {
    let machine = Machine::new(Arc::new(MemorySource::default()));
    let lookup = |name: &str| machine.view.lookup(NodeId::LAYERS, name.as_bytes()).unwrap();
    // overlayfs's check of containers/storage goes through the parent of a layer.
    assert_eq!(lookup("diff1"), Lookup::Absent);
    assert_eq!(lookup(&Digest::of(b"later").hex()), Lookup::AbsentYet);
}
