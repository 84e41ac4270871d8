//! One pass over a compressed stream: uncompressed bytes out, checkpoints noted.
//!
//! The positions depend only on the bytes of the stream, never on how they are chunked, so that
//! the same layer always gives the same index.

use bytes::Bytes;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::inflate::{Inflate, State, Stop, WINDOW, Wrapper};
use super::window::{BitStart, sparse};
use super::{Checkpoint, Codec, CodecError, Input, Start, ZSTD_WINDOW_LOG};
use crate::digest::{Digest, Hasher};

/// Uncompressed bytes are handed out in chunks of about this size.
const CHUNK: usize = 256 * 1024;

/// A checkpoint is wanted this many uncompressed bytes after the last one.
pub const SPAN: u64 = 1024 * 1024;

/// Where a checkpoint costs no window, half a span suffices.
const FRESH_SPAN: u64 = SPAN / 2;

/// What a pass over a layer blob found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// How the blob is compressed.
    pub codec: Codec,
    /// The checkpoints in order; the first is at the start of the stream.
    pub checkpoints: Vec<Checkpoint>,
    /// The SHA-256 of each span's piece, as many as there are checkpoints.
    pub pieces: Vec<Digest>,
    /// Where the last span's piece ends, in bytes. Padding may follow.
    pub end: u64,
    /// Uncompressed size in bytes.
    pub size: u64,
}

/// Decompresses `input` to `output` (chunks of at most 256 KiB) and notes checkpoints.
///
/// After the last gzip member, anything that is not another member is padding and ignored, as
/// gzip(1) does.
///
/// # Errors
/// [`CodecError`] where the stream is truncated or corrupt, or `output` returns `false`.
pub fn scan(mut input: Input, output: impl FnMut(Bytes) -> bool) -> Result<Scan, CodecError> {
    let codec = Codec::detect(input.peek(4));
    let mut pass = Pass::new(codec, input, output);
    match codec {
        Codec::Plain => pass.plain()?,
        Codec::Gzip => pass.gzip()?,
        Codec::Zstd => pass.zstd()?,
    }
    pass.finish()
}

struct Pass<F> {
    codec: Codec,
    input: Input,
    output: F,
    /// Uncompressed bytes that were not handed out yet.
    buffer: Vec<u8>,
    /// Uncompressed bytes so far, the buffered ones included.
    size: u64,
    checkpoints: Vec<Checkpoint>,
    pieces: Vec<Digest>,
    piece: Hasher,
    last_byte: u8,
    pending: Option<PendingWindow>,
    end: u64,
}

/// A checkpoint whose window waits for the data that refers to it.
struct PendingWindow {
    window: Vec<u8>,
    start: BitStart,
    following: Vec<u8>,
    out: u64,
}

impl<F: FnMut(Bytes) -> bool> Pass<F> {
    fn new(codec: Codec, input: Input, output: F) -> Self {
        let first = Checkpoint { bit: 0, out: 0, start: Start::Fresh, window: Vec::new() };
        Self {
            codec,
            input,
            output,
            buffer: Vec::with_capacity(CHUNK),
            size: 0,
            checkpoints: vec![first],
            pieces: Vec::new(),
            piece: Hasher::default(),
            last_byte: 0,
            pending: None,
            end: 0,
        }
    }

    fn finish(mut self) -> Result<Scan, CodecError> {
        self.flush()?;
        self.settle_window()?;
        self.pieces.push(std::mem::take(&mut self.piece).finish());
        Ok(Scan {
            codec: self.codec,
            checkpoints: self.checkpoints,
            pieces: self.pieces,
            end: self.end,
            size: self.size,
        })
    }

    fn plain(&mut self) -> Result<(), CodecError> {
        loop {
            let chunk = self.input.chunk();
            if chunk.is_empty() {
                return Ok(());
            }
            let room = (SPAN - self.size % SPAN).min((CHUNK - self.buffer.len()) as u64) as usize;
            let count = chunk.len().min(room);
            self.buffer.extend_from_slice(&chunk[..count]);
            self.size += count as u64;
            self.consume(count);
            if self.size.is_multiple_of(SPAN) && !self.input.chunk().is_empty() {
                self.fresh_checkpoint();
            }
            self.flush_if_full()?;
        }
    }

