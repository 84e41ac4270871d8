//! Files that the configuration is made of, and what is wrong with them.

use std::io;
use std::path::{Path, PathBuf};

use reqwest::Certificate;

use super::Settings;
use crate::host;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something that is not allowed.
    #[error("{}:{line}: {reason}{}", path.display(), quoted(text))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what is allowed.
        reason: String,
        /// The line itself.
        text: String,
    },
    /// A file with CA certificates cannot be used.
    #[error("cannot use the CA file {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" (in `{text}`)") }
}

/// What `text`, the content of the file at `path`, says.
pub(super) fn parse(path: &Path, text: &str) -> Result<Settings, ConfigError> {
    let wrong = |line: usize, reason: String| ConfigError::Wrong {
        path: path.to_owned(),
        line: line + 1,
        reason,
        text: text.lines().nth(line).unwrap_or_default().trim().to_owned(),
    };
    let settings: Settings = toml_edit::de::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        wrong(line, error.message().trim().replace("unknown field", "unknown key"))
    })?;
    if let Some(mistake) = settings.peers.mistake() {
        let section = text.lines().position(|line| line.trim_start().starts_with("[peers]"));
        return Err(wrong(section.unwrap_or_default(), mistake));
    }
    Ok(settings)
}

/// The CA certificates in a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<Certificate>, ConfigError> {
    let wrong = |reason: String| ConfigError::Certificate { path: path.to_owned(), reason };
    let pem = host::file::read(path).map_err(|error| wrong(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        return Err(wrong("it holds no certificate in PEM form".to_owned()));
    }
    Ok(found)
}
