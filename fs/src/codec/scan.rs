//! One pass over a compressed stream: uncompressed bytes out, checkpoints noted.
//!
//! The positions depend only on the bytes of the stream, never on how they are chunked, so that
//! the same layer always gives the same index.

use bytes::Bytes;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::inflate::{Corrupt, Inflate, State, Stop, WINDOW, Wrapper};
use super::window::{BitStart, sparse};
use super::{Checkpoint, Codec, CodecError, Input, Start, ZSTD_WINDOW_LOG};
use crate::digest::{Digest, Hasher};

/// Uncompressed bytes are handed out in chunks of about this size.
const CHUNK: usize = 256 * 1024;

/// A checkpoint is wanted this many uncompressed bytes after the last one.
pub const SPAN: u64 = 1024 * 1024;

/// Where a checkpoint costs no window, so many suffice. Only the last span of a layer has fewer.
pub const SPAN_MIN: u64 = SPAN / 2;

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

/// Compressed bytes behind a checkpoint that are kept to reduce its window. Blocks without output
/// could otherwise be piled up without end.
const FOLLOWING: usize = 256 * 1024;

impl PendingWindow {
    /// Whether nothing that comes after the first `size` uncompressed bytes matters any more.
    fn is_covered(&self, size: u64) -> bool {
        size >= self.out + WINDOW as u64 || self.following.len() > FOLLOWING
    }

    /// The reduced window; the whole one where the data that refers to it is too long. It depends
    /// on the first [`FOLLOWING`] bytes only, however they arrived.
    fn settle(mut self) -> Result<Vec<u8>, Corrupt> {
        let cut = self.following.len() > FOLLOWING;
        self.following.truncate(FOLLOWING);
        let reduced = sparse(&self.window, self.start, &self.following)?;
        Ok(if cut && !reduced.is_complete { self.window } else { reduced.window })
    }
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
                self.drain();
                return Ok(());
            }
            if self.since_checkpoint() >= SPAN_MIN {
                self.fresh_checkpoint();
            }
            inflate.reset();
        }
    }

    /// Reads what is left and drops it: whoever writes the blob must not be cut off at its padding.
    fn drain(&mut self) {
        while !self.input.chunk().is_empty() {
            let rest = self.input.chunk().len();
            self.input.consume(rest);
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
            if between_frames && self.since_checkpoint() >= SPAN_MIN {
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
            Some(pending) if pending.is_covered(self.size) => self.settle_window(),
            _ => Ok(()),
        }
    }

    fn settle_window(&mut self) -> Result<(), CodecError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let corrupt = CodecError::Corrupt { codec: self.codec, read: self.input.consumed() };
        let window = pending.settle().map_err(|_| corrupt)?;
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

/// The library tells its errors in words only.
fn zstd_error(error: &std::io::Error, read: u64) -> CodecError {
    let words = error.to_string();
    if words.contains("too much memory") {
        CodecError::Window { read, limit: 1 << (ZSTD_WINDOW_LOG - 20) }
    } else if words.contains("Dictionary mismatch") {
        CodecError::Dictionary { read }
    } else {
        CodecError::Corrupt { codec: Codec::Zstd, read }
    }
}

#[cfg(test)]
mod tests;
