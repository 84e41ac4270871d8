//! A blob on its way in: appended to a temporary file and hashed as it comes, given its name
//! when it is whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::digest::{Algorithm, ContentDigest, ContentHasher};
use super::super::name::Repository;
use super::{Blob, Storage, StorageError, durable};

/// How much is read at a time to hash a file again.
const READ: usize = 256 << 10;

/// The bytes of a blob so far. Dropped without [`Storage::commit`], they are gone.
pub struct Upload {
    path: PathBuf,
    /// Open only while a request appends: there may be many uploads that wait.
    file: Option<File>,
    len: u64,
    hasher: ContentHasher,
}

/// A state of an [`Upload`] to go back to.
pub struct Mark {
    len: u64,
    hasher: ContentHasher,
}

/// Why an upload did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Its bytes are others than were announced.
    #[error("the uploaded bytes hash to {actual}, not to {expected}")]
    WrongDigest {
        /// What was announced.
        expected: ContentDigest,
        /// What came.
        actual: ContentDigest,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Storage {
    /// Begins an upload whose file is called `session`, which no other upload ever was.
    pub fn begin(&self, session: &str) -> Upload {
        let hasher = ContentHasher::new(Algorithm::Sha256);
        Upload { path: self.dirs.temporary().join(session), file: None, len: 0, hasher }
    }

    /// Makes the upload the blob `expected` of `repository`. Nothing of it is seen unless all
    /// its bytes are on disk and hash right.
    ///
    /// # Errors
    /// [`CommitError`]; the upload is gone in either case.
    pub fn commit(
        &self,
        mut upload: Upload,
        repository: &Repository,
        expected: &ContentDigest,
    ) -> Result<Blob, CommitError> {
        upload.open()?;
        let actual = match expected.algorithm() {
            Algorithm::Sha256 => upload.hasher.clone().finish(),
            other => hash_file(&upload.path, other)?,
        };
        if actual != *expected {
            return Err(CommitError::WrongDigest { expected: expected.clone(), actual });
        }
        upload.open()?.sync_data().map_err(StorageError::io("sync", &upload.path))?;
        let path = self.blob_path(expected);
        if let Some(parent) = path.parent() {
            self.dirs.ensure(parent)?;
        }
        let change = self.change(repository);
        self.usage.note(expected);
        durable::rename(&upload.path, &path)?;
        change.link_blob(expected)?;
        Ok(Blob { file: reopen(&path)?, size: upload.len })
    }
}

impl Upload {
    /// How many bytes have come.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Appends `frames`; the file stays open until [`close`](Self::close).
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails; the upload is of no use after that.
    pub fn append(&mut self, frames: &[Bytes]) -> Result<(), StorageError> {
        for frame in frames {
            let written = self.open()?.write_all(frame);
            written.map_err(StorageError::io("write", &self.path))?;
            self.hasher.update(frame);
            self.len += frame.len() as u64;
        }
        Ok(())
    }

    /// Closes the file until more is appended.
    pub fn close(&mut self) {
        self.file = None;
    }

    fn open(&mut self) -> Result<&mut File, StorageError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::options()
                .create(true)
                .append(true)
                .open(&self.path)
                .map_err(StorageError::io("open", &self.path))?,
        };
        Ok(self.file.insert(file))
    }

    /// Remembers the present state.
    pub fn mark(&self) -> Mark {
        Mark { len: self.len, hasher: self.hasher.clone() }
    }

    /// Forgets what came after `mark` was made.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails; the upload is of no use after that.
    pub fn rewind(&mut self, mark: Mark) -> Result<(), StorageError> {
        let shortened = self.open()?.set_len(mark.len);
        shortened.map_err(StorageError::io("shorten", &self.path))?;
        self.len = mark.len;
        self.hasher = mark.hasher;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Mostly it was renamed or never made; what stays is cleared at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

fn reopen(path: &Path) -> Result<File, StorageError> {
    File::open(path).map_err(StorageError::io("open", path))
}

fn hash_file(path: &Path, algorithm: Algorithm) -> Result<ContentDigest, StorageError> {
    let mut hasher = ContentHasher::new(algorithm);
    let mut read = || -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; READ];
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(()),
                n => hasher.update(buffer.get(..n).unwrap_or_default()),
            }
        }
    };
    read().map_err(StorageError::io("read", path))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage() -> (tempfile::TempDir, Storage) {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::open(root.path()).unwrap();
        (root, storage)
    }

    fn repository() -> Repository {
        Repository::parse("a").unwrap()
    }

    fn upload(storage: &Storage, frames: &[&'static [u8]]) -> Upload {
        let mut upload = storage.begin("session");
        let frames: Vec<Bytes> = frames.iter().map(|frame| Bytes::from_static(frame)).collect();
        upload.append(&frames).unwrap();
        upload.close();
        upload
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn bytes_become_a_blob_under_either_algorithm() {
        let (_root, storage) = storage();
        for algorithm in Algorithm::ALL {
            let digest = ContentDigest::of(algorithm, b"a layer");
            let blob = storage
                .commit(upload(&storage, &[b"a ", b"layer"]), &repository(), &digest)
                .unwrap();
            assert_eq!(blob.size, 7);
            assert_eq!(fs::read(storage.blob_path(&digest)).unwrap(), b"a layer");
        }
        assert_eq!(files(storage.dirs.temporary()), 0);
    }

    #[test]
    fn wrong_bytes_never_get_the_name() {
        let (_root, storage) = storage();
        for algorithm in Algorithm::ALL {
            let digest = ContentDigest::of(algorithm, b"a layer");
            let error =
                storage.commit(upload(&storage, &[b"a lay"]), &repository(), &digest).unwrap_err();
            assert!(matches!(error, CommitError::WrongDigest { .. }), "{error}");
            assert!(!storage.blob_path(&digest).exists());
        }
        assert_eq!(files(storage.dirs.temporary()), 0);
    }

    #[test]
    fn a_rewound_upload_forgets_what_came_after_the_mark() {
        let (_root, storage) = storage();
        let mut upload = upload(&storage, &[b"a "]);
        let mark = upload.mark();
        upload.append(&[Bytes::from_static(b"lie")]).unwrap();
        upload.rewind(mark).unwrap();
        upload.append(&[Bytes::from_static(b"layer")]).unwrap();
        let digest = ContentDigest::of(Algorithm::Sha256, b"a layer");
        storage.commit(upload, &repository(), &digest).unwrap();
        assert_eq!(fs::read(storage.blob_path(&digest)).unwrap(), b"a layer");
    }

    #[test]
    fn an_empty_blob_is_a_blob() {
        let (_root, storage) = storage();
        let digest = ContentDigest::of(Algorithm::Sha256, b"");
        assert_eq!(
            storage.commit(storage.begin("session"), &repository(), &digest).unwrap().size,
            0
        );
    }
}
