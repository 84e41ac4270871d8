//! The same of images in files of this host and in podman's storage. Their tags are those of the
//! names beside them.

use super::super::copy::origin::Origins;
use super::super::copy::{CopyError, Location};
use super::super::label::{Labels, TagLabel};
use super::super::naming::without_tag;
use super::DiscoverError;

/// The tag that the labels of the image at `location` tell; where they tell none it keeps its own.
pub async fn discover_tag(
    location: &Location,
    label: &TagLabel,
    last_tag_stands_in: bool,
    origins: &Origins<'_>,
) -> Result<String, DiscoverError> {
    let name = location.to_string();
    let own = name.strip_prefix(without_tag(&name)).unwrap_or_default().trim_start_matches(':');
    let found = match labels(location, origins).await {
        Err(error @ DiscoverError::NotFound(_)) if last_tag_stands_in => {
            let tags = origins.tags(location).await.map_err(|error| about(location, error))?;
            let last = tags.last().ok_or(error)?;
            labels(&with_tag(&name, last)?, origins).await?
        }
        found => found?,
    };
    let tag = label.tag(&found).unwrap_or_else(|missing| {
        tracing::info!(image = name, missing, "the image lacks the label and keeps its tag");
        own.to_owned()
    });
    match origins.find(&with_tag(&name, &tag)?, true).await {
        Ok(_) => Ok(tag),
        Err(error) if error.is_missing() => {
            let tags = origins.tags(location).await.map_err(|error| about(location, error))?;
            let (repository, available) = (without_tag(&name).to_owned(), tags.join(", "));
            Err(DiscoverError::NoTag { repository, tag, available })
        }
        Err(error) => Err(about(location, error)),
    }
}

/// The labels of the image at `location`.
pub async fn labels(location: &Location, origins: &Origins<'_>) -> Result<Labels, DiscoverError> {
    let config = async {
        let (origin, raw) = origins.find(location, false).await?;
        origin.config(&raw).await
    };
    Ok(config.await.map_err(|error| about(location, error))?.labels)
}

fn with_tag(name: &str, tag: &str) -> Result<Location, DiscoverError> {
    Ok(format!("{}:{tag}", without_tag(name)).parse()?)
}

fn about(location: &Location, error: CopyError) -> DiscoverError {
    match error {
        CopyError::NotFound(image) => DiscoverError::NotFound(image),
        error => DiscoverError::Files { image: location.clone(), source: Box::new(error) },
    }
}
