//! What belongs to a manifest, its referrers: from the referrers API, or from the fallback tag.
//!
//! ```text
//! mirrors that list something -> the repository's own place -> mirrors that seemed to hang
//!                                  `- it has no referrers API: the index under the fallback tag
//! ```
//!
//! See the distribution-spec 1.1, "Listing Referrers" and "Unavailable Referrers API".

use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Document, Index, Repository, Tag, media_type, referrers};

use super::Client;
use super::auth::Access;
use super::endpoint::Endpoint;
use super::error::{Fault, Message, RegistryError, Subject};
use super::retry::before;
use super::route::Way;

/// Most pages of what belongs to one manifest, which somebody waits for.
const MAX_PAGES: usize = 100;

impl Client {
    /// What belongs to the manifest `subject`, of one `artifact_type` or of all: from the
    /// referrers API, or from the fallback tag where the registry does not have it.
    ///
    /// # Errors
    /// [`RegistryError`] where that cannot be found out.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        match self.api_referrers(repository, subject, artifact_type).await? {
            Some(listed) => Ok(listed),
            None => self.fallback_referrers(repository, subject, artifact_type).await,
        }
    }

    /// What belongs to the manifest `subject` of a repository whose reserved tags are `tags`: the
    /// fallback tag is asked for only if it is one of them.
    ///
    /// # Errors
    /// As [`Self::referrers`].
    pub async fn referrers_beside(
        &self,
        repository: &Repository,
        subject: &Digest,
        tags: &[Tag],
    ) -> Result<Vec<Descriptor>, RegistryError> {
        match self.api_referrers(repository, subject, None).await? {
            Some(listed) => Ok(listed),
            None if !tags.contains(&referrers::fallback_tag(subject)) => Ok(Vec::new()),
            None => self.fallback_referrers(repository, subject, None).await,
        }
    }

    /// What the referrers API lists; `None` where the registry does not have it. A mirror that
    /// lists something is believed, one that fails does not count.
    pub(super) async fn api_referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let about = Subject::Referrers(repository.clone(), *subject);
        let way = self.way(repository, true).map_err(|fault| fault.of(&about))?;
        let Way { mirrors, home, hanging } = way;
        if let Some(listed) = self.mirrored_referrers(&mirrors, subject, artifact_type).await {
            return Ok(Some(listed));
        }
        let ask = || self.referrers_at(&home, subject, artifact_type);
        match self.retry(&about, ask).await {
            Ok(listed) => Ok(listed),
            Err(error) => {
                let listed = self.mirrored_referrers(&hanging, subject, artifact_type).await;
                listed.map(Some).ok_or(error)
            }
        }
    }

    /// What the first of `mirrors` lists that lists anything.
    async fn mirrored_referrers(
        &self,
        mirrors: &[Repository],
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Option<Vec<Descriptor>> {
        for mirror in mirrors {
            let endpoint = self.endpoint(mirror);
            // Who is not asked has not answered.
            if endpoint.without_referrers.holds() {
                continue;
            }
            let watch = endpoint.watch();
            let asked = self.referrers_at(mirror, subject, artifact_type);
            let Some(Ok(listed)) = before(self.deadline, asked).await else { continue };
            watch.answered();
            if let Some(listed) = listed.filter(|listed| !listed.is_empty()) {
                return Some(listed);
            }
        }
        None
    }

    /// What one place lists; one without the API is asked once in a while.
    async fn referrers_at(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, Fault> {
        let endpoint = self.endpoint(repository);
        if endpoint.without_referrers.holds() {
            return Ok(None);
        }
        match self.listed_referrers(&endpoint, repository, subject, artifact_type).await {
            Ok(listed) => Ok(listed.map(|listed| of_type(listed, artifact_type))),
            Err(Fault::NotFound(Message(words))) => {
                // An error of the API would say what it does not know, such as the repository.
                if words.is_empty() {
                    endpoint.without_referrers.note();
                }
                Ok(None)
            }
            // A front that knows older registries only guards what it does not know. Whoever may
            // not read the repository at all learns it from the fallback tag.
            Err(Fault::Unauthorized { .. }) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The answer of the referrers API; `None` where something else answers in its place. Any
    /// 404 means the same: the API answers an unknown subject with an empty index.
    async fn listed_referrers(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, Fault> {
        let filter = artifact_type.map(|kind| format!("?artifactType={kind}")).unwrap_or_default();
        let path = format!("v2/{}/referrers/{subject}{filter}", repository.path());
        let access = Access::pull(repository);
        let kind = media_type::OCI_INDEX;
        let mut pages = self.pages(endpoint, &access, &path, kind, MAX_PAGES).await?;
        let mut referrers = Vec::new();
        loop {
            let Some(page) = pages.next().await? else { return Ok(Some(referrers)) };
            // A server of files may answer anything with a page of its own.
            let Ok(index) = parse_index(&page) else { return Ok(None) };
            referrers.extend(index.manifests);
        }
    }

    /// What the fallback index lists.
    pub(super) async fn fallback_referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let tag = repository.tagged(referrers::fallback_tag(subject));
        match self.manifest(&tag).await {
            Ok(raw) => {
                let index = raw.document().and_then(Document::into_index);
                let about = Subject::Manifest(tag);
                let index = index.map_err(|error| Fault::Manifest(error).of(&about))?;
                Ok(of_type(index.manifests, artifact_type))
            }
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Registries may ignore the filter, and fallback indexes have none.
fn of_type(mut listed: Vec<Descriptor>, artifact_type: Option<&str>) -> Vec<Descriptor> {
    let wanted = |entry: &Descriptor| {
        artifact_type.is_none() || referrers::artifact_type(entry) == artifact_type
    };
    listed.retain(wanted);
    listed
}

fn parse_index(page: &[u8]) -> Result<Index, Fault> {
    Ok(Document::parse(page, Some(media_type::OCI_INDEX))?.into_index()?)
}
