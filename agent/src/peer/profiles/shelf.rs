//! The profiles that a node keeps for the cluster, on disk.
//!
//! `<directory>/<realm>-<32 hex digits of the repository>/<profile>.json`
//!
//! Each realm has directories of its own: what the holder of a credential has handed over is given
//! only to holders of the same credential, whatever credentials this node has by then.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use lru::LruCache;
use undermount_fs::digest::Digest;
use undermount_fs::source::Scope;

use super::{COMMANDS, ProfileCall, pack};
use crate::peer::realm::Realm;
use crate::profile::{ENOUGH, ProfileError, Profiles, StartRecord, fitting};

/// The most bytes of all files.
const MOST: u64 = 64 << 20;
/// How many answers stay in memory: the nodes of a cluster start the same images at the same time.
const ANSWERS: NonZeroUsize = NonZeroUsize::new(32).expect("it is not zero");
/// The longest answer that stays in memory, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// Profiles that are kept for others.
pub struct Shelf {
    directory: PathBuf,
    /// The latest answers. The lock is held while the directory is read or changed.
    answers: Mutex<LruCache<Key, Answer>>,
}

/// Realm, repository and manifest.
type Key = (Realm, String, Digest);

/// What this node knows of the starts of an image.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The number of recorded starts of this very build.
    pub starts: usize,
    /// Its profiles, else those of another build, as a body; `None` where there are none.
    pub profiles: Option<Bytes>,
}

impl Shelf {
    /// The profiles in `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, answers: Mutex::new(LruCache::new(ANSWERS)) }
    }

    /// What this node knows of the image of `call` in `realm`. Blocks.
    pub fn answer(&self, realm: Realm, call: &ProfileCall) -> Answer {
        let key = (realm, call.scope.to_string(), call.manifest);
        let mut answers = self.answers();
        if let Some(answer) = answers.get(&key) {
            return answer.clone();
        }
        let answer = self.read(realm, call);
        if answer.profiles.as_ref().is_none_or(|profiles| profiles.len() <= ANSWER_MAX) {
            answers.put(key, answer.clone());
        }
        answer
    }

    fn read(&self, realm: Realm, call: &ProfileCall) -> Answer {
        let known = self.profiles(realm, &call.scope).dated(|_| true).unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read profiles");
            Vec::new()
        });
        let own = known.iter().filter(|(_, record)| record.manifest == call.manifest);
        let starts = own.map(|(_, record)| record.starts()).sum();
        let records = fitting(known, &call.manifest);
        Answer { starts, profiles: (!records.is_empty()).then(|| pack(&records)) }
    }

    /// Keeps a start that a node of `realm` has recorded of an image in `scope`, unless there are
    /// [`ENOUGH`] of it. Returns whether it was kept. Blocks.
    ///
    /// # Errors
    /// [`ProfileError`] where it cannot be written.
    pub fn keep(
        &self,
        realm: Realm,
        scope: &Scope,
        record: StartRecord,
    ) -> Result<bool, ProfileError> {
        let mut answers = self.answers();
        let profiles = self.profiles(realm, scope);
        if profiles.get(&record.name()).is_ok_and(|known| known.starts() >= ENOUGH) {
            return Ok(false);
        }
        // Answers about other builds may have changed as well.
        answers.clear();
        profiles.add(record)?;
        profiles.keep_newest(COMMANDS)?;
        if let Err(error) = self.make_room(MOST) {
            tracing::warn!(path = %self.directory.display(), %error, "cannot remove old profiles");
        }
        Ok(true)
    }

    /// Removes the oldest files beyond `most` bytes.
    fn make_room(&self, most: u64) -> io::Result<()> {
        let mut files = files_below(&self.directory)?;
        files.sort_by_key(|(time, ..)| *time);
        let mut all: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if all <= most {
                break;
            }
            fs::remove_file(&path)?;
            all -= size;
            if let Some(directory) = path.parent() {
                // A directory that is not empty stays.
                let _ = fs::remove_dir(directory);
            }
        }
        Ok(())
    }

    fn profiles(&self, realm: Realm, scope: &Scope) -> Profiles {
        let repository = Digest::of(scope.as_str().as_bytes()).hex();
        Profiles::new(self.directory.join(format!("{realm}-{}", &repository[..32])))
    }

    fn answers(&self) -> MutexGuard<'_, LruCache<Key, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time, size and path of each file in the directories of `directory`; what else somebody has put
