//! The span table: which compressed bytes decode which part of a layer.

use std::ops::Range;

use bytes::Bytes;
use zerocopy::{FromBytes, IntoBytes};

use super::format::{SPANS_MAGIC, SpanRecord, SpansHeader, VERSION, check_head};
use super::{Backing, IndexError};
use crate::codec::{Codec, SPAN_MIN, Scan, Start};
use crate::digest::{Digest, Verified};
use crate::source::Piece;

const KIND: &str = "spans";
const HEADER: usize = size_of::<SpansHeader>();
const RECORD: usize = size_of::<SpanRecord>();

/// Windows are compressed at this zstd level; another one is another format version.
const WINDOW_LEVEL: i32 = 3;

/// No window is longer, compressed, in bytes: it holds 32 KiB at most, of which zstd makes little
/// more where it cannot make less.
const WINDOW_LENGTH_MAX: u32 = 64 * 1024;

/// Encodes what a pass over the layer blob found. The first element is the file, the second the
/// number of its bytes that are the table.
///
/// # Errors
/// [`IndexError::TooLarge`] where a window cannot be compressed.
pub fn encode_spans(layer: &Digest, scan: &Scan) -> Result<(Vec<u8>, usize), IndexError> {
    let table = HEADER + RECORD * (scan.checkpoints.len() + 1);
    let mut records = Vec::with_capacity(scan.checkpoints.len() + 1);
    let mut windows = Vec::new();
    let mut compressor = zstd::bulk::Compressor::new(WINDOW_LEVEL)
        .map_err(|_| IndexError::TooLarge { what: "windows" })?;
    for (checkpoint, piece) in scan.checkpoints.iter().zip(&scan.pieces) {
        let window = match checkpoint.window.as_slice() {
            [] => Vec::new(),
            bytes => compressor
                .compress(bytes)
                .map_err(|_| IndexError::TooLarge { what: "bytes in a window" })?,
        };
        records.push(SpanRecord {
            bit: checkpoint.bit.into(),
            out: checkpoint.out.into(),
            piece: *piece,
            window_digest: Digest::of(&window),
            window: ((table + windows.len()) as u64).into(),
            window_length: (window.len() as u32).into(),
            start: u32::from(checkpoint.start == Start::Block).into(),
        });
        windows.extend_from_slice(&window);
    }
    records.push(end_record(scan));
    let header = SpansHeader {
        magic: SPANS_MAGIC,
        version: VERSION.into(),
        codec: scan.codec.number().into(),
        layer: *layer,
        count: (scan.checkpoints.len() as u64).into(),
        reserved: [0; 8],
    };
    Ok(([header.as_bytes(), records.as_bytes(), &windows].concat(), table))
}

fn end_record(scan: &Scan) -> SpanRecord {
    SpanRecord {
        bit: (scan.end * 8).into(),
        out: scan.size.into(),
        piece: Digest::from_bytes([0; 32]),
        window_digest: Digest::from_bytes([0; 32]),
        window: 0.into(),
        window_length: 0.into(),
        start: 0.into(),
    }
}

/// The table of a spans file, with or without the windows behind it.
pub struct SpanTable {
    bytes: Backing,
    codec: Codec,
    layer: Digest,
    count: usize,
}

/// Where the window of a span is: a piece of the spans blob, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowRef {
    /// The bytes of the spans file.
    pub range: Range<u64>,
    /// Their SHA-256.
    pub digest: Digest,
}

impl SpanTable {
    /// Reads the table at the start of `bytes`.
    ///
    /// # Errors
    /// [`IndexError`] where the bytes are not a table, or say something impossible.
    pub fn new(bytes: Backing) -> Result<Self, IndexError> {
        let damaged = |what| IndexError::Damaged { kind: KIND, what };
        let (header, _) =
            SpansHeader::ref_from_prefix(&bytes).map_err(|_| damaged("shorter than its header"))?;
        let magic = (header.magic, SPANS_MAGIC);
        let codec = check_head(KIND, magic, header.version.get(), header.codec.get())?;
        let layer = header.layer;
        let room = (bytes.len() - HEADER) / RECORD;
        let count = usize::try_from(header.count.get())
            .ok()
            .filter(|&count| count >= 1 && count < room)
            .ok_or_else(|| damaged("fewer records than it says"))?;
        let table = Self { bytes, codec, layer, count };
        table.check_records()?;
        Ok(table)
    }

