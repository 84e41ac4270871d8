//! Credentials that podman hands to its layer store: since 5.2 it runs a helper whenever it opens
//! an image (`additional-layer-store-auth-helper` in registries.conf), with this on its standard
//! input, where the key is the name after mirrors were applied:
//!
//! ```text
//! {"host[:port]/path:tag": {"username": "...", "password": "...", "identityToken": "..."}}
//! ```
//!
//! The helper adds them to a file in the form of auth.json, in which [`Credentials`] look.
//!
//! [`Credentials`]: super::Credentials

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::host::file::{Lasting, replace};
use crate::image::{Reference, ReferenceError};

/// What podman says cannot be used. It is never shown.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// It is not of the form that the protocol has.
    #[error("not the credentials that podman hands to a layer store: line {line}, column {column}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// Credentials for something that is no image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The file cannot be kept.
    #[error("cannot write {}", path.display())]
    Keep {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Handed {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Adds what podman says in `text` to the file at `path`, which only its owner can read.
///
/// # Errors
/// [`HandedError`]; the file is then as it was.
pub fn keep(text: &[u8], path: &Path) -> Result<(), HandedError> {
    let handed: BTreeMap<String, Handed> = serde_json::from_slice(text)
        .map_err(|e| HandedError::Malformed { line: e.line(), column: e.column() })?;
    let failed = |source| HandedError::Keep { path: path.to_owned(), source };
    // podman opens images side by side: each helper adds to what the one before has written.
    let _turn = lock_directory_of(path).map_err(failed)?;
    let mut file: Value = fs::read(path)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .filter(|file: &Value| file["auths"].is_object())
        .unwrap_or_else(|| json!({ "auths": {} }));
    for (reference, Handed { username, password }) in handed {
        let repository = reference.parse::<Reference>()?.repository().to_string();
        // Anonymous, or by a token that belongs to no password: nothing that could be shown.
        let entry = (!username.is_empty())
            .then(|| json!({ "auth": STANDARD.encode(format!("{username}:{password}")) }));
        match (entry, file["auths"].as_object_mut()) {
            (Some(entry), Some(auths)) => drop(auths.insert(repository, entry)),
            (None, Some(auths)) => drop(auths.remove(&repository)),
            (_, None) => {}
        }
    }
    let text = file.to_string();
    replace(path, text.as_bytes(), 0o600, Lasting::ThisBoot).map_err(failed)
}

/// Makes the directory of `path` where it is missing, and keeps others who do the same from it.
fn lock_directory_of(path: &Path) -> io::Result<Flock<fs::File>> {
    let directory = directory_of(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    Flock::lock(fs::File::open(directory)?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno.into())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::registry::client::Credentials;

    #[tokio::test]
    async fn what_podman_hands_over_is_found_for_the_image_and_for_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/handed.json");
        let hand = |text: &str| keep(text.as_bytes(), &path);
        hand(r#"{"uc:8787/a/one:1": {"username": "joe", "password": "s3:cret"}}"#).unwrap();
        hand(r#"{"uc:8787/a/two@sha256:0000000000000000000000000000000000000000000000000000000000000000":
                 {"username": "ann", "password": "x", "identityToken": ""}}"#)
        .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let found = async |repository: &str| {
            let credentials = Credentials::from_files(vec![path.clone()]);
            credentials.lookup(repository).await.unwrap().map(|found| found.user)
        };
        assert_eq!(found("uc:8787/a/one").await.as_deref(), Some("joe"));
        assert_eq!(found("uc:8787/a/two").await.as_deref(), Some("ann"));
        assert_eq!(found("uc:8787/a/three").await, None);
        hand(r#"{"uc:8787/a/one:2": {"username": "", "password": ""}}"#).unwrap();
        assert_eq!(found("uc:8787/a/one").await, None, "anonymous by now");
    }

    #[test]
    fn regression_what_is_handed_over_at_once_is_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/handed.json");
        std::thread::scope(|threads| {
            for number in 0..16 {
                let path = &path;
                threads.spawn(move || {
                    let text = format!(
                        r#"{{"uc:8787/a/image{number}:1": {{"username": "u", "password": "p"}}}}"#
                    );
                    keep(text.as_bytes(), path).unwrap();
                });
            }
        });
        let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(kept["auths"].as_object().unwrap().len(), 16);
    }

    #[test]
    fn what_is_malformed_is_refused_without_being_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handed.json");
        let refused = |text: &str| keep(text.as_bytes(), &path).unwrap_err().to_string();
        let said = refused(r#"{"uc/a:1": {"username": "joe", "password": s3cret}}"#);
        assert!(said.ends_with("line 1, column 44") && !said.contains("s3cret"), "{said}");
        assert!(!refused(r#"{"NO IMAGE": {"password": "s3cret"}}"#).contains("s3cret"));
        assert!(!path.exists());
    }
}
