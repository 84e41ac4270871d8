//! Blobs: whole, in part, in several parts (RFC 9110, section 14), or not at all.

use std::ops::Range;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{Method, StatusCode, header, request};

use super::super::body::{Segment, body};
use super::super::digest::ContentDigest;
use super::super::error::ApiError;
use super::super::library::Library;
use super::super::limit::Read;
use super::super::listen::Peer;
use super::super::name::Repository;
use super::super::range::Wanted;
use super::super::storage::Blob;
use super::{Answer, CONTENT_DIGEST, FOREVER, Registry, etag, is_known, text};

/// Separates the parts of an answer with several. Blobs may hold it: readers go by the lengths
/// in the Content-Range of each part, or take parts one at a time.
const BOUNDARY: &str = "undermount-part-9f1c6ab07e35d2";
const OCTETS: &str = "application/octet-stream";

impl Registry {
    /// GET and HEAD of a blob.
    pub(super) async fn get_blob(
        &self,
        repository: Repository,
        digest: ContentDigest,
        head: &request::Parts,
        peer: Peer,
    ) -> Answer {
        let read = match head.method {
            Method::HEAD => None,
            _ => Some(self.begin_read(peer)?),
        };
        let (place, wanted) = (repository.clone(), digest.clone());
        // Who asks only whether it is there will rely on it when its manifest is pushed.
        let relies = head.method == Method::HEAD;
        let find = move |library: &dyn Library| {
            let blob = library.blob(&place, &wanted)?;
            if relies && blob.is_some() {
                library.mark_blob(&place, &wanted);
            }
            Ok(blob)
        };
        let blob = self.ask(find).await?;
        let blob =
            blob.ok_or_else(|| ApiError::BlobUnknown { repository, digest: digest.clone() })?;
        let etag = etag(&digest);
        let mut response = if is_known(head, &etag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let range = text(&head.headers, header::RANGE).filter(|_| may_be_partial(head, &etag));
            self.blob_body(blob, range, read)?
        };
        let headers = response.headers_mut();
        headers.insert(header::ACCEPT_RANGES, header::HeaderValue::from_static("bytes"));
        headers.insert(header::CACHE_CONTROL, FOREVER);
        for (name, value) in [(header::ETAG, etag), (CONTENT_DIGEST, digest.to_string())] {
            headers.insert(name, value.try_into().expect("digests are ASCII"));
        }
        Ok(response)
    }

    /// Begins a read of a blob, which lasts until its answer has been sent.
    fn begin_read(&self, peer: Peer) -> Result<Read, ApiError> {
        self.reads.begin(peer.address.ip()).map_err(|most| {
            self.metrics.refused_reads.inc();
            ApiError::TooManyReads(most)
        })
    }

    /// The answer with the blob, or with its head only where there is no `read`.
    fn blob_body(&self, blob: Blob, range: Option<&str>, read: Option<Read>) -> Answer {
        let size = blob.size;
        let (status, extra, segments) = match Wanted::parse(range, size) {
            Wanted::Unsatisfiable => return Err(ApiError::Range(size)),
            Wanted::Whole => (
                StatusCode::OK,
                [(header::CONTENT_TYPE, OCTETS.to_owned())].to_vec(),
                vec![Segment::Blob(0..size)],
            ),
            Wanted::Parts(parts) => partial(parts, size),
        };
        let length: u64 = segments.iter().map(Segment::len).sum();
        let content = match read {
            None => Body::empty(),
            Some(read) => body(blob.file, segments, &self.buffers, read),
        };
        let mut response =
            Response::builder().status(status).header(header::CONTENT_LENGTH, length);
        for (name, value) in extra {
            response = response.header(name, value);
        }
        Ok(response.body(content).expect("numbers and constants are valid headers"))
    }

    /// DELETE of a blob: from this repository.
    pub(super) async fn delete_blob(
        &self,
        repository: Repository,
        digest: ContentDigest,
    ) -> Answer {
        let (place, gone) = (repository.clone(), digest.clone());
        if self.on_storage(move |storage| storage.change(&place).unlink_blob(&gone)).await? {
            tracing::info!(%repository, %digest, "blob deleted");
            Ok(StatusCode::ACCEPTED.into_response())
        } else {
            Err(ApiError::BlobUnknown { repository, digest })
        }
    }
}

/// Whether the client's precondition for a partial answer holds (RFC 9110, section 13.1.5).
fn may_be_partial(head: &request::Parts, etag: &str) -> bool {
    text(&head.headers, header::IF_RANGE).is_none_or(|condition| condition == etag)
}

type Extra = Vec<(header::HeaderName, String)>;

/// 206 with one part or several.
fn partial(mut parts: Vec<Range<u64>>, size: u64) -> (StatusCode, Extra, Vec<Segment>) {
    let status = StatusCode::PARTIAL_CONTENT;
    let content_range = |part: &Range<u64>| format!("bytes {}-{}/{size}", part.start, part.end - 1);
    if parts.len() == 1
        && let Some(part) = parts.pop()
    {
        let extra = vec![
            (header::CONTENT_TYPE, OCTETS.to_owned()),
            (header::CONTENT_RANGE, content_range(&part)),
        ];
        return (status, extra, vec![Segment::Blob(part)]);
    }
    let mut segments = Vec::with_capacity(2 * parts.len() + 1);
    for part in parts {
        let text = format!(
            "\r\n--{BOUNDARY}\r\nContent-Type: {OCTETS}\r\nContent-Range: {}\r\n\r\n",
            content_range(&part)
        );
        segments.push(Segment::Text(Bytes::from(text)));
        segments.push(Segment::Blob(part));
    }
    segments.push(Segment::Text(Bytes::from(format!("\r\n--{BOUNDARY}--\r\n"))));
    let content_type = format!("multipart/byteranges; boundary={BOUNDARY}");
    (status, vec![(header::CONTENT_TYPE, content_type)], segments)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn one_part_stands_by_itself() {
        let (status, extra, segments) = partial(vec![500..1500], 2048);
        assert_eq!(status, 206);
        assert!(extra.contains(&(header::CONTENT_RANGE, "bytes 500-1499/2048".into())));
        assert_eq!(segments.iter().map(Segment::len).sum::<u64>(), 1000);
    }

    #[test]
    fn several_parts_are_separated_by_the_boundary() {
        let (_, extra, segments) = partial(vec![0..10, 20..30], 2048);
        assert!(extra[0].1.starts_with("multipart/byteranges"));
        assert!(matches!(segments[1], Segment::Blob(Range { start: 0, end: 10 })));
        assert!(
            matches!(&segments[2], Segment::Text(text) if text.ends_with(b"20-29/2048\r\n\r\n"))
        );
        assert!(matches!(&segments[4], Segment::Text(text) if text.ends_with(b"--\r\n")));
    }
}
