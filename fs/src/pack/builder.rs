//! Makes packs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use zerocopy::IntoBytes;
use zstd::bulk::Compressor;

use super::UnitName;
use super::format::{
    FRAME_TARGET, FrameRecord, LAYERS_MAX, MAGIC, PackHeader, UNITS_MAX, UnitRecord, VERSION,
};
use crate::digest::{Digest, Hasher};
use crate::object::CHUNK;

/// Packs are built once and fetched by every node.
const LEVEL: i32 = 15;

/// Takes units in the order in which they will be read. Finished frames wait in a temporary
/// file, since the table goes before them.
pub struct Builder {
    compressor: Compressor<'static>,
    layers: HashMap<Digest, u16>,
    frames: Vec<FrameRecord>,
    units: Vec<UnitRecord>,
    open: Vec<u8>,
    open_units: u32,
    finished: io::BufWriter<File>,
}

/// A finished pack.
pub struct Packed {
    /// Its bytes, in a temporary file.
    pub file: File,
    /// How many.
    pub size: u64,
    /// Their digest.
    pub digest: Digest,
    /// How many of them are the head.
    pub head_size: u64,
    /// The digest of the head.
    pub head: Digest,
}

impl Builder {
    /// An empty pack.
    ///
    /// # Errors
    /// Where there is no room for temporary files, or zstd refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(LEVEL)?,
            layers: HashMap::new(),
            frames: Vec::new(),
            units: Vec::new(),
            open: Vec::with_capacity(FRAME_TARGET),
            open_units: 0,
            finished: io::BufWriter::new(tempfile::tempfile()?),
        })
    }

    /// Adds the content of `unit`, at most 1 MiB. `false` where the pack is full: it then holds
    /// what was read first.
    ///
    /// # Errors
    /// Those of the temporary file, and of contents that no unit can have.
    pub fn add(&mut self, unit: &UnitName, content: &[u8]) -> io::Result<bool> {
        if content.is_empty() || content.len() as u64 > CHUNK {
            return Err(io::Error::other("a unit has between 1 byte and 1 MiB"));
        }
        let next = self.layers.len();
        let known = self.layers.contains_key(&unit.layer);
        if self.units.len() == UNITS_MAX || (!known && next == LAYERS_MAX) {
            return Ok(false);
        }
        let layer = *self.layers.entry(unit.layer).or_insert(next as u16);
        self.units.push(UnitRecord {
            layer: layer.into(),
            reserved: 0.into(),
            inode: unit.inode.into(),
            number: unit.number.into(),
            length: (content.len() as u32).into(),
        });
        self.open.extend_from_slice(content);
        self.open_units += 1;
        if self.open.len() >= FRAME_TARGET {
            self.close_frame()?;
        }
        Ok(true)
    }

    fn close_frame(&mut self) -> io::Result<()> {
        let compressed = self.compressor.compress(&self.open)?;
        self.frames.push(FrameRecord {
            digest: Digest::of(&compressed),
            length: (compressed.len() as u32).into(),
            size: (self.open.len() as u32).into(),
            units: self.open_units.into(),
            reserved: 0.into(),
        });
        self.finished.write_all(&compressed)?;
        self.open.clear();
        self.open_units = 0;
        Ok(())
    }

    /// The pack.
    ///
    /// # Errors
    /// Those of the temporary file.
    pub fn finish(mut self) -> io::Result<Packed> {
        if self.open_units > 0 {
            self.close_frame()?;
        }
        let head = self.head()?;
        let mut frames = self.finished.into_inner().map_err(io::IntoInnerError::into_error)?;
        frames.seek(SeekFrom::Start(0))?;
        let mut pack = Hashing { file: tempfile::tempfile()?, hasher: Hasher::default(), size: 0 };
        pack.write_all(&head)?;
        io::copy(&mut frames, &mut pack)?;
        let Hashing { mut file, hasher, size } = pack;
        file.seek(SeekFrom::Start(0))?;
        let (head_size, head) = (head.len() as u64, Digest::of(&head));
        Ok(Packed { file, size, digest: hasher.finish(), head_size, head })
    }

    fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut layers: Vec<(&Digest, &u16)> = self.layers.iter().collect();
        layers.sort_by_key(|(_, place)| **place);
        let layers: Vec<Digest> = layers.into_iter().map(|(layer, _)| *layer).collect();
        let table = [layers.as_bytes(), self.frames.as_bytes(), self.units.as_bytes()].concat();
        let table = self.compressor.compress(&table)?;
        let header = PackHeader {
            magic: MAGIC,
            version: VERSION.into(),
            layers: (layers.len() as u32).into(),
            frames: (self.frames.len() as u32).into(),
            units: (self.units.len() as u32).into(),
            table_length: (table.len() as u32).into(),
            reserved: [0; 36],
        };
        Ok([header.as_bytes(), &table].concat())
    }
}

/// A file that is hashed while it is written.
struct Hashing {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
