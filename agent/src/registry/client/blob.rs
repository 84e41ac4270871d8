//! Blobs: whole or in part, over connections that break.
//!
//! A [`BlobReader`] asks for the rest by Range whenever a transfer breaks, stalls or ends too
//! early, until its budget is spent without progress. It accepts the whole blob in answer to a
//! Range (skipping what was not asked for), for some proxies and file servers know no better.
//! Its bytes are **not** verified: who reads them hashes them.

use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::time::sleep;
use undermount_fs::digest::Digest;

use crate::image::Repository;

use super::Client;
use super::error::{Fault, Message, RegistryError, Subject};
use super::response::{Body, Limit, expect, fault_of, read_all};
use super::retry::{Budget, before};
use super::route::Ask;

/// So many bytes since the last cut are progress, which fills the retry budget again.
const PROGRESS: u64 = 256 << 10;
/// Memory that is set aside for a range before its bytes come.
const LARGE_RANGE: u64 = 16 << 20;
/// Cuts after which a reader gives up in spite of progress.
const MAX_CUTS: u32 = 100;

impl Client {
    /// Whether `repository` has the blob.
    ///
    /// # Errors
    /// [`RegistryError`] where that cannot be found out.
    pub async fn blob_exists(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let subject = Subject::Blob(repository.clone(), *digest);
        self.retry(&subject, || async {
            let response = self.ask_blob(Method::HEAD, repository, digest, None).await?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(fault_of(response).await),
            }
        })
        .await
    }

    /// The size of the blob, in bytes.
    ///
    /// # Errors
    /// [`RegistryError`] where `repository` does not have it, or does not tell.
    pub async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, RegistryError> {
        let subject = Subject::Blob(repository.clone(), *digest);
        self.retry(&subject, || async {
            let response = self.ask_blob(Method::HEAD, repository, digest, None).await?;
            let response = expect(response, &[StatusCode::OK]).await?;
            let length = response.headers().get(CONTENT_LENGTH);
            let size = length.and_then(|length| length.to_str().ok()?.parse().ok());
            size.ok_or_else(|| Fault::Protocol("no Content-Length".to_owned()))
        })
        .await
    }

    /// Whether a part of the blob, asked for by Range, comes as a part. Something on the way may
    /// ignore Range, and then every read costs the whole blob.
    ///
    /// # Errors
    /// [`RegistryError`] where the blob does not come at all.
    pub async fn serves_ranges(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let subject = Subject::Blob(repository.clone(), *digest);
        self.retry(&subject, || async {
            let response = self.ask_blob(Method::GET, repository, digest, Some(&(1..2))).await?;
            let response = expect(response, &[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await?;
            Ok(response.status() == StatusCode::PARTIAL_CONTENT)
        })
        .await
    }

    /// The bytes `range` of a blob, unverified.
    ///
    /// # Errors
    /// [`RegistryError`] where the blob is missing, ends before the range, or does not come.
    pub async fn blob_range(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        let mut reader = self.read_range(repository, digest, range.clone());
        let length = range.end.saturating_sub(range.start).min(LARGE_RANGE);
        let mut bytes = BytesMut::with_capacity(length as usize);
        while let Some(chunk) = reader.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// A reader of the bytes `range` of a blob.
    pub fn read_range(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Range<u64>,
    ) -> BlobReader {
        BlobReader::new(self, repository, *digest, None, range)
    }

    /// A reader of a blob of `size` bytes from byte `offset` to its end.
    pub fn read_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        offset: u64,
    ) -> BlobReader {
        BlobReader::new(self, repository, *digest, Some(size), offset.min(size)..size)
    }

    /// The whole blob at once, unverified.
    pub(super) async fn blob_once(
        &self,
        repository: &Repository,
        digest: &Digest,
        limit: Limit,
    ) -> Result<Bytes, Fault> {
        let response = self.ask_blob(Method::GET, repository, digest, None).await?;
        read_all(expect(response, &[StatusCode::OK]).await?, limit, self.reading()).await
    }

    async fn ask_blob(
        &self,
        method: Method,
        repository: &Repository,
        digest: &Digest,
        range: Option<&Range<u64>>,
    ) -> Result<Response, Fault> {
        let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("*/*"))]);
        if let Some(range) = range {
            let value = HeaderValue::from_str(&range_header(range));
            headers.insert(RANGE, value.expect("digits are visible ASCII"));
        }
        let ask = Ask { method, headers, pinned: true };
        self.ask_anywhere(repository, &ask, &format!("blobs/{digest}")).await
    }
}

