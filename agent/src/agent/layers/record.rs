//! What is kept of a name that podman has asked for: `<cache>/podman/<hex of the name>.json`.
//!
//! ```text
//! podman asks -> get, once -> add, hold, release (in memory) -> put (replaces the file)
//! ```
//!
//! The hex digits are those of the name's SHA-256 digest. Without the record, a restart would have
//! to ask the registry what podman meant months ago.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;
use undermount_fs::disk::is_damage;

use super::ShelfError;
use crate::agent::cache::open_records;
use crate::host::file::{self, Lasting};
use crate::image::Reference;

/// What a name has meant, and who uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The name.
    pub reference: String,
    /// The manifests of the images that it has meant, the latest last.
    pub manifests: Vec<Digest>,
    /// Whether it has, or may have, meant images that are not among these.
    #[serde(default)]
    pub others: bool,
    /// How many users podman has reported for each layer, by the digest that it asks for. A hint:
    /// podman reports each of them once and never again.
    #[serde(default)]
    pub uses: BTreeMap<Digest, u32>,
}

/// While a file of this name is among the records, nothing new is offered.
const DRAINED: &str = "drained";

/// How the names of records end.
const SUFFIX: &str = ".json";

/// The most manifests that are kept of one name, beside those that podman uses; an older one counts
/// as [`NameRecord::others`].
const MANIFESTS_MAX: usize = 64;
/// The most manifests that are kept of one name.
const USED_MAX: usize = 1024;

impl NameRecord {
    /// Notes that the name means `manifest` now; those that podman `uses` stay. Returns whether that is
    /// new.
    pub fn add(&mut self, manifest: Digest, uses: impl Fn(&Digest) -> bool) -> bool {
        if self.manifests.last() == Some(&manifest) {
            return false;
        }
        self.manifests.retain(|known| *known != manifest);
        self.manifests.push(manifest);
        while self.manifests.len() > MANIFESTS_MAX {
            let older = &self.manifests[..self.manifests.len() - 1];
            let unused = older.iter().position(|known| !uses(known));
            let Some(goes) = unused.or((self.manifests.len() > USED_MAX).then_some(0)) else {
                break;
            };
            self.manifests.remove(goes);
            self.others = true;
        }
        true
    }

    /// Counts a user of a layer.
    pub fn hold(&mut self, layer: Digest) {
        let uses = self.uses.entry(layer).or_default();
        *uses = uses.saturating_add(1);
    }

    /// Adds what was `learnt` while the record on disk could not be read.
    pub fn add_all(&mut self, learnt: &Self) {
        self.others |= learnt.others;
        for manifest in &learnt.manifests {
            self.add(*manifest, |_| true);
        }
        for (layer, uses) in &learnt.uses {
            let known = self.uses.entry(*layer).or_default();
            *known = known.saturating_add(*uses);
        }
    }

    /// Counts a user of a layer off.
    pub fn release(&mut self, layer: &Digest) {
        match self.uses.get_mut(layer) {
            Some(uses) if *uses > 1 => *uses -= 1,
            // A record that somebody has edited may even say that a layer has 0 users.
            _ => drop(self.uses.remove(layer)),
        }
    }
}

/// The directory of the records.
#[derive(Clone)]
pub struct Records(PathBuf);