    fn check_records(&self) -> Result<(), IndexError> {
        let records = self.records();
        let ascending = records.windows(2).all(|pair| {
            pair[0].bit.get() <= pair[1].bit.get()
                && pair[0].out.get() <= pair[1].out.get()
                && pair[1].bit.get() < u64::MAX - 8
        });
        let from_zero = records.first().is_some_and(|first| first.bit == 0 && first.out == 0);
        let damaged = |what| Err(IndexError::Damaged { kind: KIND, what });
        if !ascending || !from_zero {
            return damaged("positions do not ascend from zero");
        }
        // The last span is as long as what is left.
        let is_long = |pair: &[SpanRecord]| {
            pair[1].out.get() - pair[0].out.get() >= SPAN_MIN && pair[0].bit < pair[1].bit
        };
        if !records[..self.count].windows(2).all(is_long) {
            return damaged("a span is shorter than spans can be");
        }
        if records.iter().any(|record| record.window_length.get() > WINDOW_LENGTH_MAX) {
            return damaged("a window is longer than windows can be");
        }
        Ok(())
    }

    /// The records, the end included.
    fn records(&self) -> &[SpanRecord] {
        let bytes = &self.bytes[HEADER..HEADER + RECORD * (self.count + 1)];
        <[SpanRecord]>::ref_from_bytes(bytes).expect("the length is a multiple of a record's")
    }

    /// Number of spans, at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How the layer is compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The layer blob that the table belongs to.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// The span that holds byte `position` of the tar.
    pub fn at(&self, position: u64) -> usize {
        let after = self.records().partition_point(|record| record.out.get() <= position);
        after.saturating_sub(1).min(self.count - 1)
    }

    /// The bytes of the tar that `span` decodes to.
    pub fn output(&self, span: usize) -> Range<u64> {
        let records = self.records();
        records[span].out.get()..records[span + 1].out.get()
    }

    /// Where the last piece ends in the blob, and the last span in the tar, in bytes.
    pub fn end(&self) -> (u64, u64) {
        let end = &self.records()[self.count];
        (end.bit.get().div_ceil(8), end.out.get())
    }

    /// The compressed bytes that decode `span`.
    pub fn piece(&self, span: usize) -> Piece {
        let records = self.records();
        let range = records[span].bit.get() / 8..records[span + 1].bit.get().div_ceil(8);
        Piece { blob: self.layer, range, digest: records[span].piece }
    }

    /// How many compressed bytes neighbouring `spans` take.
    pub fn compressed(&self, spans: Range<usize>) -> u64 {
        if spans.is_empty() {
            return 0;
        }
        let start = self.piece(spans.start).range.start;
        self.piece(spans.end - 1).range.end.saturating_sub(start)
    }

    /// The bit of its piece's first byte at which `span` starts.
    pub fn first_bit(&self, span: usize) -> u8 {
        (self.records()[span].bit.get() % 8) as u8
    }

    /// What begins at `span`.
    pub fn start(&self, span: usize) -> Start {
        if self.records()[span].start == 0 { Start::Fresh } else { Start::Block }
    }

    /// The compressed window, where these bytes are the whole file and not only the table.
    pub fn local_window(&self, window: &WindowRef) -> Option<Verified> {
        let range = usize::try_from(window.range.start).ok()?..window.range.end.try_into().ok()?;
        let bytes = Bytes::copy_from_slice(self.bytes.get(range)?);
        Verified::check(bytes, &window.digest).ok()
    }