fn range_header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
}

/// Reads a blob or a part of it in order. See the module's words on verification.
pub struct BlobReader {
    client: Client,
    repository: Repository,
    subject: Subject,
    digest: Digest,
    /// The size of the whole blob, where the caller knows it.
    size: Option<u64>,
    /// What is still to come.
    rest: Range<u64>,
    answer: Option<Answer>,
    budget: Budget,
    since_cut: u64,
    cuts: u32,
}

/// The answer that is being read.
struct Answer {
    body: Body,
    /// Bytes before those that were asked for.
    skip: u64,
}

impl BlobReader {
    fn new(
        client: &Client,
        repository: &Repository,
        digest: Digest,
        size: Option<u64>,
        rest: Range<u64>,
    ) -> Self {
        Self {
            client: client.clone(),
            repository: repository.clone(),
            subject: Subject::Blob(repository.clone(), digest),
            digest,
            size,
            rest,
            answer: None,
            budget: client.shared.config.retry.budget(),
            since_cut: 0,
            cuts: 0,
        }
    }

    /// The position of the next byte in the blob.
    pub fn position(&self) -> u64 {
        self.rest.start
    }

    /// Sets when the transfer has to be done, or takes the deadline away.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.client.deadline = deadline.map(Into::into);
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`RegistryError`] where the budget or the deadline ended, or trying again is no use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let deadline = self.client.deadline;
        let mut last = Message::default();
        while !self.rest.is_empty() {
            let fault = match before(deadline, self.step()).await {
                None => return Err(Fault::Deadline(last).of(&self.subject)),
                Some(Ok(chunk)) if chunk.is_empty() => continue,
                Some(Ok(chunk)) => return Ok(Some(chunk)),
                Some(Err(fault)) => fault,
            };
            self.answer = None;
            let Some(pause) = self.pause_after(&fault) else {
                return Err(fault.of(&self.subject));
            };
            last = Message(fault.in_words());
            let (subject, at) = (&self.subject, self.rest.start);
            tracing::debug!(%subject, at, %last, ?pause, "resuming");
            sleep(pause).await;
        }
        Ok(None)
    }

    fn pause_after(&mut self, fault: &Fault) -> Option<Duration> {
        if self.since_cut >= PROGRESS {
            self.budget.refill();
        }
        self.since_cut = 0;
        self.cuts += 1;
        if self.cuts > MAX_CUTS {
            return None;
        }
        self.budget.pause(fault, self.client.deadline)
    }

    /// One chunk of the current answer, or of a new one. Empty where all of it was skipped.
    async fn step(&mut self) -> Result<Bytes, Fault> {
        let mut answer = match self.answer.take() {
            Some(answer) => answer,
            None => self.open().await?,
        };
        let Some(mut chunk) = answer.body.chunk().await? else {
            return Err(self.ended_early());
        };
        let skipped = answer.skip.min(chunk.len() as u64);
        answer.skip -= skipped;
        chunk = chunk.split_off(skipped as usize);
        let wanted = self.rest.end - self.rest.start;
        if chunk.len() as u64 > wanted {
            chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        }
        self.rest.start += chunk.len() as u64;
        self.since_cut += chunk.len() as u64;
        self.answer = Some(answer);
        Ok(chunk)
    }

    fn ended_early(&self) -> Fault {
        let expected = self.since_cut + (self.rest.end - self.rest.start);
        Fault::Short { received: self.since_cut, expected }
    }

    async fn open(&self) -> Result<Answer, Fault> {
        let whole = self.size == Some(self.rest.end) && self.rest.start == 0;
        let range = (!whole).then_some(&self.rest);
        let response =
            self.client.ask_blob(Method::GET, &self.repository, &self.digest, range).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let found = format!("at most {}", self.rest.start);
            return Err(Fault::Size { found, expected: self.size.unwrap_or(self.rest.end) });
        }
        let response = expect(response, &[StatusCode::OK, StatusCode::PARTIAL_CONTENT]).await?;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                check_range(response.headers(), &self.rest, self.size)?;
                0
            }
            _ => {
                check_size(response.headers(), &self.rest, self.size)?;
                if range.is_some() {
                    self.client.endpoint(&self.repository).note_ignored_range();
                }
                self.rest.start
            }
        };
        Ok(Answer { body: Body::of(response, self.client.reading())?, skip })
    }
}

