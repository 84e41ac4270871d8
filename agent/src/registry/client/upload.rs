//! Pushing blobs: as streams that survive a cut, or as mounts across repositories.
//!
//! ```text
//! POST  uploads/                  -> 202, Location      start_upload
//! PUT   <Location>?digest=…       <- bytes, 201         UploadWriter
//!   cut: GET <Location>           -> 204, Range: 0-n    Upload::refresh, then PUT the rest
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Body, Request, Response, Url};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::digest::Digest;

use crate::image::{Descriptor, Repository};

use super::Client;
use super::auth::Access;
use super::copy::MemoryBlob;
use super::endpoint::Endpoint;
use super::error::{Fault, Message, RegistryError, Subject};
use super::response::expect;
use super::retry::before;

/// Chunks between the one who writes and the connection.
const QUEUE: usize = 4;
/// How long a registry may take to store a blob that it has received: it may hash it again.
const COMMIT: Duration = Duration::from_secs(300);
const OCTETS: &str = "application/octet-stream";

/// The answer to a mount.
#[derive(Debug)]
pub enum Mount {
    /// The repository has the blob now.
    Mounted,
    /// It does not, but an upload was opened in its place.
    Opened(Upload),
}

/// An upload that the registry has opened and that holds some first bytes of a blob.
#[derive(Debug)]
pub struct Upload {
    client: Client,
    endpoint: Arc<Endpoint>,
    repository: Repository,
    /// What it was opened with. Bytes that stream cannot be sent again, so the pass that goes with
    /// them is the one that the registry has just accepted.
    access: Arc<Access>,
    url: Url,
    offset: u64,
}

impl Client {
    /// Opens an upload to `repository`.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn start_upload(&self, repository: &Repository) -> Result<Upload, RegistryError> {
        let subject = Subject::Upload(repository.clone());
        let repository = &self.home(repository, &subject)?;
        let opened = self.retry(&subject, || async {
            let access = Access::push(repository);
            let (response, asked) = self.post_upload(repository, "", &access).await?;
            let response = expect(response, &[StatusCode::ACCEPTED]).await?;
            self.opened(repository, access, &asked, response.headers())
        });
        opened.await
    }

    /// Makes the blob `digest` of the repository `from`, on the same registry, one of
    /// `repository` too, without moving it.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn mount(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: &Repository,
    ) -> Result<Mount, RegistryError> {
        let subject = Subject::Blob(repository.clone(), *digest);
        let repository = &self.home(repository, &subject)?;
        let from = &self.home(from, &subject)?;
        self.retry(&subject, || async {
            let query = format!("?mount={digest}&from={}", from.path());
            let access = Access::mount(repository, from);
            let (response, asked) = self.post_upload(repository, &query, &access).await?;
            let response = expect(response, &[StatusCode::CREATED, StatusCode::ACCEPTED]).await?;
            match response.status() {
                StatusCode::CREATED => Ok(Mount::Mounted),
                _ => {
                    let opened = self.opened(repository, access, &asked, response.headers());
                    opened.map(Mount::Opened)
                }
            }
        })
        .await
    }

    async fn post_upload(
        &self,
        repository: &Repository,
        query: &str,
        access: &Access,
    ) -> Result<(Response, Url), Fault> {
        let endpoint = self.endpoint(repository);
        let path = format!("v2/{}/blobs/uploads/{query}", repository.path());
        let url = endpoint.url(&path).await?;
        let mut request = Request::new(Method::POST, url.clone());
        set_length(&mut request, 0);
        Ok((endpoint.send(request, access).await?, url))
    }

    fn opened(
        &self,
        repository: &Repository,
        access: Access,
        asked: &Url,
        headers: &HeaderMap,
    ) -> Result<Upload, Fault> {
        let endpoint = self.endpoint(repository);
        let url = location(&endpoint, asked, headers)?
            .ok_or_else(|| Fault::Protocol("an upload without a Location".into()))?;
        let (client, repository, access) = (self.clone(), repository.clone(), Arc::new(access));
        Ok(Upload { client, endpoint, repository, access, url, offset: 0 })
    }

    /// Pushes `bytes` as a blob of `repository`, whether it is there or not.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry refuses or cannot be reached.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        bytes: &Bytes,
    ) -> Result<Digest, RegistryError> {
        let blob = Descriptor::of(OCTETS, bytes);
        self.copy_blob(&blob, &MemoryBlob(bytes.clone()), repository, None, None).await?;
        Ok(blob.digest)
    }
}

