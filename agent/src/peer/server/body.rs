//! The bytes of an upload on their way out.
//!
//! ```text
//! slot -> read from disk, or as the piece arrives -> rate -> channel of one chunk -> receiver
//!           ` receiver gone, or takes nothing: cut off -> slot free
//! ```

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{PieceServer, SEND};
use crate::peer::arriving::{Arriving, CutOff};
use crate::peer::member::MemberId;
use crate::peer::pieces::OpenPiece;

/// How many bytes are read from disk and sent at a time.
const CHUNK: u64 = 1 << 20;

/// A place among the uploads, free again when this is dropped.
pub(super) struct Slot {
    server: PieceServer,
    member: MemberId,
    /// Whether the upload counts for how fast the node sends.
    is_timed: bool,
}

impl Slot {
    /// The slot that was just given to `member`.
    pub fn new(server: PieceServer, member: MemberId) -> Self {
        Self { server, member, is_timed: false }
    }

    /// Makes the upload count, which is of a piece on disk.
    fn timed(mut self) -> Self {
        let exchange = self.server.exchange();
        exchange.sent().begin(self.member, exchange.now());
        self.is_timed = true;
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let exchange = self.server.exchange();
        exchange.uploads().ended(&self.member);
        if self.is_timed {
            exchange.sent().end(exchange.now());
        }
    }
}

/// Sends a piece on disk, from byte `offset` on.
pub(super) fn stream_stored(open: OpenPiece, offset: u64, slot: Slot) -> Body {
    let open = Arc::new(open);
    send(slot.timed(), move |outlet| async move {
        let mut position = offset;
        while position < open.size {
            let (file, length) = (open.clone(), CHUNK.min(open.size - position));
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; length as usize];
                file.file.read_exact_at(&mut bytes, position).map(|()| Bytes::from(bytes))
            });
            outlet.put(read.await.map_err(|_| CutOff)?.map_err(|_| CutOff)?).await?;
            outlet.server.exchange().sent().add(length);
            position += length;
        }
        Ok(())
    })
}

/// Sends a piece as it arrives, from byte `offset` on.
pub(super) fn stream_arriving(piece: Arc<Arriving>, offset: u64, slot: Slot) -> Body {
    let mut reader = piece.reader(offset);
    send(slot, move |outlet| async move {
        while let Some(bytes) = reader.next(&piece).await? {
            outlet.put(bytes).await?;
        }
        Ok(())
    })
}

/// Where an upload puts its bytes.
struct Outlet {
    server: PieceServer,
    sender: mpsc::Sender<Result<Bytes, CutOff>>,
}

impl Outlet {
    /// Sends bytes, when there is room. A receiver that takes nothing is cut off.
    async fn put(&self, bytes: Bytes) -> Result<(), CutOff> {
        self.server.pass(bytes.len() as u64).await;
        let sent = timeout(SEND, self.sender.send(Ok(bytes))).await;
        sent.map_err(|_| CutOff)?.map_err(|_| CutOff)
    }
}

/// A body of the bytes that `write` puts into its outlet; `slot` is held until the body ends, sent
/// or cut off.
fn send<F>(slot: Slot, write: impl FnOnce(Outlet) -> F) -> Body
where
    F: Future<Output = Result<(), CutOff>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let writing = write(Outlet { server: slot.server.clone(), sender: sender.clone() });
    tokio::spawn(async move {
        let written = tokio::select! {
            written = writing => written,
            // The receiver is gone, and with it the need for the slot.
            () = sender.closed() => Ok(()),
        };
        if written.is_err() {
            // An error ends the connection before its Content-Length is reached.
            let _ = timeout(SEND, sender.send(Err(CutOff))).await;
        }
        drop(slot);
    });
    Body::from_stream(unfold(receiver, async |mut receiver| {
        let bytes = receiver.recv().await?;
        Some((bytes, receiver))
    }))
}
