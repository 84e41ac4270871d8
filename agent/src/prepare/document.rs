//! YAML files that people write: reading one, with its name and the place of a mistake in the
//! error.

use std::path::{Path, PathBuf};

use super::yaml::{self, Value, YamlError};

/// A file that cannot be read or is not YAML.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The file cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    Read {
        /// What it is to be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{}:{}:{}: malformed YAML: {}", path.display(), error.line, error.column, error.problem)]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: YamlError,
    },
}

/// Reads the file at `path`, which is to be `what`.
///
/// # Errors
/// [`DocumentError`] where it cannot be read or is not YAML.
pub fn read(what: &'static str, path: &Path) -> Result<Value, DocumentError> {
    let own = || path.to_owned();
    let text = std::fs::read_to_string(path).map_err(|source| DocumentError::Read {
        what,
        path: own(),
        source,
    })?;
    parse(path, &text)
}

/// The document in `text`, which was read from `path`.
///
/// # Errors
/// [`DocumentError::Malformed`] where it is not YAML.
pub fn parse(path: &Path, text: &str) -> Result<Value, DocumentError> {
    yaml::read(text).map_err(|error| DocumentError::Malformed { path: path.to_owned(), error })
}
