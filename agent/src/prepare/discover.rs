//! Asks registries what the plan needs to know of images: their tags and their labels.

mod files;

use futures_util::{StreamExt as _, stream};

use crate::image::Reference;
use crate::registry::client::RegistryError;

use super::copy::origin::Origins;
use super::copy::{CopyError, Location, LocationError};
use super::draft::DraftEntry;
use super::label::{Labels, TagLabel, TagLabelError};
use super::naming;
use super::plan::ResolvedImage;
use super::release::Release;
use super::sources::Sources;
use super::template::TemplateImage;

/// Images that are asked for at a time, as in the original.
const PARALLEL: usize = 16;

/// An image about which something could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The name is not one that a registry could know.
    #[error(transparent)]
    Name(#[from] LocationError),
    /// `tag_from_label` cannot be understood.
    #[error(transparent)]
    Label(#[from] TagLabelError),
    /// The source does not have it.
    #[error("Not found image: {0}")]
    NotFound(Location),
    /// The source does not have the tag that the labels tell.
    #[error("Image {repository} has no tag {tag}.\nAvailable tags: {available}")]
    NoTag {
        /// The image without its tag.
        repository: String,
        /// The tag.
        tag: String,
        /// What there is.
        available: String,
    },
    /// The image does not have the label, and nothing stands in for it.
    #[error("Image {image} has no label {label}. Available labels: {available}")]
    NoLabel {
        /// The image.
        image: String,
        /// The label.
        label: String,
        /// What there is.
        available: String,
    },
    /// No label was asked for.
    #[error("No label specified. Available labels: {available}")]
    WhichLabel {
        /// What there is.
        available: String,
    },
    /// Files of this host cannot be used.
    #[error("cannot look up {image}")]
    Files {
        /// The image.
        image: Location,
        /// What happened.
        source: Box<CopyError>,
    },
    /// The source failed.
    #[error("cannot look up {image}")]
    Registry {
        /// The image.
        image: Reference,
        /// What happened.
        source: Box<RegistryError>,
    },
}

impl DiscoverError {
    /// Whether the image is simply not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::NoTag { .. })
    }
}

/// Finds out what the plan needs to know of the images of `draft`, in their order.
pub async fn resolve(
    draft: &DraftEntry,
    release: Release,
    origins: &Origins<'_>,
) -> Vec<Result<ResolvedImage, DiscoverError>> {
    let lookups =
        draft.images.iter().cloned().map(|image| resolve_image(image, draft, release, origins));
    stream::iter(lookups).buffered(PARALLEL).collect().await
}

async fn resolve_image(
    mut image: TemplateImage,
    draft: &DraftEntry,
    release: Release,
    origins: &Origins<'_>,
) -> Result<ResolvedImage, DiscoverError> {
    let source = |name: &str| -> Result<Location, LocationError> {
        naming::source(draft.entry.pull_source.as_deref(), name).parse()
    };
    if let Some(label) = &draft.tag_from_label {
        let label = TagLabel::parse(label)?;
        let last_tag_stands_in = draft.has_default_tag && release.last_tag_stands_in();
        let tag = match source(&image.imagename)? {
            Location::Registry(start) => {
                discover_tag(&start, &label, last_tag_stands_in, origins.sources()).await?
            }
            files => files::discover_tag(&files, &label, last_tag_stands_in, origins).await?,
        };
        image.imagename = format!("{}:{tag}", naming::without_tag(&image.imagename));
    }
    let wanted = draft.entry.modify.as_ref().map(|modify| &modify.only_with_labels);
    let has_labels = match wanted.filter(|labels| !labels.is_empty()) {
        None => false,
        Some(wanted) => {
            let labels = labels(&source(&image.imagename)?, origins).await?;
            let has = |label: &String| labels.contains_key(label);
            if release.wants_all_labels() { wanted.iter().all(has) } else { wanted.iter().any(has) }
        }
    };
    Ok(ResolvedImage { image, has_labels })
}

/// The labels of the image at `location`.
async fn labels(location: &Location, origins: &Origins<'_>) -> Result<Labels, DiscoverError> {
    let Location::Registry(image) = location else { return files::labels(location, origins).await };
    let config = origins.sources().config(image).await;
    Ok(config.map_err(|error| about(image, error))?.labels)
}

/// The tag that the labels of `image` tell. Where they tell none it keeps its own.
///
/// # Errors
/// [`DiscoverError`] where the image or the tag does not exist, or the registry fails.
pub async fn discover_tag(
    image: &Reference,
    label: &TagLabel,
    last_tag_stands_in: bool,
    sources: &Sources,
) -> Result<String, DiscoverError> {
    let own = image.identifier();
    let inspected = match sources.image(image).await {
        Ok(_) => image.clone(),
        Err(error) if error.is_not_found() && last_tag_stands_in => {
            last_tag(image, sources).await?
        }
        Err(error) => return Err(about(image, error)),
    };
    let config = sources.config(&inspected).await.map_err(|error| about(&inspected, error))?;
    let tag = label.tag(&config.labels).unwrap_or_else(|missing| {
        tracing::info!(%image, missing, "the image lacks the label and keeps its tag");
        own
    });
    existing_tag(image, tag, &inspected, sources).await
}

/// The tag that the labels of `image`, typed as `name`, tell: without anything that stands in
/// for a missing label.
///
/// # Errors
/// [`DiscoverError`] where the image, the label or the tag does not exist.
pub async fn tag_of_labels(
    image: &Reference,
    name: &str,
    label: Option<&TagLabel>,
    sources: &Sources,
) -> Result<String, DiscoverError> {
    let labels = sources.config(image).await.map_err(|error| about(image, error))?.labels;
    let available = labels.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let Some(label) = label else { return Err(DiscoverError::WhichLabel { available }) };
    let tag = label.tag(&labels).map_err(|missing| DiscoverError::NoLabel {
        image: name.to_owned(),
        label: missing.to_owned(),
        available,
    })?;
    existing_tag(image, tag, image, sources).await
}

/// The tag, where the repository of `image` has it; `inspected` may be what it names.
async fn existing_tag(
    image: &Reference,
    tag: String,
    inspected: &Reference,
    sources: &Sources,
) -> Result<String, DiscoverError> {
    let named = tag.parse().map(|tag| image.with_tag(tag));
    let exists = match &named {
        Ok(named) => sources.has(named, inspected).await.map_err(|error| about(named, error))?,
        // What is no tag cannot be there.
        Err(_) => false,
    };
    if exists { Ok(tag) } else { Err(no_tag(image, tag, sources).await) }
}

/// `image` under the last tag of its repository.
async fn last_tag(image: &Reference, sources: &Sources) -> Result<Reference, DiscoverError> {
    let tags = sources.client().tags(image.repository()).await;
    let tags = tags.map_err(|error| about(image, error))?;
    let last = tags.last().and_then(|tag| tag.parse().ok());
    last.map(|tag| image.with_tag(tag)).ok_or_else(|| DiscoverError::NotFound(image.clone().into()))
}

async fn no_tag(image: &Reference, tag: String, sources: &Sources) -> DiscoverError {
    match sources.client().tags(image.repository()).await {
        Ok(mut tags) => {
            tags.sort();
            let (repository, available) = (image.repository().to_string(), tags.join(", "));
            DiscoverError::NoTag { repository, tag, available }
        }
        Err(error) => about(image, error),
    }
}

fn about(image: &Reference, error: RegistryError) -> DiscoverError {
    if error.is_not_found() {
        return DiscoverError::NotFound(image.clone().into());
    }
    DiscoverError::Registry { image: image.clone(), source: Box::new(error) }
}
