//! Small blobs by digest: index trees, span tables, manifests and configs.
//!
//! `<cache>/blobs/ab/ab12…`. They are read whole and hashed every time, so a damaged one is a
//! miss. Unlike file contents they stay until an image is forgotten: without them a mount needs
//! the network.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::digest::{Digest, Verified};

/// A directory of blobs.
pub struct Blobs {
    root: PathBuf,
}

impl Blobs {
    /// The blobs in `root`, which is made where it is missing.
    ///
    /// # Errors
    /// Those of making directories.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: root.to_owned() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(&hex[..2]).join(hex)
    }

    /// Whether the blob is here, damaged or not.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// The blob, if it is here and undamaged.
    pub fn get(&self, digest: &Digest) -> Option<Verified> {
        let path = self.path(digest);
        let bytes = fs::read(&path).ok()?;
        match Verified::check(bytes.into(), digest) {
            Ok(blob) => Some(blob),
            Err(wrong) => {
                tracing::warn!(path = %path.display(), %wrong, "damaged blob removed");
                // Where it cannot be removed it stays a miss.
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps a blob, on stable storage when this returns: an image that was mounted once shall
    /// mount again after a power cut.
    ///
    /// # Errors
    /// Those of writing; nothing of the blob stays.
    pub fn put(&self, blob: &Verified) -> io::Result<()> {
        let path = self.path(blob.digest());
        if path.exists() {
            return Ok(());
        }
        let directory = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(directory)?;
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(blob.bytes())?;
        file.as_file().sync_data()?;
        file.persist(&path).map_err(|error| error.error)?;
        // Names are on stable storage with their directories only.
        fs::File::open(directory)?.sync_all()?;
        fs::File::open(&self.root)?.sync_all()
    }

    /// Keeps bytes under the digest that they have.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_bytes(&self, bytes: Bytes) -> io::Result<Digest> {
        let blob = Verified::name(bytes);
        self.put(&blob)?;
        Ok(*blob.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_blob_is_a_miss() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path()).unwrap();
        let digest = blobs.put_bytes(Bytes::from_static(b"manifest")).unwrap();
        assert_eq!(blobs.get(&digest).unwrap().bytes(), &b"manifest"[..]);
        fs::write(blobs.path(&digest), "manifast").unwrap();
        assert!(blobs.get(&digest).is_none());
        assert!(!blobs.path(&digest).exists());
    }
}
