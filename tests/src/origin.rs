//! A read-only registry in the test's own process: it serves images that no real registry
//! accepts, counts what is asked of it and misbehaves on demand.
//!
//! Blobs are served with `Range` under the digest that the manifest claims. There are no indexes
//! unless they are attached: a node that mounts from here builds its own.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use undermount::image::Descriptor;
use undermount::image::artifact::{Artifact, LayerBlobs};
use undermount_fs::digest::Digest;
use undermount_fs::layer::Indexer;

use crate::archive::Member;
use crate::http::{Fault, Request, Response, Server};
use crate::image::{Image, MANIFEST};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Decides what goes wrong with a request.
type Faults = dyn FnMut(&Request) -> Option<Fault> + Send;
/// Makes another answer of the right one.
type Distortion = dyn FnMut(&Request, Response) -> Response + Send;

/// The registry; it stops when dropped.
pub struct Origin {
    server: Server,
    state: Arc<Mutex<State>>,
}

/// A manifest that belongs to an image, and the entry that lists it.
struct Attached {
    subject: Digest,
    manifest: Bytes,
    entry: Value,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, Image>,
    faults: Option<Box<Faults>>,
    distortion: Option<Box<Distortion>>,
    /// Manifests beside those of the images, by repository and digest.
    attached: BTreeMap<(String, Digest), Attached>,
    credentials: Option<String>,
    log: Vec<Request>,
    blob_bytes: u64,
}

impl Default for Origin {
    fn default() -> Self {
        Self::new()
    }
}

impl Origin {
    /// A registry without images.
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let served = state.clone();
        let server = Server::start(move |request| lock(&served).answer(request));
        Self { server, state }
    }

    /// A registry with one image, and the reference by which a client finds it.
    pub fn with(image: Image) -> (Self, String) {
        let origin = Self::new();
        let reference = origin.add("test/image", image);
        (origin, reference)
    }

    /// Serves `image` as the tag `latest` of `repository`; returns its reference.
    pub fn add(&self, repository: &str, image: Image) -> String {
        lock(&self.state).images.insert(repository.to_owned(), image);
        format!("{}/{repository}:latest", self.server.address())
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Lets `faults` decide about every request from now on.
    pub fn misbehave(&self, faults: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        lock(&self.state).faults = Some(Box::new(faults));
    }

    /// Lets `distortion` change every answer from now on.
    pub fn distort(&self, distortion: impl FnMut(&Request, Response) -> Response + Send + 'static) {
        lock(&self.state).distortion = Some(Box::new(distortion));
    }

    /// Behaves again.
    pub fn behave(&self) {
        let mut state = lock(&self.state);
        (state.faults, state.distortion) = (None, None);
    }

    /// Attaches indexes of `layers` to the image of `repository`, right or wrong ones.
    pub fn attach(&self, repository: &str, layers: &[LayerBlobs]) {
        let mut state = lock(&self.state);
        let image = state.images.get_mut(repository).expect("the image was added");
        let subject = Descriptor::of(MANIFEST, &image.manifest);
        let artifact = Artifact::build(&subject, layers).expect("zstd works in memory");
        for (descriptor, bytes) in artifact.blobs {
            image.blobs.insert(descriptor.digest, bytes);
        }
        let entry = serde_json::to_value(&artifact.descriptor).expect("plain data");
        let attached = Attached { subject: subject.digest, manifest: artifact.manifest, entry };
        let digest = artifact.descriptor.digest;
        state.attached.insert((repository.to_owned(), digest), attached);
    }

    /// Attaches the right indexes to the image of `repository`.
    pub fn attach_right(&self, repository: &str) {
        let image = lock(&self.state).images[repository].clone();
        let layers: Vec<LayerBlobs> =
            image.layers().iter().map(|(layer, _)| index_of(&image.blobs[layer])).collect();
        self.attach(repository, &layers);
    }

    /// Demands basic authentication from now on.
    pub fn require(&self, user: &str, password: &str) {
        let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        lock(&self.state).credentials = Some(expected);
    }

    /// Refuses connections until [`Self::up`].
    pub fn down(&self) {
        self.server.down();
    }

    /// Is there again, at the same address.
    pub fn up(&self) {
        self.server.up();
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state).log.clone()
    }

    /// The bytes of blobs that were to be sent so far.
    pub fn blob_bytes(&self) -> u64 {
        lock(&self.state).blob_bytes
    }
}

