//! The cache directory: what is in it, and which version of the layout.
//!
//! ```text
//! VERSION                 "undermount cache 1"
//! objects/ partial/ tmp/  file contents (undermount_fs::object)
//! blobs/                  manifests, configs, index trees, span tables, by digest
//! layers/<hex>            which index a layer has, and how far it is trusted; JSON
//! refs/<hex>              which manifest a name meant last, by the digest of the name; JSON
//! ```
//!
//! Other parts of the agent keep directories of their own beside these, `profiles/` and `podman/`
//! for example, and describe them.
//!
//! Everything can be deleted at any time; it is then fetched again. One process owns the
//! directory at a time, which is the caller's to see to. A cache of an older version is set aside
//! (`old-1/`), from where `undermount cache gc` drops it; one of a newer version is refused.

mod version;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use undermount_fs::blob::Blobs;
use undermount_fs::digest::Digest;
use undermount_fs::index::{LayerTree, Trust};
use undermount_fs::object::{Store, StoreError, StoreLimits, Verify};

use crate::host::file::{self, Lasting};
use crate::image::Reference;

pub use self::version::{PROFILES, SET_ASIDE};
use self::version::{VERSION, check_version};

/// How names of files begin that are being written, now and in earlier versions.
const UNFINISHED: [&str; 2] = [file::UNFINISHED, ".tmp"];

/// The cache directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file or directory of it cannot be read or written.
    #[error("cache directory {path} cannot be used")]
    Io {
        /// The directory, or what is in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else, or was written by another version.
    #[error(
        "{path} says `{found}`, expected `{VERSION}`: not an undermount cache of this version; \
         name another directory with --cache, or remove this one"
    )]
    Version {
        /// The version file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The object store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The digest of the tree of its index.
    pub tree: Digest,
    /// Why that index is believed.
    pub trust: Trust,
    /// By which rules it was looked through where somebody else has made it
    /// ([`LayerTree::RULES`]): a newer version may know more of them.
    #[serde(default)]
    rules: u32,
}

impl LayerRecord {
    /// The record of an index that was built here.
    pub fn own(tree: Digest) -> Self {
        Self { tree, trust: Trust::Own, rules: 0 }
    }

    /// The record of an index of somebody else that was looked through.
    pub fn examined(tree: Digest) -> Self {
        Self { tree, trust: Trust::Registry, rules: LayerTree::RULES }
    }

    /// Whether the index was built here, or looked through by all rules that are known.
    pub fn is_examined(&self) -> bool {
        self.trust == Trust::Own || self.rules >= LayerTree::RULES
    }
}

/// What a name meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceRecord {
    /// The name.
    pub reference: String,
    /// The digest of the manifest for this platform.
    pub manifest: Digest,
    /// Whether all of the image was fetched once.
    #[serde(default)]
    pub complete: bool,
}

/// A cache directory.
pub struct Cache {
    /// File contents.
    pub store: Arc<Store>,
    /// Small blobs.
    pub blobs: Arc<Blobs>,
    root: PathBuf,
    layers: PathBuf,
    references: PathBuf,
}

impl Cache {
    /// Opens the cache in `root`, which is made where it is missing.
    ///
    /// # Errors
    /// [`CacheError`] where it cannot be used, or is of another version.
    pub fn open(root: &Path, limits: StoreLimits) -> Result<Self, CacheError> {
        Self::open_with(root, limits, Verify::default())
    }

    /// As [`Self::open`], with another answer to when objects are hashed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(root: &Path, limits: StoreLimits, verify: Verify) -> Result<Self, CacheError> {
        fs::create_dir_all(root).map_err(unusable(root))?;
        check_version(root)?;
        let store = Store::open(root, limits)?;
        let [blobs, layers, references] =
            ["blobs", "layers", "refs"].map(|directory| root.join(directory));
        for directory in [&layers, &references] {
            open_records(directory).map_err(unusable(directory))?;
        }
        let blobs = Arc::new(Blobs::open(&blobs).map_err(unusable(&blobs))?);
        let (root, store) = (root.to_owned(), Arc::new(store.with_verify(verify)));
        Ok(Self { store, blobs, root, layers, references })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is known of `layer`.
    pub fn layer(&self, layer: &Digest) -> Option<LayerRecord> {
        read_record(&self.layers.join(layer.hex()))
    }