    fn gzip(&mut self) -> Result<(), CodecError> {
        let mut inflate = Inflate::new(Wrapper::Gzip);
        loop {
            self.gzip_member(&mut inflate)?;
            if self.input.peek(2) != [0x1f, 0x8b] {
                return Ok(());
            }
            if self.since_checkpoint() >= FRESH_SPAN {
                self.fresh_checkpoint();
            }
            inflate.reset();
        }
    }

    fn gzip_member(&mut self, inflate: &mut Inflate) -> Result<(), CodecError> {
        loop {
            let read = self.input.consumed();
            let chunk = self.input.chunk();
            let at_end = chunk.is_empty();
            let filled = self.buffer.len();
            self.buffer.resize(CHUNK, 0);
            let step = inflate
                .step(chunk, &mut self.buffer[filled..], Stop::Block)
                .map_err(|_| CodecError::Corrupt { codec: Codec::Gzip, read })?;
            self.buffer.truncate(filled + step.produced);
            self.size += step.produced as u64;
            self.consume(step.consumed);
            self.flush_if_full()?;
            self.settle_window_if_covered()?;
            match step.state {
                State::End => return Ok(()),
                State::Boundary { unused_bits } if self.since_checkpoint() >= SPAN => {
                    self.block_checkpoint(inflate, unused_bits)?;
                }
                _ if at_end && step.produced == 0 => {
                    return Err(CodecError::Truncated { codec: Codec::Gzip, read });
                }
                _ => {}
            }
        }
    }

    fn zstd(&mut self) -> Result<(), CodecError> {
        let corrupt = |read| CodecError::Corrupt { codec: Codec::Zstd, read };
        let mut decoder = Decoder::new().map_err(|_| corrupt(0))?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(|_| corrupt(0))?;
        let mut between_frames = true;
        loop {
            let read = self.input.consumed();
            if between_frames && self.input.peek(1).is_empty() {
                return Ok(());
            }
            if between_frames && self.since_checkpoint() >= FRESH_SPAN {
                self.fresh_checkpoint();
            }
            let chunk = self.input.chunk();
            let at_end = chunk.is_empty();
            let filled = self.buffer.len();
            self.buffer.resize(CHUNK, 0);
            let mut from = InBuffer::around(chunk);
            let mut to = OutBuffer::around(&mut self.buffer[filled..]);
            let hint = decoder.run(&mut from, &mut to).map_err(|error| zstd_error(&error, read))?;
            let (consumed, produced) = (from.pos(), to.pos());
            self.buffer.truncate(filled + produced);
            self.size += produced as u64;
            self.consume(consumed);
            self.flush_if_full()?;
            if at_end && produced == 0 && hint != 0 {
                return Err(CodecError::Truncated { codec: Codec::Zstd, read });
            }
            between_frames = hint == 0;
        }
    }

    /// Takes `count` bytes from the input into the current piece.
    fn consume(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let bytes = &self.input.chunk()[..count];
        self.piece.update(bytes);
        if let Some(pending) = &mut self.pending {
            pending.following.extend_from_slice(bytes);
        }
        self.last_byte = bytes[count - 1];
        self.input.consume(count);
        self.end = self.input.consumed();
    }

    fn since_checkpoint(&self) -> u64 {
        self.size - self.checkpoints.last().map_or(0, |checkpoint| checkpoint.out)
    }

    fn fresh_checkpoint(&mut self) {
        self.pieces.push(std::mem::take(&mut self.piece).finish());
        self.checkpoints.push(Checkpoint {
            bit: self.input.consumed() * 8,
            out: self.size,
            start: Start::Fresh,
            window: Vec::new(),
        });
    }

