//! Compressed bytes as they arrive, with a look at what comes next.

use std::sync::mpsc::Receiver;

use bytes::{Buf, Bytes, BytesMut};

/// A stream of chunks that can be looked into before it is consumed.
pub struct Input {
    current: Bytes,
    next: Box<dyn FnMut() -> Option<Bytes> + Send>,
    consumed: u64,
}

impl Input {
    /// The chunks that `next` returns until it returns none.
    pub fn new(next: impl FnMut() -> Option<Bytes> + Send + 'static) -> Self {
        Self { current: Bytes::new(), next: Box::new(next), consumed: 0 }
    }

    /// Bytes consumed so far.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// What comes next: empty only at the end of the stream.
    pub fn chunk(&mut self) -> &[u8] {
        while self.current.is_empty() {
            match (self.next)() {
                Some(chunk) => self.current = chunk,
                None => break,
            }
        }
        &self.current
    }

    /// The next `count` bytes without consuming them, fewer at the end of the stream.
    pub fn peek(&mut self, count: usize) -> &[u8] {
        while self.current.len() < count {
            let Some(chunk) = (self.next)() else { break };
            let mut joined = BytesMut::from(&self.current[..]);
            joined.extend_from_slice(&chunk);
            self.current = joined.freeze();
        }
        &self.current[..count.min(self.current.len())]
    }

    /// Drops the first `count` bytes of the current chunk.
    pub fn consume(&mut self, count: usize) {
        self.current.advance(count);
        self.consumed += count as u64;
    }
}

impl From<Receiver<Bytes>> for Input {
    fn from(chunks: Receiver<Bytes>) -> Self {
        Self::new(move || chunks.recv().ok())
    }
}

impl From<Vec<Bytes>> for Input {
    fn from(chunks: Vec<Bytes>) -> Self {
        let mut chunks = chunks.into_iter();
        Self::new(move || chunks.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peeking_joins_chunks_and_consumes_nothing() {
        let mut input = Input::from(vec![Bytes::from("a"), Bytes::new(), Bytes::from("bcd")]);
        assert_eq!(input.peek(2), b"ab");
        assert_eq!(input.consumed(), 0);
        input.consume(2);
        assert_eq!(input.chunk(), b"cd");
        input.consume(2);
        assert_eq!(input.peek(1), b"");
        assert_eq!(input.consumed(), 4);
    }
}
