//! The file with the cluster key.
//!
//! ```text
//! # words
//! 64 hex digits, or the same in base64      the key that is used
//! next 64 hex digits                        accepted: used after the next step of the rotation
//! previous 64 hex digits                    accepted: other nodes may still use it
//! ```
//!
//! A rotation takes three steps. Each must be installed on all nodes before the next:
//!
//! ```text
//! A  -rotate->  A, next B  -rotate->  B, previous A  -rotate->  B
//! ```

use std::fmt::{self, Write as _};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::host::file::{self, Lasting};

/// The longest file that is read, in bytes: two keys and a page of comments fit.
const MAX_LENGTH: u64 = 4096;

const WORDS: &str = "\
# The cluster key of undermount: whoever has it belongs to the cluster. The same file lies on all
# nodes and on the undercloud, readable by root alone. Made and changed by `undermount setup cluster`.
";

/// A cluster key. Secret: nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new key, from the random numbers of the kernel.
    ///
    /// # Errors
    /// Where the kernel gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
        Ok(Self(bytes))
    }

    /// Its bytes, for those that derive keys from it.
    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn parse(word: &str) -> Option<Self> {
        if word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut bytes = [0; 32];
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&word[2 * at..2 * at + 2], 16).ok()?;
            }
            return Some(Self(bytes));
        }
        Some(Self(STANDARD.decode(word).ok()?.try_into().ok()?))
    }

    fn hex(&self) -> String {
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("text takes text");
            text
        })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The stage of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There is one key.
    Settled,
    /// The next key is accepted and not used yet.
    Announced,
    /// The new key is used, the one before still accepted.
    Switched,
}

/// Why the file cannot be used as a cluster key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error("cannot {action} the cluster key {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others than its owner may read or change it.
    #[error(
        "others than its owner can use the cluster key {} (mode {mode:04o}): chmod 0400 it, and \
         rotate the key if somebody may have read it",
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A line is not what the file may hold.
    #[error("{}:{line}: {reason}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what is allowed.
        reason: &'static str,
    },
}

/// The content of the file: a key, and during a rotation another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    used: SecretKey,
    next: Option<SecretKey>,
    previous: Option<SecretKey>,
}

impl KeyFile {
    /// A file with the one key `used`.
    pub fn single(used: SecretKey) -> Self {
        Self { used, next: None, previous: None }
    }

    /// The key that is used.
    pub fn used(&self) -> &SecretKey {
        &self.used
    }

    /// The key that is accepted as well.
    pub fn other(&self) -> Option<&SecretKey> {
        self.next.as_ref().or(self.previous.as_ref())
    }

    /// The stage of its rotation.
    pub fn stage(&self) -> Stage {
        match (&self.next, &self.previous) {
            (Some(_), _) => Stage::Announced,
            (None, Some(_)) => Stage::Switched,
            (None, None) => Stage::Settled,
        }
    }

    /// Takes the next step of a rotation; `fresh` is the new key where it begins.
    pub fn rotate(&mut self, fresh: SecretKey) {
        match self.stage() {
            Stage::Settled => self.next = Some(fresh),
            Stage::Announced => {
                let next = self.next.take().unwrap_or(fresh);
                self.previous = Some(std::mem::replace(&mut self.used, next));
            }
            Stage::Switched => self.previous = None,
        }
    }

    /// Takes the last step of a rotation back, and returns whether there was one. A key that a
    /// finished rotation has removed does not come back.
    pub fn step_back(&mut self) -> bool {
        if let Some(previous) = self.previous.take() {
            self.next = Some(std::mem::replace(&mut self.used, previous));
            return true;
        }
        self.next.take().is_some()
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`KeyFileError`] where it cannot be read, is open to others, or holds no key.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |source| KeyFileError::Io { action: "read", path: path.to_owned(), source };
        let file = file::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o7777;
        // The group root has no other members, and systemd hands over credentials with its read
        // permission.
        let tolerated = if metadata.gid() == 0 { 0o740 } else { 0o700 };
        if mode & !tolerated != 0 {
            return Err(KeyFileError::Mode { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(MAX_LENGTH).read_to_string(&mut text).map_err(failed)?;
        Self::parse(&text).map_err(|(line, reason)| KeyFileError::Wrong {
            path: path.to_owned(),
            line,
            reason,
        })
    }

    /// Reads `text`; the error is the line, counted from 1, and what is wrong with it.
    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let [mut used, mut next, mut previous] = [const { None }; 3];
        for (at, line) in text.lines().enumerate() {
            let mut words = line.split_whitespace();
            let (slot, word) = match (words.next(), words.next(), words.next()) {
                (None, ..) => continue,
                (Some(word), ..) if word.starts_with('#') => continue,
                (Some(word), None, _) => (&mut used, word),
                (Some("next"), Some(word), None) => (&mut next, word),
                (Some("previous"), Some(word), None) => (&mut previous, word),
                _ => return Err((at + 1, "expected `KEY`, `next KEY` or `previous KEY`")),
            };
            let key = SecretKey::parse(word)
                .ok_or((at + 1, "a key is 32 bytes, written as 64 hex digits or in base64"))?;
            if slot.replace(key).is_some() {
                return Err((at + 1, "a second key of this kind: say `next` or `previous`"));
            }
        }
        match (used, next, previous) {
            (_, Some(_), Some(_)) => Err((text.lines().count(), "`next` and `previous` at once")),
            (Some(used), next, previous) => Ok(Self { used, next, previous }),
            (None, ..) => Err((text.lines().count().max(1), "it holds no key that is used")),
        }
    }

    fn to_text(&self) -> String {
        let mut text = format!("{WORDS}{}\n", self.used.hex());
        for (label, key) in [("next", &self.next), ("previous", &self.previous)] {
            if let Some(key) = key {
                text.push_str(&format!("{label} {}\n", key.hex()));
            }
        }
        text
    }

    /// Writes the file at `path`, mode 0400, in place of what is there, and the directory above
    /// it where that is missing.
    ///
    /// # Errors
    /// [`KeyFileError::Io`]; what was there is then still there.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        let failed = |source| KeyFileError::Io { action: "write", path: path.to_owned(), source };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(failed)?;
        let text = self.to_text();
        file::replace(path, text.as_bytes(), 0o400, Lasting::PowerCut).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes([byte; 32])
    }

