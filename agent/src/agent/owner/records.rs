//! What is mounted, as the next worker finds it: `mounts.json` in the runtime directory.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;

use crate::agent::binding::MountTable;
use crate::control::Runtime;
use crate::host::file::{self, Lasting};

/// The name of an image of which nobody knows it any more. It is none.
pub const NAMELESS: &str = "-";

/// A mount as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Where.
    pub dir: PathBuf,
    /// The image's name.
    pub reference: String,
    /// What the name meant; of a [`NAMELESS`] image, what the view called it.
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
    file::replace(&runtime.mounts(), &json, 0o600, Lasting::ThisBoot)
}

/// What was mounted; nothing where the file is missing.
///
/// # Errors
/// Those of reading a file, and `InvalidData` where it is damaged.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    match std::fs::read(path) {
        Ok(json) => Ok(serde_json::from_slice(&json)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What the kernel shows of our images, whatever is written down: where, but not by which name.
///
/// # Errors
/// Those of reading the mount table.
pub fn still_mounted(runtime: &Runtime) -> io::Result<Vec<Record>> {
    let table = MountTable::read()?;
    let contents = [false, true].map(|xattrs| runtime.content(xattrs));
    let shown = contents.iter().flat_map(|content| table.images_of(content));
    let record = |(dir, name)| {
        let reference = NAMELESS.to_owned();
        Record { dir, reference, manifest: name, plain_http: false, trees: Vec::new() }
    };
    Ok(shown.map(record).collect())
}