    /// Where the window of `span` is, if it needs one.
    pub fn window(&self, span: usize) -> Option<WindowRef> {
        let record = &self.records()[span];
        if record.window_length == 0 {
            return None;
        }
        let start = record.window.get();
        let range = start..start.saturating_add(record.window_length.get().into());
        Some(WindowRef { range, digest: record.window_digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Checkpoint;

    /// Where spans begin, and the last one ends.
    const OUT: [u64; 4] = [0, 600_000, 1_300_000, 1_300_007];

    fn scan(out: [u64; 4]) -> Scan {
        let checkpoint = |bit, out, start, window: &[u8]| Checkpoint {
            bit,
            out,
            start,
            window: window.to_vec(),
        };
        Scan {
            codec: Codec::Gzip,
            checkpoints: vec![
                checkpoint(0, out[0], Start::Fresh, b""),
                checkpoint(8003, out[1], Start::Block, &[7; 9000]),
                checkpoint(16000, out[2], Start::Fresh, b""),
            ],
            pieces: vec![Digest::of(b"0"), Digest::of(b"1"), Digest::of(b"2")],
            end: 3000,
            size: out[3],
        }
    }

    #[test]
    fn a_table_reads_back_as_written() {
        let layer = Digest::of(b"layer");
        let (file, table_size) = encode_spans(&layer, &scan(OUT)).unwrap();
        let table = SpanTable::new(file[..table_size].to_vec().into()).unwrap();
        assert_eq!((table.count(), table.codec(), *table.layer()), (3, Codec::Gzip, layer));
        assert_eq!(table.output(1), OUT[1]..OUT[2]);
        assert_eq!(table.piece(0).range, 0..1001);
        let piece = table.piece(1);
        assert_eq!((piece.range, piece.digest), (1000..2000, Digest::of(b"1")));
        assert_eq!((table.first_bit(1), table.start(1)), (3, Start::Block));
        let window = table.window(1).unwrap();
        let bytes = &file[window.range.start as usize..window.range.end as usize];
        assert_eq!(window.digest, Digest::of(bytes));
        assert_eq!(zstd::bulk::decompress(bytes, 9000).unwrap(), [7; 9000]);
        assert_eq!(table.window(2), None);
        let [_, second, third, end] = OUT;
        for (position, span) in
            [(0, 0), (second - 1, 0), (second, 1), (third - 1, 1), (third, 2), (end + 9, 2)]
        {
            assert_eq!(table.at(position), span, "{position}");
        }
    }

    /// What changes these bytes, a new zstd for instance, needs another format version.
    #[test]
    fn the_format_is_pinned() {
        let (file, _) =
            encode_spans(&Digest::of(b"layer"), &scan([0, 5000, 9000, 12_000])).unwrap();
        assert_eq!(
            Digest::of(&file).to_string(),
            "sha256:d215d2b83d3d0961ac170eba1db4d9565e9410af9139b32e2fc01a529162a400"
        );
    }

    #[test]
    fn damaged_tables_are_refused() {
        let (file, table_size) = encode_spans(&Digest::of(b"layer"), &scan(OUT)).unwrap();
        assert!(SpanTable::new(file[..table_size - 1].to_vec().into()).is_err());
        assert!(SpanTable::new(file[..20].to_vec().into()).is_err());
        for position in [0, 8, 12, 48, HEADER + RECORD + 7] {
            let mut damaged = file.clone();
            damaged[position] ^= 0xff;
            assert!(SpanTable::new(damaged.into()).is_err(), "{position}");
        }
    }

    /// Who reads a byte takes every span that holds it: of spans without bytes there could be any
    /// number.
    #[test]
    fn regression_spans_of_no_length_are_refused() {
        let read = |out| {
            let (file, _) = encode_spans(&Digest::of(b"layer"), &scan(out)).unwrap();
            SpanTable::new(file.into()).map(drop)
        };
        assert_eq!(read([0, SPAN_MIN, 2 * SPAN_MIN, 2 * SPAN_MIN]), Ok(()));
        for out in [[0, 0, SPAN_MIN, 12], [0, 1, 1 + SPAN_MIN, 12], [0, SPAN_MIN, SPAN_MIN, 12]] {
            let out = [out[0], out[1], out[2], out[2] + out[3]];
            let error = read(out).unwrap_err();
            assert!(error.to_string().contains("shorter than spans can be"), "{out:?}: {error}");
        }
    }

    /// Nobody fetches 4 GiB of what is to be a window.
    #[test]
    fn regression_a_window_of_impossible_length_is_refused() {
        let (file, _) = encode_spans(&Digest::of(b"layer"), &scan(OUT)).unwrap();
        let with_window = |length: u32| {
            let mut file = file.clone();
            let (_, records) = file.split_at_mut(HEADER);
            let (record, _) = SpanRecord::mut_from_prefix(&mut records[RECORD..]).unwrap();
            record.window_length = length.into();
            SpanTable::new(file.into()).map(drop)
        };
        assert_eq!(with_window(WINDOW_LENGTH_MAX), Ok(()));
        let error = with_window(WINDOW_LENGTH_MAX + 1).unwrap_err();
        assert!(error.to_string().contains("longer than windows can be"), "{error}");
    }
}
