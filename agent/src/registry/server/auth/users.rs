//! Users and their passwords: an htpasswd file with bcrypt hashes, read again when it changes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;
use undermount_fs::digest::{Digest, Hasher};

use super::super::random::hex;
use crate::blocking::blocking;
use crate::host;
use crate::registry::Secret;

/// A password that was right need not be hashed again for this time.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Passwords that are remembered.
const MAX_REMEMBERED: usize = 1000;
/// Passwords that are hashed side by side, since that is made to be slow.
const SIDE_BY_SIDE: usize = 2;
/// Checked for users who do not exist, so that they take as long as others.
const NOBODY: &str = "$2y$10$RJJkdQrf1SeStUA0pJhOy.ZEd4AJVpuyz1j7nBBniATb8C2mcNItu";

/// The users of a registry.
pub struct Users {
    path: PathBuf,
    known: Mutex<Arc<Known>>,
    right: Mutex<HashMap<Digest, Instant>>,
    /// Hashed with what is remembered, so that memory does not tell passwords.
    salt: String,
    turns: Semaphore,
}

/// What the file held.
struct Known {
    hashes: HashMap<String, String>,
    modified: Option<SystemTime>,
}

/// Why a file is no list of users.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// A line is malformed.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Users {
    /// The users that the file at `path` lists.
    ///
    /// # Errors
    /// [`UsersError`].
    pub fn read(path: &Path) -> Result<Self, UsersError> {
        let known = Known::read(path)?;
        Ok(Self {
            path: path.to_owned(),
            known: Mutex::new(Arc::new(known)),
            right: Mutex::default(),
            salt: hex::<32>(),
            turns: Semaphore::new(SIDE_BY_SIDE),
        })
    }

    /// Whether `password` is that of `name`.
    pub async fn verify(&self, name: &str, password: &Secret) -> bool {
        let known = self.current();
        let hash = known.hashes.get(name).cloned();
        let memory = self.memory(name, password, hash.as_deref().unwrap_or_default());
        if self.right().get(&memory).is_some_and(|since| since.elapsed() < REMEMBERED) {
            return true;
        }
        let Ok(_turn) = self.turns.acquire().await else { return false };
        let (exists, password) = (hash.is_some(), password.clone());
        let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
        let matches =
            blocking(move || bcrypt::verify(password.expose(), &hash).unwrap_or(false)).await;
        if matches && exists {
            self.remember(memory);
        }
        matches && exists
    }

    fn remember(&self, memory: Digest) {
        let mut right = self.right();
        right.retain(|_, since| since.elapsed() < REMEMBERED);
        if right.len() < MAX_REMEMBERED {
            right.insert(memory, Instant::now());
        }
    }

    /// What is remembered of a right password. It changes with the file's hash.
    fn memory(&self, name: &str, password: &Secret, hash: &str) -> Digest {
        let mut hasher = Hasher::default();
        for part in [self.salt.as_str(), name, password.expose(), hash] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish()
    }

    /// The users as the file has them now; those it had before where it cannot be read.
    fn current(&self) -> Arc<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if modified(&self.path) != known.modified {
            match Known::read(&self.path) {
                Ok(read) => {
                    tracing::info!(path = %self.path.display(), "users read again");
                    *known = Arc::new(read);
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "users stay as they were"
                ),
            }
        }
        Arc::clone(&known)
    }

    fn right(&self) -> MutexGuard<'_, HashMap<Digest, Instant>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.path.display())
    }
}

impl Known {
    fn read(path: &Path) -> Result<Self, UsersError> {
        // Asked before, so that a change in between is seen the next time.
        let modified = modified(path);
        let text = host::file::read_text(path)
            .map_err(|source| UsersError::Read { path: path.to_owned(), source })?;
        let error = |line, reason| UsersError::Line { path: path.to_owned(), line, reason };
        let mut hashes = HashMap::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, hash) = parse(text).map_err(|reason| error(line, reason))?;
            hashes.insert(name, hash);
        }
        Ok(Self { hashes, modified })
    }
}

fn parse(line: &str) -> Result<(String, String), &'static str> {
    let (name, hash) = line.split_once(':').ok_or("there is no colon after a name")?;
    if name.is_empty() {
        return Err("the name is empty");
    }
    if !["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind)) {
        return Err("the password is not hashed with bcrypt (`htpasswd -B` does that)");
    }
    Ok((name.to_owned(), hash.to_owned()))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn line(name: &str, password: &str) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    fn file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    async fn knows(users: &Users, name: &str, password: &str) -> bool {
        users.verify(name, &Secret::new(password)).await
    }

    #[tokio::test]
    async fn passwords_are_checked_and_remembered_for_their_user_only() {
        let file = file(&format!("# users\n\n{}{}", line("a", "one"), line("b", "two")));
        let users = Users::read(file.path()).unwrap();
        for _ in 0..2 {
            assert!(knows(&users, "a", "one").await);
            assert!(!knows(&users, "b", "one").await);
            assert!(!knows(&users, "a", "two").await);
            assert!(!knows(&users, "c", "one").await);
        }
        assert_eq!(users.right().len(), 1);
    }

    #[tokio::test]
    async fn a_changed_file_counts_at_once() {
        let file = file(&line("a", "one"));
        let users = Users::read(file.path()).unwrap();
        assert!(knows(&users, "a", "one").await);
        fs::write(file.path(), line("a", "new")).unwrap();
        File::open(file.path()).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!knows(&users, "a", "one").await);
        assert!(knows(&users, "a", "new").await);
    }

    #[tokio::test]
    async fn a_file_that_became_unreadable_leaves_the_users_as_they_were() {
        let file = file(&line("a", "one"));
        let users = Users::read(file.path()).unwrap();
        fs::write(file.path(), "a:plain\n").unwrap();
        File::open(file.path()).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(knows(&users, "a", "one").await);
    }

    #[test]
    fn malformed_files_are_refused_by_line() {
        for (content, words) in [
            ("alice\n", "line 1: there is no colon"),
            ("# x\n\n:$2y$05$abc\n", "line 3: the name is empty"),
            ("alice:{SHA}abc\n", "line 1: the password is not hashed with bcrypt"),
        ] {
            let error = Users::read(file(content).path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = Users::read(Path::new("/nowhere/users")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/users"), "{error}");
    }

    #[test]
    fn the_password_of_nobody_is_a_hash() {
        assert!(!bcrypt::verify("", NOBODY).unwrap());
    }
}
