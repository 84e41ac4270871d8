//! The tree file: everything about a layer but its bytes.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::format::{
    DirectoryEntry, EntryKind, Extent, InodeFlags, InodeRecord, NONE, Section, TREE_MAGIC,
    TreeHeader, TreeSections, VERSION, check_head,
};
use super::{Backing, Extents, IndexError, Records};
use crate::codec::Codec;
use crate::digest::Digest;
use crate::object::{CHUNK, ObjectKey};

const KIND: &str = "tree";
const HEADER: usize = size_of::<TreeHeader>();

/// The arrays of a tree file, to be encoded.
#[derive(Debug, Default)]
pub struct Sections {
    /// Inodes, breadth first.
    pub inodes: Vec<InodeRecord>,
    /// Directory entries.
    pub entries: Vec<DirectoryEntry>,
    /// Inodes with content by position of their data.
    pub order: Vec<U32>,
    /// Extents of sparse files.
    pub extents: Vec<Extent>,
    /// Object keys and chunk digests.
    pub digests: Vec<Digest>,
    /// Names and link targets.
    pub names: Vec<u8>,
    /// Extended attribute sets.
    pub xattrs: Vec<u8>,
}

/// Encodes a tree file; the version, the magic and the section table of `header` are filled in.
pub fn encode_tree(mut header: TreeHeader, sections: &Sections) -> Vec<u8> {
    let parts: [&[u8]; 7] = [
        sections.inodes.as_bytes(),
        sections.entries.as_bytes(),
        sections.order.as_bytes(),
        sections.extents.as_bytes(),
        sections.digests.as_bytes(),
        &sections.names,
        &sections.xattrs,
    ];
    let mut offset = HEADER as u64;
    let [inodes, entries, order, extents, digests, names, xattrs] = parts.map(|part| {
        let section = Section { offset: offset.into(), length: (part.len() as u64).into() };
        offset += part.len() as u64;
        section
    });
    header.magic = TREE_MAGIC;
    header.version = VERSION.into();
    header.sections = TreeSections { inodes, entries, order, extents, digests, names, xattrs };
    let mut file = header.as_bytes().to_vec();
    for part in parts {
        file.extend_from_slice(part);
    }
    file
}

/// Name and value of an extended attribute.
pub type Xattr<'a> = (&'a [u8], &'a [u8]);

/// A tree file, used where it lies.
pub struct LayerTree {
    bytes: Arc<Backing>,
    header: TreeHeader,
    codec: Codec,
    inodes: Range<usize>,
    entries: Range<usize>,
    order: Range<usize>,
    extents: Range<usize>,
    digests: Range<usize>,
    names: Range<usize>,
    xattrs: Range<usize>,
}

impl LayerTree {
    /// Takes `bytes` as a tree file. Only the head is looked at; the rest is checked as it is
    /// used.
    ///
    /// # Errors
    /// [`IndexError`] where the head is not one, or a section lies outside the file.
    pub fn new(bytes: Backing) -> Result<Self, IndexError> {
        let (header, _) =
            TreeHeader::read_from_prefix(&bytes).map_err(|_| damaged("shorter than its header"))?;
        let magic = (header.magic, TREE_MAGIC);
        let codec = check_head(KIND, magic, header.version.get(), header.codec.get())?;
        let place = |section: &Section, record: usize| {
            let start = usize::try_from(section.offset.get()).ok()?;
            let length = usize::try_from(section.length.get()).ok()?;
            let end = start.checked_add(length)?;
            (end <= bytes.len() && length.is_multiple_of(record)).then_some(start..end)
        };
        let outside = || damaged("a section lies outside the file");
        let sections = &header.sections;
        let inodes = place(&sections.inodes, size_of::<InodeRecord>()).ok_or_else(outside)?;
        let entries = place(&sections.entries, size_of::<DirectoryEntry>()).ok_or_else(outside)?;
        let order = place(&sections.order, size_of::<U32>()).ok_or_else(outside)?;
        let extents = place(&sections.extents, size_of::<Extent>()).ok_or_else(outside)?;
        let digests = place(&sections.digests, size_of::<Digest>()).ok_or_else(outside)?;
        let names = place(&sections.names, 1).ok_or_else(outside)?;
        let xattrs = place(&sections.xattrs, 1).ok_or_else(outside)?;
        if inodes.is_empty() {
            return Err(damaged("it has no root"));
        }
        let bytes = Arc::new(bytes);
        Ok(Self { bytes, header, codec, inodes, entries, order, extents, digests, names, xattrs })
    }

