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

/// Symbolic links that a path may lead through (path_resolution(7)).
const LINKS_MAX: usize = 40;

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
    /// What a symbolic link says.
    link: Option<Vec<u8>>,
    /// A directory that the layer needs but does not list.
    implied: bool,
    /// A character device 0:0, under whatever names.
    whiteout: bool,
}

/// One layer before it is laid over the others.
#[derive(Clone)]
struct Overlay {
    /// The first node of the layer: those before it are of lower layers.
    first: usize,
    own: Paths,
    deleted: Vec<Path>,
    opaque: Vec<Path>,
}

impl Model {
    /// The tree of `layers`, lowest first. Members that no tool could unpack are left out.
    pub fn tree_of(layers: &[&[Member]]) -> Tree {
        let mut model = Self::default();
        layers.iter().for_each(|layer| drop(model.apply(layer)));
        model.tree()
    }

    /// Lays one more layer over the image.
    ///
    /// # Errors
    /// The first member that no tool could unpack; all others are there nevertheless.
    pub fn apply(&mut self, layer: &[Member]) -> Result<(), String> {
        let mut overlay = self.overlay();
        let mut outcome = Ok(());
        for member in layer {
            let collected = self.collect(&mut overlay, member);
            let named = |what| format!("{}: {what}", encode(&member.path));
            outcome = outcome.and(collected.map_err(named));
        }
        for path in &overlay.deleted {
            remove(&mut self.paths, path);
            // Implied by further deletions only, it is not made again.
            let from = overlay.own.range(path.clone()..);
            if from
                .take_while(|(it, _)| it.starts_with(path))
                .all(|(_, id)| self.nodes[*id].implied || self.nodes[*id].whiteout)
            {
                remove(&mut overlay.own, path);
            }
        }
        for path in &overlay.opaque {
            remove_below(&mut self.paths, path);
        }
        for (path, id) in overlay.own {
            if self.nodes[id].whiteout {
                remove(&mut self.paths, &path);
            } else {
                self.cover(path, id);
            }
        }
        outcome
    }

    /// `layer` without the members that could not be unpacked over the image.
    pub fn admissible(&self, layer: Vec<Member>) -> Vec<Member> {
        let (mut model, mut overlay) = (self.clone(), self.overlay());
        let is_admissible = |member: &Member| {
            let before = overlay.clone();
            let accepted = model.collect(&mut overlay, member).is_ok();
            if !accepted {
                overlay = before;
            }
            accepted
        };
        layer.into_iter().filter(is_admissible).collect()
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
        tree.group(links.into_values());
        tree
    }

    /// An empty layer to be laid over the image.
    fn overlay(&self) -> Overlay {
        let first = self.nodes.len();
        Overlay { first, own: Paths::new(), deleted: Vec::new(), opaque: Vec::new() }
    }