    /// Notes what is known of `layer`.
    ///
    /// # Errors
    /// [`CacheError::Io`] where it cannot be written.
    pub fn put_layer(&self, layer: &Digest, record: &LayerRecord) -> Result<(), CacheError> {
        write_record(&self.layers, &layer.hex(), record)
    }

    /// Forgets what is known of `layer`.
    pub fn forget_layer(&self, layer: &Digest) {
        // Where it cannot be removed, the next record replaces it.
        let _ = fs::remove_file(self.layers.join(layer.hex()));
    }

    /// Forgets the layers that `is_needed` does not want and of which nothing was noted since
    /// `begin`; returns how many.
    pub fn retain_layers(&self, begin: SystemTime, is_needed: impl Fn(&Digest) -> bool) -> u64 {
        let superfluous = file_names(&self.layers)
            .into_iter()
            .filter(|name| Digest::from_hex(name).is_ok_and(|layer| !is_needed(&layer)))
            .map(|name| self.layers.join(name))
            .filter(|path| is_older_than(path, begin));
        superfluous.filter(|path| fs::remove_file(path).is_ok()).count() as u64
    }

    /// What every known name meant last.
    pub fn references(&self) -> Vec<ReferenceRecord> {
        let names = file_names(&self.references).into_iter();
        let names = names.filter(|name| !is_unfinished(name));
        names.filter_map(|name| read_record(&self.references.join(name))).collect()
    }

    /// Which manifest `reference` meant last.
    pub fn reference(&self, reference: &Reference) -> Option<ReferenceRecord> {
        let name = reference.to_string();
        read_record(&self.references.join(Digest::of(name.as_bytes()).hex()))
            .filter(|record: &ReferenceRecord| record.reference == name)
    }

    /// Notes which manifest `reference` means. That all of it is here stays known.
    ///
    /// # Errors
    /// [`CacheError::Io`] where it cannot be written.
    pub fn put_reference(
        &self,
        reference: &Reference,
        manifest: &Digest,
    ) -> Result<(), CacheError> {
        let known = self.reference(reference);
        let complete = known.is_some_and(|known| known.manifest == *manifest && known.complete);
        self.write_reference(reference, *manifest, complete)
    }

    /// Notes that all of the image `manifest` is here, which `reference` means.
    ///
    /// # Errors
    /// [`CacheError::Io`] where it cannot be written.
    pub fn put_complete(&self, reference: &Reference, manifest: &Digest) -> Result<(), CacheError> {
        self.write_reference(reference, *manifest, true)
    }

    fn write_reference(
        &self,
        reference: &Reference,
        manifest: Digest,
        complete: bool,
    ) -> Result<(), CacheError> {
        let name = reference.to_string();
        let file = Digest::of(name.as_bytes()).hex();
        let record = ReferenceRecord { reference: name, manifest, complete };
        if self.reference(reference).as_ref() == Some(&record) {
            // Writing it down again would wait for the disk.
            return Ok(());
        }
        write_record(&self.references, &file, &record)
    }
}

/// Makes a directory of records where it is missing, and rids it of what a process that was
/// killed has not finished: read as a record, it would be one that nobody ever changes again.
pub(super) fn open_records(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for name in file_names(directory).iter().filter(|name| is_unfinished(name)) {
        fs::remove_file(directory.join(name))?;
    }
    Ok(())
}

/// Whether a file of this name is a record that is being written, or was when a process ended.
pub(super) fn is_unfinished(name: &str) -> bool {
    UNFINISHED.iter().any(|begin| name.starts_with(begin))
}

/// Whether a file was last written before `time`; false where that cannot be told.
fn is_older_than(path: &Path, time: SystemTime) -> bool {
    fs::metadata(path).and_then(|file| file.modified()).is_ok_and(|modified| modified < time)
}

