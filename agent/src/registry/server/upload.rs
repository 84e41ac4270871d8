//! Uploads in progress: the sessions that a POST opens, and how a body becomes bytes on disk
//! with a bounded amount of memory. Sessions end with the process; a client whose session is
//! unknown begins again, as the distribution-spec has it.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::name::Repository;
use super::random::hex;
use super::storage::{Storage, StorageError, Upload};
use crate::blocking::blocking;

/// A client that sends nothing for so long has gone.
const STALL: Duration = Duration::from_secs(60);
/// Bytes are written and hashed in batches of at least this size; twice as much is in memory.
const BATCH: usize = 1 << 20;
/// So many sessions may be open at once.
const MAX_SESSIONS: usize = 10_000;

/// The name of an upload session: 32 random hex digits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Box<str>);

/// One upload, from its POST to its last PUT.
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// Where the blob will belong.
    pub repository: Repository,
    used: Mutex<Instant>,
    /// `None` once the upload has ended. One request at a time appends.
    pub upload: tokio::sync::Mutex<Option<Upload>>,
}

/// The sessions of a registry.
pub struct Sessions {
    storage: Arc<Storage>,
    open: Mutex<HashMap<SessionId, Arc<Session>>>,
}

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Too many are open.
    #[error("{MAX_SESSIONS} uploads are in progress already")]
    TooMany,
}

/// Why a body was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// More came than was announced or is allowed.
    #[error("the body is longer than {0} bytes")]
    TooLong(u64),
    /// The connection broke, or the body is shorter than its Content-Length.
    #[error("the body ended before its time")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing came for a minute.
    #[error("nothing was sent for {} s", STALL.as_secs())]
    Stalled,
    /// All of it should have been there earlier.
    #[error("the body took longer than {0} s")]
    Late(u64),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl SessionId {
    /// The session called `text`, if it is a name of one.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        (hex && text.len() == 32).then(|| Self(text.into()))
    }

    fn random() -> Self {
        Self(hex::<16>().into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Sessions {
    /// No sessions yet, on `storage`.
    pub fn new(storage: Arc<Storage>) -> Self {
        Self { storage, open: Mutex::default() }
    }

    /// Begins an upload to `repository`.
    ///
    /// # Errors
    /// [`BeginError`].
    pub fn begin(&self, repository: Repository) -> Result<Arc<Session>, BeginError> {
        let id = SessionId::random();
        let upload = tokio::sync::Mutex::new(Some(self.storage.begin(id.as_str())));
        let used = Mutex::new(Instant::now());
        let session = Arc::new(Session { id, repository, used, upload });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_SESSIONS {
            return Err(BeginError::TooMany);
        }
        open.insert(session.id.clone(), Arc::clone(&session));
        Ok(session)
    }

    /// The session called `id`, if it is open and for `repository`.
    pub fn get(&self, repository: &Repository, id: &SessionId) -> Option<Arc<Session>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let session = open.get(id).filter(|session| session.repository == *repository)?;
        *session.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Some(Arc::clone(session))
    }

    /// Whether an upload to `repository` is in progress.
    pub fn upload_to(&self, repository: &Repository) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|session| session.repository == *repository)
    }

    /// How many sessions are open.
    pub fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets the session.
    pub fn end(&self, id: &SessionId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Forgets the sessions that nobody has used for `idle` as of `now`, and their bytes; says
    /// how many they were.
    pub fn expire(&self, now: Instant, idle: Duration) -> usize {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = open.len();
        open.retain(|_, session| {
            let used = *session.used.lock().unwrap_or_else(PoisonError::into_inner);
            now.saturating_duration_since(used) < idle || session.upload.try_lock().is_err()
        });
        before - open.len()
    }
}

/// Appends `body` to `upload`, which may grow to `most` bytes. What came before an error stays
/// appended, so that a client can go on from there.
pub async fn receive<S, E>(
    mut upload: Upload,
    mut body: S,
    most: u64,
) -> (Upload, Result<(), ReceiveError>)
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut batch = Batch::fill(&mut body).await;
    loop {
        if upload.len() + batch.len as u64 > most {
            return (upload, Err(ReceiveError::TooLong(most)));
        }
        let written = append(upload, mem::take(&mut batch.frames));
        if let Some(end) = batch.end {
            let (upload, written) = written.await;
            return (upload, written.map_err(Into::into).and(end));
        }
        let (written, next) = tokio::join!(written, Batch::fill(&mut body));
        match written {
            (back, Ok(())) => upload = back,
            (back, Err(error)) => return (back, Err(error.into())),
        }
        batch = next;
    }
}

