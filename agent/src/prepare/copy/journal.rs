//! What a run has begun, written down so that the next one can go on after a kill.
//!
//! ```text
//! <directory>/lock             held while a run uses the directory
//! <directory>/places           a line per blob that was begun: where it may be by now
//! <directory>/indexes/<hex>    the index of a layer (copy/index)
//! ```
//! A destination tells by itself which blobs an image has already, but not that a blob which
//! moved for one image is what another one needs: without a record that one would move it again.
//! A line is a hint, written before the blob moves and never believed: the destination is asked
//! (a mount, the digest of a file) before the blob counts as there. So the record may be
//! incomplete, stale or lost without any harm but a longer way. It goes when a run ends well.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use undermount_fs::digest::Digest;

use crate::image::Repository;

/// Begins the file; another version is not read.
const HEADER: &str = "undermount copy 1";
/// Most places of a blob that are kept.
const MAX_PLACES: usize = 4;

/// A run's record, and what earlier ones left.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    kind: Kind,
    file: Mutex<File>,
    places: HashMap<(String, Digest), Vec<Repository>>,
}

#[derive(Debug)]
enum Kind {
    /// The record is kept; the lock is ours.
    Kept(#[expect(dead_code, reason = "held, not read")] Flock<File>),
    /// The record goes with the run.
    Temporary(#[expect(dead_code, reason = "held, not read")] TempDir),
}

impl Journal {
    /// The record in `directory`; one that goes with the run, below `scratch`, where there is
    /// none or another run uses it.
    ///
    /// # Errors
    /// Where neither directory can be used.
    pub fn open(directory: Option<&Path>, scratch: &Path) -> io::Result<Self> {
        if let Some(directory) = directory {
            match Self::keep(directory) {
                Ok(Some(journal)) => return Ok(journal),
                Ok(None) => tracing::info!("another run keeps the record of what was begun"),
                Err(error) => {
                    let directory = directory.display();
                    tracing::warn!(%directory, %error, "a killed run will not be gone on with");
                }
            }
        }
        let temporary = tempfile::Builder::new().prefix("undermount-copy-").tempdir_in(scratch)?;
        let directory = temporary.path().to_owned();
        Self::read(directory, Kind::Temporary(temporary))
    }

    fn keep(directory: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(directory)?;
        let lock = File::create(directory.join("lock"))?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        Self::read(directory.to_owned(), Kind::Kept(lock)).map(Some)
    }

    fn read(directory: PathBuf, kind: Kind) -> io::Result<Self> {
        fs::create_dir_all(directory.join("indexes"))?;
        let path = directory.join("places");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = text.strip_prefix(HEADER).is_some_and(|rest| rest.starts_with('\n'));
        let places = if known { read_places(&text) } else { HashMap::new() };
        let mut options = OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(!known).open(&path)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        // A line that a kill cut short must not swallow the next one.
        let begin = if known { "\n".to_owned() } else { format!("{HEADER}\n") };
        file.write_all(begin.as_bytes())?;
        Ok(Self { directory, kind, file: Mutex::new(file), places })
    }

    /// Where indexes of layers lie.
    pub fn indexes(&self) -> PathBuf {
        self.directory.join("indexes")
    }

    /// Writes down that `blob` begins to move to `repository` of the store `store`.
    pub fn begin(&self, store: &str, blob: &Digest, repository: &Repository) {
        let line = format!("{blob} {repository} {store}\n");
        let mut file = self.file.lock().expect("no panic while it is held");
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::warn!(%error, "cannot write down what was begun");
        }
    }

    /// Where earlier runs may have brought `blob` to.
    pub fn places(&self, store: &str, blob: &Digest) -> &[Repository] {
        self.places.get(&(store.to_owned(), *blob)).map_or(&[], Vec::as_slice)
    }

    /// Forgets everything, after a run in which all went well.
    pub fn forget(&self) {
        if matches!(self.kind, Kind::Temporary(_)) {
            return;
        }
        for remove in
            [fs::remove_file(self.directory.join("places")), fs::remove_dir_all(self.indexes())]
        {
            if let Err(error) = remove {
                tracing::debug!(%error, "the record of what was begun stays");
            }
        }
    }
}

fn read_places(text: &str) -> HashMap<(String, Digest), Vec<Repository>> {
    let mut places: HashMap<_, Vec<_>> = HashMap::new();
    for line in text.lines().skip(1) {
        let mut words = line.splitn(3, ' ');
        let (Some(blob), Some(repository), Some(store)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let (Ok(blob), Ok(repository)) = (blob.parse(), repository.parse()) else { continue };
        let known = places.entry((store.to_owned(), blob)).or_default();
        if !known.contains(&repository) && known.len() < MAX_PLACES {
            known.push(repository);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }

    #[test]
    fn what_was_begun_is_known_to_the_next_run_until_one_ends_well() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("state");
        let open = || Journal::open(Some(&directory), root.path()).unwrap();
        let blob = Digest::of(b"layer");
        let first = open();
        first.begin("h:1", &blob, &repository("h:1/a"));
        assert!(first.places("h:1", &blob).is_empty(), "it knows what it does itself");
        drop(first);
        fs::OpenOptions::new()
            .append(true)
            .open(directory.join("places"))
            .and_then(|mut file| file.write_all(b"sha256:12 cut sho"))
            .unwrap();
        let second = open();
        second.begin("h:1", &blob, &repository("h:1/b"));
        assert_eq!(second.places("h:1", &blob), [repository("h:1/a")]);
        drop(second);
        let third = open();
        assert_eq!(third.places("h:1", &blob), [repository("h:1/a"), repository("h:1/b")]);
        assert!(third.places("other:1", &blob).is_empty());
        third.forget();
        drop(third);
        assert!(open().places("h:1", &blob).is_empty());
    }

    #[test]
    fn a_second_run_at_the_same_time_keeps_its_own_record() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("state");
        let first = Journal::open(Some(&directory), root.path()).unwrap();
        let second = Journal::open(Some(&directory), root.path()).unwrap();
        assert_ne!(first.indexes(), second.indexes());
        let temporary = second.indexes();
        drop(second);
        assert!(!temporary.exists());
    }
}
