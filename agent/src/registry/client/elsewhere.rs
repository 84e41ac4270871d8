//! Manifests that somebody else may have: the registry is asked what a name means, and its bytes
//! come from elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use undermount_fs::digest::Verified;

use super::manifests::RawManifest;
use super::{Client, RegistryError, Subject};
use crate::image::{Descriptor, Document, Reference, Repository};

/// How long somebody else may take, and no longer than half of the time that is left.
const PATIENCE: Duration = Duration::from_secs(2);

/// Somebody else who may have what a registry has.
pub trait Elsewhere: Send + Sync + 'static {
    /// The bytes that `manifest` describes, if they can be had until `deadline`.
    fn manifest<'a>(
        &'a self,
        repository: &'a Repository,
        manifest: &'a Descriptor,
        deadline: Instant,
    ) -> BoxFuture<'a, Option<Verified>>;
}

impl Client {
    /// The same client, which takes manifests from `elsewhere` where they are there. What a name
    /// means is asked of the registry all the same.
    #[must_use]
    pub fn beside(&self, elsewhere: Arc<dyn Elsewhere>) -> Self {
        Self { elsewhere: Some(elsewhere), ..self.clone() }
    }

    /// The manifest that `reference` means, if it can be had elsewhere.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry does not say what it means.
    pub(super) async fn manifest_elsewhere(
        &self,
        reference: &Reference,
    ) -> Result<Option<RawManifest>, RegistryError> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(None) };
        let subject = Subject::Manifest(reference.clone());
        let described = self.retry(&subject, || self.resolve_once(reference)).await?;
        let now = Instant::now();
        let left = self.deadline.map(|end| end.into_std().saturating_duration_since(now) / 2);
        let deadline = now + left.map_or(PATIENCE, |left| left.min(PATIENCE));
        let found = elsewhere.manifest(reference.repository(), &described, deadline).await;
        // What cannot be read is refused in the ordinary way.
        Ok(found.and_then(|found| {
            let (digest, bytes) = (*found.digest(), found.into_bytes());
            let document = Document::parse(&bytes, Some(&described.media_type)).ok()?;
            Some(RawManifest { media_type: document.media_type().to_owned(), bytes, digest })
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::FutureExt as _;
    use undermount_fs::digest::Digest;

    use super::super::testing::{Reply, Server, client};
    use super::*;

    const KIND: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = concat!(
        r#"{"schemaVersion":2,"manifests":[],"#,
        r#""mediaType":"application/vnd.oci.image.index.v1+json"}"#
    );

    fn digest() -> Digest {
        Digest::of(MANIFEST.as_bytes())
    }

    struct Other(AtomicBool);

    impl Elsewhere for Other {
        fn manifest<'a>(
            &'a self,
            _: &'a Repository,
            manifest: &'a Descriptor,
            _: Instant,
        ) -> BoxFuture<'a, Option<Verified>> {
            let bytes = Verified::name(MANIFEST.into());
            let has = self.0.load(Ordering::SeqCst);
            let found = Some(bytes).filter(|bytes| has && *bytes.digest() == manifest.digest);
            std::future::ready(found).boxed()
        }
    }

    #[tokio::test]
    async fn the_registry_says_what_a_name_means_and_others_give_its_bytes() {
        let server = Server::start(|_| {
            let reply = Reply::new(200, MANIFEST).header("Docker-Content-Digest", digest());
            reply.header("Content-Type", KIND)
        })
        .await;
        let other = Arc::new(Other(AtomicBool::new(true)));
        let client = client(|_| ()).beside(other.clone());
        let reference = server.repository().tagged("1".parse().unwrap());
        let asked =
            || -> Vec<String> { server.seen().into_iter().map(|seen| seen.method).collect() };
        let found = client.manifest(&reference).await.unwrap();
        assert_eq!((&found.bytes[..], found.digest), (MANIFEST.as_bytes(), digest()));
        assert_eq!(asked(), ["HEAD"]);
        other.0.store(false, Ordering::SeqCst);
        assert_eq!(client.manifest(&reference).await.unwrap().bytes, MANIFEST);
        assert_eq!(asked(), ["HEAD", "HEAD", "GET"]);
    }
}
