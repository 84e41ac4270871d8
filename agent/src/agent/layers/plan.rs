//! How a layer is offered, or why it is not. Pure: it is decided here and done elsewhere.
//!
//! ```text
//! listed twice, no index, digest not verified, links to lower layers -> Refusal
//! no opaque directory                                                -> Below::Any
//! opaque, and all images of the name have the same layers below      -> Below::Tree: whiteouts
//! opaque otherwise                                                   -> Below::Several: markers
//! ```

use std::borrow::Borrow;
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
    /// What the name means can be found out neither here nor at the registry.
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

    /// The refusal for an image that cannot be resolved because of `error`.
    pub fn unresolved(error: &ImageError) -> Self {
        Self::Unresolved(Failure::of(error).in_words())
    }
}

/// The place in `manifest`, from 0 for the lowest layer, of the layer that podman asks for by
/// `key`: its digest, or one of its [`TOC_ANNOTATIONS`].
pub fn place_of(manifest: &Manifest, key: &Digest) -> Option<usize> {
    manifest.layers.iter().position(|layer| layer.digest == *key || annotated(layer, key))
}

/// Whether podmans that know [`TOC_ANNOTATIONS`] ask for `layer` by `key`.
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
    /// The layers that it will be shown above.
    pub below: Below,
    /// The layers of which [`Self::below`] is made, the lowest first.
    pub chain: Vec<Arc<Layer>>,
}

