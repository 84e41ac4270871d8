//! What is mounted, as the next worker finds it: `mounts.json` in the runtime directory.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;

use crate::agent::cache::write_for_this_boot;
use crate::control::Runtime;

/// A mount as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Where.
    pub dir: PathBuf,
    /// The image's name.
    pub reference: String,
    /// What the name meant.
    pub manifest: Digest,
    /// Whether its registry was asked without TLS.
    pub plain_http: bool,
    /// The indexes of its layers, the lowest first.
    #[serde(default)]
    pub trees: Vec<Digest>,
}

/// Writes down what is mounted.
///
/// # Errors
/// Those of writing a file; what was written before stays.
pub fn write<'a>(runtime: &Runtime, records: impl Iterator<Item = &'a Record>) -> io::Result<()> {
    let records: Vec<&Record> = records.collect();
    let json = serde_json::to_vec_pretty(&records).expect("records are plain data");
    // The mounts themselves do not outlive a power cut.
    write_for_this_boot(runtime.root(), "mounts.json", &json)
}

/// What was mounted; nothing where the file is missing or damaged.
pub fn read(path: &Path) -> Vec<Record> {
    let Ok(json) = std::fs::read(path) else { return Vec::new() };
    serde_json::from_slice(&json).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "damaged list of mounts");
        Vec::new()
    })
}
