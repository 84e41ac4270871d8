//! A directory of profiles, a file for each command of each image.
//!
//! `<directory>/<12 hex digits of the manifest>-<8 of the command>.json`

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use undermount_fs::digest::Digest;

use super::{ProfileError, StartRecord};
use crate::host::file::{self, Lasting};

/// The records that tell most of what the image `manifest` will read: its own, else those of the
/// image that was recorded last. All of them are of one repository.
pub fn fitting(records: Vec<(SystemTime, StartRecord)>, manifest: &Digest) -> Vec<StartRecord> {
    let own = records.iter().any(|(_, record)| record.manifest == *manifest);
    let latest = records.iter().max_by_key(|(time, _)| *time).map(|(_, record)| record.manifest);
    let of = if own { Some(*manifest) } else { latest };
    let records = records.into_iter().map(|(_, record)| record);
    records.filter(|record| Some(record.manifest) == of).collect()
}

/// Reads the profile in the file `path`.
///
/// # Errors
/// [`ProfileError`] where there is none.
pub fn read(path: &Path) -> Result<StartRecord, ProfileError> {
    let failed = failed("read", path);
    StartRecord::from_json(&file::read(path).map_err(failed)?, path)
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
                earlier.add(&record);
                earlier
            }
            // A damaged file is replaced.
            Err(_) => record,
        };
        let failed = failed("write", &self.directory);
        fs::create_dir_all(&self.directory).map_err(&failed)?;
        file::replace(&self.path(&name), &record.to_json(), 0o600, Lasting::PowerCut)
            .map_err(&failed)?;
        Ok(name)
    }

    /// The records that `is_wanted`, with the time when each was written. Damaged ones are left
    /// out, with a warning.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn dated(
        &self,
        is_wanted: impl Fn(&StartRecord) -> bool,
    ) -> Result<Vec<(SystemTime, StartRecord)>, ProfileError> {
        let listed = self.list()?.into_iter().filter(|(_, record)| is_wanted(record));
        Ok(listed.map(|(name, record)| (self.written(&name), record)).collect())
    }

    /// When the profile of this name was written.
    fn written(&self, name: &str) -> SystemTime {
        let time = fs::metadata(self.path(name)).and_then(|file| file.modified());
        time.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Removes the oldest profiles beyond `most`.
    ///
    /// # Errors
    /// [`ProfileError`] where one cannot be removed.
    pub fn keep_newest(&self, most: usize) -> Result<(), ProfileError> {
        let names = self.list()?.into_iter().map(|(name, _)| name);
        let mut dated: Vec<_> = names.map(|name| (self.written(&name), name)).collect();
        dated.sort();
        let excess = dated.len().saturating_sub(most);
        dated.iter().take(excess).try_for_each(|(_, name)| self.remove(name))
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
