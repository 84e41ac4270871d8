//! What membership keeps between two lives of the agent, in a directory of the cache:
//!
//! ```text
//! identity.json   {"version": 1, "id": …, "epoch": …, "machine": …}
//! members.json    {"version": 1, "written": …, "members": […]}
//! ```
//!
//! The epoch grows with each start, even where the clock went back, since two lives with the same
//! epoch would be taken for each other. A directory that was copied to another machine, as part of
//! a disk image, makes another node of it: the machine's id shows that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::host::file::{self, Lasting};
use crate::peer::member::{Member, MemberId};

const VERSION: u32 = 1;
const IDENTITY: &str = "identity.json";
const MEMBERS: &str = "members.json";

/// What identifies an installation of an operating system (machine-id(5)).
const MACHINE: &str = "/etc/machine-id";

/// The age from which a list says only where to ask, and no longer who is there.
const FRESH: Duration = Duration::from_secs(600);

/// The identity of the node cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep the identity of this node in {}", path.display())]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    version: u32,
    id: MemberId,
    epoch: u64,
    machine: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct StoredMembers {
    version: u32,
    /// Unix time, ms.
    written: u64,
    members: Vec<StoredMember>,
}

#[derive(Serialize, Deserialize)]
struct StoredMember {
    #[serde(flatten)]
    member: Member,
    revision: u32,
}

/// The members of an earlier life.
#[derive(Debug, Default)]
pub struct Remembered {
    /// The members.
    pub members: Vec<Identity>,
    /// Whether the list is recent enough to believe that they are still there.
    pub fresh: bool,
}

impl Store {
    /// The directory `root`, which is made where it is missing.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(failed)?;
        Ok(Self(root.to_owned()))
    }

    /// The id of this node, and the epoch of the life that begins `now`, which is on disk when this
    /// returns.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be written down: the next life must know of this one.
    pub fn begin_life(&self, now: SystemTime) -> Result<(MemberId, u64), StoreError> {
        let machine = fs::read_to_string(MACHINE).ok().map(|id| id.trim().to_owned());
        let machine = machine.filter(|id| !id.is_empty());
        self.begin_life_on(machine, now)
    }

    fn begin_life_on(
        &self,
        machine: Option<String>,
        now: SystemTime,
    ) -> Result<(MemberId, u64), StoreError> {
        let failed = |source| StoreError { path: self.0.join(IDENTITY), source };
        let before = read::<StoredIdentity>(&self.0.join(IDENTITY))
            .filter(|before| before.version == VERSION && before.machine == machine);
        let (id, last) = match before {
            Some(before) => (before.id, before.epoch),
            None => (random_id().map_err(failed)?, 0),
        };
        let epoch = millis(now).max(last.saturating_add(1));
        let stored = StoredIdentity { version: VERSION, id, epoch, machine };
        self.write(IDENTITY, &stored).map_err(failed)?;
        Ok((id, epoch))
    }

    /// The members of an earlier life, as of `now`; none where they cannot be read.
    pub fn remembered(&self, now: SystemTime) -> Remembered {
        let stored = read::<StoredMembers>(&self.0.join(MEMBERS));
        let Some(stored) = stored.filter(|stored| stored.version == VERSION) else {
            return Remembered::default();
        };
        let age = millis(now).abs_diff(stored.written);
        Remembered {
            members: stored.members.into_iter().filter_map(StoredMember::identity).collect(),
            fresh: Duration::from_millis(age) < FRESH,
        }
    }

    /// Writes the members down.
    ///
    /// # Errors
    /// Those of writing files; the list before is then still there.
    pub fn remember(&self, members: &[Identity], now: SystemTime) -> io::Result<()> {
        let members = members.iter().map(StoredMember::of).collect();
        self.write(MEMBERS, &StoredMembers { version: VERSION, written: millis(now), members })
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        let json = serde_json::to_vec(content).map_err(io::Error::other)?;
        file::replace(&self.0.join(name), &json, 0o600, Lasting::PowerCut)
    }
}

impl StoredMember {
    fn of(identity: &Identity) -> Self {
        // One's own protocol plays no part in what is written down.
        let member = Member { weight: identity.weight, ..identity.to_member(identity.protocol) };
        Self { member, revision: identity.revision }
    }

    /// The identity, checked like one from the network; `None` where it was damaged.
    fn identity(self) -> Option<Identity> {
        let Member { id, addresses, epoch, protocol, weight } = self.member;
        let protocol = protocol.into_inner();
        Identity { id, epoch, revision: self.revision, addresses, protocol, weight }.checked().ok()
    }
}

/// Reads a file; one that cannot be read or understood counts as none.
fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn random_id() -> io::Result<MemberId> {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
    Ok(MemberId::from_bytes(bytes))
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::identity::testing::identity;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("peers")).unwrap();
        (dir, store)
    }

    #[test]
    fn a_node_keeps_its_name_and_every_life_is_later() {
        let (_dir, store) = store();
        let (id, first) = store.begin_life(at(100)).unwrap();
        assert_eq!(first, 100_000);
        // The clock was wrong, and went back.
        let (same, second) = store.begin_life(at(50)).unwrap();
        assert_eq!((same, second), (id, 100_001));
        assert_eq!(store.begin_life(at(200)).unwrap(), (id, 200_000));
    }

    #[test]
    fn a_copy_of_the_cache_on_another_machine_is_another_node() {
        let (_dir, store) = store();
        let (id, _) = store.begin_life_on(Some("a".into()), at(1)).unwrap();
        assert_eq!(store.begin_life_on(Some("a".into()), at(2)).unwrap().0, id);
        assert_ne!(store.begin_life_on(Some("b".into()), at(3)).unwrap().0, id);
    }

    #[test]
    fn members_come_back_as_they_were() {
        let (_dir, store) = store();
        assert!(store.remembered(at(1)).members.is_empty());
        let mut members = vec![identity(1), Identity { revision: 3, ..identity(2) }];
        members[1].addresses.push("[fd00::1]:8788".parse().unwrap());
        store.remember(&members, at(1000)).unwrap();
        let back = store.remembered(at(1001));
        assert_eq!((back.members, back.fresh), (members, true));
        assert!(!store.remembered(at(2000)).fresh);
    }

    #[test]
    fn damaged_files_count_as_none() {
        let (_dir, store) = store();
        store.remember(&[identity(1)], at(1)).unwrap();
        let path = store.0.join(MEMBERS);
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("127.0.0.1:9001", "127.0.0.1:0"),
            text[..text.len() / 2].to_owned(),
        ] {
            fs::write(&path, damaged).unwrap();
            assert!(store.remembered(at(1)).members.is_empty());
        }
        fs::write(store.0.join(IDENTITY), "{").unwrap();
        assert!(store.begin_life(at(1)).is_ok());
    }
}