    /// The head of the file.
    pub fn header(&self) -> &TreeHeader {
        &self.header
    }

    /// How the layer is compressed.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn array<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
        section: &Range<usize>,
    ) -> &[T] {
        <[T]>::ref_from_bytes(&self.bytes[section.clone()])
            .expect("the length of a section was found to be a multiple of its record's")
    }

    /// All inodes; number 0 is the root.
    pub fn inodes(&self) -> &[InodeRecord] {
        self.array(&self.inodes)
    }

    /// Inode `number`.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where there is none.
    pub fn inode(&self, number: u32) -> Result<&InodeRecord, IndexError> {
        self.inodes().get(number as usize).ok_or_else(|| damaged("no such inode"))
    }

    /// The inodes with content, by position of their data in the tar stream.
    pub fn order(&self) -> &[U32] {
        self.array(&self.order)
    }

    /// The entries of `directory` by name; none for other inodes.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where they lie outside their section.
    pub fn entries(&self, directory: &InodeRecord) -> Result<&[DirectoryEntry], IndexError> {
        if !directory.is_directory() {
            return Ok(&[]);
        }
        let (first, count) = halves(directory.data.get());
        self.array(&self.entries)
            .get(first..first + count)
            .ok_or_else(|| damaged("directory entries lie outside their section"))
    }

    /// The name of `entry`.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where it lies outside its section.
    pub fn name(&self, entry: &DirectoryEntry) -> Result<&[u8], IndexError> {
        self.text(entry.name.get() as usize, entry.name_length.get().into())
    }

    /// What `entry` stands for.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where the file says something unknown.
    pub fn kind(&self, entry: &DirectoryEntry) -> Result<EntryKind, IndexError> {
        entry.entry_kind().ok_or_else(|| damaged("unknown kind of directory entry"))
    }

    /// The target of a symbolic link, or of a link into a lower layer.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where it lies outside its section.
    pub fn target(&self, inode: &InodeRecord) -> Result<&[u8], IndexError> {
        let (start, length) = halves(inode.data.get());
        self.text(start, length)
    }

    fn text(&self, start: usize, length: usize) -> Result<&[u8], IndexError> {
        self.bytes[self.names.clone()]
            .get(start..start + length)
            .ok_or_else(|| damaged("a name lies outside its section"))
    }

    /// The entry of `directory` with this name.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where entries or names lie outside their sections.
    pub fn find(
        &self,
        directory: &InodeRecord,
        name: &[u8],
    ) -> Result<Option<&DirectoryEntry>, IndexError> {
        let mut entries = self.entries(directory)?;
        while !entries.is_empty() {
            let middle = entries.len() / 2;
            match self.name(&entries[middle])?.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(&entries[middle])),
                std::cmp::Ordering::Less => entries = &entries[middle + 1..],
                std::cmp::Ordering::Greater => entries = &entries[..middle],
            }
        }
        Ok(None)
    }

    /// The object that holds the content of a regular file; `None` where it is empty.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where the key lies outside its section.
    pub fn key(&self, inode: &InodeRecord) -> Result<Option<ObjectKey>, IndexError> {
        match inode.key.get() {
            NONE => Ok(None),
            index => Ok(Some(ObjectKey::from_digest(self.digest(index as usize)?))),
        }
    }

    /// The digests of the 1 MiB chunks of a file above 1 MiB; empty for smaller ones.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where they lie outside their section.
    pub fn chunks(&self, inode: &InodeRecord) -> Result<Records<Digest>, IndexError> {
        let size = inode.size.get();
        if size <= CHUNK || inode.key == NONE {
            return Ok(Records::new(self.bytes.clone(), 0..0));
        }
        let outside = || damaged("chunk digests lie outside their section");
        let count = usize::try_from(size.div_ceil(CHUNK)).map_err(|_| outside())?;
        self.records(&self.digests, inode.key.get() as usize + 1, count).ok_or_else(outside)
    }

    /// So many records of a section from `first` on, to be kept; `None` where it has not so many.
    fn records<T>(&self, section: &Range<usize>, first: usize, count: usize) -> Option<Records<T>> {
        let start = section.start.checked_add(first.checked_mul(size_of::<T>())?)?;
        let end = start.checked_add(count.checked_mul(size_of::<T>())?)?;
        (end <= section.end).then(|| Records::new(self.bytes.clone(), start..end))
    }

    fn digest(&self, index: usize) -> Result<Digest, IndexError> {
        self.array::<Digest>(&self.digests)
            .get(index)
            .copied()
            .ok_or_else(|| damaged("an object key lies outside its section"))
    }

    /// Where the content of a regular file is in the tar stream, in order of the file; gaps are
    /// zeros.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where extents lie outside their section or the file.
    pub fn extents(&self, inode: &InodeRecord) -> Result<Extents, IndexError> {
        let size = inode.size.get();
        if inode.flags.get() & InodeFlags::SPARSE == 0 {
            let whole = Extent { offset: 0.into(), data: inode.data, length: size.into() };
            return Ok(Extents::Whole((size > 0).then_some(whole)));
        }
        let (first, count) = halves(inode.data.get());
        let extents: Records<Extent> = self
            .records(&self.extents, first, count)
            .ok_or_else(|| damaged("extents lie outside their section"))?;
        let mut end = 0;
        for extent in extents.iter() {
            if extent.offset.get() < end {
                return Err(damaged("extents overlap"));
            }
            end = extent.offset.get().saturating_add(extent.length.get());
        }
        if end > size {
            return Err(damaged("an extent lies outside its file"));
        }
        Ok(Extents::Sparse(extents))
    }

    /// The extended attributes of an inode, by name.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where they lie outside their section.
    pub fn xattrs(&self, inode: &InodeRecord) -> Result<Vec<Xattr<'_>>, IndexError> {
        if inode.xattrs == NONE {
            return Ok(Vec::new());
        }
        let set = self.bytes[self.xattrs.clone()].get(inode.xattrs.get() as usize..);
        set.and_then(parse_xattrs)
            .ok_or_else(|| damaged("extended attributes lie outside their section"))
    }

    /// How many extents of sparse files there are.
    pub(super) fn extent_count(&self) -> usize {
        self.extents.len() / size_of::<Extent>()
    }

    /// How many digests there are: keys and those of chunks.
    pub(super) fn digest_count(&self) -> usize {
        self.digests.len() / size_of::<Digest>()
    }

    /// How many bytes all sets of extended attributes take.
    pub(super) fn xattrs_length(&self) -> usize {
        self.xattrs.len()
    }

    /// How many directory entries there are.
    pub fn entry_count(&self) -> usize {
        self.entries.len() / size_of::<DirectoryEntry>()
    }

    /// Whether any inode of the layer has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        !self.xattrs.is_empty()
    }
}

fn parse_xattrs(mut set: &[u8]) -> Option<Vec<Xattr<'_>>> {
    let count = u16::from_le_bytes(take(&mut set, 2)?.try_into().ok()?);
    (0..count)
        .map(|_| {
            let name = u16::from_le_bytes(take(&mut set, 2)?.try_into().ok()?);
            let value = u32::from_le_bytes(take(&mut set, 4)?.try_into().ok()?);
            Some((take(&mut set, name.into())?, take(&mut set, value as usize)?))
        })
        .collect()
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(count)?;
    *bytes = tail;
    Some(head)
}

/// The low and the high half of a packed pair.
fn halves(packed: u64) -> (usize, usize) {
    ((packed & u64::from(u32::MAX)) as usize, (packed >> 32) as usize)
}

pub(super) fn damaged(what: &'static str) -> IndexError {
    IndexError::Damaged { kind: KIND, what }
}