/// there is left alone.
fn files_below(directory: &Path) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
    let mut files = Vec::new();
    for below in fs::read_dir(directory)? {
        let below = below?;
        if !below.file_type()?.is_dir() {
            continue;
        }
        for entry in fs::read_dir(below.path())? {
            let entry = entry?;
            let file = entry.metadata()?;
            if file.is_file() {
                files.push((file.modified()?, file.len(), entry.path()));
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::profiles::unpack;
    use crate::profile::FileUnit;

    const PRIVATE: Realm = Realm::Private([7; 16]);

    fn scope() -> Scope {
        Scope::new("uc.example:8787/nova/nova-api")
    }

    fn record(build: &[u8], path: &str) -> StartRecord {
        let unit = FileUnit { path: path.to_owned(), number: 0 };
        let reference = format!("{}:zed", scope());
        StartRecord::new(reference, Digest::of(build), "service".to_owned()).with_start(&[unit])
    }

    fn asked(shelf: &Shelf, realm: Realm, build: &[u8]) -> (usize, Vec<StartRecord>) {
        let call = ProfileCall::new(&scope(), &Digest::of(build)).unwrap();
        let answer = shelf.answer(realm, &call);
        let records = answer.profiles.map(|body| unpack(&body).unwrap());
        (answer.starts, records.unwrap_or_default())
    }

    #[test]
    fn starts_are_kept_until_there_are_enough_and_serve_other_builds() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().join("profiles"));
        assert_eq!(asked(&shelf, Realm::Public, b"one"), (0, vec![]));
        for start in 0..ENOUGH {
            assert!(shelf.keep(Realm::Public, &scope(), record(b"one", "a")).unwrap(), "{start}");
            assert_eq!(asked(&shelf, Realm::Public, b"one").0, start + 1);
        }
        assert!(!shelf.keep(Realm::Public, &scope(), record(b"one", "lie")).unwrap());
        let (starts, records) = asked(&shelf, Realm::Public, b"two");
        assert_eq!((starts, records.len()), (0, 1), "those of another build");
        shelf.keep(Realm::Public, &scope(), record(b"two", "b")).unwrap();
        assert_eq!(asked(&shelf, Realm::Public, b"two"), (1, vec![record(b"two", "b")]));
        let again = Shelf::new(dir.path().join("profiles"));
        assert_eq!(asked(&again, Realm::Public, b"one").0, ENOUGH, "they outlive the agent");
    }

    #[test]
    fn what_came_from_a_private_repository_is_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_owned());
        shelf.keep(PRIVATE, &scope(), record(b"one", "secret")).unwrap();
        assert_eq!(asked(&shelf, Realm::Public, b"one"), (0, vec![]));
        assert_eq!(asked(&shelf, Realm::Private([8; 16]), b"one"), (0, vec![]));
        assert_eq!(asked(&shelf, PRIVATE, b"one").0, 1);
    }

    #[test]
    fn the_oldest_make_room_for_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_owned());
        let long = "x".repeat(10_000);
        for build in 0..5 {
            shelf.keep(Realm::Public, &scope(), record(&[build], &long)).unwrap();
            // Beyond the tick of a kernel with a slow clock.
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        shelf.make_room(25_000).unwrap();
        let left: Vec<_> = files_below(dir.path()).unwrap();
        assert_eq!(left.len(), 2);
        let profiles = shelf.profiles(Realm::Public, &scope());
        for build in [3, 4] {
            profiles.get(&record(&[build], &long).name()).unwrap();
        }
        shelf.make_room(0).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nor is a directory left");
    }

    #[test]
    fn regression_room_is_made_beside_what_somebody_else_has_put_there() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_owned());
        shelf.keep(Realm::Public, &scope(), record(b"one", "a")).unwrap();
        let profile = files_below(dir.path()).unwrap().remove(0).2;
        fs::write(dir.path().join("note"), "a file").unwrap();
        fs::create_dir(profile.with_file_name("directory")).unwrap();
        shelf.make_room(0).unwrap();
        assert!(!profile.exists() && dir.path().join("note").exists());
    }
}