    fn block_checkpoint(&mut self, inflate: &Inflate, bits: u8) -> Result<(), CodecError> {
        self.settle_window()?;
        self.pieces.push(std::mem::take(&mut self.piece).finish());
        if bits > 0 {
            self.piece.update(&[self.last_byte]);
        }
        self.checkpoints.push(Checkpoint {
            bit: self.input.consumed() * 8 - u64::from(bits),
            out: self.size,
            start: Start::Block,
            window: Vec::new(),
        });
        self.pending = Some(PendingWindow {
            window: inflate.window(),
            start: BitStart { bits, byte: self.last_byte },
            following: Vec::new(),
            out: self.size,
        });
        Ok(())
    }

    /// Reduces the pending window once the data that can refer to it has been read.
    fn settle_window_if_covered(&mut self) -> Result<(), CodecError> {
        match &self.pending {
            Some(pending) if self.size >= pending.out + WINDOW as u64 => self.settle_window(),
            _ => Ok(()),
        }
    }

    fn settle_window(&mut self) -> Result<(), CodecError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let corrupt = CodecError::Corrupt { codec: self.codec, read: self.input.consumed() };
        let window =
            sparse(&pending.window, pending.start, &pending.following).map_err(|_| corrupt)?;
        if let Some(checkpoint) = self.checkpoints.last_mut() {
            checkpoint.window = window;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), CodecError> {
        if self.buffer.len() >= CHUNK / 2 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CodecError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        if (self.output)(chunk.into()) { Ok(()) } else { Err(CodecError::Closed) }
    }
}