impl Records {
    /// The records in `directory`, which is made where it is missing.
    ///
    /// # Errors
    /// [`ShelfError::Io`] where it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, ShelfError> {
        open_records(directory).map_err(ShelfError::of(directory))?;
        Ok(Self::beside(directory))
    }

    /// The records in `directory`, for reading beside the agent that writes them: what is unfinished
    /// there stays.
    pub fn beside(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    fn file(reference: &str) -> String {
        format!("{}{SUFFIX}", Digest::of(reference.as_bytes()).hex())
    }

    /// The record of `reference`, empty where there is none. If it is damaged, the name may have
    /// meant anything: [`NameRecord::others`] is set.
    ///
    /// # Errors
    /// [`ShelfError::Io`] where it cannot be read at the moment.
    pub fn get(&self, reference: &Reference) -> Result<NameRecord, ShelfError> {
        let name = reference.to_string();
        let path = self.0.join(Self::file(&name));
        match read(&path) {
            Ok(record) if record.reference == name => return Ok(record),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(NameRecord { reference: name, ..NameRecord::default() });
            }
            Err(error) if !is_damage(&error) => return Err(ShelfError::of(&path)(error)),
            damaged => {
                let error = damaged.err();
                tracing::error!(path = %path.display(), ?error, "damaged record of a name");
            }
        }
        Ok(NameRecord { reference: name, others: true, ..NameRecord::default() })
    }

    /// Writes a record in place of the one before; it survives a power cut.
    ///
    /// # Errors
    /// [`ShelfError::Io`] where it cannot be written.
    pub fn put(&self, record: &NameRecord) -> Result<(), ShelfError> {
        let json = serde_json::to_vec(record).expect("records are plain data");
        self.write(&Self::file(&record.reference), &json).map_err(ShelfError::of(&self.0))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        file::replace(&self.0.join(name), bytes, 0o600, Lasting::PowerCut)
    }

    /// Whether nothing new is to be offered, also after a restart.
    pub fn is_drained(&self) -> bool {
        self.0.join(DRAINED).exists()
    }

    /// Notes, also for the next start, whether nothing new is to be offered.
    ///
    /// # Errors
    /// [`ShelfError::Io`] where it cannot be written.
    pub fn set_drained(&self, drained: bool) -> Result<(), ShelfError> {
        let noted = if drained {
            self.write(DRAINED, b"")
        } else {
            fs::remove_file(self.0.join(DRAINED))
                .or_else(|error| if self.is_drained() { Err(error) } else { Ok(()) })
        };
        noted.map_err(ShelfError::of(&self.0))
    }

    /// The layers that podman uses, by the digests that it asks for; none where there is no directory.
    ///
    /// # Errors
    /// Those of reading: a record that cannot be read may name any layer.
    pub fn used_layers(&self) -> io::Result<HashSet<Digest>> {
        let mut used = HashSet::new();
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(used),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            if name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
                used.extend(read(&self.0.join(name))?.uses.into_keys());
            }
        }
        Ok(used)
    }

    /// The records of names that podman uses.
    pub fn in_use(&self) -> Vec<NameRecord> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let records = names.filter_map(|name| {
            // Not the temporary file that is just being written beside a record.
            read(&self.0.join(&name)).ok().filter(|record| Self::file(&record.reference) == name)
        });
        records.filter(|record| !record.uses.is_empty()).collect()
    }
}

