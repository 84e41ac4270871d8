//! Which version of the layout a cache directory has.

use std::fs;
use std::io;
use std::path::Path;

use super::{CacheError, file_names, unusable};
use crate::host::file::{self, Lasting};

const VERSION_FILE: &str = "VERSION";
/// What the version file says.
pub const VERSION: &str = "undermount cache 1";
/// What [`VERSION`] says before its number.
const VERSION_PREFIX: &str = "undermount cache ";
const VERSION_NUMBER: u32 = 1;
/// What a cache of an older version is called from then on, before its number.
pub const SET_ASIDE: &str = "old-";
/// The directory of the profiles of starts on this node.
pub const PROFILES: &str = "profiles";
/// What is no part of a version's layout. Profiles have a format of their own, and cannot be fetched
/// again.
const UNVERSIONED: [&str; 3] = ["lock", VERSION_FILE, PROFILES];

/// Makes sure that the cache in `root` is of this version: a new one becomes so, and what an older
/// one has left is set aside.
///
/// # Errors
/// [`CacheError`] where it is of a newer version or another kind, or cannot be used.
pub fn check_version(root: &Path) -> Result<(), CacheError> {
    let path = root.join(VERSION_FILE);
    match fs::read_to_string(&path) {
        Ok(found) if found.trim_end() == VERSION => Ok(()),
        Ok(found) => {
            let number = found.trim_end().strip_prefix(VERSION_PREFIX);
            match number.and_then(|number| number.parse::<u32>().ok()) {
                Some(older) if older < VERSION_NUMBER => {
                    set_aside(root, older).map_err(unusable(root))
                }
                _ => Err(CacheError::Version { path, found: found.trim_end().to_owned() }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_down(root).map_err(unusable(root))
        }
        Err(source) => Err(CacheError::Io { path, source }),
    }
}

/// Moves what version `older` has left out of the way. Its own version is replaced last, so that
/// a crash on the way is no harm.
fn set_aside(root: &Path, older: u32) -> io::Result<()> {
    let aside = root.join(format!("{SET_ASIDE}{older}"));
    tracing::warn!(cache = %root.display(), aside = %aside.display(),
        "the cache is of an older version: beginning anew");
    fs::create_dir_all(&aside)?;
    for name in file_names(root) {
        if !UNVERSIONED.contains(&name.as_str()) && !name.starts_with(SET_ASIDE) {
            fs::rename(root.join(&name), aside.join(&name))?;
        }
    }
    write_down(root)
}

fn write_down(root: &Path) -> io::Result<()> {
    let line = format!("{VERSION}\n");
    file::replace(&root.join(VERSION_FILE), line.as_bytes(), 0o600, Lasting::PowerCut)
}

#[cfg(test)]
mod tests {
    use undermount_fs::object::StoreLimits;

    use super::super::Cache;
    use super::*;

    fn open(root: &Path) -> Result<Cache, CacheError> {
        Cache::open(root, StoreLimits::default())
    }

    #[test]
    fn a_directory_of_another_version_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(VERSION_FILE), "undermount cache 9\n").unwrap();
        let error = open(root.path()).err().unwrap();
        assert!(error.to_string().contains("undermount cache 9"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_older_cache_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("objects")).unwrap();
        fs::write(at("objects/old"), "x").unwrap();
        fs::write(at(VERSION_FILE), "undermount cache 0\n").unwrap();
        fs::write(at("lock"), "").unwrap();
        fs::create_dir(at("profiles")).unwrap();
        let cache = open(root.path()).unwrap();
        assert_eq!(cache.store.usage().bytes, 0);
        assert_eq!(fs::read_to_string(at("old-0/objects/old")).unwrap(), "x");
        assert!(at("lock").exists() && at("profiles").exists());
        assert_eq!(fs::read_to_string(at(VERSION_FILE)).unwrap().trim_end(), VERSION);
    }
}