fn zstd_error(error: &std::io::Error, read: u64) -> CodecError {
    if error.to_string().contains("too much memory") {
        return CodecError::Window { read, limit: 1 << (ZSTD_WINDOW_LOG - 20) };
    }
    CodecError::Corrupt { codec: Codec::Zstd, read }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::decode::{Entry, decode};
    use super::*;

    /// Text with some entropy: compresses about three times.
    fn sample(size: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(size + 16);
        while bytes.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state % 5 {
                0 => writeln!(bytes, "def method_{}(self):", state % 997).unwrap(),
                1 => writeln!(bytes, "    return {}", state >> 40).unwrap(),
                _ => bytes.extend_from_slice(b"        self.assertEqual(expected, actual)\n"),
            }
        }
        bytes.truncate(size);
        bytes
    }

    fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::new(level));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn scan_chunked(blob: &[u8], chunk: usize) -> Result<(Scan, Vec<u8>), CodecError> {
        let chunks: Vec<Bytes> = blob.chunks(chunk).map(Bytes::copy_from_slice).collect();
        let (sender, receiver) = std::sync::mpsc::channel();
        let scan = scan(Input::from(chunks), move |bytes| sender.send(bytes).is_ok())?;
        Ok((scan, receiver.into_iter().flatten().collect()))
    }

    fn piece(scan: &Scan, span: usize) -> std::ops::Range<usize> {
        let start = scan.checkpoints[span].bit / 8;
        let end = scan.checkpoints.get(span + 1).map_or(scan.end, |next| next.bit.div_ceil(8));
        start as usize..end as usize
    }

    /// Every span decodes alone, from its own piece, to what a whole pass gives.
    fn check_spans(blob: &[u8], plain: &[u8]) -> Scan {
        let (scan, whole) = scan_chunked(blob, 64 * 1024).unwrap();
        assert_eq!(whole, plain);
        assert_eq!(scan.size, plain.len() as u64);
        for (span, checkpoint) in scan.checkpoints.iter().enumerate() {
            let piece = Bytes::copy_from_slice(&blob[piece(&scan, span)]);
            assert_eq!(Digest::of(&piece), scan.pieces[span]);
            let entry = Entry {
                codec: scan.codec,
                start: checkpoint.start,
                bit: (checkpoint.bit % 8) as u8,
                window: &checkpoint.window,
            };
            let end = scan.checkpoints.get(span + 1).map_or(scan.size, |next| next.out);
            let mut decoded = vec![0; (end - checkpoint.out) as usize];
            decode(entry, vec![piece]).unwrap().read_exact(&mut decoded).unwrap();
            assert_eq!(decoded, plain[checkpoint.out as usize..end as usize], "span {span}");
        }
        scan
    }

    #[test]
    fn every_gzip_span_decodes_alone() {
        let plain = sample(5_000_000);
        for level in [1, 6, 9] {
            let scan = check_spans(&gzip(&plain, level), &plain);
            assert!(scan.checkpoints.len() >= 2, "{}", scan.checkpoints.len());
        }
        check_spans(&gzip(&plain, 0), &plain);
        check_spans(&gzip(b"", 6), b"");
    }

    #[test]
    fn spans_cross_member_boundaries() {
        let plain = sample(3_000_000);
        let small: Vec<u8> = plain.chunks(70_000).flat_map(|part| gzip(part, 6)).collect();
        check_spans(&small, &plain);
        let large: Vec<u8> = plain.chunks(1_400_000).flat_map(|part| gzip(part, 6)).collect();
        check_spans(&large, &plain);
    }

    #[test]
    fn zstd_spans_start_at_frames() {
        let plain = sample(3_000_000);
        let mut blob = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip".to_vec();
        for part in plain.chunks(300_000) {
            blob.extend(zstd::bulk::compress(part, 3).unwrap());
            blob.extend(b"\x5e\x2a\x4d\x18\x02\x00\x00\x00ab");
        }
        let scan = check_spans(&blob, &plain);
        assert!(scan.checkpoints.len() >= 4);
        check_spans(&zstd::bulk::compress(&plain, 3).unwrap(), &plain);
    }

    #[test]
    fn plain_spans_are_ranges() {
        let plain = sample(2_500_000);
        assert_eq!(check_spans(&plain, &plain).checkpoints.len(), 3);
        check_spans(&[], &[]);
    }

    #[test]
    fn chunking_of_the_input_changes_nothing() {
        let plain = sample(2_600_000);
        let two_members = [gzip(&plain[..1_000_001], 6), gzip(&plain[1_000_001..], 1)].concat();
        let reference = scan_chunked(&two_members, usize::MAX).unwrap();
        for chunk in [1000, 4096, 65_537] {
            assert_eq!(scan_chunked(&two_members, chunk).unwrap(), reference);
        }
    }

    #[test]
    fn windows_keep_only_what_is_referred_to() {
        let plain = sample(4_000_000);
        let (scan, _) = scan_chunked(&gzip(&plain, 6), 65_536).unwrap();
        let windows: Vec<_> = scan.checkpoints.iter().filter(|c| c.start == Start::Block).collect();
        assert!(!windows.is_empty());
        let zeros: usize =
            windows.iter().map(|c| c.window.iter().filter(|&&byte| byte == 0).count()).sum();
        let total: usize = windows.iter().map(|c| c.window.len()).sum();
        assert!(zeros * 4 > total, "{zeros} of {total}");
    }

    #[test]
    fn padding_after_the_last_member_is_ignored() {
        let plain = sample(100_000);
        let mut blob = gzip(&plain, 6);
        let end = blob.len() as u64;
        blob.extend([0; 700]);
        let (scan, whole) = scan_chunked(&blob, 999).unwrap();
        assert_eq!((scan.end, whole), (end, plain));
    }

    #[test]
    fn damaged_streams_are_refused() {
        let plain = sample(400_000);
        for blob in [gzip(&plain, 6), zstd::bulk::compress(&plain, 3).unwrap()] {
            for cut in [5, blob.len() / 2, blob.len() - 1] {
                let error = scan_chunked(&blob[..cut], 4096).unwrap_err();
                assert!(matches!(error, CodecError::Truncated { .. }), "{cut}: {error}");
            }
        }
        let mut blob = gzip(&plain, 6);
        let crc = blob.len() - 8;
        blob[crc] ^= 1;
        assert!(matches!(scan_chunked(&blob, 4096).unwrap_err(), CodecError::Corrupt { .. }));
    }
}
