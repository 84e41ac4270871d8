//! Fetching a pack: its beginning, before anybody knows what of it is wanted, and its pieces.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::task::AbortOnDropHandle;

use super::super::Filler;
use super::{FIRST_GROUP, PackBlob, UnpackError};
use crate::digest::{Digest, Verified};
use crate::pack::{HEAD_MAX, Table};
use crate::source::{Piece, PieceRequest, Priority, SourceError};

/// A pack whose beginning is on its way.
pub struct Opening {
    pub(super) pack: PackBlob,
    pub(super) beginning: AbortOnDropHandle<Result<Beginning, UnpackError>>,
}

/// The beginning of a pack.
pub(super) struct Beginning {
    pub(super) table: Table,
    /// The first frames, by their digests.
    pub(super) frames: HashMap<Digest, Verified>,
}

impl Filler {
    /// Begins to fetch `pack`, whatever is here of what it holds.
    pub fn open_pack(self: &Arc<Self>, pack: PackBlob) -> Opening {
        let (filler, blob) = (self.clone(), pack.clone());
        let beginning = async move { filler.pack_beginning(&blob, FIRST_GROUP).await };
        let beginning = tokio::spawn(beginning);
        Opening { pack, beginning: AbortOnDropHandle::new(beginning) }
    }

    /// The table of a pack and as many of its first frames as have `most` bytes.
    pub(super) async fn pack_beginning(
        &self,
        pack: &PackBlob,
        most: u64,
    ) -> Result<Beginning, UnpackError> {
        let table = self.pack_table(pack).await?;
        let mut bytes = 0;
        let first: Vec<Piece> = table
            .frames()
            .iter()
            .take_while(|frame| {
                bytes += frame.range.end - frame.range.start;
                bytes <= most
            })
            .map(|frame| table.piece(frame))
            .collect();
        let digests: Vec<Digest> = first.iter().map(|piece| piece.digest).collect();
        let frames = match first.is_empty() {
            true => Vec::new(),
            false => self.pack_pieces(pack, first).await?,
        };
        Ok(Beginning { table, frames: digests.into_iter().zip(frames).collect() })
    }

    async fn pack_table(&self, pack: &PackBlob) -> Result<Table, UnpackError> {
        if pack.head_size > HEAD_MAX.min(pack.size) {
            let (head, size) = (pack.head_size, pack.size);
            return Err(UnpackError::Size { pack: pack.digest, head, size });
        }
        let range = 0..pack.head_size;
        let head = Piece { blob: pack.digest, range, digest: pack.head };
        let head = self.pack_pieces(pack, vec![head]).await?;
        let no_answer = || SourceError::Wrong {
            origin: pack.scope.to_string(),
            blob: pack.digest,
            reason: "no answer to a request for its head".to_owned(),
        };
        let head = head.into_iter().next().ok_or_else(no_answer).map_err(failed(pack))?;
        let table = Table::parse(pack.digest, head.bytes());
        table.map_err(|source| UnpackError::Pack { pack: pack.digest, source })
    }

    /// Pieces of a pack, all of them right.
    pub(super) async fn pack_pieces(
        &self,
        pack: &PackBlob,
        pieces: Vec<Piece>,
    ) -> Result<Vec<Verified>, UnpackError> {
        let deadline = Instant::now() + self.patience.timeout;
        let (scope, priority) = (pack.scope.clone(), Priority::Pack);
        let request = PieceRequest { scope, pieces, priority, deadline };
        self.fetch_measured(request).await.map_err(failed(pack))
    }
}

fn failed(pack: &PackBlob) -> impl Fn(SourceError) -> UnpackError + use<> {
    let pack = pack.digest;
    move |source| UnpackError::Source { pack, source }
}
