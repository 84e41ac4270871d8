//! One layer as a lower directory of overlayfs.
//!
//! overlayfs merges the layers itself and must be told what a layer hides: a whiteout, which the
//! layer has as such, or an opaque directory, for which overlayfs asks with GETXATTR
//! (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). The kernel never
//! caches the answers to GETXATTR, and these requests cost more than all others together, so a
//! mount that need not answer them is much faster. [`Opaque`] says how a layer does that:
//!
//! ```text
//! lower layers     etc/{a,b,sub/x}
//! this layer       etc/{b,sub/y}, etc is opaque
//! shown, Markers   etc/{b,sub/y}, trusted.overlay.opaque=y on etc      whatever lies below
//! shown, Whiteouts etc/{b,sub/y}, whiteouts for etc/a and etc/sub/x    right for these layers only
//! ```
//!
//! The metadata is what an ordinary pull by podman makes of a layer: its root is owned by root with
//! mode 0555, whatever the archive says, and a directory that the archive does not list is owned by
//! root with mode 0755.
//!
//! ```text
//! add_layer -> shown -> hide_layer: name gone -> kernel forgets -> drop_layer -> give_up
//!                          `- wanted again: unhide_layer
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError};

use super::contents::{Directories, Shown, Slot, directory_attr, failed, whiteout_attr};
use super::{Attr, NodeId, SlotName, SlotTable, View, ViewError};
use crate::digest::Digest;
use crate::fill::Layer;
use crate::index::{
    DirectoryEntry, EntryKind, IndexError, InodeFlags, InodeRecord, LayerTree, Xattr,
};
use crate::tree::{ImageTree, Target};

/// The mode of every layer's root in podman's storage.
const ROOT_MODE: u32 = libc::S_IFDIR | 0o555;

/// The extended attributes by which overlayfs knows an opaque directory. The second is for mounts
/// with `userxattr`, as in user namespaces.
const MARKERS: [Xattr<'static>; 2] =
    [(b"trusted.overlay.opaque", b"y"), (b"user.overlay.opaque", b"y")];

/// How a layer says that a directory hides what lies below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// By extended attributes: whatever lies below is hidden.
    Markers,
    /// By whiteouts for everything that lies below.
    Whiteouts,
}

/// The names in lower layers that a directory hides by whiteouts, by its inode; sorted.
type Hidden = BTreeMap<u32, Vec<Box<[u8]>>>;

/// A layer as overlayfs is to see it.
pub struct LayerView {
    layer: Arc<Layer>,
    opaque: Opaque,
    hidden: Hidden,
}

impl LayerView {
    /// Shows `layer` with markers, which are right above any other layers.
    pub fn with_markers(layer: Arc<Layer>) -> Self {
        Self { layer, opaque: Opaque::Markers, hidden: BTreeMap::new() }
    }

    /// Shows `layer` with whiteouts, which are right above the layers of which `below` is made, if
    /// any.
    ///
    /// # Errors
    /// [`IndexError`] where the index of the layer is damaged.
    pub fn with_whiteouts(
        layer: Arc<Layer>,
        below: Option<&ImageTree>,
    ) -> Result<Self, IndexError> {
        let hidden = match below {
            Some(below) => hidden_names(&layer.tree, below)?,
            None => BTreeMap::new(),
        };
        Ok(Self { layer, opaque: Opaque::Whiteouts, hidden })
    }

    /// Whether the view has extended attributes, be it markers or those of the archive.
    pub fn needs_xattrs(&self) -> bool {
        let marked = self.opaque == Opaque::Markers && has_opaque(&self.layer.tree);
        marked || self.layer.tree.has_xattrs()
    }

    /// The name below `/layers`: the digest of what is shown, so that views which show the same
    /// are one.
    pub fn name(&self) -> Digest {
        let mut shown = self.layer.tree_digest().as_bytes().to_vec();
        shown.push(self.opaque as u8);
        for (directory, names) in &self.hidden {
            shown.extend(directory.to_le_bytes());
            shown.extend((names.len() as u64).to_le_bytes());
            for name in names {
                shown.extend((name.len() as u64).to_le_bytes());
                shown.extend_from_slice(name);
            }
        }
        Digest::of(&shown)
    }
}

/// Whether the layer has a directory that hides what lies below it.
pub fn has_opaque(layer: &LayerTree) -> bool {
    layer.inodes().iter().any(is_opaque)
}

