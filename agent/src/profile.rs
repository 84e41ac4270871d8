//! Profiles of starts on disk: recorded, listed, exported, and what packs are made from.
//!
//! ```text
//! <directory>/<12 hex digits of the manifest>-<8 of the command>.json
//! {
//!   "version": 1,
//!   "reference": "registry.local/nova-api:zed",      the name that was started
//!   "manifest": "sha256:…",                          the image
//!   "command": "nova-api --debug",
//!   "layers": ["sha256:…", …],                       the layers that the units are in
//!   "starts": [[[0, 117, 0], …], …]                  per start its units in the order of their
//! }                                                  first reads: layer, inode, number
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;
use undermount_fs::pack::{Profile, UNITS_MAX, UnitName};

/// The version of the format.
const VERSION: u32 = 1;
/// Starts that are kept of one command of an image, the newest.
const STARTS_MAX: usize = 8;
/// No file is larger, in bytes: so much take [`STARTS_MAX`] starts that read all they can.
const FILE_MAX: u64 = STARTS_MAX as u64 * UNITS_MAX as u64 * 32;

/// A profile cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file or directory cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not a profile.
    #[error("{}: not a profile of a start", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It is of another version, or contradicts itself.
    #[error("{}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There is none of this name.
    #[error("no profile is named `{0}`: `undermount profile list` shows those that are there")]
    Unknown(String),
}

/// What starts of one command of an image read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartRecord {
    /// The name of the image that was started.
    pub reference: String,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The command as one line.
    pub command: String,
    /// The starts, the oldest first.
    pub starts: Vec<Profile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    reference: String,
    manifest: Digest,
    command: String,
    layers: Vec<Digest>,
    starts: Vec<Vec<(u32, u32, u32)>>,
}

impl StartRecord {
    /// Its name among the profiles of a directory.
    pub fn name(&self) -> String {
        let command = Digest::of(self.command.as_bytes()).hex();
        format!("{}-{}", &self.manifest.hex()[..12], &command[..8])
    }

    /// What its starts have in common.
    pub fn profile(&self) -> Profile {
        Profile::merge(&self.starts)
    }

    /// Adds the starts of `newer`, the same command of the same image.
    pub fn add(&mut self, newer: Self) {
        self.starts.extend(newer.starts);
        let excess = self.starts.len().saturating_sub(STARTS_MAX);
        self.starts.drain(..excess);
    }

    /// The record as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut layers: Vec<Digest> = Vec::new();
        let mut places: HashMap<Digest, u32> = HashMap::new();
        let mut place = |layer: Digest| {
            *places.entry(layer).or_insert_with(|| {
                layers.push(layer);
                layers.len() as u32 - 1
            })
        };
        let units = |start: &Profile| {
            let units = start.units().iter();
            units.map(|unit| (place(unit.layer), unit.inode, unit.number)).collect()
        };
        let starts = self.starts.iter().map(units).collect();
        let Self { reference, manifest, command, .. } = self.clone();
        let file = File { version: VERSION, reference, manifest, command, layers, starts };
        serde_json::to_vec(&file).expect("strings and numbers become JSON")
    }

    /// Reads what [`Self::to_json`] wrote; `path` is for the messages.
    ///
    /// # Errors
    /// [`ProfileError`] where it is something else.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ProfileError> {
        let file: File = serde_json::from_slice(json)
            .map_err(|source| ProfileError::Format { path: path.to_owned(), source })?;
        let invalid =
            |what: &str| ProfileError::Invalid { path: path.to_owned(), what: what.into() };
        if file.version != VERSION {
            return Err(invalid(&format!(
                "a profile of version {}, this program reads version {VERSION}",
                file.version
            )));
        }
        let layers = &file.layers;
        let unit = |&(layer, inode, number): &(u32, u32, u32)| {
            let layer = layers.get(layer as usize).copied();
            layer.map(|layer| UnitName { layer, inode, number })
        };
        let start = |units: &Vec<(u32, u32, u32)>| -> Option<Profile> {
            units.iter().map(unit).collect::<Option<Vec<_>>>().map(Profile::new)
        };
        let newest = file.starts.iter().skip(file.starts.len().saturating_sub(STARTS_MAX));
        let starts = newest.map(start).collect::<Option<Vec<_>>>();
        let starts = starts.ok_or_else(|| invalid("a unit is in a layer that is not listed"))?;
        let File { reference, manifest, command, .. } = file;
        Ok(Self { reference, manifest, command, starts })
    }
}

/// What the commands of `records` read, each in the order of its starts.
pub fn combined(records: &[StartRecord]) -> Profile {
    let profiles: Vec<Profile> = records.iter().map(StartRecord::profile).collect();
    Profile::new(profiles.iter().flat_map(|profile| profile.units().iter().copied()))
}

/// Reads the profile in the file `path`.
///
/// # Errors
/// [`ProfileError`] where there is none.
pub fn read(path: &Path) -> Result<StartRecord, ProfileError> {
    let failed = failed("read", path);
    let size = fs::metadata(path).map_err(&failed)?.len();
    if size > FILE_MAX {
        let what = format!("{size} bytes are too many for a profile (at most {FILE_MAX})");
        return Err(ProfileError::Invalid { path: path.to_owned(), what });
    }
    StartRecord::from_json(&fs::read(path).map_err(&failed)?, path)
}

/// A directory of profiles.
pub struct Profiles {
    directory: PathBuf,
}