/// Plans how to offer layer `place` of `image`, for which podman asks by `key`. `others` are all
/// images that the name may have meant; `None` if it may have meant anything.
///
/// # Errors
/// The [`Refusal`] where podman has to download it.
pub fn plan(
    image: &Indexed,
    place: usize,
    key: &Digest,
    others: Option<&[impl Borrow<Indexed>]>,
) -> Result<Plan, Refusal> {
    let manifest = &image.image.manifest;
    let digest = manifest.layers.get(place).ok_or(Refusal::UnknownLayer)?.digest;
    if manifest.layers.iter().filter(|layer| layer.digest == digest).count() > 1 {
        return Err(Refusal::Repeated);
    }
    let layer =
        image.layer(place).map_err(|fault| Refusal::NoIndex(Failure::of(fault).in_words()))?;
    if *key != digest && *key != layer.tree_digest() {
        return Err(Refusal::ForeignToc);
    }
    if has_lower_links(&layer.tree) {
        return Err(Refusal::LowerLinks);
    }
    let layer = layer.clone();
    if !has_opaque(&layer.tree) {
        return Ok(Plan { layer, below: Below::Any, chain: Vec::new() });
    }
    let fits = |other: &_| same_chain(image, place, Borrow::borrow(other));
    let unique = others.is_some_and(|others| others.iter().all(fits));
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

/// Whether `other` has layer `place` of `image` only above the same layers (by their diff ids), or
/// not at all.
fn same_chain(image: &Indexed, place: usize, other: &Indexed) -> bool {
    let (own, foreign) = (&image.image, &other.image);
    let layer = own.manifest.layers[place].digest;
    let places = foreign.manifest.layers.iter().zip(0..).filter(|(other, _)| other.digest == layer);
    places.into_iter().all(|(_, at): (_, usize)| {
        own.config.diff_ids.get(..place) == foreign.config.diff_ids.get(..at)
    })
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use super::*;
    use crate::agent::images::{ImageFault, Resolved};
    use crate::agent::testing::layer;
    use crate::image::{Document, ImageConfig};

    /// An image of `layers`; those without an index are given by their name.
    fn image(layers: &[Result<Arc<Layer>, &str>]) -> Indexed {
        let digests: Vec<(Digest, Digest)> = layers
            .iter()
            .map(|layer| match layer {
                Ok(layer) => (layer.digest(), layer.tree.header().diff_id),
                Err(name) => (Digest::of(name.as_bytes()), Digest::of(name.as_bytes())),
            })
            .collect();
        let descriptor = |digest: &Digest, toc: Option<Digest>| {
            let annotations = toc.map(|toc| json!({ (TOC_ANNOTATIONS[0]): toc }));
            json!({ "mediaType": "l", "digest": digest, "size": 1, "annotations": annotations })
        };
        let described = layers.iter().zip(&digests).map(|(layer, (digest, _))| {
            let tree = layer.as_ref().ok().map(|layer| layer.tree_digest());
            descriptor(digest, tree)
        });
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "diff_ids": digests.iter().map(|(_, id)| id).collect::<Vec<_>>() },
        });
        let config = ImageConfig::parse(config.to_string().into()).unwrap();
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor(&Digest::of(&config.raw), None),
            "layers": described.collect::<Vec<_>>(),
        })
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        let manifest = Document::parse(manifest.as_bytes(), None).unwrap().into_manifest().unwrap();
        let reference = "registry.example/image:1".parse().unwrap();
        let resolved = Resolved { reference, digest, manifest, config };
        let layers = layers.iter().map(|layer| layer.clone().map_err(|_| ImageFault::NoIndex));
        Indexed::new(resolved, layers.collect(), Vec::new())
    }

    fn plain(name: &str) -> Result<Arc<Layer>, &'static str> {
        Ok(layer(&[(name, None)]))
    }

    fn opaque() -> Arc<Layer> {
        layer(&[("d/.wh..wh..opq", None), ("d/new", None)])
    }

    /// What `others` makes of the layer at `place` of `image`.
    fn planned(image: &Indexed, place: usize, others: Option<&[&Indexed]>) -> String {
        let key = image.image.manifest.layers[place].digest;
        match plan(image, place, &key, others) {
            Ok(Plan { below: Below::Any, .. }) => "any".to_owned(),
            Ok(Plan { below: Below::Tree(_), chain, .. }) => format!("above {}", chain.len()),
            Ok(Plan { below: Below::Several, .. }) => "several".to_owned(),
            Err(refusal) => refusal.label().to_owned(),
        }
    }

    #[test]
    fn only_a_layer_that_hides_depends_on_what_is_below() {
        let image = image(&[plain("d/a"), Ok(opaque()), plain("d/b")]);
        let all = [&image];
        assert_eq!(planned(&image, 0, None), "any");
        assert_eq!(planned(&image, 1, Some(&all)), "above 1");
        assert_eq!(planned(&image, 2, None), "any");
    }

    #[test]
    fn a_name_with_another_chain_or_an_unknown_image_suits_all() {
        let hides = opaque();
        let here = image(&[plain("d/a"), Ok(hides.clone())]);
        let same_again = image(&[plain("d/a"), Ok(hides.clone()), plain("top")]);
        let elsewhere = image(&[plain("d/b"), Ok(hides.clone())]);
        let lowest = image(&[Ok(hides)]);
        let without = image(&[plain("d/b")]);
        assert_eq!(planned(&here, 1, Some(&[&here, &same_again, &without])), "above 1");
        assert_eq!(planned(&here, 1, Some(&[&here, &elsewhere])), "several");
        assert_eq!(planned(&here, 1, Some(&[&here, &lowest])), "several");
        assert_eq!(planned(&here, 1, None), "several");
        assert_eq!(planned(&lowest, 0, Some(&[&lowest])), "any", "nothing is below it");
    }

    #[test]
    fn a_chain_with_a_layer_that_podman_pulls_is_not_known() {
        let image = image(&[Err("pulled"), Ok(opaque())]);
        assert_eq!(planned(&image, 0, Some(&[&image])), "no-index");
        assert_eq!(planned(&image, 1, Some(&[&image])), "several");
    }

    #[test]
    fn what_overlayfs_cannot_take_is_refused() {
        let twice = layer(&[("same", None)]);
        let image = image(&[Ok(twice.clone()), Ok(layer(&[("link", Some("same"))])), Ok(twice)]);
        let found: Vec<String> = (0..3).map(|place| planned(&image, place, None)).collect();
        assert_eq!(found, ["repeated-layer", "lower-links", "repeated-layer"]);
    }

    #[test]
    fn newer_podmans_ask_by_the_digest_of_the_index_and_by_no_other() {
        let image = image(&[plain("a")]);
        let manifest = &image.image.manifest;
        let tree = image.layer(0).unwrap().tree_digest();
        assert_eq!(place_of(manifest, &tree), Some(0));
        let others = None::<&[&Indexed]>;
        assert!(plan(&image, 0, &tree, others).is_ok());
        let foreign = Digest::of(b"another table of contents");
        assert_eq!(place_of(manifest, &foreign), None);
        let refusal = plan(&image, 0, &foreign, others).err().unwrap();
        assert_eq!(refusal.label(), "foreign-toc");
    }
}
