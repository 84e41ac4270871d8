//! Small blobs by digest: index trees, span tables, manifests and configs.
//!
//! `<cache>/blobs/ab/ab12…`, and `<cache>/blobs/tmp/` for those on their way. They are read whole
//! and hashed every time, so a damaged one is a miss. Unlike file contents they stay until an
//! image is forgotten: without them a mount needs the network.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::digest::{Digest, Verified};
use crate::disk::{Access, Disk, Draft, LocalDisk, is_damage, is_regular, open_regular};

/// Blobs above this size are damaged: the largest index tree has 1 GiB.
const LARGEST: u64 = 1 << 30;

/// A blob in its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// The name that it has.
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was kept.
    pub modified: SystemTime,
}

/// A directory of blobs.
pub struct Blobs {
    disk: Arc<dyn Disk>,
    root: PathBuf,
}

impl Blobs {
    /// The blobs in `root`, which is made where it is missing.
    ///
    /// # Errors
    /// Those of making directories.
    pub fn open(root: &Path) -> io::Result<Self> {
        Self::open_on(Arc::new(LocalDisk), root)
    }

    /// As [`Self::open`], with the steps of `disk`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(disk: Arc<dyn Disk>, root: &Path) -> io::Result<Self> {
        let blobs = Self { disk, root: root.to_owned() };
        let temporary = blobs.temporary();
        blobs.disk.make_dir(&temporary)?;
        for leftover in std::fs::read_dir(&temporary)? {
            blobs.disk.remove(&leftover?.path())?;
        }
        Ok(blobs)
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(&hex[..2]).join(hex)
    }

    /// Whether the blob is here, damaged or not.
    pub fn has(&self, digest: &Digest) -> bool {
        is_regular(&self.path(digest))
    }

    /// The size of the blob in bytes, if it is here, damaged or not.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let file = std::fs::symlink_metadata(self.path(digest)).ok()?;
        file.is_file().then_some(file.len())
    }

    /// The blob, if it is here and undamaged.
    pub fn get(&self, digest: &Digest) -> Option<Verified> {
        let path = self.path(digest);
        let blob = read(&path).and_then(|bytes| {
            Verified::check(bytes, digest)
                .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidData, wrong))
        });
        match blob {
            Ok(blob) => Some(blob),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if !is_damage(&error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a blob");
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "damaged blob removed");
                // Where it cannot be removed it stays a miss.
                let _ = self.disk.remove(&path);
                None
            }
        }
    }

    /// The blobs that are here, damaged or not, with their sizes in bytes and times.
    ///
    /// # Errors
    /// Those of reading directories.
    pub fn list(&self) -> io::Result<Vec<Listed>> {
        let mut found = Vec::new();
        for directory in std::fs::read_dir(&self.root)? {
            let directory = directory?.path();
            if directory == self.temporary() || !directory.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(directory)? {
                let entry = entry?;
                let name = entry.file_name().into_string().unwrap_or_default();
                // What vanishes meanwhile is not here.
                let Ok(metadata) = entry.metadata() else { continue };
                if let Ok(digest) = Digest::from_hex(&name) {
                    found.push(Listed {
                        digest,
                        bytes: metadata.len(),
                        modified: metadata.modified()?,
                    });
                }
            }
        }
        Ok(found)
    }

    /// The first eight bytes of a blob: its kind, where it is an index file.
    pub fn magic(&self, digest: &Digest) -> [u8; 8] {
        let mut magic = [0; 8];
        let read = open_regular(&self.path(digest), Access::Read)
            .and_then(|mut file| file.read_exact(&mut magic));
        if read.is_ok() { magic } else { [0; 8] }
    }

    /// Removes a blob.
    ///
    /// # Errors
    /// Those of removing a file.
    pub fn remove(&self, digest: &Digest) -> io::Result<()> {
        self.disk.remove(&self.path(digest))
    }

    /// Keeps a blob, on stable storage when this returns: an image that was mounted once shall
    /// mount again after a power cut.
    ///
    /// # Errors
    /// Those of writing; nothing of the blob stays.
    pub fn put(&self, blob: &Verified) -> io::Result<()> {
        if self.has(blob.digest()) {
            return Ok(());
        }
        let path = self.path(blob.digest());
        let directory = path.parent().unwrap_or(&self.root);
        self.disk.make_dir(directory)?;
        let mut draft = Draft::new(&self.disk, &self.temporary())?;
        draft.append(blob.bytes())?;
        draft.sync()?;
        if path.is_dir() {
            self.disk.remove(&path)?;
        }
        draft.place(&path)?;
        // Names are on stable storage with their directories only.
        for directory in [directory, &self.root] {
            self.disk.sync(&std::fs::File::open(directory)?)?;
        }
        Ok(())
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

fn read(path: &Path) -> io::Result<Bytes> {
    let file = open_regular(path, Access::Read)?;
    let size = file.metadata()?.len();
    if size > LARGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(size).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

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