/// Some frames of a body; `end` says how the body ended, if it did.
struct Batch {
    frames: Vec<Bytes>,
    len: usize,
    end: Option<Result<(), ReceiveError>>,
}

impl Batch {
    async fn fill<S, E>(body: &mut S) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut batch = Self { frames: Vec::new(), len: 0, end: None };
        while batch.len < BATCH && batch.end.is_none() {
            match tokio::time::timeout(STALL, body.next()).await {
                Ok(Some(Ok(frame))) => {
                    batch.len += frame.len();
                    batch.frames.push(frame);
                }
                Ok(Some(Err(error))) => batch.end = Some(Err(ReceiveError::Broken(error.into()))),
                Ok(None) => batch.end = Some(Ok(())),
                Err(_) => batch.end = Some(Err(ReceiveError::Stalled)),
            }
        }
        batch
    }
}

fn append(
    mut upload: Upload,
    frames: Vec<Bytes>,
) -> impl Future<Output = (Upload, Result<(), StorageError>)> {
    blocking(move || {
        let appended = upload.append(&frames);
        (upload, appended)
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::stream;

    use super::*;

    type Frame = Result<Bytes, io::Error>;

    fn sessions() -> (tempfile::TempDir, Sessions) {
        let root = tempfile::tempdir().unwrap();
        let storage = Arc::new(Storage::open(root.path()).unwrap());
        (root, Sessions::new(storage))
    }

    fn repository(name: &str) -> Repository {
        Repository::parse(name).unwrap()
    }

    async fn receive_all(
        session: &Session,
        frames: Vec<Frame>,
        most: u64,
    ) -> (u64, Result<(), ReceiveError>) {
        let upload = session.upload.lock().await.take().unwrap();
        let (upload, received) = receive(upload, stream::iter(frames), most).await;
        (upload.len(), received)
    }

    #[tokio::test]
    async fn a_body_larger_than_a_batch_arrives_whole() {
        let (_root, sessions) = sessions();
        let session = sessions.begin(repository("a")).unwrap();
        let frame = Bytes::from(vec![7; 300 << 10]);
        let frames = (0..20).map(|_| Ok(frame.clone())).collect();
        let (len, received) = receive_all(&session, frames, u64::MAX).await;
        received.unwrap();
        assert_eq!(len, 20 * (300 << 10));
    }

    #[tokio::test]
    async fn what_came_before_the_connection_broke_is_kept() {
        let (_root, sessions) = sessions();
        let session = sessions.begin(repository("a")).unwrap();
        let frames = vec![Ok(Bytes::from_static(b"abc")), Err(io::Error::other("reset"))];
        let (len, received) = receive_all(&session, frames, u64::MAX).await;
        assert!(matches!(received, Err(ReceiveError::Broken(_))));
        assert_eq!(len, 3);
    }

    #[tokio::test]
    async fn a_body_cannot_grow_beyond_its_limit() {
        let (_root, sessions) = sessions();
        let session = sessions.begin(repository("a")).unwrap();
        let frames = vec![Ok(Bytes::from_static(b"abc"))];
        let (len, received) = receive_all(&session, frames, 2).await;
        assert!(matches!(received, Err(ReceiveError::TooLong(2))));
        assert_eq!(len, 0);
    }

    #[tokio::test]
    async fn a_session_belongs_to_its_repository() {
        let (_root, sessions) = sessions();
        let session = sessions.begin(repository("a")).unwrap();
        assert!(sessions.get(&repository("a"), &session.id).is_some());
        assert!(sessions.get(&repository("b"), &session.id).is_none());
        sessions.end(&session.id);
        assert!(sessions.get(&repository("a"), &session.id).is_none());
    }

    #[tokio::test]
    async fn idle_sessions_expire_and_busy_ones_do_not() {
        let (_root, sessions) = sessions();
        let busy = sessions.begin(repository("a")).unwrap();
        sessions.begin(repository("b")).unwrap();
        let _working = busy.upload.lock().await;
        let hour = Duration::from_secs(3600);
        assert_eq!(sessions.expire(Instant::now(), hour), 0);
        assert_eq!(sessions.expire(Instant::now() + hour, hour), 1);
        assert!(sessions.get(&repository("a"), &busy.id).is_some());
    }
}
