//! What a pack says that it holds.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use zerocopy::FromBytes;

use super::UnitName;
use super::format::{
    FRAME_LENGTH_MAX, FRAME_MAX, FrameRecord, HEAD_MAX, LAYERS_MAX, MAGIC, PackHeader, UNITS_MAX,
    UnitRecord, VERSION,
};
use crate::digest::{Digest, Verified};
use crate::object::CHUNK;
use crate::source::Piece;

/// A pack that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Something else, or of another version.
    #[error("not a start-up pack of version {VERSION}")]
    Format,
    /// It contradicts itself.
    #[error("the start-up pack is damaged: {what}")]
    Damaged {
        /// What contradicts what.
        what: &'static str,
    },
    /// zstd refuses a part of it.
    #[error("the start-up pack is damaged: {what} cannot be decompressed")]
    Decompress {
        /// Which part.
        what: &'static str,
        /// Its words.
        source: io::Error,
    },
}

/// The table of a pack, all of it checked for consistency.
#[derive(Debug)]
pub struct Table {
    pack: Digest,
    frames: Vec<Frame>,
}

/// A frame: units that are transferred and decompressed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where it lies in the pack, in bytes.
    pub range: Range<u64>,
    /// The digest of its compressed bytes.
    pub digest: Digest,
    /// Bytes, uncompressed.
    pub size: u32,
    /// Its units in order.
    pub units: Vec<PackedUnit>,
}

/// A unit in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedUnit {
    /// Its place.
    pub name: UnitName,
    /// Bytes, at most 1 MiB.
    pub length: u32,
}

impl Table {
    /// The table in the head of the blob `pack`.
    ///
    /// # Errors
    /// [`PackError`] where the bytes are not the head of a pack that can be unpacked in bounded
    /// memory.
    pub fn parse(pack: Digest, head: &[u8]) -> Result<Self, PackError> {
        let (header, table) = PackHeader::read_from_prefix(head).map_err(|_| PackError::Format)?;
        if header.magic != MAGIC || header.version != VERSION {
            return Err(PackError::Format);
        }
        let count = |number: zerocopy::little_endian::U32| number.get() as usize;
        let (layers, frames, units) =
            (count(header.layers), count(header.frames), count(header.units));
        if layers > LAYERS_MAX || units > UNITS_MAX || frames > units {
            return Err(damaged("it names more than any start reads"));
        }
        if table.len() != count(header.table_length) || head.len() as u64 > HEAD_MAX {
            return Err(damaged("its table has another length than its header says"));
        }
        let expected = layers * size_of::<Digest>()
            + frames * size_of::<FrameRecord>()
            + units * size_of::<UnitRecord>();
        let table = decompress("its table", table, expected)?;
        let records = split(&table, layers, frames).ok_or(damaged("its table is too short"))?;
        Ok(Self { pack, frames: assemble(head.len() as u64, records)? })
    }

    /// The frames in the order of the pack.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// What must be fetched to have `frame`.
    pub fn piece(&self, frame: &Frame) -> Piece {
        Piece { blob: self.pack, range: frame.range.clone(), digest: frame.digest }
    }
}

impl Frame {
    /// The contents of its units, in order.
    ///
    /// # Errors
    /// [`PackError`] where they do not decompress to what the table says.
    pub fn contents(&self, compressed: &Verified) -> Result<Vec<Bytes>, PackError> {
        let mut bytes = Bytes::from(decompress("a frame", compressed.bytes(), self.size as usize)?);
        // The lengths add up to the size: `assemble` has seen to it.
        Ok(self.units.iter().map(|unit| bytes.split_to(unit.length as usize)).collect())
    }
}

type Records<'a> = (&'a [Digest], &'a [FrameRecord], &'a [UnitRecord]);

fn split(table: &[u8], layers: usize, frames: usize) -> Option<Records<'_>> {
    let (layers, rest) = <[Digest]>::ref_from_prefix_with_elems(table, layers).ok()?;
    let (frames, rest) = <[FrameRecord]>::ref_from_prefix_with_elems(rest, frames).ok()?;
    Some((layers, frames, <[UnitRecord]>::ref_from_bytes(rest).ok()?))
}

