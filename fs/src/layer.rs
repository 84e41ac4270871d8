//! From a layer blob to its index, in one pass.
//!
//! ```text
//! write() --chunks--> [scan: decompress, checkpoints] --chunks--> [tar: members, keys, DiffID]
//!   blob digest              thread                                   thread
//! ```
//!
//! An [`Indexer`] is fed while the blob goes by on its way somewhere else (to another registry,
//! into the cache), so that indexing costs no extra pass. An [`ObjectSink`] may keep the contents.

mod archive;
mod builder;
mod content;
mod layout;
mod limits;
mod node;
mod numeric;
mod sparse;
mod stream;

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;

use self::archive::{MemberKind, next_member};
use self::builder::{Builder, TreeParts};
pub use self::content::{NoSink, ObjectSink};
use self::stream::TarStream;
use crate::codec::{CodecError, Input, Scan, scan};
use crate::digest::{Digest, Hasher};
use crate::index::{IndexError, TreeHeader, TreeSections, encode_spans, encode_tree};

/// Chunks in flight between two stages.
const QUEUE: usize = 8;

/// A layer that cannot be indexed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// The blob cannot be decompressed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The blob is compressed in a way that image layers are not.
    #[error("the layer is compressed by {name}; layers are plain tar, gzip or zstd")]
    Compression {
        /// The format.
        name: &'static str,
    },
    /// A member's header is damaged.
    #[error("damaged tar header before byte {position}: {what}")]
    Header {
        /// Where the header ends, in bytes of the uncompressed stream.
        position: u64,
        /// Which rule it breaks.
        what: &'static str,
    },
    /// The archive ends inside a member.
    #[error("the tar archive is truncated at byte {position}")]
    Truncated {
        /// Where it ends, in bytes of the uncompressed stream.
        position: u64,
    },
    /// A member that no file system can hold.
    #[error("tar member `{}`: {what}", .path.escape_ascii())]
    Member {
        /// Its path as the archive spells it.
        path: Vec<u8>,
        /// Which rule it breaks.
        what: &'static str,
    },
    /// The index cannot be written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A thread of the indexer failed.
    #[error("the indexer stopped unexpectedly")]
    Stopped,
}

/// The two blobs of a layer's index and what they say about the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    /// Digest of the layer blob.
    pub layer: Digest,
    /// Its size in bytes.
    pub layer_size: u64,
    /// Digest of the uncompressed tar (OCI image-spec, DiffID).
    pub diff_id: Digest,
    /// Its size in bytes.
    pub uncompressed_size: u64,
    /// The tree file.
    pub tree: Bytes,
    /// The spans file.
    pub spans: Bytes,
}

impl LayerIndex {
    /// The digest that names the index: that of the tree file, which holds that of the spans.
    pub fn tree_digest(&self) -> Digest {
        Digest::of(&self.tree)
    }
}

/// Builds the index of the layer blob that is written to it, in order.
///
/// Writing blocks while the stages behind are busy, so it belongs on a blocking thread. A write
/// to an indexer that has found its layer malformed fails; [`Indexer::finish`] says why.
pub struct Indexer {
    chunks: SyncSender<Bytes>,
    digest: Hasher,
    size: u64,
    scan: JoinHandle<Result<Scan, CodecError>>,
    tar: JoinHandle<Result<TarFacts, LayerError>>,
}

struct TarFacts {
    diff_id: Digest,
    size: u64,
    tree: TreeParts,
}

impl Indexer {
    /// An indexer that keeps no contents.
    pub fn new() -> Self {
        Self::with_sink(Box::new(NoSink))
    }

    /// An indexer that shows every file's content to `sink`.
    pub fn with_sink(sink: Box<dyn ObjectSink>) -> Self {
        let (chunks, compressed) = sync_channel::<Bytes>(QUEUE);
        let (plain, uncompressed) = sync_channel::<Bytes>(QUEUE);
        let scan = std::thread::spawn(move || {
            scan(Input::from(compressed), |chunk| plain.send(chunk).is_ok())
        });
        let tar = std::thread::spawn(move || read_archive(uncompressed, sink));
        Self { chunks, digest: Hasher::default(), size: 0, scan, tar }
    }

    /// Adds the next bytes of the blob without copying them.
    ///
    /// # Errors
    /// `BrokenPipe` where the layer was found malformed.
    pub fn write_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.digest.update(&bytes);
        self.size += bytes.len() as u64;
        self.chunks.send(bytes).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Ends the blob and returns its index.
    ///
    /// # Errors
    /// [`LayerError`] where the blob is not a layer.
    pub fn finish(self) -> Result<LayerIndex, LayerError> {
        drop(self.chunks);
        let scan = self.scan.join().map_err(|_| LayerError::Stopped)?;
        let tar = self.tar.join().map_err(|_| LayerError::Stopped)?;
        let (scan, tar) = match (scan, tar) {
            // A scan that was cut off by a malformed archive is not the culprit, any other is.
            (Err(CodecError::Closed), Err(error)) => return Err(error),
            (Err(error), _) => return Err(error.into()),
            (Ok(_), Err(error)) => return Err(error),
            (Ok(scan), Ok(tar)) => (scan, tar),
        };
        assemble(self.digest.finish(), self.size, &scan, tar)
    }
}

impl Default for Indexer {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Indexer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_bytes(Bytes::copy_from_slice(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read_archive(
    chunks: Receiver<Bytes>,
    mut sink: Box<dyn ObjectSink>,
) -> Result<TarFacts, LayerError> {
    let mut stream = TarStream::new(Input::from(chunks));
    let mut builder = Builder::new();
    while let Some(member) = next_member(&mut stream)? {
        let content = match &member.kind {
            MemberKind::File(content) => Some(builder.content(&mut stream, content, &mut *sink)?),
            _ => None,
        };
        builder.add(member, content)?;
    }
    let (diff_id, size) = stream.finish();
    Ok(TarFacts { diff_id, size, tree: builder.finish()? })
}

fn assemble(
    layer: Digest,
    layer_size: u64,
    scan: &Scan,
    tar: TarFacts,
) -> Result<LayerIndex, LayerError> {
    let (spans, table_size) = encode_spans(&layer, scan)?;
    let header = TreeHeader {
        magic: [0; 8],
        version: 0.into(),
        codec: scan.codec.number().into(),
        layer,
        diff_id: tar.diff_id,
        spans: Digest::of(&spans),
        span_table: Digest::of(&spans[..table_size]),
        layer_size: layer_size.into(),
        tar_size: tar.size.into(),
        spans_size: (spans.len() as u64).into(),
        span_table_size: (table_size as u64).into(),
        content_size: tar.tree.content_size.into(),
        sections: TreeSections::default(),
        reserved: [0; 24],
    };
    let tree = encode_tree(header, &tar.tree.sections);
    Ok(LayerIndex {
        layer,
        layer_size,
        diff_id: tar.diff_id,
        uncompressed_size: tar.size,
        tree: tree.into(),
        spans: spans.into(),
    })
}

#[cfg(test)]
mod tests;
