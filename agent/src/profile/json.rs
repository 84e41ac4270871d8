//! Profiles as files.
//!
//! ```text
//! {
//!   "version": 2,
//!   "reference": "registry.local/nova-api:zed",      the name that was started
//!   "manifest": "sha256:…",                          the image
//!   "command": "nova-api --debug",
//!   "files": ["usr/bin/python3", …],                 the files that the units are of
//!   "starts": [[[0, 0], [117, 0], …], …]             per start its units in the order of their
//! }                                                  first reads: file, number of the unit
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;
use undermount_fs::pack::UNITS_MAX;

use super::{ProfileError, STARTS_MAX, StartRecord};

/// The version of the format. Version 1 named files by their place in layers.
const VERSION: u32 = 2;
/// No file is larger, in bytes: [`STARTS_MAX`] starts that each read ten times as much as a large
/// service take as much.
pub const FILE_MAX: u64 = 8 * 1024 * 1024;

/// Bytes of the paths of all units of a record: where records are put together, each unit is
/// spelled out.
const NAMED_MAX: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    reference: String,
    manifest: Digest,
    command: String,
    files: Vec<String>,
    starts: Vec<Vec<(u32, u32)>>,
}

/// The head of a file of any version.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

impl StartRecord {
    /// The record as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let Self { reference, manifest, command, files, starts } = self.clone();
        let file = File { version: VERSION, reference, manifest, command, files, starts };
        serde_json::to_vec(&file).expect("strings and numbers become JSON")
    }

    /// Reads what [`Self::to_json`] wrote; `path` is for the messages.
    ///
    /// # Errors
    /// [`ProfileError`] where it is something else.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, ProfileError> {
        let malformed = |source| ProfileError::Format { path: path.to_owned(), source };
        let invalid = |what: String| ProfileError::Invalid { path: path.to_owned(), what };
        if json.len() as u64 > FILE_MAX {
            let size = json.len();
            return Err(invalid(format!("{size} bytes are more than any profile has")));
        }
        let Head { version } = serde_json::from_slice(json).map_err(malformed)?;
        if version != VERSION {
            return Err(invalid(format!(
                "a profile of version {version}, this program reads version {VERSION}: record it \
                 again"
            )));
        }
        let file: File = serde_json::from_slice(json).map_err(malformed)?;
        let units = || file.starts.iter().flatten();
        if units().any(|(of, _)| *of as usize >= file.files.len()) {
            return Err(invalid("a unit is of a file that is not listed".to_owned()));
        }
        let named = |(of, _): &(u32, u32)| file.files[*of as usize].len() as u64;
        if units().map(named).sum::<u64>() > NAMED_MAX {
            return Err(invalid(format!("its units name files by more than {NAMED_MAX} bytes")));
        }
        if file.files.len() > UNITS_MAX || file.starts.iter().any(|start| start.len() > UNITS_MAX) {
            return Err(invalid(format!("a start reads at most {UNITS_MAX} files")));
        }
        let File { reference, manifest, command, files, mut starts, .. } = file;
        starts.drain(..starts.len().saturating_sub(STARTS_MAX));
        Ok(Self { reference, manifest, command, files, starts })
    }
}