impl Profiles {
    /// The profiles in `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Keeps `record`, together with earlier starts of the same command; its name.
    ///
    /// # Errors
    /// [`ProfileError`] where it cannot be written.
    pub fn add(&self, record: StartRecord) -> Result<String, ProfileError> {
        let name = record.name();
        let record = match self.get(&name) {
            Ok(mut earlier) => {
                earlier.add(record);
                earlier
            }
            // A damaged file is replaced.
            Err(_) => record,
        };
        let failed = failed("write", &self.directory);
        fs::create_dir_all(&self.directory).map_err(&failed)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.directory).map_err(&failed)?;
        file.write_all(&record.to_json()).map_err(&failed)?;
        file.as_file().sync_data().map_err(&failed)?;
        file.persist(self.path(&name)).map_err(|error| failed(error.error))?;
        Ok(name)
    }

    /// The profile of this name.
    ///
    /// # Errors
    /// [`ProfileError`] where there is none, or it is damaged.
    pub fn get(&self, name: &str) -> Result<StartRecord, ProfileError> {
        if !is_name(name) || !self.path(name).exists() {
            return Err(ProfileError::Unknown(name.to_owned()));
        }
        read(&self.path(name))
    }

    /// Removes the profile of this name.
    ///
    /// # Errors
    /// [`ProfileError`] where there is none, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), ProfileError> {
        if !is_name(name) || !self.path(name).exists() {
            return Err(ProfileError::Unknown(name.to_owned()));
        }
        fs::remove_file(self.path(name)).map_err(failed("remove", &self.path(name)))
    }

    /// All profiles by name. Damaged ones are left out, with a warning.
    ///
    /// # Errors
    /// [`ProfileError`] where the directory cannot be read; a missing one is empty.
    pub fn list(&self) -> Result<Vec<(String, StartRecord)>, ProfileError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("read", &self.directory))?,
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|file| file.strip_suffix(".json").map(str::to_owned))
            .filter(|name| is_name(name))
            .collect();
        names.sort();
        let read = |name: String| match self.get(&name) {
            Ok(record) => Some((name, record)),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "damaged profile");
                None
            }
        };
        Ok(names.into_iter().filter_map(read).collect())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

/// Whether `text` can be the name of a profile: nothing that leads out of the directory.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ProfileError + use<> {
    let path = path.to_owned();
    move |source| ProfileError::Io { action, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(inodes: &[u32]) -> Profile {
        let unit = |&inode: &u32| UnitName {
            layer: Digest::of(&[(inode % 2) as u8]),
            inode,
            number: inode / 10,
        };
        Profile::new(inodes.iter().map(unit))
    }

    fn record(command: &str, starts: Vec<Profile>) -> StartRecord {
        let (reference, command) = ("registry/nova-api:zed".to_owned(), command.to_owned());
        StartRecord { reference, manifest: Digest::of(b"manifest"), command, starts }
    }

    #[test]
    fn what_is_written_is_read() {
        let record = record("nova-api -v", vec![start(&[3, 20, 1]), start(&[])]);
        let path = Path::new("file");
        assert_eq!(StartRecord::from_json(&record.to_json(), path).unwrap(), record);
    }

    #[test]
    fn the_format_is_pinned() {
        let json: serde_json::Value =
            serde_json::from_slice(&record("run", vec![start(&[3, 20])]).to_json()).unwrap();
        let expected = serde_json::json!({
            "version": 1,
            "reference": "registry/nova-api:zed",
            "manifest": Digest::of(b"manifest"),
            "command": "run",
            "layers": [Digest::of(&[1]), Digest::of(&[0])],
            "starts": [[[0, 3, 0], [1, 20, 2]]],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn something_else_is_refused_by_name_and_reason() {
        let good = String::from_utf8(record("run", vec![start(&[1])]).to_json()).unwrap();
        for (text, words) in [
            ("rubbish".to_owned(), "not a profile"),
            (good.replace("\"version\":1", "\"version\":2"), "version 2"),
            (good.replace("[0,1,0]", "[7,1,0]"), "not listed"),
            (good.replace("\"command\"", "\"kommand\""), "not a profile"),
        ] {
            let error = StartRecord::from_json(text.as_bytes(), Path::new("/p/x.json"));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("/p/x.json"), "{error}");
        }
    }

    #[test]
    fn starts_of_one_command_are_kept_together_and_the_oldest_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let profiles = Profiles::new(directory.path().join("profiles"));
        assert_eq!(profiles.list().unwrap(), []);
        for inode in 0..STARTS_MAX as u32 + 2 {
            profiles.add(record("run", vec![start(&[inode])])).unwrap();
        }
        let other = profiles.add(record("other", vec![start(&[9])])).unwrap();
        let listed = profiles.list().unwrap();
        assert_eq!(listed.len(), 2);
        let (name, kept) = listed.iter().find(|(name, _)| *name != other).unwrap();
        assert_eq!(kept.starts.len(), STARTS_MAX);
        assert_eq!(kept.starts[0], start(&[2]));
        profiles.remove(name).unwrap();
        assert!(matches!(profiles.get(name), Err(ProfileError::Unknown(_))));
        assert_eq!(profiles.list().unwrap().len(), 1);
    }

    #[test]
    fn names_do_not_lead_out_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("x.json"), "{}").unwrap();
        let profiles = Profiles::new(directory.path().join("profiles"));
        for name in ["../x", "", "a/b", "."] {
            assert!(matches!(profiles.get(name), Err(ProfileError::Unknown(_))), "{name}");
            assert!(matches!(profiles.remove(name), Err(ProfileError::Unknown(_))), "{name}");
        }
    }

    #[test]
    fn commands_are_combined_one_after_the_other() {
        let records = [record("a", vec![start(&[1, 2])]), record("b", vec![start(&[2, 3])])];
        assert_eq!(combined(&records), start(&[1, 2, 3]));
    }
}
