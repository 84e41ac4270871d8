//! The uncompressed stream of a layer: read once, hashed to its DiffID, always knowing where it
//! is.

use super::LayerError;
use crate::codec::Input;
use crate::digest::{Digest, Hasher};

const BLOCK: usize = 512;

/// A tar stream.
pub struct TarStream {
    input: Input,
    hasher: Hasher,
}

impl TarStream {
    /// The stream whose chunks `input` gives.
    pub fn new(input: Input) -> Self {
        Self { input, hasher: Hasher::default() }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.input.consumed()
    }

    /// The next `count` bytes without reading them, fewer where the stream ends.
    pub fn peek(&mut self, count: usize) -> &[u8] {
        self.input.peek(count)
    }

    /// The next 512 bytes, `None` where the stream ended before, or with fewer bytes that are all 0:
    /// GNU tar takes these for the end.
    ///
    /// # Errors
    /// [`LayerError::Truncated`] where the stream ends inside another block.
    pub fn block(&mut self) -> Result<Option<[u8; BLOCK]>, LayerError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        if self.input.chunk().is_empty() {
            return Ok(None);
        }
        let read = self.read(BLOCK as u64, |chunk| {
            block[filled..filled + chunk.len()].copy_from_slice(chunk);
            filled += chunk.len();
        });
        match read {
            Err(LayerError::Truncated { .. }) if block.iter().all(|&byte| byte == 0) => Ok(None),
            read => read.map(|()| Some(block)),
        }
    }

    /// Hands the next `count` bytes to `take`, in chunks.
    ///
    /// # Errors
    /// [`LayerError::Truncated`] where the stream ends before.
    pub fn read(&mut self, count: u64, mut take: impl FnMut(&[u8])) -> Result<(), LayerError> {
        let mut left = count;
        while left > 0 {
            let chunk = self.input.chunk();
            if chunk.is_empty() {
                return Err(LayerError::Truncated { position: self.position() });
            }
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let part = &chunk[..size];
            self.hasher.update(part);
            take(part);
            self.input.consume(size);
            left -= size as u64;
        }
        Ok(())
    }

    /// Skips what fills up the last block of `size` bytes. Writers may leave it out at the end of
    /// the stream, where nothing follows that it would align.
    pub fn skip_padding(&mut self, size: u64) {
        // It only fails where the stream ends.
        let _ = self.read(size.wrapping_neg() % BLOCK as u64, |_| ());
    }

    /// Skips `size` bytes and their padding.
    ///
    /// # Errors
    /// [`LayerError::Truncated`] where the stream ends before the padding.
    pub fn skip_padded(&mut self, size: u64) -> Result<(), LayerError> {
        self.read(size, |_| ())?;
        self.skip_padding(size);
        Ok(())
    }

    /// Reads what is left; the digest and the size of the whole stream.
    pub fn finish(mut self) -> (Digest, u64) {
        loop {
            let chunk = self.input.chunk();
            if chunk.is_empty() {
                return (self.hasher.finish(), self.input.consumed());
            }
            let size = chunk.len();
            self.hasher.update(chunk);
            self.input.consume(size);
        }
    }
}
