//! The index artifact of an image in an `undermount registry`, and the files that hold its blobs.

use std::path::{Path, PathBuf};

use serde_json::Value;
use undermount_fs::digest::Digest;

use crate::registry::{Registry, files_below, get};

/// Media type of a tree.
pub const TREE: &str = "application/vnd.undermount.index.tree.v1+zstd";
/// Media type of a tree as a difference to another one.
pub const PATCH: &str = "application/vnd.undermount.index.patch.v1+zstd";
/// Media type of a pack.
pub const PACK: &str = "application/vnd.undermount.pack.v1";

/// The blobs of an index artifact.
pub struct IndexBlobs {
    root: PathBuf,
    artifact: Value,
}

impl IndexBlobs {
    /// Those of the image `manifest` in `repository` of a registry over `root`.
    pub fn of(registry: &Registry, root: &Path, repository: &str, manifest: &Digest) -> Self {
        let ask = |path: String| {
            let url = format!("http://{}/v2/{repository}/{path}", registry.address());
            let (status, body) = get(&url);
            assert_eq!(status, 200, "{url}");
            serde_json::from_slice::<Value>(&body).unwrap()
        };
        let listed = ask(format!("referrers/{manifest}"));
        let digest = listed["manifests"][0]["digest"].as_str().unwrap();
        Self { root: root.to_owned(), artifact: ask(format!("manifests/{digest}")) }
    }

    /// The files that hold the blobs of a media type, in the order of the artifact.
    pub fn files(&self, kind: &str) -> Vec<PathBuf> {
        let layers = self.artifact["layers"].as_array().unwrap();
        let of_kind = layers.iter().filter(|blob| blob["mediaType"] == kind);
        of_kind.map(|blob| self.file(blob["digest"].as_str().unwrap())).collect()
    }

    fn file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let is_blob = |path: &PathBuf| path.components().any(|part| part.as_os_str() == hex);
        let mut stored = files_below(&self.root).into_iter().map(|(path, _)| path);
        stored.find(is_blob).unwrap_or_else(|| panic!("no file holds {digest}"))
    }
}