/// Whether the layer has a hard link to a file of a lower layer. overlayfs has no way to show it,
/// so such a layer has no view of its own (its links would be whiteouts).
pub fn has_lower_links(layer: &LayerTree) -> bool {
    layer.inodes().iter().any(|inode| inode.mode.get() & libc::S_IFMT == 0)
}

fn is_opaque(inode: &InodeRecord) -> bool {
    inode.is_directory() && inode.flags.get() & InodeFlags::OPAQUE != 0
}

/// The names of `below` that each directory of `layer` hides because it, or one above it, is
/// opaque.
fn hidden_names(layer: &LayerTree, below: &ImageTree) -> Result<Hidden, IndexError> {
    let mut hidden = Hidden::new();
    // Directories that both have: the inode in `layer`, the number in `below`, whether a directory
    // above hides it.
    let mut open = vec![(0, 0, false)];
    let mut steps = layer.inodes().len();
    while let Some((inode, lower, inherited)) = open.pop() {
        let directory = layer.inode(inode)?;
        let opaque = inherited || is_opaque(directory);
        if opaque {
            let names = only_below(layer, directory, below, lower)?;
            if !names.is_empty() {
                hidden.insert(inode, names);
            }
        }
        for (name, child) in directories_of(layer, directory)? {
            if let Some(Target::Directory(number)) = below.find(lower, name) {
                let what = "a directory is reached twice";
                steps = steps.checked_sub(1).ok_or(IndexError::Damaged { kind: "tree", what })?;
                open.push((child, number, opaque));
            }
        }
    }
    Ok(hidden)
}

/// The names that directory `lower` of `below` has and `directory` does not have.
fn only_below(
    layer: &LayerTree,
    directory: &InodeRecord,
    below: &ImageTree,
    lower: u32,
) -> Result<Vec<Box<[u8]>>, IndexError> {
    let mut names = Vec::new();
    for (name, _) in below.list(lower, 0) {
        if layer.find(directory, name)?.is_none() {
            names.push(name.into());
        }
    }
    Ok(names)
}

/// The subdirectories of a directory.
fn directories_of<'a>(
    layer: &'a LayerTree,
    directory: &InodeRecord,
) -> Result<Vec<(&'a [u8], u32)>, IndexError> {
    let mut found = Vec::new();
    for entry in layer.entries(directory)? {
        let number = entry.inode.get();
        if layer.kind(entry)? == EntryKind::Inode && layer.inode(number)?.is_directory() {
            found.push((layer.name(entry)?, number));
        }
    }
    Ok(found)
}

impl View {
    /// Shows a layer view below `/layers`, and returns its name. A view that is shown already
    /// stays, and a layer whose files are shown already is shared.
    ///
    /// # Errors
    /// Those of [`SlotTable::slot`].
    pub fn add_layer(&self, view: LayerView, slots: &mut SlotTable) -> io::Result<Digest> {
        let name = view.name();
        let files = slots.slot(SlotName::layer(&view.layer))?;
        let slot = slots.slot(SlotName::View { name })?;
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        if !contents.is_taken(slot) {
            let LayerView { layer, opaque, hidden } = view;
            let shown = contents.share_layer(files, Shown { layer, extra_links: Arc::default() });
            let tree = ShownLayer { files, shown, opaque, hidden };
            contents.put(slot, Slot::Tree(Arc::new(tree)));
        }
        contents.layers.insert(name.hex(), slot);
        Ok(name)
    }

    /// Gives a hidden layer view its name again, if it is still there.
    pub fn unhide_layer(&self, name: &Digest, slots: &SlotTable) {
        let Some(slot) = slots.known(&SlotName::View { name: *name }) else { return };
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        if contents.is_taken(slot) {
            contents.layers.insert(name.hex(), slot);
        }
    }

    /// Takes away the name of a layer view. Mounts that use the view go on as before.
    pub fn hide_layer(&self, name: &Digest) {
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        contents.layers.remove(&name.hex());
    }

