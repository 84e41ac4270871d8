//! Profiles: which files the starts of an image read first, and in which order.
//!
//! ```text
//! recording (layer, inode) --name_units--> path --StartRecord--> JSON, kept, merged, sent about
//! record --common_units--> path --place_units--> (layer, inode) of any image --> pack
//! ```
//!
//! A file is known by its path in the image, not by its place in a layer: so the starts of an image
//! tell what the next build of it will read, whatever its layers look like. Whose profile is wrong
//! or a lie makes nodes fetch files that nobody reads, up to the bounds of [`place_units`], and
//! nothing else.

mod directory;
mod json;
mod pack;
mod place;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use undermount_fs::digest::Digest;
use undermount_fs::pack::{UNITS_MAX, common};

use crate::image::Reference;

pub use directory::{Profiles, fitting, read};
pub use json::FILE_MAX;
pub use pack::{PackError, make_pack, packable_layer, profile_of};
pub use place::{FilePaths, file_paths, is_all, most_of, name_units, place_units};

/// Starts that are kept of one command of an image, the newest.
pub const STARTS_MAX: usize = 8;

/// Starts of an image that tell enough: who keeps so many for others wants no more.
pub const ENOUGH: usize = 3;

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

/// A part of a file that is verified at once, by the path of the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileUnit {
    /// The path in the image, without a slash at its beginning.
    pub path: String,
    /// Which unit of the file.
    pub number: u32,
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
    /// The files that the starts name.
    files: Vec<String>,
    /// The starts, the oldest first: units in the order of their first reads, as number of the
    /// file and number of the unit.
    starts: Vec<Vec<(u32, u32)>>,
}

impl StartRecord {
    /// A record of no starts yet.
    pub fn new(reference: String, manifest: Digest, command: String) -> Self {
        Self { reference, manifest, command, files: Vec::new(), starts: Vec::new() }
    }

    /// The same with one more start, the newest; the oldest are forgotten.
    #[must_use]
    pub fn with_start(mut self, units: &[FileUnit]) -> Self {
        self.add_starts(vec![units.to_vec()]);
        self
    }

    /// Its name among the profiles of a directory.
    pub fn name(&self) -> String {
        let command = Digest::of(self.command.as_bytes()).hex();
        format!("{}-{}", &self.manifest.hex()[..12], &command[..8])
    }

    /// Whether it tells of an image of the repository with this path, in whatever registry.
    pub fn is_of(&self, repository: &str) -> bool {
        let reference: Option<Reference> = self.reference.parse().ok();
        reference.is_some_and(|reference| reference.repository().path() == repository)
    }

    /// How many starts it tells of.
    pub fn starts(&self) -> usize {
        self.starts.len()
    }

    /// What its starts have in common, in order.
    pub fn common_units(&self) -> Vec<FileUnit> {
        common(&self.starts).into_iter().map(|unit| self.named(unit)).collect()
    }

    /// Adds the starts of `newer`, the same command of the same image.
    pub fn add(&mut self, newer: &Self) {
        self.add_starts(newer.named_starts());
    }

    fn add_starts(&mut self, newer: Vec<Vec<FileUnit>>) {
        let mut starts = self.named_starts();
        starts.extend(newer);
        let excess = starts.len().saturating_sub(STARTS_MAX);
        self.files.clear();
        let mut places = HashMap::new();
        let mut place = |path: String| {
            *places.entry(path).or_insert_with_key(|path| {
                self.files.push(path.clone());
                self.files.len() as u32 - 1
            })
        };
        let mut numbered = |start: Vec<FileUnit>| {
            let units = start.into_iter().take(UNITS_MAX);
            units.map(|unit| (place(unit.path), unit.number)).collect()
        };
        self.starts = starts.into_iter().skip(excess).map(&mut numbered).collect();
    }

    fn named_starts(&self) -> Vec<Vec<FileUnit>> {
        let named = |start: &Vec<(u32, u32)>| start.iter().map(|unit| self.named(*unit)).collect();
        self.starts.iter().map(named).collect()
    }

    fn named(&self, (file, number): (u32, u32)) -> FileUnit {
        let path = self.files.get(file as usize).cloned().unwrap_or_default();
        FileUnit { path, number }
    }
}

/// What the commands of `records` read, each in the order of its starts.
pub fn combined(records: &[StartRecord]) -> Vec<FileUnit> {
    let mut seen = std::collections::HashSet::new();
    let units = records.iter().flat_map(StartRecord::common_units);
    units.filter(|unit| seen.insert(unit.clone())).collect()
}

#[cfg(test)]
mod tests;
