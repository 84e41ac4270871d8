//! An image as it is after a rebuild with newer versions of a few packages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use tar::{Archive, Builder, EntryType};
use undermount_fs::layer::Indexer;
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};

const INFO: &str = "var/lib/dpkg/info/";
const STATUS: &str = "var/lib/dpkg/status";

/// An image made again.
pub struct Rebuilt {
    /// The new image: all of its layers have new digests.
    pub image: Image,
    /// The packages that have changed.
    pub packages: Vec<String>,
    /// Regular files of the image, and those that have changed.
    pub files: (usize, usize),
    /// Bytes of those that have changed, each one compressed by itself.
    pub changed_bytes: u64,
}

impl Rebuilt {
    /// Bytes of the trees of all layers, compressed as an index artifact has them.
    pub fn tree_bytes(&self) -> u64 {
        let sizes = self.image.layers().into_iter().map(|(digest, _)| {
            let mut indexer = Indexer::new();
            indexer.write_bytes(self.image.blobs[&digest].clone()).unwrap();
            let index = indexer.finish().unwrap();
            zstd::encode_all(&index.tree[..], 9).unwrap().len() as u64
        });
        sizes.sum()
    }
}

/// Makes `image`, whose layers are gzip and hold a Debian system, again with `count` packages
/// updated that make `percent` of its files: their files, with what is compiled from them, their
/// records, and every layer's copy of the package database have other contents, directories have
/// new times, everything else stays.
pub fn rebuilt(image: &Image, count: usize, percent: f64) -> Rebuilt {
    let archives: Vec<Vec<u8>> = image
        .layers()
        .iter()
        .map(|(digest, _)| {
            let mut archive = Vec::new();
            let blob = &image.blobs[digest];
            flate2::read::MultiGzDecoder::new(&blob[..]).read_to_end(&mut archive).unwrap();
            archive
        })
        .collect();
    let lists = package_lists(&archives);
    let all: usize = archives.iter().map(|archive| count_files(archive)).sum();
    let packages = choose(&lists, count, (all as f64 * percent / 100.0) as usize);
    let paths = packages.iter().flat_map(|package| lists[package].iter().cloned()).collect();
    let mut changed = Vec::new();
    let layers = archives
        .iter()
        .map(|archive| {
            let tar = rebuild_layer(archive, &packages, &paths, &mut changed);
            Layer::compressed(&tar, Compression::Gzip)
        })
        .collect();
    Rebuilt {
        image: Image::from_layers(layers),
        packages,
        files: (all, changed.len()),
        changed_bytes: compressed(&changed),
    }
}

/// The regular files of each package that are there, as dpkg has written them down.
fn package_lists(archives: &[Vec<u8>]) -> BTreeMap<String, BTreeSet<String>> {
    let (mut lists, mut files) = (BTreeMap::new(), BTreeSet::new());
    for archive in archives {
        for entry in Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = path_of(&entry);
            if entry.header().entry_type() != EntryType::Regular {
                continue;
            }
            let package = path.strip_prefix(INFO).and_then(|name| name.strip_suffix(".list"));
            if let Some(package) = package.map(ToOwned::to_owned) {
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                let paths = text.lines().map(|line| line.trim_start_matches('/').to_owned());
                lists.insert(package, paths.collect::<BTreeSet<String>>());
            }
            files.insert(path);
        }
    }
    lists.values_mut().for_each(|paths| paths.retain(|path| files.contains(path)));
    lists
}

fn count_files(archive: &[u8]) -> usize {
    let mut archive = Archive::new(archive);
    let is_file = |entry: &tar::Entry<'_, &[u8]>| entry.header().entry_type() == EntryType::Regular;
    archive.entries().unwrap().filter(|entry| is_file(entry.as_ref().unwrap())).count()
}

/// The packages whose numbers of files come closest to an equal share of `files`.
fn choose(lists: &BTreeMap<String, BTreeSet<String>>, count: usize, files: usize) -> Vec<String> {
    let share = files / count;
    let mut names: Vec<&String> = lists.keys().collect();
    names.sort_by_key(|name| lists[*name].len().abs_diff(share));
    names.into_iter().take(count).cloned().collect()
}

fn path_of(entry: &tar::Entry<'_, &[u8]>) -> String {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    path.trim_start_matches("./").trim_end_matches('/').to_owned()
}

fn rebuild_layer(
    archive: &[u8],
    packages: &[String],
    paths: &BTreeSet<String>,
    changed: &mut Vec<Vec<u8>>,
) -> Vec<u8> {
    let mut rebuilt = Builder::new(Vec::with_capacity(archive.len()));
    for entry in Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut header) = (path_of(&entry), entry.header().clone());
        if path.is_empty() {
            continue;
        }
        match header.entry_type() {
            EntryType::Link | EntryType::Symlink => {
                let target = entry.link_name().unwrap().unwrap().into_owned();
                rebuilt.append_link(&mut header, &path, target).unwrap();
            }
            EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                if is_changed(&path, packages, paths) {
                    content = update(&content);
                    changed.push(content.clone());
                }
                header.set_size(content.len() as u64);
                rebuilt.append_data(&mut header, &path, &content[..]).unwrap();
            }
            kind => {
                if kind == EntryType::Directory {
                    header.set_mtime(header.mtime().unwrap() + 86_400);
                }
                rebuilt.append_data(&mut header, &path, &[][..]).unwrap();
            }
        }
    }
    rebuilt.into_inner().unwrap()
}

fn is_changed(path: &str, packages: &[String], paths: &BTreeSet<String>) -> bool {
    let record = path.strip_prefix(INFO);
    paths.contains(path)
        || path == STATUS
        || source_of(path).is_some_and(|source| paths.contains(&source))
        || record.is_some_and(|name| {
            packages.iter().any(|package| {
                name.strip_prefix(package.as_str()).is_some_and(|rest| rest.starts_with('.'))
            })
        })
}

fn compressed(contents: &[Vec<u8>]) -> u64 {
    let distinct: BTreeSet<&Vec<u8>> = contents.iter().collect();
    distinct.into_iter().map(|content| Compression::Gzip.apply(content).len() as u64).sum()
}

/// The Python source that a compiled file comes from.
fn source_of(path: &str) -> Option<String> {
    let (directory, name) = path.split_once("__pycache__/")?;
    let (name, _) = name.split_once(".cpython-")?;
    Some(format!("{directory}{name}.py"))
}

/// Another version of a content: a little longer, and different here and there.
fn update(content: &[u8]) -> Vec<u8> {
    let mut updated = b"# 2\n".to_vec();
    updated.extend_from_slice(content);
    for byte in updated.iter_mut().step_by(1000) {
        *byte = byte.wrapping_add(1);
    }
    updated
}
