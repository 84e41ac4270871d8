//! Indexes of layers that were built here, so that no layer is indexed twice, whatever
//! repositories and images it belongs to.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;
use undermount_fs::index::VERSION;

use super::super::digest::ContentDigest;
use super::{Storage, StorageError, durable};
use crate::image::artifact::{LayerEntry, PackedLayer};
use crate::image::manifest::Descriptor;

/// What a file of `indexes` holds.
#[derive(Serialize, Deserialize)]
struct Record {
    tree: Descriptor,
    spans: Descriptor,
}

/// A file of `indexes`.
pub(super) struct IndexRecord {
    /// The file.
    pub path: PathBuf,
    /// The layer that it is about.
    pub layer: Digest,
    /// The blobs that it names; none if it cannot be read.
    pub blobs: Vec<Digest>,
}

impl Storage {
    fn index_path(&self, layer: &Digest) -> PathBuf {
        self.root.join("indexes").join(format!("v{VERSION}")).join(layer.hex())
    }

    /// The index of `layer`, if this registry has built it and still has its blobs. A record
    /// that cannot be read is as good as none.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn layer_index(&self, layer: &Digest) -> Result<Option<LayerEntry>, StorageError> {
        let Some(bytes) = durable::read(&self.index_path(layer))? else { return Ok(None) };
        let entry = serde_json::from_slice::<Record>(&bytes)
            .ok()
            .and_then(|record| LayerEntry::new(*layer, &record.tree, &record.spans).ok());
        let here = |digest: Digest| self.blob_path(&digest.into()).exists();
        Ok(entry.filter(|entry| here(entry.tree_blob.digest) && here(entry.spans.digest)))
    }

    /// Keeps the index of a layer.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn put_layer_index(&self, index: &PackedLayer) -> Result<(), StorageError> {
        let entry = &index.entry;
        for (blob, bytes) in [(&entry.tree_blob, &index.tree), (&entry.spans, &index.spans)] {
            self.put_blob(&blob.digest.into(), bytes)?;
        }
        let record = Record { tree: entry.tree_blob.clone(), spans: entry.spans.clone() };
        let record = serde_json::to_vec(&record).expect("descriptors become JSON");
        self.dirs.write(&self.index_path(&entry.layer), &record)
    }

    /// All records of the present format.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub(super) fn index_records(&self) -> Result<Vec<IndexRecord>, StorageError> {
        let directory = self.root.join("indexes").join(format!("v{VERSION}"));
        let names = durable::list(&directory)?;
        let records = names.iter().filter_map(|name| {
            let (path, layer) = (directory.join(name), Digest::from_hex(name).ok()?);
            let blobs = blobs_of(&path);
            Some(IndexRecord { path, layer, blobs })
        });
        Ok(records.collect())
    }

    /// Stores `bytes`, which hash to `digest`, whatever repository they are for.
    ///
    /// # Errors
    /// [`StorageError`] where the disk fails.
    pub fn put_blob(&self, digest: &ContentDigest, bytes: &[u8]) -> Result<(), StorageError> {
        self.usage.note(digest);
        self.dirs.write(&self.blob_path(digest), bytes)
    }
}

fn blobs_of(record: &Path) -> Vec<Digest> {
    let bytes = durable::read(record).ok().flatten().unwrap_or_default();
    let record = serde_json::from_slice::<Record>(&bytes).ok();
    record.map_or_else(Vec::new, |record| vec![record.tree.digest, record.spans.digest])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::artifact::LayerBlobs;

    fn packed() -> PackedLayer {
        let blobs =
            LayerBlobs { layer: Digest::of(b"layer"), tree: "tree".into(), spans: "spans".into() };
        blobs.pack().unwrap()
    }

    #[test]
    fn an_index_is_found_by_its_layer() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::open(root.path()).unwrap();
        let index = packed();
        assert_eq!(storage.layer_index(&index.entry.layer).unwrap(), None);
        storage.put_layer_index(&index).unwrap();
        assert_eq!(storage.layer_index(&index.entry.layer).unwrap(), Some(index.entry));
    }

    #[test]
    fn an_index_without_its_blobs_or_with_a_damaged_record_is_none() {
        let root = tempfile::tempdir().unwrap();
        let storage = Storage::open(root.path()).unwrap();
        let entry = packed().entry;
        storage.put_layer_index(&packed()).unwrap();
        fs::remove_file(storage.blob_path(&entry.spans.digest.into())).unwrap();
        assert_eq!(storage.layer_index(&entry.layer).unwrap(), None);
        storage.put_layer_index(&packed()).unwrap();
        fs::write(storage.index_path(&entry.layer), "{").unwrap();
        assert_eq!(storage.layer_index(&entry.layer).unwrap(), None);
    }
}
