//! Frames of a pack: which of them are wanted, and what is in them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::super::awaited::Unit;
use super::super::extract::{ExtractError, keep_chunk, verified};
use super::super::write_behind::{Load, WriteBehind};
use super::super::{Content, Layer};
use super::Unpacked;
use crate::digest::Digest;
use crate::index::IndexError;
use crate::object::{Holding, Store};
use crate::pack::{Frame, PackedUnit, Table, UnitName};

/// A unit of a frame, with what the layer's index says of it; `None` where it says nothing.
pub type Known = Option<(Arc<Content>, usize)>;

/// A frame of which something is missing here.
pub struct Wanted {
    pub frame: Frame,
    pub units: Vec<Known>,
    /// Bytes of all wanted frames up to the end of this one.
    pub position: u64,
}

impl Wanted {
    /// The units of the frame that the image has.
    pub fn known_units(&self) -> Vec<Unit> {
        self.units.iter().flatten().map(|(content, unit)| (content.key, *unit)).collect()
    }

    /// Their places.
    pub fn known_names(&self) -> Vec<UnitName> {
        let units = self.frame.units.iter().zip(&self.units);
        units.filter(|(_, known)| known.is_some()).map(|(unit, _)| unit.name).collect()
    }

    /// The bytes of the frame, compressed.
    pub fn length(&self) -> u64 {
        self.frame.range.end - self.frame.range.start
    }
}

/// A frame that was unpacked.
#[derive(Default)]
pub struct Came {
    pub outcome: Unpacked,
    /// What the disk has not yet.
    pub load: Load,
}

/// Verifies the `contents` of a frame and holds them. Chunks of large files are also written.
pub fn take(
    behind: &WriteBehind,
    units: Vec<Known>,
    contents: Vec<Bytes>,
) -> Result<Came, ExtractError> {
    let mut came = Came::default();
    let mut objects = Vec::new();
    for (known, bytes) in units.into_iter().zip(contents) {
        let Some((content, unit)) = known else {
            came.outcome.foreign += 1;
            continue;
        };
        came.outcome.units += 1;
        came.outcome.bytes += bytes.len() as u64;
        if content.is_large() {
            keep_chunk(behind.store(), &content, unit, bytes)?;
        } else {
            objects.push(verified(&content, bytes)?);
        }
    }
    came.load = behind.hold(Holding::Pack, objects);
    Ok(came)
}

/// The frames of a pack that hold something of `layers` which is missing here.
pub fn wanted_frames(table: &Table, store: &Store, layers: &[Arc<Layer>]) -> Vec<Wanted> {
    let layers: HashMap<Digest, &Layer> =
        layers.iter().map(|layer| (layer.digest(), &**layer)).collect();
    let mut wanted = Vec::new();
    let mut position = 0;
    for frame in table.frames() {
        // A unit that an index is too damaged to tell about is as good as unknown.
        let known = |unit: &PackedUnit| known(unit, &layers).ok().flatten();
        let units: Vec<Known> = frame.units.iter().map(known).collect();
        let is_missing =
            |(content, unit): &(Arc<Content>, usize)| !content.is_unit_stored(store, *unit);
        if units.iter().flatten().any(is_missing) {
            position += frame.range.end - frame.range.start;
            wanted.push(Wanted { frame: frame.clone(), units, position });
        }
    }
    wanted
}

/// The units of the frames that are not `wanted`, which are here, in the order of the pack.
pub fn local_units(table: &Table, wanted: &[Wanted]) -> Vec<UnitName> {
    let wanted: HashSet<u64> = wanted.iter().map(|wanted| wanted.frame.range.start).collect();
    let local = table.frames().iter().filter(|frame| !wanted.contains(&frame.range.start));
    local.flat_map(|frame| frame.units.iter().map(|unit| unit.name)).collect()
}

/// What the index of its layer says about a unit.
fn known(unit: &PackedUnit, layers: &HashMap<Digest, &Layer>) -> Result<Known, IndexError> {
    let Some(layer) = layers.get(&unit.name.layer) else { return Ok(None) };
    let number = unit.name.number as usize;
    let fits = |content: &Content| content.unit(number).length == u64::from(unit.length);
    let content = Content::named(&layer.tree, &unit.name)?.filter(fits);
    Ok(content.map(|content| (Arc::new(content), number)))
}

/// The next frames that are fetched together: `limit` compressed bytes, and one frame at least.
pub fn next_group(rest: &mut VecDeque<Wanted>, limit: u64) -> Vec<Wanted> {
    let mut bytes = 0;
    let fits = |wanted: &Wanted| {
        bytes += wanted.length();
        bytes <= limit
    };
    let count = rest.iter().map(fits).take_while(|fits| *fits).count();
    let end = count.max(1).min(rest.len());
    rest.drain(..end).collect()
}
