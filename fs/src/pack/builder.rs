//! Makes packs.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

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
    finished: io::BufWriter<std::fs::File>,
}

/// A finished pack.
pub struct Packed {
    /// Header and table.
    pub head: Vec<u8>,
    /// What follows the head, from its first byte.
    pub frames: std::fs::File,
    /// Bytes of head and frames.
    pub size: u64,
    /// The digest of head and frames.
    pub digest: Digest,
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
        let mut hasher = Hasher::default();
        hasher.update(&head);
        let mut size = head.len() as u64;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = frames.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            size += count as u64;
        }
        frames.seek(SeekFrom::Start(0))?;
        Ok(Packed { head, frames, size, digest: hasher.finish() })
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
