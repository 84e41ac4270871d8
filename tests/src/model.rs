//! What a stack of layers unpacks to, by the rules of the OCI image specification and nothing
//! else: no archive, no index, no file system. The mount is compared with it.
//!
//! Where tools disagree, and the specification is silent, the tree has open fields: the
//! metadata of directories that no layer lists, above all.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use undermount_fs::digest::Digest;

use crate::archive::{Kind, Member};
use crate::tree::{Fields, Tree, encode};

/// A path as its names; empty for the root.
type Path = Vec<Vec<u8>>;
/// Paths to nodes; hard links share one.
type Paths = BTreeMap<Path, usize>;

/// The merged image after some layers.
#[derive(Debug, Clone, Default)]
pub struct Model {
    nodes: Vec<Node>,
    paths: Paths,
}

#[derive(Debug, Clone)]
struct Node {
    fields: Fields,
    is_dir: bool,
    /// A directory that the layer needs but does not list.
    implied: bool,
}

/// One layer before it is laid over the others.
#[derive(Default)]
struct Overlay {
    own: Paths,
    deleted: Vec<Path>,
    opaque: Vec<Path>,
}

impl Model {
    /// The tree of `layers`, lowest first.
    pub fn tree_of(layers: &[&[Member]]) -> Tree {
        let mut model = Self::default();
        layers.iter().for_each(|layer| model.apply(layer));
        model.tree()
    }

    /// Lays one more layer over the image.
    pub fn apply(&mut self, layer: &[Member]) {
        let mut overlay = Overlay::default();
        for member in layer {
            self.collect(&mut overlay, member);
        }
        for path in &overlay.deleted {
            remove(&mut self.paths, path);
        }
        for path in &overlay.opaque {
            remove_below(&mut self.paths, path);
        }
        for (path, id) in overlay.own {
            self.cover(path, id);
        }
    }

    /// The tree as a mount should show it.
    pub fn tree(&self) -> Tree {
        let mut links: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut tree = Tree::default();
        for (path, id) in &self.paths {
            let node = &self.nodes[*id];
            let name = text(path);
            if !node.is_dir {
                links.entry(*id).or_default().push(name.clone());
            }
            tree.entries.insert(name, Some(node.fields.clone()));
        }
        tree.entries.entry(".".to_owned()).or_insert_with(|| Some(implied_fields()));
        for mut group in links.into_values().filter(|group| group.len() > 1) {
            group.sort();
            for path in &group {
                if let Some(Some(fields)) = tree.entries.get_mut(path) {
                    fields.insert("nlink_group".to_owned(), group.first().cloned());
                }
            }
        }
        tree
    }

    /// Sorts a member of the layer into what it adds and what it deletes.
    fn collect(&mut self, overlay: &mut Overlay, member: &Member) {
        let path = normal(&member.path);
        let Some((name, parent)) = path.split_last() else {
            if member.kind == Kind::Dir {
                // Whoever the archive names: the root of an image belongs to root.
                let id = self.node(&Member { uid: 0, gid: 0, ..member.clone() });
                overlay.own.insert(path, id);
            }
            return;
        };
        let below_a_file = || {
            let mut steps =
                (1..=parent.len()).filter_map(|depth| overlay.own.get(&parent[..depth]));
            steps.any(|id| !self.nodes[*id].is_dir)
        };
        if name.starts_with(b".wh.") && below_a_file() {
            // What a directory held goes with the directory that became a file.
            return;
        }
        self.imply(&mut overlay.own, parent);
        if name == b".wh..wh..opq" {
            overlay.opaque.push(parent.to_vec());
        } else if name.starts_with(b".wh..wh.") {
            // Bookkeeping of aufs, not of the image.
        } else if let Some(victim) = name.strip_prefix(b".wh.") {
            if !matches!(victim, b"" | b"." | b"..") {
                overlay.deleted.push([parent, &[victim.to_vec()]].concat());
            }
        } else if member.kind == Kind::Char(0, 0) {
            overlay.deleted.push(path);
        } else if let Kind::Hardlink(target) = &member.kind {
            let target = normal(target);
            let lower = || self.paths.get(&target);
            if let Some(id) = overlay.own.get(&target).or_else(lower).copied() {
                remove(&mut overlay.own, &path);
                overlay.own.insert(path, id);
            }
        } else {
            let onto_dir = overlay.own.get(&path).is_some_and(|id| self.nodes[*id].is_dir);
            if member.kind != Kind::Dir || !onto_dir {
                remove(&mut overlay.own, &path);
            }
            let id = self.node(member);
            overlay.own.insert(path, id);
        }
    }

    /// Makes sure that every directory above a member exists in its layer.
    fn imply(&mut self, own: &mut Paths, parent: &[Vec<u8>]) {
        for depth in 1..=parent.len() {
            let path = parent[..depth].to_vec();
            if own.get(&path).is_some_and(|id| self.nodes[*id].is_dir) {
                continue;
            }
            remove(own, &path);
            self.nodes.push(Node { fields: implied_fields(), is_dir: true, implied: true });
            own.insert(path, self.nodes.len() - 1);
        }
    }