/// Whether a 206 begins where it should and belongs to a blob of the right size. It may end
/// early: then the rest is asked for. Without the header the digest has to tell.
fn check_range(headers: &HeaderMap, asked: &Range<u64>, size: Option<u64>) -> Result<(), Fault> {
    let Some(header) = headers.get(CONTENT_RANGE) else { return Ok(()) };
    let sent = String::from_utf8_lossy(header.as_bytes());
    let wrong = || Fault::WrongRange { asked: range_header(asked), sent: sent.to_string() };
    let (range, total) =
        sent.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let start = range.split_once('-').and_then(|(start, _)| start.trim().parse::<u64>().ok());
    if start != Some(asked.start) {
        return Err(wrong());
    }
    match (size, total.trim().parse::<u64>()) {
        (Some(expected), Ok(found)) if found != expected => {
            Err(Fault::Size { found: found.to_string(), expected })
        }
        _ => Ok(()),
    }
}

/// Whether a whole blob has the size it should have, as far as the registry tells.
fn check_size(headers: &HeaderMap, asked: &Range<u64>, size: Option<u64>) -> Result<(), Fault> {
    let told = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let Some(found) = told else { return Ok(()) };
    let fits = size.map_or(asked.end <= found, |size| size == found);
    match fits {
        true => Ok(()),
        false => Err(Fault::Size { found: found.to_string(), expected: size.unwrap_or(asked.end) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_part_has_to_begin_where_it_was_asked_for() {
        for (sent, size, fault) in [
            ("bytes 10-19/100", Some(100), None),
            ("bytes 10-14/100", Some(100), None),
            ("bytes 10-19/*", Some(100), None),
            ("bytes 10-19/100", None, None),
            ("bytes 0-9/100", Some(100), Some("asked for bytes=10-19")),
            ("bytes 10-19/99", Some(100), Some("has 99 bytes, expected 100")),
            ("bytes */100", Some(100), Some("asked for")),
            ("lines 1-2/3", None, Some("asked for")),
        ] {
            let checked = check_range(&headers(CONTENT_RANGE, sent), &(10..20), size);
            let message = checked.err().map(|fault| fault.to_string());
            match fault {
                None => assert_eq!(message, None, "{sent}"),
                Some(part) => assert!(message.unwrap().contains(part), "{sent}"),
            }
        }
        assert!(check_range(&HeaderMap::new(), &(10..20), None).is_ok());
    }

    #[test]
    fn a_whole_blob_has_to_have_its_size() {
        let length = headers(CONTENT_LENGTH, "100");
        assert!(check_size(&length, &(10..20), Some(100)).is_ok());
        assert!(check_size(&length, &(10..20), None).is_ok());
        assert!(check_size(&length, &(10..101), None).is_err());
        assert!(check_size(&length, &(0..99), Some(99)).is_err());
        assert!(check_size(&HeaderMap::new(), &(0..99), Some(99)).is_ok());
    }
}