/// Puts frames and their units together; the first frame lies at `position` of the pack.
fn assemble(mut position: u64, records: Records<'_>) -> Result<Vec<Frame>, PackError> {
    let (layers, frames, mut units) = records;
    let mut assembled = Vec::with_capacity(frames.len());
    for frame in frames {
        let (own, rest) = units
            .split_at_checked(frame.units.get() as usize)
            .ok_or(damaged("a frame has more units than there are"))?;
        units = rest;
        let own = own.iter().map(|unit| named(unit, layers)).collect::<Result<Vec<_>, _>>()?;
        let size = own.iter().map(|unit| u64::from(unit.length)).sum::<u64>();
        let length = u64::from(frame.length.get());
        if size != u64::from(frame.size.get()) || size == 0 || size > FRAME_MAX {
            return Err(damaged("a frame has an impossible size"));
        }
        if length == 0 || length > FRAME_LENGTH_MAX {
            return Err(damaged("a frame has an impossible length"));
        }
        let range = position..position + length;
        position = range.end;
        assembled.push(Frame { range, digest: frame.digest, size: size as u32, units: own });
    }
    if units.is_empty() { Ok(assembled) } else { Err(damaged("a unit is in no frame")) }
}

fn named(unit: &UnitRecord, layers: &[Digest]) -> Result<PackedUnit, PackError> {
    let layer =
        layers.get(usize::from(unit.layer.get())).ok_or(damaged("a unit is in no layer"))?;
    let length = unit.length.get();
    if length == 0 || u64::from(length) > CHUNK {
        return Err(damaged("a unit has an impossible size"));
    }
    let name = UnitName { layer: *layer, inode: unit.inode.get(), number: unit.number.get() };
    Ok(PackedUnit { name, length })
}

/// What `compressed` decompresses to, `size` bytes.
fn decompress(what: &'static str, compressed: &[u8], size: usize) -> Result<Vec<u8>, PackError> {
    let bytes = zstd::bulk::decompress(compressed, size)
        .map_err(|source| PackError::Decompress { what, source })?;
    if bytes.len() == size { Ok(bytes) } else { Err(damaged("a part is shorter than it says")) }
}

