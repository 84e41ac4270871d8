//! From places in layers to paths, and back in another image.

use std::collections::{HashMap, HashSet};
use std::str;

use undermount_fs::digest::Digest;
use undermount_fs::index::InodeRecord;
use undermount_fs::object::CHUNK;
use undermount_fs::pack::{Profile, UnitName};
use undermount_fs::tree::{ImageTree, Target};

use super::FileUnit;

/// A pack may hold this many bytes of any image, so all of a small one.
const ALL: u64 = 64 * 1024 * 1024;
/// A pack of a larger image may hold one part in so many of it: a profile that names everything must
/// not make every node fetch everything at the start.
const SHARE: u64 = 2;

/// Paths of files, by the digest of the layer blob and the inode in it.
pub type FilePaths = HashMap<(Digest, u32), String>;

/// The units of `profile` by the paths of their files in `tree`; what is not in the tree, or has a
/// name that is not UTF-8, is left out.
pub fn name_units(profile: &Profile, tree: &ImageTree) -> Vec<FileUnit> {
    let wanted: HashSet<_> = profile.units().iter().map(|unit| (unit.layer, unit.inode)).collect();
    let paths = file_paths(tree, |file| wanted.contains(file));
    let named = |unit: &UnitName| {
        let path = paths.get(&(unit.layer, unit.inode))?.clone();
        Some(FileUnit { path, number: unit.number })
    };
    profile.units().iter().filter_map(named).collect()
}

/// The paths of the files in `tree` that are `wanted`. A file of several names has the first one;
/// names that are not UTF-8 are left out.
pub fn file_paths(tree: &ImageTree, wanted: impl Fn(&(Digest, u32)) -> bool) -> FilePaths {
    let layers: Vec<Digest> = tree.layers().iter().map(|layer| layer.header().layer).collect();
    let mut paths = HashMap::new();
    each_file(tree, |path, layer, inode| {
        let file = layers.get(usize::from(layer)).map(|digest| (*digest, inode));
        if let Some(file) = file.filter(&wanted) {
            paths.entry(file).or_insert_with(|| path.to_owned());
        }
    });
    paths
}

/// Calls `each` with the path, layer and inode of everything that is no directory.
fn each_file(tree: &ImageTree, mut each: impl FnMut(&str, u16, u32)) {
    let mut directories = vec![(0, String::new())];
    while let Some((directory, path)) = directories.pop() {
        for (name, target) in tree.list(directory, 0) {
            let Ok(name) = str::from_utf8(name) else { continue };
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            match target {
                Target::Directory(number) => directories.push((number, path)),
                Target::Leaf { layer, inode } => each(&path, layer, inode),
            }
        }
    }
}

/// Whether `profile` names nearly all files of a large image: somebody has copied or searched it.
pub fn is_all(profile: &Profile, tree: &ImageTree) -> bool {
    let layers = || tree.layers().iter();
    let whole: u64 = layers().map(|layer| layer.header().content_size.get()).sum();
    let is_content = |inode: &&InodeRecord| inode.is_file() && inode.size.get() > 0;
    let files: usize = layers().map(|layer| layer.inodes().iter().filter(is_content).count()).sum();
    whole > ALL && profile.units().len() * 5 > files * 4
}

/// How many of the `whole` bytes of an image what starts have read may come to.
pub fn most_of(whole: u64) -> u64 {
    (whole / SHARE).max(ALL)
}

/// Where `units` are in `tree`, in their order: what the image has not is left out, and what is
/// more than half of a large image.
pub fn place_units(units: &[FileUnit], tree: &ImageTree) -> Profile {
    let whole: u64 = tree.layers().iter().map(|layer| layer.header().content_size.get()).sum();
    let most = most_of(whole);
    let mut bytes = 0;
    let placed = units.iter().filter_map(|unit| place(unit, tree)).take_while(|(_, length)| {
        bytes += length;
        bytes <= most
    });
    Profile::new(placed.map(|(name, _)| name))
}

/// The place of a unit, and its bytes.
fn place(unit: &FileUnit, tree: &ImageTree) -> Option<(UnitName, u64)> {
    let (parents, name) = unit.path.rsplit_once('/').unwrap_or(("", &unit.path));
    let mut directory = 0;
    for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
        let Some(Target::Directory(number)) = tree.find(directory, parent.as_bytes()) else {
            return None;
        };
        directory = number;
    }
    let Some(Target::Leaf { layer, inode }) = tree.find(directory, name.as_bytes()) else {
        return None;
    };
    let layer = tree.layers().get(usize::from(layer))?;
    let record = layer.inode(inode).ok().filter(|record| record.is_file())?;
    let start = u64::from(unit.number) * CHUNK;
    let length = record.size.get().checked_sub(start).filter(|rest| *rest > 0)?.min(CHUNK);
    let name = UnitName { layer: layer.header().layer, inode, number: unit.number };
    Some((name, length))
}