    /// Sorts a member of the layer into what it adds and what it deletes.
    fn collect(&mut self, overlay: &mut Overlay, member: &Member) -> Result<(), &'static str> {
        let mut path = normal(&member.path);
        let Some(name) = path.pop() else {
            if member.kind == Kind::Dir {
                // Whoever the archive names: the root of an image belongs to root.
                let id = self.node(&Member { uid: 0, gid: 0, ..member.clone() });
                overlay.own.insert(path, id);
            }
            return Ok(());
        };
        let parent = match self.imply(overlay, &path) {
            // What a directory held goes with the directory that became a file.
            Err(Blocked::File) if name.starts_with(b".wh.") => return Ok(()),
            Err(Blocked::File) => return Err("a parent is a file"),
            Err(Blocked::Loop) => return Err("its path turns in circles"),
            Ok(parent) => parent,
        };
        let path = [&parent[..], std::slice::from_ref(&name)].concat();
        if name == b".wh..wh..opq" {
            // Overlays merge the roots of their layers whatever these say.
            overlay.opaque.extend(Some(parent).filter(|parent| !parent.is_empty()));
        } else if name.starts_with(b".wh..wh.") {
            // Bookkeeping of aufs, not of the image.
        } else if let Some(victim) = name.strip_prefix(b".wh.") {
            if !matches!(victim, b"" | b"." | b"..") {
                overlay.deleted.push([parent, vec![victim.to_vec()]].concat());
            }
        } else if let Kind::Hardlink(target) = &member.kind {
            let target = self.link_target(overlay, target);
            // What stood there goes first, whether or not there is something to link to.
            remove(&mut overlay.own, &path);
            if target.is_err() {
                overlay.deleted.push(path.clone());
            }
            overlay.own.insert(path, target?);
        } else {
            let onto_dir = overlay.own.get(&path).is_some_and(|id| self.nodes[*id].is_dir);
            if member.kind != Kind::Dir || !onto_dir {
                remove(&mut overlay.own, &path);
            }
            let id = self.node(member);
            overlay.own.insert(path, id);
        }
        Ok(())
    }

    /// The node that a hard link names: of its own layer, or of the layers below.
    fn link_target(&self, overlay: &Overlay, target: &[u8]) -> Result<usize, &'static str> {
        let target = normal(target);
        let (name, parent) = target.split_last().ok_or("its target is the root")?;
        let Steps { found, missing } = self
            .follow(&overlay.own, overlay.first, parent)
            .map_err(|_| "a parent of its target is no directory")?;
        let path = [found, missing, vec![name.clone()]].concat();
        let id = match overlay.own.get(&path).copied() {
            Some(id) => id,
            None if overlay.hides(&path, &self.nodes) => return Err("its target was deleted"),
            None => self.find(&self.paths, 0, &path).ok_or("its target is not there")?,
        };
        if self.nodes[id].is_dir { Err("its target is a directory") } else { Ok(id) }
    }

    /// What is at `path` among `paths`, where symbolic links on the way are followed.
    fn find(&self, paths: &Paths, first: usize, path: &[Vec<u8>]) -> Option<usize> {
        let (name, parent) = path.split_last()?;
        let parent =
            self.follow(paths, first, parent).ok().filter(|steps| steps.missing.is_empty())?;
        paths.get(&[parent.found, vec![name.clone()]].concat()).copied()
    }

    /// Makes sure that every directory above a member exists in its layer; where it is.
    fn imply(&mut self, overlay: &mut Overlay, parent: &[Vec<u8>]) -> Result<Path, Blocked> {
        let Steps { found: mut path, missing } =
            self.follow(&overlay.own, overlay.first, parent)?;
        for name in missing {
            path.push(name);
            let fields = implied_fields();
            self.nodes.push(Node {
                fields,
                is_dir: true,
                link: None,
                implied: true,
                whiteout: false,
            });
            overlay.own.insert(path.clone(), self.nodes.len() - 1);
        }
        Ok(path)
    }

    /// Walks from the root along `names` as far as `paths` go. A link that is a node before `first`
    /// lies in a lower layer, which is not looked into.
    fn follow(&self, paths: &Paths, first: usize, names: &[Vec<u8>]) -> Result<Steps, Blocked> {
        let mut left: Vec<Vec<u8>> = names.iter().rev().cloned().collect();
        let (mut here, mut missing, mut links) = (Path::new(), Path::new(), 0);
        while let Some(name) = left.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if missing.pop().is_none() {
                        here.pop();
                    }
                    continue;
                }
                _ if !missing.is_empty() => {
                    missing.push(name);
                    continue;
                }
                _ => here.push(name),
            }
            let Some(&id) = paths.get(&here) else {
                missing.extend(here.pop());
                continue;
            };
            let Some(target) = self.nodes[id].link.as_ref().filter(|_| id >= first) else {
                if self.nodes[id].is_dir {
                    continue;
                }
                return Err(Blocked::File);
            };
            here.pop();
            links += 1;
            if links > LINKS_MAX {
                return Err(Blocked::Loop);
            }
            if target.starts_with(b"/") {
                here.clear();
            }
            left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(Steps { found: here, missing })
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
                    let fields = &mut self.nodes[lower].fields;
                    fields.retain(|name, _| name.starts_with("xattr:"));
                    fields.values_mut().for_each(|value| *value = None);
                    fields.extend(implied_fields());
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
        let link = match &member.kind {
            Kind::Symlink(target) => Some(target.clone()),
            _ => None,
        };
        let whiteout = member.kind == Kind::Char(0, 0);
        self.nodes.push(Node { fields: fields(member), is_dir, link, implied: false, whiteout });
        self.nodes.len() - 1
    }
}

/// How far a path leads: directories that are there, and names behind the last of them.
struct Steps {
    found: Path,
    missing: Path,
}

/// Why a path leads nowhere.
enum Blocked {
    /// Through something that is neither a directory nor a link to one.
    File,
    /// Through too many links.
    Loop,
}

impl Overlay {
    /// Whether the layer, so far, has deleted what lower layers have at `path`.
    fn hides(&self, path: &[Vec<u8>], nodes: &[Node]) -> bool {
        for depth in 1..=path.len() {
            let (above, here) = (path[..depth - 1].to_vec(), path[..depth].to_vec());
            if self.opaque.contains(&above) || self.deleted.contains(&here) {
                return true;
            }
            if !self.own.get(&here).is_some_and(|id| nodes[*id].is_dir) {
                return false;
            }
        }
        false
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
        // An image must not be able to steer the overlayfs that it is laid into, and Linux keeps
        // attributes of users for files and directories.
        let for_users = matches!(member.kind, Kind::File(_) | Kind::Dir);
        if !name.starts_with(b"trusted.overlay.") && (for_users || !name.starts_with(b"user.")) {
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
    fn links_of_a_layer_are_followed_by_what_it_puts_below_them() {
        let layer = [Member::symlink("l", "/d/../e"), Member::file("l/x", "")];
        assert_eq!(paths(&[&layer]), ["e", "e/x", "l"]);
        let circle = [Member::symlink("l", "l"), Member::file("l/x", ""), Member::file("y", "")];
        assert!(Model::default().apply(&circle).unwrap_err().starts_with("l/x: "));
        assert_eq!(
            Model::default().admissible(circle.to_vec()),
            [&circle[0..1], &circle[2..]].concat()
        );
    }

    #[test]
    fn a_hard_link_finds_its_target_through_links_below_and_not_what_was_deleted() {
        let lower = [Member::file("d/f", "1"), Member::symlink("s", "d")];
        let link = Member::hardlink("h", "s/f");
        assert_eq!(paths(&[&lower, std::slice::from_ref(&link)]), ["d", "d/f", "h", "s"]);
        let mut model = Model::default();
        model.apply(&lower).unwrap();
        let deleted = [Member::whiteout("d", "f"), Member::hardlink("h", "d/f")];
        assert!(model.clone().apply(&deleted).unwrap_err().ends_with("was deleted"));
        assert!(model.apply(&[Member::hardlink("h", "d")]).is_err());
    }

    #[test]
    fn paths_never_leave_the_root() {
        let layer = [Member::file("../../x", ""), Member::file("/a/../../b//c/./d", "")];
        assert_eq!(paths(&[&layer]), ["b", "b/c", "b/c/d", "x"]);
    }
}
