//! Decoding from a checkpoint.

use std::io::{self, Read};

use bytes::Bytes;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::inflate::{Inflate, State, Stop, Wrapper};
use super::window::BitStart;
use super::{Codec, CodecError, Input, Start, ZSTD_WINDOW_LOG};

/// Where and with what decoding starts.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// How the blob is compressed.
    pub codec: Codec,
    /// What begins here.
    pub start: Start,
    /// The bit of the first byte of the input at which the span starts, 0 to 7.
    pub bit: u8,
    /// The sparse window where `start` is [`Start::Block`].
    pub window: &'a [u8],
}

/// The uncompressed bytes from `entry` on, as far as `pieces` (neighbouring pieces joined, no
/// byte twice) go. Reading beyond what the pieces hold gives an error of kind `UnexpectedEof`.
///
/// # Errors
/// [`CodecError::Corrupt`] where the window is not one.
pub fn decode(entry: Entry<'_>, pieces: Vec<Bytes>) -> Result<Box<dyn Read + Send>, CodecError> {
    let mut input = Input::from(pieces);
    let corrupt = || CodecError::Corrupt { codec: entry.codec, read: 0 };
    Ok(match (entry.codec, entry.start) {
        (Codec::Plain, _) => Box::new(PlainReader { input }),
        (Codec::Zstd, _) => {
            let mut decoder = Decoder::new().map_err(|_| corrupt())?;
            decoder
                .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
                .map_err(|_| corrupt())?;
            Box::new(ZstdReader { input, decoder })
        }
        (Codec::Gzip, Start::Fresh) => {
            Box::new(GzipReader { input, inflate: Inflate::new(Wrapper::Gzip), trailer: 0 })
        }
        (Codec::Gzip, Start::Block) => {
            let byte = input.peek(1).first().copied().ok_or_else(corrupt)?;
            let bits = if entry.bit == 0 { 0 } else { 8 - entry.bit.min(7) };
            if bits > 0 {
                input.consume(1);
            }
            let start = BitStart { bits, byte };
            let inflate = start.inflate(entry.window).map_err(|_| corrupt())?;
            Box::new(GzipReader { input, inflate, trailer: GZIP_TRAILER })
        }
    })
}

/// CRC-32 and size at the end of a member, RFC 1952 section 2.3.1.
const GZIP_TRAILER: usize = 8;

struct PlainReader {
    input: Input,
}

impl Read for PlainReader {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let chunk = self.input.chunk();
        let count = chunk.len().min(output.len());
        output[..count].copy_from_slice(&chunk[..count]);
        self.input.consume(count);
        Ok(count)
    }
}

/// gzip members; the first may be entered in the middle, as raw deflate data.
struct GzipReader {
    input: Input,
    inflate: Inflate,
    /// Bytes to skip at the end of the current member: the trailer of a raw stream.
    trailer: usize,
}

impl Read for GzipReader {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        loop {
            let chunk = self.input.chunk();
            let at_end = chunk.is_empty();
            let step = self
                .inflate
                .step(chunk, output, Stop::Never)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.input.consume(step.consumed);
            if step.state == State::End {
                self.next_member();
            }
            if step.produced > 0 || output.is_empty() || at_end {
                return Ok(step.produced);
            }
        }
    }
}

impl GzipReader {
    fn next_member(&mut self) {
        for _ in 0..self.trailer {
            if !self.input.chunk().is_empty() {
                self.input.consume(1);
            }
        }
        self.trailer = 0;
        self.inflate = Inflate::new(Wrapper::Gzip);
    }
}

struct ZstdReader {
    input: Input,
    decoder: Decoder<'static>,
}

impl Read for ZstdReader {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        loop {
            let chunk = self.input.chunk();
            let at_end = chunk.is_empty();
            let mut from = InBuffer::around(chunk);
            let mut to = OutBuffer::around(&mut *output);
            self.decoder
                .run(&mut from, &mut to)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let (consumed, produced) = (from.pos(), to.pos());
            self.input.consume(consumed);
            if produced > 0 || output.is_empty() || at_end {
                return Ok(produced);
            }
        }
    }
}
