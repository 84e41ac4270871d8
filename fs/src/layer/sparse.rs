//! Sparse files in archives: which bytes of a file are stored.
//!
//! GNU tar has four formats: its old header with type `S` and extension blocks, and PAX formats
//! 0.0 (repeated records), 0.1 (one record) and 1.0 (a map in front of the data).

use std::collections::BTreeMap;

use tar::Header;

use super::LayerError;
use super::archive::Content;
use super::numeric::{field, pax_number};
use super::stream::TarStream;

/// More runs than this in one file are refused.
const RUNS_LIMIT: usize = 1 << 20;

/// Digits of the largest 64-bit number.
const DIGITS_MAX: usize = 20;

/// A run of stored bytes of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRun {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

type PaxRecords = BTreeMap<Vec<u8>, Vec<u8>>;

const MAP: &[u8] = b"GNU.sparse.map";

/// The map of format 0.0, which repeats two keywords, joined to one that looks like format 0.1.
#[derive(Default)]
pub struct RepeatedMap {
    numbers: Vec<Vec<u8>>,
}

impl RepeatedMap {
    /// Whether the record is part of such a map; `None` where it is, and not in its turn.
    pub fn take(&mut self, key: &[u8], value: &[u8]) -> Option<bool> {
        let is_offset = match key {
            b"GNU.sparse.offset" => true,
            b"GNU.sparse.numbytes" => false,
            _ => return Some(false),
        };
        if is_offset != self.numbers.len().is_multiple_of(2) || value.contains(&b',') {
            return None;
        }
        self.numbers.push(value.to_vec());
        Some(true)
    }

    /// Puts the map, if there is one, among the other records.
    pub fn finish(self, records: &mut PaxRecords) {
        if !self.numbers.is_empty() {
            records.insert(MAP.to_vec(), self.numbers.join(&b','));
        }
    }
}

/// The content of a member with an old GNU sparse header; `size` bytes are stored behind it.
///
/// # Errors
/// [`LayerError::Header`] where the map is damaged or contradicts the sizes.
pub fn old_gnu(
    stream: &mut TarStream,
    header: &Header,
    stored: u64,
) -> Result<Content, LayerError> {
    let position = stream.position();
    let block = header.as_bytes();
    let damaged = || LayerError::Header { position, what: "its sparse map is damaged" };
    let number =
        |bytes: &[u8]| field(bytes).and_then(|n| u64::try_from(n).ok()).ok_or_else(damaged);
    let mut runs = Vec::new();
    let mut read_runs = |bytes: &[u8]| {
        for pair in bytes.chunks_exact(24).take_while(|pair| pair[0] != 0) {
            runs.push(DataRun { offset: number(&pair[..12])?, length: number(&pair[12..])? });
        }
        if runs.len() > RUNS_LIMIT { Err(damaged()) } else { Ok(()) }
    };
    read_runs(&block[386..482])?;
    let mut extended = block[482] != 0;
    while extended {
        let block = stream.block()?.ok_or(LayerError::Truncated { position })?;
        read_runs(&block[..504])?;
        extended = block[504] != 0;
    }
    let size = number(&block[483..495])?;
    content(size, stored, runs).ok_or_else(damaged)
}

/// The PAX formats, as Go tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaxVersion {
    /// 0.0 and 0.1: the map is in the records.
    Zero,
    /// 1.0: the map is in front of the data.
    One,
}

impl PaxVersion {
    /// The format of a member with these records; `None` where it is not sparse, or in a format
    /// that nobody knows.
    pub fn of(records: &PaxRecords) -> Option<Self> {
        let record = |key: &[u8]| records.get(key).map(Vec::as_slice).unwrap_or_default();
        match (record(b"GNU.sparse.major"), record(b"GNU.sparse.minor")) {
            (b"0", b"0" | b"1") => Some(Self::Zero),
            (b"1", b"0") => Some(Self::One),
            (b"", b"") if !record(MAP).is_empty() => Some(Self::Zero),
            _ => None,
        }
    }
}

/// The content of a regular member of `size` stored bytes with these PAX records.
///
/// # Errors
/// [`LayerError::Header`] where the map is damaged or contradicts the sizes.
pub fn pax(
    stream: &mut TarStream,
    records: &PaxRecords,
    stored: u64,
) -> Result<Content, LayerError> {
    let position = stream.position();
    let damaged = || LayerError::Header { position, what: "its sparse map is damaged" };
    let Some(version) = PaxVersion::of(records) else {
        return Ok(Content { size: stored, stored, data: None });
    };
    let size = |key: &[u8]| records.get(key).map(|text| pax_number(text).ok_or_else(damaged));
    let [size, real] = [size(b"GNU.sparse.size"), size(b"GNU.sparse.realsize")];
    let (size, real) = (size.transpose()?, real.transpose()?);
    if size.zip(real).is_some_and(|(size, real)| size != real) {
        return Err(damaged());
    }
    let size = size.or(real).unwrap_or(stored);
    if version == PaxVersion::One {
        let (runs, map_size) = leading_map(stream, stored)?;
        return content(size, stored - map_size, runs).ok_or_else(damaged);
    }
    let numbers: Option<Vec<u64>> = match records.get(MAP).map(Vec::as_slice) {
        None | Some(b"") => Some(Vec::new()),
        Some(map) => map.split(|&byte| byte == b',').map(pax_number).collect(),
    };
    let runs = records.get(&b"GNU.sparse.numblocks"[..]).and_then(|text| pax_number(text));
    let is_complete = |numbers: &Vec<u64>| {
        runs.and_then(|runs| runs.checked_mul(2)) == Some(numbers.len() as u64)
    };
    let numbers = numbers.filter(is_complete).ok_or_else(damaged)?;
    content(size, stored, pairs(&numbers)).ok_or_else(damaged)
}

/// Format 1.0: decimal numbers, one a line, in blocks of their own in front of the data: how many
/// runs, then offset and length of each.
fn leading_map(stream: &mut TarStream, stored: u64) -> Result<(Vec<DataRun>, u64), LayerError> {
    let position = stream.position();
    let damaged = || LayerError::Header { position, what: "its sparse map is damaged" };
    let mut numbers: Vec<u64> = Vec::new();
    let mut line = Vec::new();
    let mut size = 0;
    loop {
        size += 512;
        let block = stream.block()?.filter(|_| size <= stored).ok_or_else(damaged)?;
        for byte in block {
            if byte == b'\n' {
                numbers.push(pax_number(&line).ok_or_else(damaged)?);
                line.clear();
            } else {
                line.push(byte);
            }
            if line.len() > DIGITS_MAX {
                return Err(damaged());
            }
            let wanted = numbers.first().map_or(1, |&runs| runs.saturating_mul(2) + 1);
            if wanted > RUNS_LIMIT as u64 {
                return Err(damaged());
            }
            if numbers.len() as u64 == wanted {
                return Ok((pairs(&numbers[1..]), size));
            }
        }
    }
}

fn pairs(numbers: &[u64]) -> Vec<DataRun> {
    numbers.chunks_exact(2).map(|pair| DataRun { offset: pair[0], length: pair[1] }).collect()
}

/// Checks that the runs, empty ones too, ascend, stay inside the file and are as long as what is
/// stored.
fn content(size: u64, stored: u64, mut runs: Vec<DataRun>) -> Option<Content> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for run in &runs {
        if run.offset < end {
            return None;
        }
        end = run.offset.checked_add(run.length)?;
        total = total.checked_add(run.length)?;
    }
    runs.retain(|run| run.length > 0);
    (end <= size && total == stored).then_some(Content { size, stored, data: Some(runs) })
}