    /// Lays one entry of a layer over what is below.
    fn cover(&mut self, path: Path, id: usize) {
        let below = self.paths.get(&path).copied();
        let node = &self.nodes[id];
        match below {
            Some(lower) if self.nodes[lower].is_dir && node.is_dir => {
                if !node.implied {
                    self.paths.insert(path, id);
                } else {
                    // Some tools keep what the lower layer says, some start anew.
                    self.nodes[lower].fields = implied_fields();
                }
            }
            _ => {
                remove(&mut self.paths, &path);
                self.paths.insert(path, id);
            }
        }
    }

    fn node(&mut self, member: &Member) -> usize {
        let is_dir = member.kind == Kind::Dir;
        self.nodes.push(Node { fields: fields(member), is_dir, implied: false });
        self.nodes.len() - 1
    }
}

/// Relative, without empty and `.` names, never above the root.
fn normal(path: &[u8]) -> Path {
    let mut names = Path::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ => names.push(name.to_vec()),
        }
    }
    names
}

fn remove(paths: &mut Paths, path: &Path) {
    remove_below(paths, path);
    paths.remove(path);
}

fn remove_below(paths: &mut Paths, path: &Path) {
    let below: Vec<Path> = paths
        .range(path.clone()..)
        .map(|(other, _)| other)
        .skip_while(|other| *other == path)
        .take_while(|other| other.starts_with(path))
        .cloned()
        .collect();
    for path in below {
        paths.remove(&path);
    }
}

fn text(path: &Path) -> String {
    if path.is_empty() { ".".to_owned() } else { encode(&path.join(&b'/')) }
}

/// A directory of which only the existence is agreed upon.
fn implied_fields() -> Fields {
    let open = ["mode", "uid", "gid", "mtime_ns"].map(|field| (field.to_owned(), None));
    open.into_iter().chain([("type".to_owned(), Some("dir".to_owned()))]).collect()
}

fn fields(member: &Member) -> Fields {
    let mut fields = Fields::new();
    let mut set = |field: &str, value: String| fields.insert(field.to_owned(), Some(value));
    set("mode", format!("{:04o}", member.mode & 0o7777));
    set("uid", member.uid.to_string());
    set("gid", member.gid.to_string());
    let mtime = i128::from(member.mtime) * 1_000_000_000 + i128::from(member.nanos);
    set("mtime_ns", mtime.to_string());
    let kind = match &member.kind {
        Kind::File(content) => {
            set("size", content.len().to_string());
            set("sha256", Digest::of(content).hex());
            "file"
        }
        Kind::Dir => "dir",
        Kind::Symlink(target) => {
            set("linktarget", encode(target));
            "symlink"
        }
        Kind::Char(major, minor) => {
            set("rdev", format!("{major}:{minor}"));
            "chr"
        }
        Kind::Block(major, minor) => {
            set("rdev", format!("{major}:{minor}"));
            "blk"
        }
        Kind::Fifo => "fifo",
        Kind::Hardlink(_) => unreachable!("a hard link has no node of its own"),
    };
    set("type", kind.to_owned());
    // A PAX record without a value takes one back.
    for (name, value) in member.xattrs.iter().filter(|(_, value)| !value.is_empty()) {
        // An image must not be able to steer the overlayfs that it is laid into.
        if !name.starts_with(b"trusted.overlay.") {
            set(&format!("xattr:{}", encode(name)), STANDARD.encode(value));
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(layers: &[&[Member]]) -> Vec<String> {
        let tree = Model::tree_of(layers);
        tree.entries.into_keys().filter(|path| path != ".").collect()
    }

    #[test]
    fn whiteouts_delete_below_and_never_in_their_own_layer() {
        let lower = [Member::dir("d"), Member::file("d/old", ""), Member::file("x", "")];
        let upper = [
            Member::dir("d"),
            Member::file("d/new", ""),
            Member::whiteout("", "d"),
            Member::whiteout("", "x"),
        ];
        assert_eq!(paths(&[&lower, &upper]), ["d", "d/new"]);
    }

    #[test]
    fn opaque_directories_hide_what_is_below_them() {
        let lower = [Member::file("d/a", ""), Member::file("d/s/b", ""), Member::file("e", "")];
        let upper = [Member::file("d/c", ""), Member::opaque("d")];
        assert_eq!(paths(&[&lower, &upper]), ["d", "d/c", "e"]);
    }

    #[test]
    fn a_directory_replaces_a_link_and_a_file_replaces_a_directory() {
        let lower = [Member::symlink("l", "d"), Member::file("d/a", "")];
        let upper = [Member::file("l/x", ""), Member::file("d", "")];
        assert_eq!(paths(&[&lower, &upper]), ["d", "l", "l/x"]);
    }

    #[test]
    fn hard_links_share_metadata_and_form_a_group() {
        let layer = [Member::file("b", "1").mode(0o600), Member::hardlink("./a", "/b")];
        let tree = Model::tree_of(&[&layer]);
        assert_eq!(tree.field("a", "mode"), Some("0600"));
        assert_eq!(tree.field("b", "nlink_group"), Some("a"));
        let replaced = Model::tree_of(&[&layer, &[Member::file("a", "2")]]);
        assert_eq!(replaced.field("b", "nlink_group"), None);
    }

    #[test]
    fn paths_never_leave_the_root() {
        let layer = [Member::file("../../x", ""), Member::file("/a/../../b//c/./d", "")];
        assert_eq!(paths(&[&layer]), ["b", "b/c", "b/c/d", "x"]);
    }
}
