//! Copies into the tree of the undercloud's Apache, for destinations that take no uploads.

use std::collections::HashMap;
use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Mutex;

use crate::image::{Document, Index, Manifest, Reference};
use crate::registry::client::{Client, Fault, RawManifest, RegistryError};

use super::image::{BLOBS_AT_A_TIME, is_foreign, manifest_error};
use super::{CopyError, CopyJob};
use crate::prepare::image_serve::ImageServe;
use crate::prepare::progress::Done;
use crate::prepare::sources::Sources;

/// The architecture whose image a tag means for clients that know no lists.
const COMMON: &str = "amd64";

/// The tree, and which registries are served from it.
pub struct Export {
    tree: ImageServe,
    /// Whether a registry, `host[:port]`, takes no uploads.
    read_only: Mutex<HashMap<String, bool>>,
}

impl Export {
    /// Into the tree below `root`.
    pub fn new(root: &Path) -> Self {
        Self { tree: ImageServe::new(root), read_only: Mutex::default() }
    }

    /// Whether `target` is served from the tree: its registry opens no upload.
    pub async fn serves(&self, target: &Reference, client: &Client) -> Result<bool, CopyError> {
        let repository = target.repository();
        let mut known = self.read_only.lock().await;
        if let Some(&read_only) = known.get(repository.host()) {
            return Ok(read_only);
        }
        let read_only = match client.start_upload(repository).await {
            Ok(upload) => {
                // A registry that does not understand this forgets the upload in time.
                let _ = upload.cancel().await;
                false
            }
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => true,
            Err(error) => return Err(error.into()),
        };
        known.insert(repository.host().to_owned(), read_only);
        Ok(read_only)
    }

    /// Writes the image `named` of `job` into the tree, unless it is there.
    pub async fn copy(
        &self,
        job: &CopyJob,
        named: RawManifest,
        sources: &Sources,
    ) -> Result<Done, CopyError> {
        let (to, tag) = (job.target.repository(), job.target.identifier());
        let document = named.document().map_err(|error| manifest_error(&job.source, error))?;
        let mut moved = (0, 0, 0);
        let variants = match &document {
            Document::Manifest(manifest) => {
                self.bring(job, manifest, sources, &mut moved).await?;
                vec![named]
            }
            Document::Index(index) => {
                let default = self.bring_children(job, index, sources, &mut moved).await?;
                std::iter::once(named).chain(default).collect()
            }
        };
        let variants: Vec<&RawManifest> = variants.iter().collect();
        if moved.0 == 0 && self.tree.has_tag(to, &tag, &variants) {
            return Ok(Done::Unchanged);
        }
        for raw in &variants {
            self.tree.put_manifest(to, raw)?;
        }
        self.tree.put_tag(to, &tag, &variants)?;
        let (bytes, shared, blobs) = moved;
        Ok(Done::Copied { bytes, shared, blobs })
    }

    /// Brings the images of a list; gives the one that clients without lists get.
    async fn bring_children(
        &self,
        job: &CopyJob,
        index: &Index,
        sources: &Sources,
        moved: &mut (u64, usize, usize),
    ) -> Result<Option<RawManifest>, CopyError> {
        let mut children = Vec::new();
        for child in &index.manifests {
            let source = job.source.repository().at(child.digest);
            let raw = sources.manifest(&source).await?;
            let manifest = raw.document().and_then(Document::into_manifest);
            let manifest = manifest.map_err(|error| manifest_error(&source, error))?;
            self.bring(job, &manifest, sources, moved).await?;
            self.tree.put_manifest(job.target.repository(), &raw)?;
            let common =
                child.platform.as_ref().is_some_and(|platform| platform.architecture == COMMON);
            children.push((common, raw));
        }
        let common = children.iter().position(|(common, _)| *common).unwrap_or(0);
        Ok(children.into_iter().nth(common).map(|(_, raw)| raw))
    }

    /// Brings the blobs of one image.
    async fn bring(
        &self,
        job: &CopyJob,
        manifest: &Manifest,
        sources: &Sources,
        moved: &mut (u64, usize, usize),
    ) -> Result<(), CopyError> {
        let (from, to) = (job.source.repository(), job.target.repository());
        let config = std::iter::once((&manifest.config, false));
        let layers = manifest.layers.iter().filter(|layer| !is_foreign(layer));
        let blobs = config.chain(layers.map(|layer| (layer, true)));
        let arrivals: Vec<u64> = stream::iter(blobs)
            .map(|(blob, layer)| self.tree.bring(sources.client(), blob, from, to, layer))
            .buffer_unordered(BLOBS_AT_A_TIME)
            .try_collect()
            .await?;
        moved.0 += arrivals.iter().sum::<u64>();
        moved.1 += arrivals.iter().filter(|&&bytes| bytes == 0).count();
        moved.2 += arrivals.len();
        Ok(())
    }
}
