//! Images in files of this host, to read from: an OCI image layout (image-spec,
//! image-layout.md) in a directory or a tar file, and whatever can be shown as one.
//!
//! ```text
//! index.json          names of images -> manifests; manifests without a name belong to others
//! blobs/sha256/<hex>  manifests, configurations, layers
//! ```
//! A tar file is not unpacked: its members are read where they lie.

pub mod archive;
mod docker;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, unfold};
use serde_json::Value;
use tempfile::TempDir;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use super::location::split_host;
use crate::image::manifest::MAX_MANIFEST;
use crate::image::{Descriptor, Document, ManifestError};
use crate::registry::client::{BlobSource, BlobStream, Fault, RawManifest, Subject};

/// The annotation with the name of an image in `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation in which containerd writes the whole name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What is read of a file at a time.
const CHUNK: u64 = 256 << 10;

/// Files that hold no images, or not this one.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file system failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No layout.
    #[error("{} is not {expected}: {reason}", path.display())]
    Form {
        /// The file or directory.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A manifest or index that cannot be used.
    #[error("{}", path.display())]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: ManifestError,
    },
    /// No image has this name.
    #[error("{} has no image `{name}`; it has {known}", path.display())]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// A name is needed to choose one image.
    #[error("{} has {count} images: name one, as in FORM:PATH:NAME; it has {known}", path.display())]
    WhichImage {
        /// The layout.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// What there is.
        known: String,
    },
    /// A blob that the layout lacks.
    #[error("{} lacks the blob {digest}", path.display())]
    NoBlob {
        /// The layout.
        path: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// A manifest with other bytes.
    #[error("{} is damaged: {source}", path.display())]
    Damaged {
        /// The layout.
        path: PathBuf,
        /// Which bytes.
        source: WrongDigest,
    },
}

/// Some bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// The file.
    pub path: PathBuf,
    /// Where they begin.
    pub start: u64,
    /// How many they are.
    pub length: u64,
}

/// Images in files.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    blobs: Blobs,
    manifests: Vec<Descriptor>,
    /// Files that were made to show something else as a layout.
    _scratch: Option<TempDir>,
}

#[derive(Debug)]
enum Blobs {
    /// In `blobs/sha256` below this directory.
    Directory(PathBuf),
    /// Anywhere.
    Known(HashMap<Digest, Region>),
}

impl Layout {
    /// The layout in the directory `path`.
    ///
    /// # Errors
    /// [`LayoutError`] where there is none.
    pub fn directory(path: &Path) -> Result<Self, LayoutError> {
        let index = path.join("index.json");
        let manifests = index_of(path, &index, |index| fs::read(index))?;
        let blobs = Blobs::Directory(path.to_owned());
        Ok(Self { path: path.to_owned(), blobs, manifests, _scratch: None })
    }

    /// The layout in `scratch`, made of what `shown` names.
    ///
    /// # Errors
    /// [`LayoutError`] where there is none.
    pub fn temporary(scratch: TempDir, shown: &Path) -> Result<Self, LayoutError> {
        let layout = Self::directory(scratch.path())?;
        Ok(Self { path: shown.to_owned(), _scratch: Some(scratch), ..layout })
    }

    /// The layout in the tar file `path`.
    ///
    /// # Errors
    /// [`LayoutError`] where there is none.
    pub fn archive(path: &Path) -> Result<Self, LayoutError> {
        archive::open(path)
    }

    /// The images that `docker save` wrote to `path`; what has to be compressed goes below
    /// `scratch`.
    ///
    /// # Errors
    /// [`LayoutError`] where there are none.
    pub fn docker_archive(path: &Path, scratch: &Path) -> Result<Self, LayoutError> {
        docker::open(path, scratch)
    }

    /// The names of its images.
    pub fn names(&self) -> Vec<&str> {
        self.manifests.iter().filter_map(name_of).collect()
    }

    /// What `name` means: the only image where there is none, an image's whole name, or its
    /// name without the registry; a name with another registry means the same image.
    ///
    /// # Errors
    /// [`LayoutError`] where nothing or several things have that name.
    pub fn find(&self, name: Option<&str>) -> Result<&Descriptor, LayoutError> {
        let images: Vec<_> = match self.manifests.iter().any(|image| name_of(image).is_some()) {
            true => self.manifests.iter().filter(|image| name_of(image).is_some()).collect(),
            false => self.manifests.iter().collect(),
        };
        let path = self.path.clone();
        let known = || self.names().join(", ");
        let Some(name) = name else {
            return match images.as_slice() {
                [only] => Ok(only),
                _ => Err(LayoutError::WhichImage { path, count: images.len(), known: known() }),
            };
        };
        let exact = images.iter().find(|image| name_of(image) == Some(name));
        let called = |name: &str| {
            let mut alike = images.iter().filter(|image| {
                let known = name_of(image).unwrap_or_default();
                known == name || known.split_once('/').is_some_and(|(_, rest)| rest == name)
            });
            alike.next().filter(|_| alike.next().is_none())
        };
        let found = exact.or_else(|| called(name)).or_else(|| called(split_host(name).1)).copied();
        found.ok_or_else(|| LayoutError::NoImage { path, name: name.to_owned(), known: known() })
    }