    /// Drops the hidden view `name` of the layer whose tree is `tree`, if the kernel knows none of
    /// its nodes any more, and the files of the layer with it unless something else shows them.
    /// Returns which names can lose their slots, for [`SlotTable::give_up`]: none where the view
    /// stays.
    pub fn drop_layer(&self, name: &Digest, tree: &Digest, slots: &SlotTable) -> Vec<SlotName> {
        let (view, layer) = (SlotName::View { name: *name }, SlotName::Layer { tree: *tree });
        let (Some(slot), Some(files)) = (slots.known(&view), slots.known(&layer)) else {
            return Vec::new();
        };
        let mut contents = self.contents.write().unwrap_or_else(PoisonError::into_inner);
        if contents.layers.contains_key(&name.hex()) || !self.is_forgotten(slot) {
            return Vec::new();
        }
        let is_shared = contents.users(files) > 1;
        if !is_shared && !self.is_forgotten(files) {
            return Vec::new();
        }
        contents.put(slot, Slot::Empty);
        if is_shared {
            return vec![view];
        }
        contents.put(files, Slot::Empty);
        vec![view, layer]
    }
}

/// A layer view in its slots. The number of a directory is that of its inode.
struct ShownLayer {
    /// The slot of its files.
    files: u32,
    shown: Shown,
    opaque: Opaque,
    hidden: Hidden,
}

impl ShownLayer {
    fn tree(&self) -> &LayerTree {
        &self.shown.layer.tree
    }

    /// The inode of a directory.
    fn inode(&self, node: NodeId) -> Result<(u32, &InodeRecord), ViewError> {
        let number = node.number().ok_or(ViewError::Stale(node))?;
        let inode = self.tree().inode(number).map_err(failed(&self.shown.layer))?;
        if inode.is_directory() { Ok((number, inode)) } else { Err(ViewError::Stale(node)) }
    }

    fn hidden(&self, directory: u32) -> &[Box<[u8]>] {
        self.hidden.get(&directory).map_or(&[], Vec::as_slice)
    }

    /// The attributes of what an entry of `directory` stands for.
    fn entry_attr(&self, directory: NodeId, entry: &DirectoryEntry) -> Result<Attr, ViewError> {
        let damaged = failed(&self.shown.layer);
        if self.tree().kind(entry).map_err(&damaged)? != EntryKind::Inode {
            return Ok(whiteout_attr());
        }
        let number = entry.inode.get();
        if self.tree().inode(number).map_err(&damaged)?.is_directory() {
            self.attr(NodeId::new(directory.slot(), number))
        } else {
            self.shown.attr(self.files, number)
        }
    }
}

impl Directories for ShownLayer {
    fn attr(&self, directory: NodeId) -> Result<Attr, ViewError> {
        let (number, inode) = self.inode(directory)?;
        let attr = directory_attr(directory, inode, inode.nlink.get());
        match number {
            0 => Ok(Attr { mode: ROOT_MODE, uid: 0, gid: 0, ..attr }),
            _ => Ok(attr),
        }
    }

    fn find(&self, directory: NodeId, name: &[u8]) -> Result<Option<Attr>, ViewError> {
        let (number, inode) = self.inode(directory)?;
        let entry = self.tree().find(inode, name).map_err(failed(&self.shown.layer))?;
        if let Some(entry) = entry {
            return self.entry_attr(directory, entry).map(Some);
        }
        let hidden = self.hidden(number).binary_search_by(|hidden| (**hidden).cmp(name));
        Ok(hidden.is_ok().then(whiteout_attr))
    }

    fn list(
        &self,
        directory: NodeId,
        skip: usize,
        emit: &mut dyn FnMut(&[u8], Attr) -> bool,
    ) -> Result<(), ViewError> {
        let damaged = failed(&self.shown.layer);
        let (number, inode) = self.inode(directory)?;
        let entries = self.tree().entries(inode).map_err(&damaged)?;
        for entry in entries.iter().skip(skip) {
            let name = self.tree().name(entry).map_err(&damaged)?;
            if emit(name, self.entry_attr(directory, entry)?) {
                return Ok(());
            }
        }
        for name in self.hidden(number).iter().skip(skip.saturating_sub(entries.len())) {
            if emit(name, whiteout_attr()) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn parent(&self, directory: NodeId) -> Result<NodeId, ViewError> {
        match self.inode(directory)? {
            (0, _) => Ok(NodeId::LAYERS),
            (_, inode) => Ok(NodeId::new(directory.slot(), inode.parent.get())),
        }
    }

    fn xattrs(&self, directory: NodeId) -> Result<Vec<Xattr<'_>>, ViewError> {
        let (_, inode) = self.inode(directory)?;
        let mut xattrs = self.tree().xattrs(inode).map_err(failed(&self.shown.layer))?;
        if self.opaque == Opaque::Markers && is_opaque(inode) {
            xattrs.extend(MARKERS);
        }
        Ok(xattrs)
    }

    fn layers(&self) -> Vec<u32> {
        vec![self.files]
    }
}
