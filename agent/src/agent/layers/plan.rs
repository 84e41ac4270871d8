//! How a layer is offered, or why it is not: decided here, done elsewhere.

use std::sync::Arc;

use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{has_lower_links, has_opaque};

use super::super::images::{ImageError, Indexed};
use crate::control::Failure;
use crate::image::{Descriptor, Manifest};
use crate::podman::TOC_ANNOTATIONS;

/// Why podman has to download a layer itself.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// What the name means cannot be found out.
    #[error("the image cannot be resolved: {0}")]
    Unresolved(String),
    /// No image of the name has the layer.
    #[error("the name does not mean an image with this layer")]
    UnknownLayer,
    /// The layer has no index.
    #[error("no usable index: {0}")]
    NoIndex(String),
    /// overlayfs refuses one directory twice.
    #[error("the image lists the layer more than once")]
    Repeated,
    /// overlayfs cannot show a link from one layer into another.
    #[error("the layer has hard links to files of lower layers")]
    LowerLinks,
    /// The digest that podman asks for is not verified by the index.
    #[error("its table-of-contents annotation is not the digest of its index")]
    ForeignToc,
    /// It cannot be shown.
    #[error("it cannot be shown: {0}")]
    NotShown(String),
    /// The answer was not ready in time.
    #[error("the answer took too long")]
    Late,
    /// The agent is shutting down, or broken.
    #[error("the agent was interrupted")]
    Interrupted,
    /// The agent is being drained.
    #[error("the agent is drained: nothing new is offered")]
    Drained,
}

impl Refusal {
    /// The reason as the name of a counter.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unresolved(_) => "unresolved",
            Self::UnknownLayer => "unknown-layer",
            Self::NoIndex(_) => "no-index",
            Self::Repeated => "repeated-layer",
            Self::LowerLinks => "lower-links",
            Self::ForeignToc => "foreign-toc",
            Self::NotShown(_) => "not-shown",
            Self::Late => "late",
            Self::Interrupted => "interrupted",
            Self::Drained => "drained",
        }
    }

    /// The refusal as a sentence.
    pub fn in_words(&self) -> String {
        self.to_string()
    }

    /// The refusal because of `error`.
    pub fn unresolved(error: &ImageError) -> Self {
        Self::Unresolved(Failure::of(error).in_words())
    }
}

/// Where an image has the layer that podman asks for by `key`.
pub fn place_of(manifest: &Manifest, key: &Digest) -> Option<usize> {
    manifest.layers.iter().position(|layer| layer.digest == *key || annotated(layer, key))
}

/// Whether newer podmans ask for `layer` by `key`.
fn annotated(layer: &Descriptor, key: &Digest) -> bool {
    let key = key.to_string();
    TOC_ANNOTATIONS.iter().any(|name| layer.annotations.get(*name) == Some(&key))
}

/// The layers below the one that is planned.
pub enum Below {
    /// They do not matter.
    Any,
    /// Exactly these.
    Tree(ImageTree),
    /// Not always the same.
    Several,
}

/// How to offer a layer.
pub struct Plan {
    /// The layer.
    pub layer: Arc<Layer>,
    /// What it is to be shown above.
    pub below: Below,
    /// The layers of which [`Self::below`] is made, the lowest first.
    pub chain: Vec<Arc<Layer>>,
}

/// How to offer layer `place` of `image`, for which podman asks by `key`, where its name has also
/// meant `others`; `None` if it may have meant anything.
pub fn plan(
    image: &Indexed,
    place: usize,
    key: &Digest,
    others: Option<&[&Indexed]>,
) -> Result<Plan, Refusal> {
    let manifest = &image.image.manifest;
    let digest = manifest.layers.get(place).ok_or(Refusal::UnknownLayer)?.digest;
    if manifest.layers.iter().filter(|layer| layer.digest == digest).count() > 1 {
        return Err(Refusal::Repeated);
    }
    let layer =
        image.layer(place).map_err(|fault| Refusal::NoIndex(Failure::of(fault).in_words()))?;
    if *key != digest && *key != Digest::of(layer.tree.bytes()) {
        return Err(Refusal::ForeignToc);
    }
    if has_lower_links(&layer.tree) {
        return Err(Refusal::LowerLinks);
    }
    let layer = layer.clone();
    if !has_opaque(&layer.tree) {
        return Ok(Plan { layer, below: Below::Any, chain: Vec::new() });
    }
    let unique =
        others.is_some_and(|others| others.iter().all(|other| same_chain(image, place, other)));
    let chain: Result<Vec<_>, _> = (0..place).map(|lower| image.layer(lower).cloned()).collect();
    if let (true, Ok(chain)) = (unique, chain) {
        let trees: Vec<_> = chain.iter().map(|layer| layer.tree.clone()).collect();
        match merge(trees) {
            Ok(below) => return Ok(Plan { layer, below, chain }),
            Err(error) => tracing::warn!(layer = %digest, %error, "shown by markers"),
        }
    }
    Ok(Plan { layer, below: Below::Several, chain: Vec::new() })
}

fn merge(
    trees: Vec<Arc<undermount_fs::index::LayerTree>>,
) -> Result<Below, undermount_fs::tree::TreeError> {
    if trees.is_empty() {
        return Ok(Below::Any);
    }
    ImageTree::merge(trees).map(Below::Tree)
}

/// Whether `other` has layer `place` of `image`, if at all, above the same layers.
fn same_chain(image: &Indexed, place: usize, other: &Indexed) -> bool {
    let (own, foreign) = (&image.image, &other.image);
    let layer = own.manifest.layers[place].digest;
    let places = foreign.manifest.layers.iter().zip(0..).filter(|(other, _)| other.digest == layer);
    places.into_iter().all(|(_, at): (_, usize)| {
        own.config.diff_ids.get(..place) == foreign.config.diff_ids.get(..at)
    })
}
