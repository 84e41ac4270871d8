//! Blobs as bodies: read in large pieces one ahead of the network, through buffers that are
//! used again, so that memory is bounded and not zeroed for each request.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;

/// Bytes read from disk at a time.
const PIECE: usize = 256 << 10;
/// Buffers that are kept while nobody uses them.
const KEPT: usize = 64;

/// Buffers of [`PIECE`] bytes.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Box<[u8]>>>);

/// A part of a body.
#[derive(Debug, Clone)]
pub enum Segment {
    /// Bytes of the blob.
    Blob(Range<u64>),
    /// Text between parts of it.
    Text(Bytes),
}

impl Segment {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Blob(range) => range.end.saturating_sub(range.start),
            Self::Text(text) => text.len() as u64,
        }
    }
}

/// A body of `segments`, which are parts of `file` and text. It keeps `guard` to its end.
pub fn body(
    file: File,
    segments: Vec<Segment>,
    buffers: &Arc<Buffers>,
    guard: impl Send + 'static,
) -> Body {
    let reader = Reader { file: Arc::new(file), buffers: Arc::clone(buffers), _guard: guard };
    let mut pieces = segments.into_iter().flat_map(pieces);
    let first = pieces.next().map(|piece| reader.begin(piece));
    Body::from_stream(one_ahead(reader, pieces, first))
}

struct Reader<G> {
    file: Arc<File>,
    buffers: Arc<Buffers>,
    _guard: G,
}

type Reading = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

impl<G> Reader<G> {
    /// Begins to read at once, whether or not the outcome is waited for.
    fn begin(&self, piece: Segment) -> Reading {
        let range = match piece {
            Segment::Text(text) => return Box::pin(std::future::ready(Ok(text))),
            Segment::Blob(range) => range,
        };
        let (file, buffers) = (Arc::clone(&self.file), Arc::clone(&self.buffers));
        let reading = tokio::task::spawn_blocking(move || read(&file, &range, &buffers));
        Box::pin(async { reading.await.map_err(io::Error::other)? })
    }
}

/// Yields the pieces in order; while one is sent, the next is read.
fn one_ahead<G: Send>(
    reader: Reader<G>,
    pieces: impl Iterator<Item = Segment> + Send,
    first: Option<Reading>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold((reader, pieces, first), async |(reader, mut pieces, reading)| {
        let Some(reading) = reading else { return Ok(None) };
        let bytes = reading.await?;
        let next = pieces.next().map(|piece| reader.begin(piece));
        Ok(Some((bytes, (reader, pieces, next))))
    })
}

/// Cuts a segment into parts that fit a buffer.
fn pieces(segment: Segment) -> impl Iterator<Item = Segment> + Send {
    let (text, range) = match segment {
        Segment::Text(text) => (Some(text), 0..0),
        Segment::Blob(range) => (None, range),
    };
    let end = range.end;
    let parts = range.step_by(PIECE).map(move |at| at..end.min(at + PIECE as u64));
    text.into_iter().map(Segment::Text).chain(parts.map(Segment::Blob))
}

/// Reads `range`, at most a buffer full.
fn read(file: &File, range: &Range<u64>, buffers: &Arc<Buffers>) -> io::Result<Bytes> {
    let mut buffer = Buffers::take(buffers);
    let len = usize::try_from(range.end - range.start).unwrap_or(PIECE).min(PIECE);
    buffer.len = len;
    file.read_exact_at(buffer.bytes.get_mut(..len).unwrap_or_default(), range.start)?;
    Ok(Bytes::from_owner(buffer))
}

impl Buffers {
    fn take(this: &Arc<Self>) -> Buffer {
        let kept = this.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| vec![0; PIECE].into_boxed_slice());
        Buffer { bytes, len: 0, home: Arc::clone(this) }
    }
}

/// A buffer on loan, the first `len` bytes of it in use.
struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    async fn collect(file: File, segments: Vec<Segment>) -> Result<Bytes, axum::Error> {
        axum::body::to_bytes(body(file, segments, &Arc::default(), ()), usize::MAX).await
    }

    #[tokio::test]
    async fn parts_and_text_come_in_order() {
        let content: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at % 251) as u8).collect();
        let segments = vec![
            Segment::Text(Bytes::from_static(b"<")),
            Segment::Blob(1..2 * PIECE as u64 + 7),
            Segment::Text(Bytes::from_static(b"|")),
            Segment::Blob(3 * PIECE as u64..3 * PIECE as u64 + 5),
            Segment::Text(Bytes::from_static(b">")),
        ];
        let mut expected = b"<".to_vec();
        expected.extend_from_slice(&content[1..2 * PIECE + 7]);
        expected.push(b'|');
        expected.extend_from_slice(&content[3 * PIECE..]);
        expected.push(b'>');
        assert_eq!(collect(file(&content), segments).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_breaks_the_body() {
        let segments = vec![Segment::Blob(0..100)];
        assert!(collect(file(b"short"), segments).await.is_err());
    }

    #[test]
    fn buffers_come_home() {
        let buffers = Arc::new(Buffers::default());
        let bytes = read(&file(b"abc"), &(0..3), &buffers).unwrap();
        assert_eq!(bytes, "abc");
        assert_eq!(buffers.0.lock().unwrap().len(), 0);
        drop(bytes);
        assert_eq!(buffers.0.lock().unwrap().len(), 1);
    }
}
