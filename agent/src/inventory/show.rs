//! All that is known of one image.

use std::collections::BTreeMap;

use serde::Serialize;
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Platform, Reference};
use crate::registry::client::{Client, RegistryError};

/// An image, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The digest that the name stands for.
    pub digest: Digest,
    /// The type of the document under it.
    pub media_type: String,
    /// The platforms of an index, with the digests of their images.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub platforms: BTreeMap<String, Digest>,
    /// The image that is described: that of our platform in an index.
    pub image: Digest,
    /// What it runs on.
    pub platform: Platform,
    /// When it was made, as its configuration has it.
    pub created: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The blob of its configuration.
    pub config: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// Bytes of its layers and configuration.
    pub size: u64,
    /// Whether nodes can mount it before it has arrived.
    pub index: IndexState,
    /// The tags of its repository.
    pub tags: Vec<String>,
}

/// A layer, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Its type.
    pub media_type: String,
}

/// The index artifacts of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexState {
    /// It has none: each node builds its own.
    None,
    /// It has this one, for so many layers, with so many packs.
    Present {
        /// The artifact's manifest.
        artifact: Digest,
        /// Layers that it has the index of.
        layers: usize,
        /// Packs of contents that are fetched together.
        packs: usize,
    },
    /// It has several, of which nodes use none.
    Ambiguous {
        /// How many.
        artifacts: usize,
    },
}

/// Describes what `image` means on `platform`.
///
/// # Errors
/// [`RegistryError`] where something of it is missing or damaged.
pub async fn show(
    client: &Client,
    image: &Reference,
    platform: &Platform,
) -> Result<Shown, RegistryError> {
    let found = client.image(image, platform).await?;
    let named = found.index.as_ref().unwrap_or(&found.raw);
    let platforms = match found.index.as_ref().and_then(|raw| raw.document().ok()) {
        Some(document) => document.into_index().map_or_else(
            |_| BTreeMap::new(),
            |index| index.manifests.iter().filter_map(platform_of).collect(),
        ),
        None => BTreeMap::new(),
    };
    let artifacts = client.index_artifacts(image.repository(), &found.raw.digest).await?;
    let index = match artifacts.as_slice() {
        [] => IndexState::None,
        [one] => IndexState::Present {
            artifact: one.digest,
            layers: one.layers.len(),
            packs: one.packs.len(),
        },
        many => IndexState::Ambiguous { artifacts: many.len() },
    };
    let tags = client.tags(image.repository()).await?;
    let config: serde_json::Value = serde_json::from_slice(&found.config.raw).unwrap_or_default();
    let layers: Vec<Layer> = found.manifest.layers.iter().map(Layer::of).collect();
    Ok(Shown {
        digest: named.digest,
        media_type: named.media_type.clone(),
        platforms,
        image: found.raw.digest,
        platform: found.config.platform,
        created: config.get("created").and_then(|text| text.as_str()).map(str::to_owned),
        labels: found.config.labels,
        config: found.manifest.config.digest,
        size: found.manifest.config.size + layers.iter().map(|layer| layer.size).sum::<u64>(),
        layers,
        index,
        tags,
    })
}

impl Layer {
    fn of(descriptor: &Descriptor) -> Self {
        let Descriptor { digest, size, media_type, .. } = descriptor.clone();
        Self { digest, size, media_type }
    }
}

/// What attestations and the like have for a platform (`unknown/unknown`) is none.
fn platform_of(child: &Descriptor) -> Option<(String, Digest)> {
    let platform = child.platform.as_ref().filter(|platform| platform.os != "unknown")?;
    Some((platform.to_string(), child.digest))
}
