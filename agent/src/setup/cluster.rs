//! `undermount setup cluster`: the cluster key, made and rotated.

use std::io;
use std::path::Path;

use crate::peer::keys::{KeyFile, KeyFileError, SecretKey, Stage};

/// What to do with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// Make it where there is none.
    Make,
    /// Take the next step of a rotation.
    Rotate,
    /// Take the last step back.
    Undo,
}

/// The key cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// There is no randomness.
    #[error("cannot make a key")]
    Random(#[source] io::Error),
    /// No rotation has begun.
    #[error("no rotation of {0} is under way, so there is no step to take back")]
    NothingToUndo(String),
}

/// Changes the key file at `path`; whether it did, and how far a rotation is now.
///
/// # Errors
/// [`ClusterError`]; the file is then as it was.
pub fn change_key(path: &Path, change: KeyChange) -> Result<(bool, Stage), ClusterError> {
    if change == KeyChange::Make && !exists(path)? {
        KeyFile::single(fresh()?).write(path)?;
        return Ok((true, Stage::Settled));
    }
    let mut file = KeyFile::read(path)?;
    match change {
        KeyChange::Make => return Ok((false, file.stage())),
        KeyChange::Rotate => file.rotate(fresh()?),
        KeyChange::Undo if file.step_back() => {}
        KeyChange::Undo => return Err(ClusterError::NothingToUndo(path.display().to_string())),
    }
    file.write(path)?;
    Ok((true, file.stage()))
}

/// What is to be done on the nodes when the key of the file is this far.
pub fn next_step(stage: Stage) -> &'static str {
    match stage {
        Stage::Settled => {
            "install this file on all nodes and on the undercloud (the Ansible roles do, given \
             `undermount_cluster_key_host`)"
        }
        Stage::Announced => {
            "the new key is accepted and not used yet: install this file everywhere, then run \
             `undermount setup cluster --rotate` again"
        }
        Stage::Switched => {
            "the new key is used, the old one still accepted: install this file everywhere, then \
             run `undermount setup cluster --rotate` for the last time"
        }
    }
}

fn fresh() -> Result<SecretKey, ClusterError> {
    SecretKey::random().map_err(ClusterError::Random)
}

/// Whether something is there, be it that it cannot be read.
fn exists(path: &Path) -> Result<bool, ClusterError> {
    path.try_exists()
        .map_err(|source| KeyFileError::Io { action: "read", path: path.to_owned(), source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_rotated_in_three_steps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        assert_eq!(change_key(&path, KeyChange::Make).unwrap(), (true, Stage::Settled));
        let made = KeyFile::read(&path).unwrap();
        assert_eq!(change_key(&path, KeyChange::Make).unwrap(), (false, Stage::Settled));
        assert_eq!(KeyFile::read(&path).unwrap(), made);
        for stage in [Stage::Announced, Stage::Switched, Stage::Settled] {
            assert_eq!(change_key(&path, KeyChange::Rotate).unwrap(), (true, stage));
        }
        assert_ne!(KeyFile::read(&path).unwrap(), made);
    }

    #[test]
    fn a_step_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        change_key(&path, KeyChange::Make).unwrap();
        let error = change_key(&path, KeyChange::Undo).unwrap_err();
        assert!(error.to_string().contains("no rotation of"), "{error}");
        change_key(&path, KeyChange::Rotate).unwrap();
        assert_eq!(change_key(&path, KeyChange::Undo).unwrap(), (true, Stage::Settled));
    }

    #[test]
    fn there_is_nothing_to_rotate_without_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        let error = change_key(&path, KeyChange::Rotate).unwrap_err();
        assert!(error.to_string().contains("cluster.key"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn regression_the_variable_that_is_named_is_one_of_the_role() {
        let words = next_step(Stage::Settled);
        let variable = words.split('`').nth(1).unwrap();
        let role = Path::new(env!("CARGO_MANIFEST_DIR"))
            .with_file_name("packaging/ansible/roles/undermount_agent/defaults/main.yml");
        let defaults = std::fs::read_to_string(role).unwrap();
        assert!(defaults.contains(&format!("\n{variable}:")), "{variable}");
    }
}
