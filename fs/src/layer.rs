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
mod numeric;
mod sparse;
mod stream;

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;

use self::archive::{Archive, MemberKind};
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
    let mut archive = Archive::new();
    let mut builder = Builder::new();
    while let Some(member) = archive.next(&mut stream)? {
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
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::index::{EntryKind, InodeFlags, LayerTree};
    use crate::object::ObjectKey;

    /// A member of a test archive: path, type flag, link target, content.
    type Sample<'a> = (&'a str, u8, &'a str, &'a [u8]);

    fn archive(members: &[Sample<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, target, content) in members {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.as_old_mut().linkflag = [*kind];
            header.set_mode(0o644);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn index(blob: &[u8]) -> Result<LayerIndex, LayerError> {
        let mut indexer = Indexer::new();
        // A malformed layer may close the pipe early; finish() tells.
        let _ = indexer.write_all(blob);
        indexer.finish()
    }

    /// Every entry of the tree by path: what it is.
    fn listing(tree: &LayerTree) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut stack = vec![(0, String::new())];
        while let Some((number, path)) = stack.pop() {
            let directory = tree.inode(number).unwrap();
            for entry in tree.entries(directory).unwrap() {
                let name = String::from_utf8_lossy(tree.name(entry).unwrap()).into_owned();
                let path = format!("{path}/{name}");
                let inode = tree.inode(entry.inode.get()).unwrap();
                let what = match tree.kind(entry).unwrap() {
                    EntryKind::Whiteout => "whiteout".into(),
                    EntryKind::LowerLink => {
                        format!("lower {}", tree.target(inode).unwrap().escape_ascii())
                    }
                    EntryKind::Inode => match inode.mode.get() & libc::S_IFMT {
                        libc::S_IFDIR => {
                            stack.push((entry.inode.get(), path.clone()));
                            let flags = inode.flags.get();
                            let opaque =
                                if flags & InodeFlags::OPAQUE != 0 { " opaque" } else { "" };
                            let implicit =
                                if flags & InodeFlags::IMPLICIT != 0 { " implicit" } else { "" };
                            format!("directory{opaque}{implicit}")
                        }
                        libc::S_IFLNK => {
                            format!("-> {}", tree.target(inode).unwrap().escape_ascii())
                        }
                        libc::S_IFREG => {
                            format!("file {} x{}", inode.size.get(), inode.nlink.get())
                        }
                        other => format!("{other:o}"),
                    },
                };
                found.insert(path, what);
            }
        }
        found
    }

    fn tree_of(members: &[Sample<'_>]) -> LayerTree {
        let index = index(&archive(members)).unwrap();
        LayerTree::new(index.tree.to_vec().into()).unwrap()
    }

    fn check_listing(members: &[Sample<'_>], expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(path, what)| (path.to_string(), what.to_string())).collect();
        assert_eq!(listing(&tree_of(members)), expected);
    }

    #[test]
    fn members_become_a_tree() {
        check_listing(
            &[
                ("./", b'5', "", b""),
                ("usr/bin/perl", b'0', "", b"content"),
                ("usr", b'5', "", b""),
                ("/abs//path/./x", b'0', "", b""),
                ("bin", b'2', "usr/bin", b""),
                ("h", b'1', "./usr/bin/perl", b""),
                ("bin/sh", b'0', "", b"#"),
                ("old/", b'0', "", b""),
                ("lower", b'1', "etc/passwd", b""),
            ],
            &[
                ("/usr", "directory"),
                ("/usr/bin", "directory implicit"),
                ("/usr/bin/perl", "file 7 x2"),
                ("/usr/bin/sh", "file 1 x1"),
                ("/abs", "directory implicit"),
                ("/abs/path", "directory implicit"),
                ("/abs/path/x", "file 0 x1"),
                ("/bin", "-> usr/bin"),
                ("/h", "file 7 x2"),
                ("/old", "directory"),
                ("/lower", "lower etc/passwd"),
            ],
        );
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        check_listing(
            &[
                ("d/.wh.gone", b'0', "", b""),
                ("d/.wh..wh..opq", b'0', "", b""),
                (".wh.again", b'0', "", b""),
                ("again", b'5', "", b""),
                ("again/new", b'0', "", b""),
                ("new", b'0', "", b"x"),
                (".wh.new", b'0', "", b""),
                ("e/.wh..", b'0', "", b""),
                (".wh..wh.aufs", b'0', "", b""),
            ],
            &[
                ("/d", "directory opaque implicit"),
                ("/d/gone", "whiteout"),
                ("/again", "directory opaque"),
                ("/again/new", "file 0 x1"),
                ("/new", "file 1 x1"),
                ("/e", "directory implicit"),
            ],
        );
    }

    #[test]
    fn paths_never_leave_the_root() {
        check_listing(
            &[
                ("../../etc/passwd", b'0', "", b"x"),
                ("link", b'2', "../../../outside", b""),
                ("link/below", b'0', "", b"y"),
            ],
            &[
                ("/etc", "directory implicit"),
                ("/etc/passwd", "file 1 x1"),
                ("/link", "-> ../../../outside"),
                ("/outside", "directory implicit"),
                ("/outside/below", "file 1 x1"),
            ],
        );
    }

    #[test]
    fn the_last_of_several_members_with_one_path_wins() {
        check_listing(
            &[
                ("a", b'0', "", b"first"),
                ("a", b'0', "", b"2"),
                ("b", b'2', "x", b""),
                ("b", b'5', "", b""),
                ("b/c", b'0', "", b""),
            ],
            &[("/a", "file 1 x1"), ("/b", "directory"), ("/b/c", "file 0 x1")],
        );
    }

    #[test]
    fn regression_the_root_belongs_to_root() {
        let tree = tree_of(&[("./", b'5', "", b"")]);
        let root = tree.inode(0).unwrap();
        assert_eq!((root.uid.get(), root.gid.get(), root.mode.get()), (0, 0, 0o40644));
    }

    #[test]
    fn regression_an_attribute_without_a_value_is_none() {
        let mut builder = tar::Builder::new(Vec::new());
        let records: [(&str, &[u8]); 3] = [
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.user.lines", b"a\nb=c\n"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        builder.append_data(&mut header, "f", &b""[..]).unwrap();
        let index = index(&builder.into_inner().unwrap()).unwrap();
        let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
        let entry = tree.find(tree.inode(0).unwrap(), b"f").unwrap().unwrap();
        let xattrs = tree.xattrs(tree.inode(entry.inode.get()).unwrap()).unwrap();
        assert_eq!(xattrs, [(&b"user.lines"[..], &b"a\nb=c\n"[..])]);
    }

    #[test]
    fn contents_have_keys_and_places() {
        let large = vec![3; 2_500_000];
        let members: [Sample<'_>; 4] = [
            ("s", b'0', "", b"small"),
            ("l", b'0', "", &large),
            ("s2", b'0', "", b"small"),
            ("e", b'0', "", b""),
        ];
        let blob = archive(&members);
        let tree = tree_of(&members);
        let root = *tree.inode(0).unwrap();
        let inode = |name: &[u8]| {
            let entry = tree.find(&root, name).unwrap().unwrap();
            *tree.inode(entry.inode.get()).unwrap()
        };
        assert_eq!(tree.key(&inode(b"s")).unwrap(), Some(ObjectKey::small(b"small")));
        assert_eq!(inode(b"s").key, inode(b"s2").key);
        assert_eq!(tree.key(&inode(b"e")).unwrap(), None);
        let chunks = tree.chunks(&inode(b"l")).unwrap();
        assert_eq!(chunks.len(), 3);
        assert_eq!(
            tree.key(&inode(b"l")).unwrap(),
            Some(ObjectKey::large(large.len() as u64, chunks))
        );
        for (name, content) in [(&b"s"[..], &b"small"[..]), (b"l", &large)] {
            let extent = tree.extents(&inode(name)).unwrap()[0];
            let start = extent.data.get() as usize;
            assert_eq!(&blob[start..start + content.len()], content);
        }
        assert_eq!(tree.order().len(), 3);
        assert_eq!(tree.header().content_size, 5 + 2_500_000);
    }

    #[test]
    fn the_same_layer_gives_the_same_index_however_it_arrives() {
        let members: Vec<String> = (0..3000).map(|i| format!("dir{}/file{i}", i % 7)).collect();
        let samples: Vec<Sample<'_>> =
            members.iter().map(|path| (path.as_str(), b'0', "", path.as_bytes())).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&archive(&samples)).unwrap();
        let blob = encoder.finish().unwrap();
        let reference = index(&blob).unwrap();
        assert_eq!(reference.layer, Digest::of(&blob));
        assert_eq!(reference.diff_id, Digest::of(&archive(&samples)));
        let mut indexer = Indexer::new();
        for chunk in blob.chunks(777) {
            indexer.write_all(chunk).unwrap();
        }
        assert_eq!(indexer.finish().unwrap(), reference);
    }

    /// The bytes of an index are a promise to every other machine: what changes them needs
    /// another format version. (The spans file is pinned in `index::spans`.)
    #[test]
    fn the_format_is_pinned() {
        let index = index(&archive(&[("d/f", b'0', "", b"text"), ("l", b'2', "t", b"")])).unwrap();
        let pinned = "sha256:682c2af64a8b6db2ec26e93758be7b0eff52b6ed74a611664ba4a56d60178814";
        assert_eq!(index.tree_digest().to_string(), pinned);
    }

    #[test]
    fn malformed_layers_are_refused_with_reasons() {
        let good = archive(&[("a", b'0', "", &[1; 2000])]);
        let mut bad_sum = good.clone();
        bad_sum[0] ^= 1;
        let table: [(Vec<u8>, &str); 5] = [
            (bad_sum, "checksum"),
            (good[..1000].to_vec(), "truncated"),
            (archive(&[("a", b'0', "", b""), ("a/b", b'0', "", b"")]), "not a directory"),
            (archive(&[("d", b'5', "", b""), ("h", b'1', "d", b"")]), "hard link to a directory"),
            (archive(&[("l", b'2', "l", b""), ("l/x", b'0', "", b"")]), "too many symbolic links"),
        ];
        for (blob, words) in table {
            let error = index(&blob).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