    #[test]
    fn a_rotation_never_uses_a_key_that_another_node_may_not_accept() {
        let mut file = KeyFile::single(key(1));
        let mut steps = vec![file.clone()];
        for _ in 0..3 {
            file.rotate(key(2));
            steps.push(file.clone());
        }
        let stages: Vec<Stage> = steps.iter().map(KeyFile::stage).collect();
        assert_eq!(stages, [Stage::Settled, Stage::Announced, Stage::Switched, Stage::Settled]);
        assert_eq!(*file.used(), key(2));
        // Nodes differ by one step at most: what one uses, the other accepts.
        for pair in steps.windows(2) {
            for (user, other) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                assert!([Some(other.used()), other.other()].contains(&Some(user.used())));
            }
        }
    }

    #[test]
    fn a_step_back_undoes_the_last_step() {
        let mut file = KeyFile::single(key(1));
        assert!(!file.step_back());
        for _ in 0..2 {
            let before = file.clone();
            file.rotate(key(2));
            let mut back = file.clone();
            assert!(back.step_back());
            assert_eq!(back, before);
        }
    }

    #[test]
    fn what_is_written_reads_back_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/cluster.key");
        let mut file = KeyFile::single(key(0xab));
        for _ in 0..3 {
            file.write(&path).unwrap();
            assert_eq!(KeyFile::read(&path).unwrap(), file);
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o400);
            file.rotate(SecretKey::random().unwrap());
        }
    }

    #[test]
    fn hex_and_base64_say_the_same() {
        let base64 = STANDARD.encode([0xab; 32]);
        assert_eq!(KeyFile::parse(&base64), KeyFile::parse(&"aB".repeat(32)));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        KeyFile::single(key(1)).write(&path).unwrap();
        let by_group = path.metadata().unwrap().gid() == 0;
        for (mode, fits) in
            [(0o400, true), (0o600, true), (0o440, by_group), (0o460, false), (0o644, false)]
        {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            match KeyFile::read(&path) {
                Ok(_) => assert!(fits, "{mode:o}"),
                Err(error) => {
                    assert!(!fits && error.to_string().contains("chmod 0400"), "{error}");
                }
            }
        }
    }

    #[test]
    fn mistakes_are_refused_by_line() {
        let one = "01".repeat(32);
        for (text, line, words) in [
            (String::new(), 1, "no key"),
            ("# words\n".to_owned(), 1, "no key"),
            (format!("next {one}\n"), 1, "no key that is used"),
            (format!("{one}\n{one}\n"), 2, "say `next` or `previous`"),
            (format!("{one}\nnext {one}\nprevious {one}\n"), 3, "at once"),
            (format!("{one}\nold {one}\n"), 2, "expected `KEY`"),
            (format!("{one}\nnext {one} x\n"), 2, "expected `KEY`"),
            ("0102\n".to_owned(), 1, "32 bytes"),
            (STANDARD.encode([1; 31]), 1, "32 bytes"),
        ] {
            let (at, reason) = KeyFile::parse(&text).unwrap_err();
            assert!(at == line && reason.contains(words), "{text:?}: {at} {reason}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = KeyFile::read(Path::new("/nonexistent/cluster.key")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/cluster.key"));
        assert!(KeyFile::read(Path::new("/")).is_err(), "a directory is no key");
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(KeyFile::read(&pipe).is_err(), "nor is a pipe, and nobody waits for it");
    }
}
