//! What belongs to an image: signatures, attestations, bills of materials, indexes.
//!
//! It is found in two ways. Manifests that name their subject (OCI 1.1) are listed by the
//! registry, or under the subject's fallback tag. What cosign has always written has a tag made
//! of the subject's digest: `sha256-<hex>.sig`, `.att`, `.sbom`. To see which of those tags
//! there are, the tags of a repository are listed once for all of its images.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;
use undermount_fs::digest::Digest;

use super::CopyError;
use super::layout::Layout;
use super::origin::Origin;
use super::store::{Attachment, FoundBy};
use crate::image::{Descriptor, Repository, Tag, media_type, referrers};
use crate::prepare::image_serve::ImageServe;
use crate::registry::client::{Client, Fault, RawManifest, RegistryError};

/// The tags of a repository that belong to manifests; none where it lists no tags for us.
type Listing = Option<Vec<Tag>>;

/// Finds what belongs to images.
#[derive(Default)]
pub struct Finder {
    /// The tags of repositories that belong to manifests.
    tags: Mutex<HashMap<Repository, Arc<OnceCell<Listing>>>>,
}

impl Finder {
    /// What belongs to the manifest `subject` of `origin`.
    ///
    /// # Errors
    /// [`CopyError`] where that cannot be found out.
    pub async fn find(
        &self,
        origin: &Origin,
        subject: &Digest,
    ) -> Result<Vec<Attachment>, CopyError> {
        match origin {
            Origin::Registry(client, repository) => {
                self.in_registry(client, repository, subject).await
            }
            Origin::Layout(layout) => Ok(in_layout(layout, subject)),
            Origin::Tree(tree, repository) => Ok(in_tree(tree, repository, subject)),
        }
    }

    async fn in_registry(
        &self,
        client: &Client,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Attachment>, CopyError> {
        let tags = self.reserved_tags(client, repository).await?;
        let referrers = match &tags {
            Some(tags) => client.referrers_beside(repository, subject, tags).await?,
            None => client.referrers(repository, subject, None).await?,
        };
        let mut found = Vec::new();
        for listed in referrers {
            let raw = manifest(client, repository, &listed.digest).await?;
            found.extend(raw.map(|raw| by_subject(raw, subject)));
        }
        let prefix = format!("{}.", referrers::fallback_tag(subject).as_str());
        for tag in tags.unwrap_or_default() {
            if tag.as_str().starts_with(&prefix) && tag != referrers::own_tag(subject) {
                let raw = client.manifest(&repository.tagged(tag.clone())).await?;
                found.push(by_tag(raw, tag));
            }
        }
        Ok(found)
    }

    /// The tags of `repository` that belong to a manifest, where it lists its tags for us.
    async fn reserved_tags(
        &self,
        client: &Client,
        repository: &Repository,
    ) -> Result<Listing, RegistryError> {
        let cell = {
            let mut tags = self.tags.lock().expect("no panic while it is held");
            Arc::clone(tags.entry(repository.clone()).or_default())
        };
        let listed = cell.get_or_try_init(|| async {
            let all = match client.all_tags(repository).await {
                Ok(all) => all,
                Err(error) if is_unlisted(&error.fault) => return Ok(None),
                Err(error) => return Err(error),
            };
            let reserved = all.iter().filter(|tag| referrers::is_reserved_tag(tag));
            Ok(Some(reserved.filter_map(|tag| tag.parse().ok()).collect()))
        });
        listed.await.cloned()
    }
}

/// Whether a registry lists no tags for us, although it has the image.
fn is_unlisted(fault: &Fault) -> bool {
    matches!(fault, Fault::NotFound(_) | Fault::Status { .. } | Fault::Unauthorized { .. })
}

/// A listed manifest; lists outlive what they list.
async fn manifest(
    client: &Client,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<RawManifest>, RegistryError> {
    match client.manifest(&repository.at(*digest)).await {
        Ok(raw) => Ok(Some(raw)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_layout(layout: &Layout, subject: &Digest) -> Vec<Attachment> {
    let referrers = layout.referrers(subject).into_iter().map(|raw| by_subject(raw, subject));
    let prefix = format!(":{}.", referrers::fallback_tag(subject).as_str());
    let tagged = layout.names().into_iter().filter_map(|name| {
        let tag = &name[name.rfind(&prefix)? + 1..];
        let raw = layout.manifest(&layout.find(Some(name)).ok()?.digest).ok()?;
        Some(by_tag(raw, tag.parse().ok()?))
    });
    referrers.chain(tagged).collect()
}

fn in_tree(tree: &ImageServe, repository: &Repository, subject: &Digest) -> Vec<Attachment> {
    let own_tag = referrers::own_tag(subject);
    let prefix = format!("{}.", referrers::fallback_tag(subject).as_str());
    let listed = tree.referrers(repository, subject).into_iter();
    let referrers = listed
        .filter_map(|listed| Some(by_subject(tree.manifest(repository, &listed.digest)?, subject)));
    let tags = tree.tags(repository).into_iter().filter(|tag| tag.starts_with(&prefix));
    let tagged = tags.filter_map(|tag| {
        let tag: Tag = tag.parse().ok()?;
        let raw = tree.tagged(repository, &tag).filter(|_| tag != own_tag)?;
        Some(by_tag(raw, tag))
    });
    referrers.chain(tagged).collect()
}

fn by_subject(raw: RawManifest, subject: &Digest) -> Attachment {
    let descriptor = referrers::listed(&raw.bytes, &raw.media_type);
    let own_tag = is_index(&descriptor).then(|| referrers::own_tag(subject));
    Attachment { raw, descriptor, found_by: FoundBy::Subject(own_tag) }
}

fn by_tag(raw: RawManifest, tag: Tag) -> Attachment {
    let descriptor = referrers::listed(&raw.bytes, &raw.media_type);
    Attachment { raw, descriptor, found_by: FoundBy::Tag(tag) }
}

/// Whether this is our own index artifact.
pub fn is_index(referrer: &Descriptor) -> bool {
    referrers::artifact_type(referrer) == Some(media_type::UNDERMOUNT_INDEX)
}