fn location(endpoint: &Endpoint, asked: &Url, headers: &HeaderMap) -> Result<Option<Url>, Fault> {
    let Some(header) = headers.get(LOCATION) else { return Ok(None) };
    let text = header.to_str().map_err(|_| Fault::Protocol("a Location in no text".into()))?;
    endpoint.resolve(asked, text).map(Some)
}

fn set_length(request: &mut Request, length: u64) {
    request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
}

impl Upload {
    /// How many bytes the registry has.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Begins to send the rest of the blob `digest` of `size` bytes, from [`Self::offset`] on.
    pub fn writer(self, digest: &Digest, size: u64) -> UploadWriter {
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let mut request = self.put_request(digest, size);
        let chunks = unfold(receiver, |mut receiver| async {
            let chunk: Result<Bytes, std::convert::Infallible> = Ok(receiver.recv().await?);
            Some((chunk, receiver))
        });
        *request.body_mut() = Some(Body::wrap_stream(chunks));
        let (endpoint, access) = (Arc::clone(&self.endpoint), Arc::clone(&self.access));
        let sending = tokio::spawn(async move {
            let response = endpoint.send(request, &access).await?;
            expect(response, &[StatusCode::CREATED]).await.map(drop)
        });
        let subject = Subject::Blob(self.repository.clone(), *digest);
        let sending = Some(AbortOnDropHandle::new(sending));
        UploadWriter { upload: self, size, subject, sender: Some(sender), sending }
    }

    fn put_request(&self, digest: &Digest, size: u64) -> Request {
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut request = Request::new(Method::PUT, url);
        set_length(&mut request, size.saturating_sub(self.offset));
        let octets = HeaderValue::from_static(OCTETS);
        request.headers_mut().insert(CONTENT_TYPE, octets);
        if self.offset > 0 && self.offset < size {
            let range = HeaderValue::from_str(&format!("{}-{}", self.offset, size - 1));
            request.headers_mut().insert(CONTENT_RANGE, range.expect("digits are visible ASCII"));
        }
        request
    }

    /// Asks how many bytes of the blob, which has `size`, have arrived, after a cut.
    ///
    /// # Errors
    /// [`RegistryError`] where the upload is gone (docker-registry 2.8 forgets those that were
    /// cut), holds more than the blob has, or the registry cannot be reached.
    async fn refresh(&mut self, size: u64) -> Result<(), RegistryError> {
        let subject = Subject::Upload(self.repository.clone());
        let (endpoint, url) = (&self.endpoint, &self.url);
        let found = self.client.retry(&subject, || async {
            let request = Request::new(Method::GET, url.clone());
            let response = endpoint.send(request, &self.access).await?;
            let allowed = [StatusCode::NO_CONTENT, StatusCode::ACCEPTED, StatusCode::OK];
            let response = expect(response, &allowed).await?;
            let next = location(endpoint, url, response.headers())?;
            let offset = received(response.headers())?;
            if offset > size {
                let words = format!("an upload has {offset} bytes of {size}");
                return Err(Fault::Protocol(words));
            }
            Ok((offset, next))
        });
        let (offset, next) = found.await?;
        self.offset = offset;
        self.url = next.unwrap_or_else(|| self.url.clone());
        Ok(())
    }

    /// Gives the upload up, so that the registry need not keep it.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry does not understand that.
    pub async fn cancel(self) -> Result<(), RegistryError> {
        let subject = Subject::Upload(self.repository.clone());
        let request = Request::new(Method::DELETE, self.url.clone());
        let sent = self.endpoint.send(request, &self.access);
        let response = before(self.client.deadline, sent).await;
        let response = response.unwrap_or_else(|| Err(Fault::Deadline(Message::default())));
        let response = response.map_err(|fault| fault.of(&subject))?;
        let allowed = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::ACCEPTED];
        expect(response, &allowed).await.map(drop).map_err(|fault| fault.of(&subject))
    }
}

