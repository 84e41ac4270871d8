//! Where an owner keeps what lives no longer than its mounts.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use undermount_fs::digest::Digest;

const ROOT: &str = "/run/undermount";

/// The runtime directory of the owner of a cache, `/run/undermount/<12 hex digits of the digest
/// of the cache's path>`, which only root can enter:
///
/// ```text
/// control.sock      see the parent module
/// content/plain     the mount for images without extended attributes
/// content/xattr     and for those with them
/// mounts.json       what is mounted where
/// slots             nodeids in use (undermount_fs::view::SlotTable)
/// layers            layers that podman was shown, and how
/// store-nodes       nodeids of the layer store (podman::NodeTable)
/// starts            images whose start was noticed (agent::starts)
/// log               what the owner says when nobody watches it
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    root: PathBuf,
}

impl Runtime {
    /// The runtime directory for the cache at `cache`, an absolute path without symbolic links.
    pub fn of(cache: &Path) -> Self {
        let digest = Digest::of(cache.as_os_str().as_encoded_bytes());
        Self { root: Path::new(ROOT).join(&digest.hex()[..12]) }
    }

    /// The one at `root`.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory that holds those of all owners.
    pub fn parent() -> &'static Path {
        Path::new(ROOT)
    }

    /// Makes the directory, where it is missing.
    ///
    /// # Errors
    /// Those of making directories.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The mount for images without extended attributes, or for those with them.
    pub fn content(&self, xattrs: bool) -> PathBuf {
        self.root.join("content").join(if xattrs { "xattr" } else { "plain" })
    }

    /// The list of what is mounted.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts.json")
    }

    /// Such a list that could not be read.
    pub fn damaged_mounts(&self) -> PathBuf {
        self.root.join("mounts.json.damaged")
    }

    /// The slot table.
    pub fn slots(&self) -> PathBuf {
        self.root.join("slots")
    }

    /// The layers that podman was shown.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The node table of the layer store.
    pub fn store_nodes(&self) -> PathBuf {
        self.root.join("store-nodes")
    }

    /// The images whose start was noticed.
    pub fn starts(&self) -> PathBuf {
        self.root.join("starts")
    }

    /// The log file.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }
}
