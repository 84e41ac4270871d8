//! Tar files read in place: where each member's bytes begin.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use undermount_fs::digest::Digest;

use super::{Blobs, Layout, LayoutError, Region, index_of};

/// Largest `index.json`: as large as a manifest may be.
const MAX_INDEX: u64 = crate::image::manifest::MAX_MANIFEST as u64;

/// The members of a tar file by name, without a leading `./`. Links have the bytes of what they
/// name, as `docker save` uses them.
///
/// # Errors
/// [`LayoutError`] where the file cannot be read, or is no tar file.
pub fn members(path: &Path) -> Result<HashMap<String, Region>, LayoutError> {
    let mut members = Members::default();
    match members.read(path) {
        Ok(()) => Ok(members.resolved()),
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            Err(LayoutError::Read { path: path.to_owned(), source })
        }
        Err(error) => Err(LayoutError::Form {
            path: path.to_owned(),
            expected: "a tar file without compression",
            reason: error.to_string(),
        }),
    }
}

/// The members of a tar file up to the first that cannot be read.
pub fn readable_members(path: &Path) -> HashMap<String, Region> {
    let mut members = Members::default();
    // Where it ends too early, what came before counts.
    let _ = members.read(path);
    members.resolved()
}

#[derive(Default)]
struct Members {
    files: HashMap<String, Region>,
    /// Names, and the names that they stand for.
    links: Vec<(String, String)>,
}

impl Members {
    fn read(&mut self, path: &Path) -> io::Result<()> {
        let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = entry.path()?.into_owned();
            let target = entry.link_name()?.unwrap_or_default().into_owned();
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let (start, length) = (entry.raw_file_position(), entry.size());
                    let region = Region { path: path.to_owned(), start, length };
                    self.files.insert(plain(&name), region);
                }
                tar::EntryType::Symlink => {
                    let from = name.parent().unwrap_or(Path::new(""));
                    self.links.push((plain(&name), plain(&from.join(target))));
                }
                tar::EntryType::Link => self.links.push((plain(&name), plain(&target))),
                _ => {}
            }
        }
        Ok(())
    }

    fn resolved(mut self) -> HashMap<String, Region> {
        for (name, target) in self.links {
            if let Some(region) = self.files.get(&target).cloned() {
                self.files.insert(name, region);
            }
        }
        self.files
    }
}

/// A member's name with `.` and `..` resolved.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

/// The layout in the tar file `path`.
pub fn open(path: &Path) -> Result<Layout, LayoutError> {
    let members = members(path)?;
    let manifests = index_of(path, path, |_| match members.get("index.json") {
        Some(region) => region.read(MAX_INDEX),
        None => Err(io::ErrorKind::NotFound.into()),
    })?;
    let known = members.into_iter().filter_map(|(name, region)| {
        let hex = name.strip_prefix("blobs/sha256/")?;
        Some((Digest::from_hex(hex).ok()?, region))
    });
    let blobs = Blobs::Known(known.collect());
    Ok(Layout { path: path.to_owned(), blobs, manifests, _scratch: None })
}