fn read(path: &Path) -> io::Result<NameRecord> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    #[test]
    fn records_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let reference: Reference = "localhost:5000/a:1".parse().unwrap();
        let mut record = NameRecord { reference: reference.to_string(), ..NameRecord::default() };
        let records = Records::open(directory.path()).unwrap();
        assert_eq!(records.get(&reference).unwrap(), record);
        assert!(record.add(digest(1), |_| false));
        records.put(&record).unwrap();
        assert_eq!(records.in_use(), []);
        record.hold(digest(2));
        records.put(&record).unwrap();
        let records = Records::open(directory.path()).unwrap();
        assert_eq!(records.get(&reference).unwrap(), record);
        assert_eq!(records.in_use(), [record]);
        records.set_drained(true).unwrap();
        assert_eq!(records.used_layers().unwrap(), [digest(2)].into());
        fs::write(directory.path().join("x.json"), "{").unwrap();
        assert!(records.used_layers().is_err(), "it may name any layer");
    }

    #[test]
    fn regression_a_name_whose_record_is_damaged_may_have_meant_anything() {
        let directory = tempfile::tempdir().unwrap();
        let reference: Reference = "localhost:5000/a:1".parse().unwrap();
        let records = Records::open(directory.path()).unwrap();
        let path = directory.path().join(Records::file(&reference.to_string()));
        let other = NameRecord { reference: "other".into(), ..NameRecord::default() };
        for damaged in [serde_json::to_string(&other).unwrap(), "{\"refer".into(), String::new()] {
            fs::write(&path, damaged).unwrap();
            assert!(records.get(&reference).unwrap().others);
        }
        fs::remove_file(&path).unwrap();
        assert!(!records.get(&reference).unwrap().others);
    }

    #[test]
    fn regression_a_record_that_a_killed_process_has_not_finished_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let reference = "localhost:5000/a:1".to_owned();
        let mut record = NameRecord { reference, ..NameRecord::default() };
        record.hold(digest(1));
        let records = Records::open(directory.path()).unwrap();
        records.put(&record).unwrap();
        let unfinished = directory.path().join(".tmpAbCdEf");
        fs::copy(directory.path().join(Records::file(&record.reference)), &unfinished).unwrap();
        assert_eq!(records.in_use().len(), 1);
        let records = Records::open(directory.path()).unwrap();
        assert!(!unfinished.exists());
        assert_eq!(records.in_use(), [record]);
    }

    #[test]
    fn the_latest_manifest_is_last_and_forgotten_ones_count_as_others() {
        let mut record = NameRecord::default();
        assert!(record.add(digest(0), |_| false));
        assert!(!record.add(digest(0), |_| false));
        assert!(record.add(digest(1), |_| false) && record.add(digest(0), |_| false));
        assert_eq!(record.manifests, [digest(1), digest(0)]);
        assert!(!record.others);
        for n in 2..=MANIFESTS_MAX {
            record.add(digest(n), |_| false);
        }
        assert!(record.others);
        assert_eq!(record.manifests.len(), MANIFESTS_MAX);
    }

    #[test]
    fn regression_manifests_that_podman_uses_stay() {
        let mut record = NameRecord::default();
        let uses = |manifest: &Digest| [digest(0), digest(2)].contains(manifest);
        for n in 0..MANIFESTS_MAX + 2 {
            record.add(digest(n), uses);
        }
        assert_eq!(record.manifests[..3], [digest(0), digest(2), digest(4)]);
        assert_eq!(record.manifests.len(), MANIFESTS_MAX);
        for n in 0..USED_MAX + 10 {
            record.add(digest(n), |_| true);
        }
        assert_eq!(record.manifests.len(), USED_MAX);
    }

    #[test]
    fn users_are_counted_and_never_below_none() {
        let mut record = NameRecord::default();
        record.release(&digest(1));
        record.hold(digest(1));
        record.hold(digest(1));
        record.release(&digest(1));
        assert_eq!(record.uses, BTreeMap::from([(digest(1), 1)]));
        record.release(&digest(1));
        assert!(record.uses.is_empty());
    }

    #[test]
    fn regression_who_reads_beside_the_agent_leaves_what_it_is_writing() {
        let directory = tempfile::tempdir().unwrap();
        let unfinished = directory.path().join(format!("{}x", file::UNFINISHED));
        fs::write(&unfinished, "{").unwrap();
        let absent = directory.path().join("absent");
        for place in [directory.path(), &absent] {
            assert!(Records::beside(place).used_layers().unwrap().is_empty());
        }
        assert!(unfinished.exists() && !absent.exists());
    }

    #[test]
    fn regression_counts_that_no_agent_has_written_do_no_harm() {
        let counts = [(digest(1), 0), (digest(2), u32::MAX)];
        let mut record = NameRecord { uses: counts.into(), ..NameRecord::default() };
        record.release(&digest(1));
        record.hold(digest(2));
        record.add_all(&NameRecord { uses: counts.into(), ..NameRecord::default() });
        assert_eq!(record.uses, BTreeMap::from(counts));
    }
}
