//! Uploads: in one request, in two, or in chunks; and blobs mounted from other repositories.
//!
//! What a request does to an upload runs in a task of its own, so that it comes to an end even
//! when the client goes away in the middle.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderName, StatusCode, header, request};

use super::super::digest::ContentDigest;
use super::super::error::ApiError;
use super::super::metrics::Metrics;
use super::super::name::Repository;
use super::super::range::parse_chunk;
use super::super::storage::{Mark, StorageError, Upload};
use super::super::upload::{ReceiveError, Session, SessionId, receive};
use super::{Answer, CONTENT_DIGEST, Parameters, Registry};
use crate::blocking::blocking;

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Registry {
    /// POST: mounts a blob, takes a whole one, or opens a session.
    pub(super) async fn begin_upload(
        self: &Arc<Self>,
        repository: Repository,
        head: &request::Parts,
        body: Body,
    ) -> Answer {
        let parameters = Parameters::of(&head.uri)?;
        // A mount that cannot be is an ordinary upload, even if its digest is malformed.
        if let Ok(Some(digest)) = parameters.digest("mount")
            && self.mount(&repository, parameters.get("from"), &digest).await?
        {
            return Ok(blob_created(&repository, &digest));
        }
        let digest = parameters.digest("digest")?;
        let session = self.writer()?.sessions.begin(repository)?;
        let Some(digest) = digest else {
            return Ok(progress(StatusCode::ACCEPTED, &session, 0));
        };
        let answer = self.in_task(&session, Chunk::of(head), body, Some(digest)).await;
        self.writer()?.sessions.end(&session.id);
        answer
    }

    /// GET: how far an upload is.
    pub(super) async fn upload_status(&self, repository: &Repository, id: &SessionId) -> Answer {
        let session = self.session(repository, id)?;
        let upload = session.upload.lock().await;
        let upload = upload.as_ref().ok_or_else(|| ApiError::UploadUnknown(id.clone()))?;
        Ok(progress(StatusCode::NO_CONTENT, &session, upload.len()))
    }

    /// PATCH: appends a chunk, or a stream of any length.
    pub(super) async fn patch_upload(
        self: &Arc<Self>,
        repository: &Repository,
        id: SessionId,
        head: &request::Parts,
        body: Body,
    ) -> Answer {
        let session = self.session(repository, &id)?;
        self.in_task(&session, Chunk::of(head), body, None).await
    }

    /// PUT: appends what the body holds, if anything, and makes the upload a blob.
    pub(super) async fn finish_upload(
        self: &Arc<Self>,
        repository: &Repository,
        id: SessionId,
        head: &request::Parts,
        body: Body,
    ) -> Answer {
        let session = self.session(repository, &id)?;
        let missing = || ApiError::Parameter { name: "digest", value: String::new() };
        let digest = Parameters::of(&head.uri)?.digest("digest")?.ok_or_else(missing)?;
        self.in_task(&session, Chunk::of(head), body, Some(digest)).await
    }

    /// DELETE: forgets an upload.
    pub(super) async fn cancel_upload(&self, repository: &Repository, id: &SessionId) -> Answer {
        let session = self.session(repository, id)?;
        self.writer()?.sessions.end(id);
        session.upload.lock().await.take();
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    fn session(&self, repository: &Repository, id: &SessionId) -> Result<Arc<Session>, ApiError> {
        let session = self.writer()?.sessions.get(repository, id);
        session.ok_or_else(|| ApiError::UploadUnknown(id.clone()))
    }

    /// Gives `repository` a blob that `from` has, or that any repository has if `from` is not
    /// named; says whether that was possible.
    async fn mount(
        &self,
        repository: &Repository,
        from: Option<&str>,
        digest: &ContentDigest,
    ) -> Result<bool, ApiError> {
        let source = match from.map(Repository::parse) {
            Some(None) => return Ok(false),
            Some(Some(source)) => Some(source),
            None => None,
        };
        let (repository, digest) = (repository.clone(), digest.clone());
        let mounted = self.on_storage(move |storage| {
            let there = match source {
                Some(source) => storage.blob(&source, &digest)?.is_some(),
                None => true,
            };
            Ok::<_, StorageError>(there && storage.change(&repository).link_blob(&digest)?)
        });
        mounted.await
    }

    async fn in_task(
        self: &Arc<Self>,
        session: &Arc<Session>,
        chunk: Chunk,
        body: Body,
        digest: Option<ContentDigest>,
    ) -> Answer {
        let (registry, session) = (Arc::clone(self), Arc::clone(session));
        self.to_its_end(async move {
            let len = append(&session, &chunk, body, &registry.metrics).await?;
            match digest {
                None => Ok(progress(StatusCode::ACCEPTED, &session, len)),
                Some(digest) => registry.finish(&session, digest).await,
            }
        })
        .await
    }

    /// Makes the upload a blob of its repository. The session ends, whatever comes of it.
    async fn finish(&self, session: &Session, digest: ContentDigest) -> Answer {
        let writer = self.writer()?;
        writer.sessions.end(&session.id);
        let upload = session.upload.lock().await.take();
        let upload = upload.ok_or_else(|| ApiError::UploadUnknown(session.id.clone()))?;
        let (storage, repository) = (Arc::clone(&writer.storage), session.repository.clone());
        let name = digest.clone();
        blocking(move || {
            storage.commit(upload, &repository, &name).map(drop).map_err(ApiError::from)
        })
        .await?;
        Ok(blob_created(&session.repository, &digest))
    }
}

/// What a request says of the bytes that it brings.
struct Chunk {
    /// The Content-Range as it was sent.
    header: Option<String>,
}

impl Chunk {
    fn of(head: &request::Parts) -> Self {
        let header = head.headers.get(header::CONTENT_RANGE);
        let header = header.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        Self { header }
    }

    /// How many bytes must come, given that the upload has `len`; `None` for any number.
    fn expected(&self, session: &Session, len: u64) -> Result<Option<u64>, ApiError> {
        let Some(header) = &self.header else { return Ok(None) };
        match parse_chunk(header) {
            Some(range) if range.start == len => Ok(Some(range.end - range.start)),
            _ => Err(ApiError::ChunkOutOfOrder {
                location: location(session),
                len,
                chunk: header.clone(),
            }),
        }
    }
}

/// Appends `body` to the upload; says how long it is then. A chunk of another length than it
/// said leaves the upload as it was; one that breaks off leaves what came, to go on from there;
/// a failure of the storage ends the upload.
async fn append(
    session: &Session,
    chunk: &Chunk,
    body: Body,
    metrics: &Metrics,
) -> Result<u64, ApiError> {
    let mut slot = session.upload.lock().await;
    let unknown = || ApiError::UploadUnknown(session.id.clone());
    let before = slot.as_ref().ok_or_else(unknown)?.len();
    let expected = chunk.expected(session, before)?;
    let upload = slot.take().ok_or_else(unknown)?;
    let mark = upload.mark();
    let most = expected.map_or(u64::MAX, |expected| before.saturating_add(expected));
    let (mut upload, received) = receive(upload, body.into_data_stream(), most).await;
    let actual = upload.len() - before;
    metrics.received.inc_by(actual);
    let other_size = match (&received, expected) {
        (Err(ReceiveError::Storage(_)), _) => return received.map(|()| 0).map_err(Into::into),
        (Err(ReceiveError::TooLong(_)), Some(expected)) => Some(expected),
        (Ok(()), Some(expected)) if actual != expected => Some(expected),
        _ => None,
    };
    if let Some(expected) = other_size {
        *slot = Some(rewound(upload, mark).await?);
        return Err(ApiError::ChunkSize { expected, actual });
    }
    upload.close();
    let len = upload.len();
    *slot = Some(upload);
    received?;
    Ok(len)
}

async fn rewound(mut upload: Upload, mark: Mark) -> Result<Upload, StorageError> {
    blocking(move || {
        upload.rewind(mark)?;
        upload.close();
        Ok(upload)
    })
    .await
}

fn location(session: &Session) -> String {
    format!("/v2/{}/blobs/uploads/{}", session.repository, session.id)
}

/// How far the upload is and where it goes on.
fn progress(status: StatusCode, session: &Session, len: u64) -> Response {
    let headers = [
        (header::LOCATION, location(session)),
        (header::RANGE, format!("0-{}", len.saturating_sub(1))),
        (UPLOAD_UUID, session.id.to_string()),
    ];
    (status, headers).into_response()
}

fn blob_created(repository: &Repository, digest: &ContentDigest) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{repository}/blobs/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
    ];
    (StatusCode::CREATED, headers).into_response()
}
