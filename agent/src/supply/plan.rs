//! From pieces to Range requests and back.

use std::ops::Range;

use bytes::Bytes;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::source::Piece;

/// Bytes that nobody asked for, between two pieces, that are cheaper than a request of their
/// own: at 1 Gb/s and 0.5 ms a round trip they take about as long.
const GAP: u64 = 64 << 10;
/// A request is not made longer than this by joining pieces, so that several can run at once.
const LONGEST: u64 = 8 << 20;
/// Hashing more than this is left to a thread that may block.
const INLINE: usize = 256 << 10;

/// One Range request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The blob.
    pub blob: Digest,
    /// The bytes to ask for.
    pub range: Range<u64>,
    /// The places, in the list of pieces, of those that lie within.
    pub pieces: Vec<usize>,
}

/// Joins pieces of one blob that overlap, touch or nearly touch; neighbouring spans share a byte.
pub fn plan(pieces: &[Piece]) -> Vec<Transfer> {
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    order.sort_by_key(|place| {
        let piece = &pieces[*place];
        (piece.blob, piece.range.start, piece.range.end)
    });
    let mut transfers: Vec<Transfer> = Vec::new();
    for place in order {
        let piece = &pieces[place];
        match transfers.last_mut() {
            Some(last) if last.takes(piece) => {
                last.range.end = last.range.end.max(piece.range.end);
                last.pieces.push(place);
            }
            _ => transfers.push(Transfer {
                blob: piece.blob,
                range: piece.range.clone(),
                pieces: vec![place],
            }),
        }
    }
    transfers
}

impl Transfer {
    fn takes(&self, piece: &Piece) -> bool {
        let end = piece.range.end.max(self.range.end);
        self.blob == piece.blob
            && piece.range.start <= self.range.end.saturating_add(GAP)
            && (end == self.range.end || end - self.range.start <= LONGEST)
    }

    /// The pieces within `bytes`, which are those of the range, in the order of
    /// [`Self::pieces`]; or words about the first one that is wrong.
    pub async fn verify(&self, bytes: Bytes, pieces: &[Piece]) -> Result<Vec<Verified>, String> {
        let length = self.range.end.saturating_sub(self.range.start);
        if bytes.len() as u64 != length {
            return Err(format!("{} bytes instead of {length}", bytes.len()));
        }
        let parts: Vec<(Bytes, Piece)> = self
            .pieces
            .iter()
            .map(|place| {
                let piece = pieces[*place].clone();
                (bytes.slice(self.place_of(&piece.range)), piece)
            })
            .collect();
        if bytes.len() <= INLINE {
            return check(parts);
        }
        let checked = tokio::task::spawn_blocking(move || check(parts)).await;
        checked.map_err(|_| "checking was interrupted by a shutdown".to_owned())?
    }

    /// Where in the transfer's bytes `range` lies.
    fn place_of(&self, range: &Range<u64>) -> Range<usize> {
        let at = |position: u64| {
            let within = position.clamp(self.range.start, self.range.end.max(self.range.start));
            usize::try_from(within - self.range.start).unwrap_or(usize::MAX)
        };
        at(range.start)..at(range.end.max(range.start))
    }
}

fn check(parts: Vec<(Bytes, Piece)>) -> Result<Vec<Verified>, String> {
    let checked = parts.into_iter().map(|(bytes, piece)| {
        let Range { start, end } = piece.range;
        Verified::check(bytes, &piece.digest)
            .map_err(|error| format!("bytes {start} to {end}: {error}"))
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(name: u8) -> Vec<u8> {
        (0..=255).cycle().map(|byte: u8| byte ^ name).take(1000).collect()
    }

    fn piece(name: u8, range: Range<u64>) -> Piece {
        let bytes = blob(name);
        let within = range.start.min(1000) as usize..range.end.min(1000) as usize;
        let digest = Digest::of(bytes.get(within).unwrap_or_default());
        Piece { blob: Digest::of(&bytes), range, digest }
    }

    #[test]
    fn neighbours_that_share_a_byte_travel_together() {
        let pieces = [piece(0, 0..101), piece(0, 100..201), piece(0, 200..300)];
        let transfers = plan(&pieces);
        assert_eq!(transfers.len(), 1);
        assert_eq!(
            (transfers[0].range.clone(), &transfers[0].pieces[..]),
            (0..300, &[0, 1, 2][..])
        );
    }

    #[test]
    fn pieces_far_apart_or_of_other_blobs_travel_alone() {
        let pieces =
            [piece(0, 0..10), piece(0, 10 + GAP..20 + GAP), piece(0, 20 + 3 * GAP..500_000)];
        let ranges: Vec<_> = plan(&pieces).into_iter().map(|t| t.range).collect();
        assert_eq!(ranges, [0..20 + GAP, 20 + 3 * GAP..500_000]);
        let pieces = [piece(1, 0..10), piece(0, 10..20), piece(1, 10..30)];
        assert_eq!(plan(&pieces).len(), 2);
    }

    #[test]
    fn joining_ends_at_the_longest_request() {
        let mib = 1 << 20;
        let pieces: Vec<Piece> = (0..20).map(|n| piece(0, n * mib..(n + 1) * mib + 1)).collect();
        let transfers = plan(&pieces);
        assert!(
            transfers.iter().all(|transfer| transfer.range.end - transfer.range.start <= LONGEST)
        );
        assert_eq!(transfers.len(), 3);
        let single = [piece(0, 0..100 * mib)];
        assert_eq!(plan(&single)[0].range, 0..100 * mib, "a piece is never split");
    }

    #[tokio::test]
    async fn a_wrong_piece_is_named_by_its_range() {
        let pieces = [piece(0, 0..10), piece(0, 10..20)];
        let transfer = plan(&pieces).remove(0);
        let mut bytes = blob(0)[..20].to_vec();
        assert!(transfer.verify(bytes.clone().into(), &pieces).await.is_ok());
        bytes[15] ^= 1;
        let words = transfer.verify(bytes.into(), &pieces).await.unwrap_err();
        assert!(words.starts_with("bytes 10 to 20: the bytes hash to"), "{words}");
        let words = transfer.verify(Bytes::from_static(b"short"), &pieces).await.unwrap_err();
        assert_eq!(words, "5 bytes instead of 20");
    }

    proptest! {
        #[test]
        fn every_piece_comes_out_of_its_transfer(
            ranges in proptest::collection::vec((0u8..3, 0u64..1000, 0u64..200), 0..20)
        ) {
            let pieces: Vec<Piece> = ranges
                .into_iter()
                .map(|(name, start, length)| piece(name, start..(start + length).min(1000)))
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut delivered = vec![0; pieces.len()];
            for transfer in plan(&pieces) {
                let source = (0..3).map(blob).find(|blob| Digest::of(blob) == transfer.blob);
                let range = transfer.range.start as usize..transfer.range.end as usize;
                let bytes = Bytes::copy_from_slice(&source.unwrap()[range]);
                let verified = runtime.block_on(transfer.verify(bytes, &pieces)).unwrap();
                for (place, verified) in transfer.pieces.iter().zip(verified) {
                    prop_assert_eq!(verified.digest(), &pieces[*place].digest);
                    delivered[*place] += 1;
                }
            }
            prop_assert!(delivered.iter().all(|times| *times == 1));
        }
    }
}