fn damaged(what: &'static str) -> PackError {
    PackError::Damaged { what }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::super::{Builder, Packed};
    use super::*;

    fn unit(layer: u8, inode: u32, number: u32) -> UnitName {
        UnitName { layer: Digest::of(&[layer]), inode, number }
    }

    fn pack(units: &[(UnitName, Vec<u8>)]) -> (Packed, Vec<u8>) {
        let mut builder = Builder::new().unwrap();
        for (name, content) in units {
            assert!(builder.add(name, content).unwrap());
        }
        let mut packed = builder.finish().unwrap();
        let mut bytes = Vec::new();
        packed.file.read_to_end(&mut bytes).unwrap();
        (packed, bytes)
    }

    fn head(packed: &Packed, bytes: &[u8]) -> Vec<u8> {
        bytes[..packed.head_size as usize].to_vec()
    }

    fn samples() -> Vec<(UnitName, Vec<u8>)> {
        vec![
            (unit(1, 7, 0), b"first".to_vec()),
            (unit(2, 9, 3), vec![7; CHUNK as usize]),
            (unit(1, 8, 0), (0..700_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()),
            (unit(3, 1, 0), b"last".to_vec()),
        ]
    }

    #[test]
    fn what_was_packed_comes_out_in_the_same_order() {
        let samples = samples();
        let (packed, bytes) = pack(&samples);
        assert_eq!(packed.size, bytes.len() as u64);
        assert_eq!(packed.digest, Digest::of(&bytes));
        let table = Table::parse(packed.digest, &head(&packed, &bytes)).unwrap();
        assert_eq!(table.frames().len(), 2, "the second unit fills the first frame");
        let mut unpacked = Vec::new();
        for frame in table.frames() {
            let piece = table.piece(frame);
            let range = piece.range.start as usize..piece.range.end as usize;
            let compressed = Bytes::copy_from_slice(&bytes[range]);
            let compressed = Verified::check(compressed, &piece.digest).unwrap();
            let contents = frame.contents(&compressed).unwrap();
            unpacked.extend(frame.units.iter().map(|unit| unit.name).zip(contents));
        }
        let expected: Vec<(UnitName, Bytes)> =
            samples.into_iter().map(|(name, content)| (name, content.into())).collect();
        assert_eq!(unpacked, expected);
    }

    #[test]
    fn contents_that_do_not_compress_are_packed_all_the_same() {
        let mut state = 1_u32;
        let mut noise = |length: u64| -> Vec<u8> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            };
            (0..length).map(|_| next()).collect()
        };
        let (packed, bytes) =
            pack(&[(unit(1, 1, 0), noise(CHUNK - 1)), (unit(1, 2, 0), noise(CHUNK))]);
        let table = Table::parse(packed.digest, &head(&packed, &bytes)).unwrap();
        assert_eq!(table.frames().len(), 1);
        assert_eq!(u64::from(table.frames()[0].size), FRAME_MAX - 1);
    }

    #[test]
    fn an_empty_pack_is_one() {
        let (packed, bytes) = pack(&[]);
        assert_eq!(head(&packed, &bytes), bytes);
        assert_eq!(packed.head, packed.digest);
        assert_eq!(Table::parse(packed.digest, &head(&packed, &bytes)).unwrap().frames(), []);
    }

    #[test]
    fn what_is_no_unit_is_not_packed() {
        let mut builder = Builder::new().unwrap();
        for content in [vec![], vec![0; CHUNK as usize + 1]] {
            builder.add(&unit(1, 1, 0), &content).unwrap_err();
        }
    }

    #[test]
    fn something_else_is_no_pack() {
        let (packed, bytes) = pack(&samples());
        let parse = |head: &[u8]| Table::parse(packed.digest, head).map(drop);
        assert!(matches!(parse(b"UMNTPACK"), Err(PackError::Format)));
        let mut newer = head(&packed, &bytes);
        newer[8] = 2;
        assert!(matches!(parse(&newer), Err(PackError::Format)));
        let mut longer = head(&packed, &bytes);
        longer.push(0);
        assert!(matches!(parse(&longer), Err(PackError::Damaged { .. })));
    }

    #[test]
    fn a_frame_that_decompresses_to_something_else_is_refused() {
        let (packed, bytes) = pack(&samples());
        let table = Table::parse(packed.digest, &head(&packed, &bytes)).unwrap();
        let frame = &table.frames()[1];
        for content in [&b"las"[..], &vec![0; frame.size as usize + 1]] {
            let compressed = zstd::bulk::compress(content, 3).unwrap();
            let compressed = Verified::name(compressed.into());
            assert!(frame.contents(&compressed).is_err());
        }
        assert!(frame.contents(&Verified::name(Bytes::from_static(b"rubbish"))).is_err());
    }

    proptest! {
        /// A head of any bytes is refused or gives frames that lie behind each other and whose
        /// units add up.
        #[test]
        fn a_damaged_head_never_gives_an_inconsistent_table(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            header_only in any::<bool>(),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            static HEAD: LazyLock<(Digest, Vec<u8>)> = LazyLock::new(|| {
                let (packed, bytes) = pack(&samples());
                (packed.digest, head(&packed, &bytes))
            });
            let (pack, mut head) = HEAD.clone();
            for (place, byte) in flips {
                let end = if header_only { size_of::<PackHeader>() } else { head.len() };
                head[place.index(end)] = byte;
            }
            if let Some(cut) = cut {
                head.truncate(cut.index(head.len()));
            }
            let Ok(table) = Table::parse(pack, &head) else { return Ok(()) };
            let mut position = head.len() as u64;
            for frame in table.frames() {
                prop_assert_eq!(frame.range.start, position);
                position = frame.range.end;
                let sum: u32 = frame.units.iter().map(|unit| unit.length).sum();
                prop_assert_eq!(sum, frame.size);
                prop_assert!(u64::from(frame.size) <= FRAME_MAX);
            }
        }
    }
}