/// The names in a directory; none where it cannot be read.
fn file_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A record that cannot be read or understood counts as none.
fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write_record<T: Serialize>(directory: &Path, name: &str, record: &T) -> Result<(), CacheError> {
    let json = serde_json::to_vec(record).expect("records are plain data");
    let path = directory.join(name);
    file::replace(&path, &json, 0o600, Lasting::PowerCut).map_err(unusable(directory))
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> CacheError + use<> {
    let path = path.to_owned();
    move |source| CacheError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn open(root: &Path) -> Result<Cache, CacheError> {
        Cache::open(root, StoreLimits::default())
    }

    #[test]
    fn records_survive_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let reference: Reference = "localhost:5000/image:tag".parse().unwrap();
        let (layer, manifest) = (Digest::of(b"layer"), Digest::of(b"manifest"));
        let record = LayerRecord::own(Digest::of(b"tree"));
        let cache = open(root.path()).unwrap();
        cache.put_layer(&layer, &record).unwrap();
        cache.put_reference(&reference, &manifest).unwrap();
        drop(cache);
        let cache = open(root.path()).unwrap();
        assert_eq!(cache.layer(&layer), Some(record));
        assert_eq!(cache.reference(&reference).unwrap().manifest, manifest);
        cache.forget_layer(&layer);
        assert_eq!(cache.layer(&layer), None);
    }

    #[test]
    fn an_index_of_somebody_else_counts_as_examined_by_the_rules_of_its_time() {
        let tree = Digest::of(b"tree");
        let of = |trust: &str, more: &str| -> LayerRecord {
            let json = format!(r#"{{"tree":"{tree}","trust":"{trust}"{more}}}"#);
            serde_json::from_str(&json).unwrap()
        };
        assert!(!of("registry", "").is_examined(), "an older version has taken it");
        assert!(LayerRecord::examined(tree).is_examined());
        assert_eq!(of("self", ""), LayerRecord::own(tree));
        assert!(of("self", "").is_examined());
    }

    #[test]
    fn regression_a_layer_that_is_noted_while_records_are_collected_stays_known() {
        let root = tempfile::tempdir().unwrap();
        let cache = open(root.path()).unwrap();
        let record = LayerRecord::own(Digest::of(b"tree"));
        let [old, needed, new] = [b"old", b"nee", b"new"].map(|name| Digest::of(name));
        let begin = SystemTime::now();
        for (layer, age) in [(old, 1), (needed, 1), (new, 0)] {
            cache.put_layer(&layer, &record).unwrap();
            let file = fs::File::open(cache.layers.join(layer.hex())).unwrap();
            file.set_modified(begin - Duration::from_secs(age)).unwrap();
        }
        assert_eq!(cache.retain_layers(begin, |layer| *layer == needed), 1);
        assert_eq!([old, needed, new].map(|it| cache.layer(&it).is_some()), [false, true, true]);
    }

    #[test]
    fn regression_what_a_killed_process_has_not_finished_is_no_record() {
        let root = tempfile::tempdir().unwrap();
        let reference: Reference = "localhost:5000/image:tag".parse().unwrap();
        let cache = open(root.path()).unwrap();
        cache.put_reference(&reference, &Digest::of(b"manifest")).unwrap();
        let record = cache.references.join(Digest::of(reference.to_string().as_bytes()).hex());
        fs::copy(record, root.path().join("refs/.tmpAbCdEf")).unwrap();
        drop(cache);
        let cache = open(root.path()).unwrap();
        assert_eq!(cache.references().len(), 1);
        assert_eq!(fs::read_dir(root.path().join("refs")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_complete_stays_known_until_the_name_means_something_else() {
        let root = tempfile::tempdir().unwrap();
        let reference: Reference = "localhost:5000/image:tag".parse().unwrap();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let cache = open(root.path()).unwrap();
        let is_complete = || cache.reference(&reference).unwrap().complete;
        cache.put_reference(&reference, &one).unwrap();
        assert!(!is_complete());
        cache.put_complete(&reference, &one).unwrap();
        cache.put_reference(&reference, &one).unwrap();
        assert!(is_complete());
        cache.put_reference(&reference, &two).unwrap();
        assert!(!is_complete());
    }

    #[test]
    fn a_damaged_record_counts_as_none() {
        let root = tempfile::tempdir().unwrap();
        let cache = open(root.path()).unwrap();
        let layer = Digest::of(b"layer");
        fs::write(root.path().join("layers").join(layer.hex()), "{\"tree\":").unwrap();
        assert_eq!(cache.layer(&layer), None);
    }
}