    /// The manifest or index `digest`.
    ///
    /// # Errors
    /// [`LayoutError`] where it is missing, damaged or none.
    pub fn manifest(&self, digest: &Digest) -> Result<RawManifest, LayoutError> {
        let region = self.region(digest)?;
        let path = region.path.clone();
        let bytes = region.read(MAX_MANIFEST as u64);
        let bytes = bytes.map_err(|source| LayoutError::Read { path: path.clone(), source })?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            let source = WrongDigest { expected: *digest, actual };
            return Err(LayoutError::Damaged { path, source });
        }
        let listed = self.manifests.iter().find(|listed| listed.digest == *digest);
        let document = Document::parse(&bytes, listed.map(|listed| listed.media_type.as_str()));
        let document = document.map_err(|source| LayoutError::Manifest { path, source })?;
        let media_type = document.media_type().to_owned();
        Ok(RawManifest { bytes: bytes.into(), media_type, digest: actual })
    }

    /// Manifests without a name whose subject is `subject`: signatures, indexes and the like.
    pub fn referrers(&self, subject: &Digest) -> Vec<RawManifest> {
        let unnamed = self.manifests.iter().filter(|listed| name_of(listed).is_none());
        let manifests = unnamed.filter_map(|listed| self.manifest(&listed.digest).ok());
        manifests.filter(|raw| is_about(raw, subject)).collect()
    }

    /// A blob of the layout.
    ///
    /// # Errors
    /// [`LayoutError::NoBlob`] where it lacks it.
    pub fn blob(&self, blob: &Descriptor) -> Result<FileBlob, LayoutError> {
        Ok(FileBlob { region: self.region(&blob.digest)?, digest: blob.digest })
    }

    fn region(&self, digest: &Digest) -> Result<Region, LayoutError> {
        let missing = || LayoutError::NoBlob { path: self.path.clone(), digest: *digest };
        match &self.blobs {
            Blobs::Known(known) => known.get(digest).cloned().ok_or_else(missing),
            Blobs::Directory(root) => {
                let path = blob_path(root, digest);
                let length = fs::metadata(&path).map_err(|_| missing())?.len();
                Ok(Region { path, start: 0, length })
            }
        }
    }
}

/// Where a layout below `root` keeps a blob.
pub fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs/sha256").join(digest.hex())
}

/// The name of a manifest in `index.json`, if it has one.
pub fn name_of(listed: &Descriptor) -> Option<&str> {
    let name = |key| listed.annotations.get(key).map(String::as_str);
    name(CONTAINERD_NAME).or_else(|| name(REF_NAME))
}

/// Whether the manifest names `subject` as what it belongs to.
pub fn is_about(raw: &RawManifest, subject: &Digest) -> bool {
    let value: Option<Value> = serde_json::from_slice(&raw.bytes).ok();
    let named = value.as_ref().and_then(|value| value["subject"]["digest"].as_str());
    named.is_some_and(|named| named == subject.to_string())
}

/// The manifests that the `index.json` of the layout at `path` lists; `read` gets its bytes.
fn index_of(
    path: &Path,
    index: &Path,
    read: impl FnOnce(&Path) -> io::Result<Vec<u8>>,
) -> Result<Vec<Descriptor>, LayoutError> {
    let bytes = match read(index) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = "it has no index.json".to_owned();
            let expected = "an OCI image layout";
            return Err(LayoutError::Form { path: path.to_owned(), expected, reason });
        }
        read => read.map_err(|source| LayoutError::Read { path: index.to_owned(), source })?,
    };
    let parsed = Document::parse(&bytes, Some(crate::image::media_type::OCI_INDEX));
    let parsed = parsed.and_then(Document::into_index);
    let parsed =
        parsed.map_err(|source| LayoutError::Manifest { path: index.to_owned(), source })?;
    Ok(parsed.manifests)
}

impl Region {
    /// The bytes, where they are at most `limit`.
    fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.length > limit {
            let words = format!("{} bytes are more than the {limit} allowed", self.length);
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        let mut bytes = Vec::new();
        self.open(0)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The digest of the bytes.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn hash(&self) -> io::Result<Digest> {
        let mut reader = self.open(0)?;
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; CHUNK as usize];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) if reader.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Ok(hasher.finish()),
                Ok(read) => hasher.update(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A reader of the bytes from `offset` on.
    fn open(&self, offset: u64) -> io::Result<io::Take<fs::File>> {
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.start + offset))?;
        Ok(file.take(self.length.saturating_sub(offset)))
    }
}

/// A blob in a file.
#[derive(Debug, Clone)]
pub struct FileBlob {
    /// Where its bytes are.
    pub region: Region,
    /// Which it is.
    pub digest: Digest,
}

/// A file that is being read, chunk by chunk.
enum Reading {
    Closed(Region, u64),
    Open(io::Take<fs::File>),
    Ended,
}

impl Reading {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Self::Closed(region, offset) = self {
            *self = Self::Open(region.open(*offset)?);
        }
        let Self::Open(file) = self else { return Ok(None) };
        let mut chunk = Vec::with_capacity(CHUNK as usize);
        file.by_ref().take(CHUNK).read_to_end(&mut chunk)?;
        match (chunk.is_empty(), file.limit()) {
            (true, 0) => Ok(None),
            (true, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (false, _) => Ok(Some(chunk.into())),
        }
    }
}

impl BlobSource for FileBlob {
    fn open(&self, offset: u64) -> BlobStream {
        let subject = self.subject();
        let reading = Reading::Closed(self.region.clone(), offset);
        unfold((reading, subject), |(mut reading, subject)| async {
            // Reading may wait for a disk, which must not hold up everything else.
            let read = tokio::task::spawn_blocking(move || {
                let chunk = reading.next();
                (reading, chunk)
            });
            let (reading, chunk) = read.await.ok()?;
            match chunk.transpose()? {
                Ok(chunk) => Some((Ok(chunk), (reading, subject))),
                Err(error) => {
                    let error = Fault::File(error).of(&subject);
                    Some((Err(error), (Reading::Ended, subject)))
                }
            }
        })
        .boxed()
    }

    fn subject(&self) -> Subject {
        Subject::File(self.region.path.clone(), self.digest)
    }
}