/// How many bytes `Range: 0-n` says have arrived. An upload without any may say `0-0` (as
/// docker-registry does) or nothing: one byte cannot be told from none, so it counts as none.
fn received(headers: &HeaderMap) -> Result<u64, Fault> {
    let Some(header) = headers.get(RANGE) else { return Ok(0) };
    let text = String::from_utf8_lossy(header.as_bytes());
    let range = text.strip_prefix("bytes=").unwrap_or(&text);
    let last = range.strip_prefix("0-").and_then(|last| last.parse::<u64>().ok());
    match last {
        Some(0) => Ok(0),
        Some(last) if last < u64::MAX => Ok(last + 1),
        _ => Err(Fault::Protocol(format!("an upload's Range `{text}`"))),
    }
}

/// Sends the bytes of a blob as they are written. Dropped before [`Self::finish`], it breaks
/// the connection, and the upload can be gone on with.
pub struct UploadWriter {
    upload: Upload,
    /// Bytes of the whole blob.
    size: u64,
    subject: Subject,
    sender: Option<mpsc::Sender<Bytes>>,
    /// The request; gone once its outcome is known.
    sending: Option<AbortOnDropHandle<Result<(), Fault>>>,
}

impl UploadWriter {
    /// How many bytes the registry had when this writer began.
    pub fn offset(&self) -> u64 {
        self.upload.offset
    }

    /// Sends `chunk`, as soon as the registry has taken what came before it.
    ///
    /// # Errors
    /// [`RegistryError`] where the registry has refused the upload, or takes nothing for the
    /// length of the pace's window. [`Self::recover`] tells where to go on.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), RegistryError> {
        let Some(sender) = &self.sender else { return Err(self.ended()) };
        let client = &self.upload.client;
        let patience = client.shared.config.pace.window;
        let fault = match before(client.deadline, timeout(patience, sender.send(chunk))).await {
            Some(Ok(Ok(()))) => return Ok(()),
            // The request is over: its answer says why.
            Some(Ok(Err(_))) => {
                self.outcome().await?;
                return Err(self.ended());
            }
            Some(Err(_)) => Fault::Stalled { received: 0, seconds: patience.as_secs() },
            None => Fault::Deadline(Message::default()),
        };
        Err(fault.of(&self.subject))
    }

    /// Waits until the registry has checked and stored the blob.
    ///
    /// # Errors
    /// [`RegistryError`] where it refuses, or does not answer.
    pub async fn finish(&mut self) -> Result<(), RegistryError> {
        self.sender = None;
        self.outcome().await
    }

    async fn outcome(&mut self) -> Result<(), RegistryError> {
        let Some(mut sending) = self.sending.take() else { return Err(self.ended()) };
        let stored = before(self.upload.client.deadline, timeout(COMMIT, &mut sending)).await;
        let fault = match stored {
            Some(Ok(Ok(Ok(())))) => return Ok(()),
            Some(Ok(Ok(Err(fault)))) => fault,
            Some(Ok(Err(_))) => return Err(self.ended()),
            Some(Err(_)) => Fault::Stalled { received: 0, seconds: COMMIT.as_secs() },
            None => Fault::Deadline(Message::default()),
        };
        Err(fault.of(&self.subject))
    }

    fn ended(&self) -> RegistryError {
        Fault::Protocol("the upload ended before its bytes did".into()).of(&self.subject)
    }

    /// Ends the connection and gives the upload back, at the byte that the registry wants next.
    ///
    /// # Errors
    /// [`RegistryError`] where the upload is gone or the registry cannot be reached.
    pub async fn recover(self) -> Result<Upload, RegistryError> {
        let size = self.size;
        let mut upload = self.hang_up().await;
        upload.refresh(size).await?;
        Ok(upload)
    }

    /// Ends the connection and gives the upload up.
    pub async fn cancel(self) {
        if let Err(error) = self.hang_up().await.cancel().await {
            tracing::debug!(error = %error.in_words(), "an upload stays open");
        }
    }

    /// Its connection has to be closed before the registry tells what came through it.
    async fn hang_up(self) -> Upload {
        if let Some(sending) = self.sending {
            sending.abort();
            let _ = sending.await;
        }
        self.upload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_that_have_arrived_are_read_from_range() {
        for (header, expected) in [
            ("0-0", Some(0)),
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("1-9", None),
            ("0-18446744073709551615", None),
            ("x", None),
        ] {
            let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(header))]);
            assert_eq!(received(&headers).ok(), expected, "{header}");
        }
        assert_eq!(received(&HeaderMap::new()).unwrap(), 0);
    }
}