/// The right index of a layer with `members`, which says that it is the one of the layer of
/// `image`.
pub fn index_of_other_members(image: &Image, members: &[Member]) -> Vec<LayerBlobs> {
    let blob = |image: &Image| image.blobs[&image.layers()[0].0].clone();
    let (right, other) = (index_of(&blob(image)), index_of(&blob(&Image::of(&[members]))));
    let mut tree = other.tree.to_vec();
    // Digests and sizes of the layer and its spans, see `undermount_fs::index::TreeHeader`.
    tree[16..176].copy_from_slice(&right.tree[16..176]);
    vec![LayerBlobs { tree: tree.into(), ..right }]
}

/// The index of a layer blob.
pub fn index_of(blob: &[u8]) -> LayerBlobs {
    let mut indexer = Indexer::new();
    indexer.write_all(blob).expect("the layer is right");
    LayerBlobs::from(&indexer.finish().expect("the layer is right"))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn answer(&mut self, request: &Request) -> Response {
        self.log.push(request.clone());
        let fault = self.faults.as_mut().and_then(|faults| faults(request));
        if let Some(Fault::Status(status, retry_after)) = fault {
            let seconds = retry_after.map(|seconds| ("Retry-After", seconds.to_string()));
            let headers = seconds.into_iter().collect();
            return Response { headers, ..Response::new(status, "") };
        }
        if self.credentials.is_some()
            && request.header("authorization") != self.credentials.as_deref()
        {
            return error(401, "UNAUTHORIZED")
                .header("WWW-Authenticate", r#"Basic realm="the tests""#);
        }
        let mut response = self.find(request, fault == Some(Fault::WholeForRange));
        if let Some(distortion) = &mut self.distortion {
            response = distortion(request, response);
        }
        if fault == Some(Fault::Wrong) {
            response.body = with_one_wrong_byte(&response.body);
        }
        Response { fault: fault.or(response.fault), ..response }
    }

    fn find(&mut self, request: &Request, whole: bool) -> Response {
        let path = request.path.split('?').next().unwrap_or_default();
        if path.trim_end_matches('/') == "/v2" {
            return Response::new(200, "{}");
        }
        let Some(path) = path.strip_prefix("/v2/") else { return error(404, "NOT_FOUND") };
        if let Some(name) = path.strip_suffix("/tags/list") {
            let body = format!(r#"{{"name":"{name}","tags":["latest"]}}"#);
            return Response::new(200, body).header("Content-Type", "application/json");
        }
        if let Some((name, reference)) = path.split_once("/manifests/") {
            return self.manifest(name, reference);
        }
        if let Some((name, subject)) = path.split_once("/referrers/") {
            return self.referrers(name, subject);
        }
        let Some((name, digest)) = path.split_once("/blobs/") else {
            return error(404, "NOT_FOUND");
        };
        let blob = self.images.get(name).and_then(|image| image.blobs.get(&digest.parse().ok()?));
        let Some(blob) = blob.cloned() else { return error(404, "BLOB_UNKNOWN") };
        let response = blob_response(request, blob, whole);
        if request.method == "GET" {
            self.blob_bytes += response.body.len() as u64;
        }
        response
    }

    fn referrers(&self, name: &str, subject: &str) -> Response {
        let listed = self.attached.iter().filter(|((repository, _), attached)| {
            repository == name && attached.subject.to_string() == subject
        });
        let manifests: Vec<&Value> = listed.map(|(_, attached)| &attached.entry).collect();
        if manifests.is_empty() {
            return error(404, "NOT_FOUND");
        }
        let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        Response::new(200, list.to_string()).header("Content-Type", INDEX)
    }

    fn manifest(&self, name: &str, reference: &str) -> Response {
        let attached = reference.parse().ok();
        let attached = attached.and_then(|digest| self.attached.get(&(name.to_owned(), digest)));
        if let Some(Attached { manifest, .. }) = attached {
            return Response::new(200, manifest.clone()).header("Content-Type", MANIFEST);
        }
        let image = self
            .images
            .get(name)
            .filter(|image| reference == "latest" || reference == image.digest().to_string());
        match image {
            Some(image) => Response::new(200, image.manifest.clone())
                .header("Content-Type", MANIFEST)
                .header("Docker-Content-Digest", image.digest().to_string()),
            None => error(404, "MANIFEST_UNKNOWN"),
        }
    }
}

fn blob_response(request: &Request, blob: Bytes, whole: bool) -> Response {
    let length = blob.len() as u64;
    let Some((first, last)) = request.range().filter(|_| !whole) else {
        return Response::new(200, blob);
    };
    if first >= length || first > last {
        return Response::new(416, "").header("Content-Range", format!("bytes */{length}"));
    }
    let last = last.min(length - 1);
    let slice = usize::try_from(first).unwrap()..usize::try_from(last + 1).unwrap();
    Response::new(206, blob.slice(slice))
        .header("Content-Range", format!("bytes {first}-{last}/{length}"))
}

fn error(status: u16, code: &str) -> Response {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{code}"}}]}}"#);
    Response::new(status, body).header("Content-Type", "application/json")
}

fn with_one_wrong_byte(body: &Bytes) -> Bytes {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 0x40;
    }
    body.into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::archive::{Member, noise};
    use crate::process::SOON;

    fn client() -> reqwest::Client {
        // Fails only when a provider is installed already, which then serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        reqwest::Client::builder().timeout(SOON).build().unwrap()
    }

    async fn get(url: &str, range: Option<&str>) -> Result<(u16, Bytes), reqwest::Error> {
        let mut request = client().get(url);
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.bytes().await?))
    }

    fn served() -> (Origin, String, Bytes) {
        let image = Image::of(&[&[Member::file("a", noise(1, 100_000))]]);
        let (digest, _) = image.layers()[0];
        let blob = image.blobs[&digest].clone();
        let (origin, _) = Origin::with(image);
        let url = format!("http://{}/v2/test/image/blobs/{digest}", origin.address());
        (origin, url, blob)
    }

    #[tokio::test]
    async fn blobs_are_served_whole_and_in_ranges() {
        let (origin, url, blob) = served();
        assert_eq!(get(&url, None).await.unwrap(), (200, blob.clone()));
        assert_eq!(get(&url, Some("bytes=3-9")).await.unwrap(), (206, blob.slice(3..10)));
        assert_eq!(get(&url, Some("bytes=100-")).await.unwrap(), (206, blob.slice(100..)));
        assert_eq!(get(&url, Some("bytes=999999-")).await.unwrap().0, 416);
        assert_eq!(origin.requests().len(), 4);
        assert_eq!(origin.blob_bytes(), (2 * blob.len() - 100 + 7) as u64);
    }

    #[tokio::test]
    async fn each_fault_is_seen_by_a_client() {
        let (origin, url, blob) = served();
        origin.misbehave(|_| Some(Fault::Short(10)));
        assert!(get(&url, None).await.is_err());
        origin.misbehave(|_| Some(Fault::Reset(10)));
        assert!(get(&url, None).await.is_err());
        origin.misbehave(|_| Some(Fault::Stall));
        let hurried = client().get(&url).timeout(Duration::from_secs(1));
        assert!(hurried.send().await.unwrap_err().is_timeout());
        origin.misbehave(|_| Some(Fault::Wrong));
        let wrong = get(&url, None).await.unwrap().1;
        assert!(wrong.len() == blob.len() && wrong != blob);
        origin.misbehave(|_| Some(Fault::WholeForRange));
        assert_eq!(get(&url, Some("bytes=3-9")).await.unwrap(), (200, blob.clone()));
        origin.misbehave(|_| Some(Fault::Status(503, Some(1))));
        assert_eq!(get(&url, None).await.unwrap().0, 503);
        let begin = Instant::now();
        origin.misbehave(|_| Some(Fault::Trickle(100, Duration::from_millis(100))));
        assert_eq!(get(&url, Some("bytes=0-299")).await.unwrap().0, 206);
        assert!(begin.elapsed() > Duration::from_millis(200));
        origin.behave();
        assert_eq!(get(&url, None).await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn a_registry_that_was_down_comes_back_at_its_address() {
        let (origin, url, _) = served();
        origin.down();
        assert!(get(&url, None).await.unwrap_err().is_connect());
        origin.up();
        assert_eq!(get(&url, None).await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn credentials_are_demanded() {
        let (origin, url, _) = served();
        origin.require("user", "word");
        assert_eq!(get(&url, None).await.unwrap().0, 401);
        let right = client().get(&url).basic_auth("user", Some("word")).send().await.unwrap();
        assert_eq!(right.status().as_u16(), 200);
    }
}
