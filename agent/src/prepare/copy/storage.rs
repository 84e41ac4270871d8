//! Images in podman's storage on this host, read by podman's own tools: `skopeo` where it is
//! installed, else `podman`. Either writes the image into an OCI layout, which is then copied.

use std::io;
use std::path::Path;
use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::process::Command;

use super::CopyError;
use super::layout::{Layout, LayoutError};

/// The name of the image in the layout that is made of it.
const NAME: &str = "image";
/// What is shown of the words of a program that fails.
const MAX_WORDS: usize = 1000;

/// An image that could not be had from podman's storage.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No program that could.
    #[error("containers-storage:{0} is read through skopeo or podman, and neither is installed")]
    NoProgram(String),
    /// The program did not run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The program failed.
    #[error("containers-storage:{name}: {program} says: {words}")]
    Failed {
        /// The image.
        name: String,
        /// The program.
        program: &'static str,
        /// Its words.
        words: String,
    },
}

/// The image `name` of podman's storage as a layout below `scratch`.
///
/// # Errors
/// [`CopyError`] where it cannot be had.
pub async fn export(name: &str, scratch: &Path) -> Result<Layout, CopyError> {
    let made = tempfile::Builder::new().prefix("undermount-storage-").tempdir_in(scratch);
    let scratch =
        made.map_err(|source| CopyError::Temporary { path: scratch.to_owned(), source })?;
    let shown = format!("containers-storage:{name}");
    for program in ["skopeo", "podman"] {
        match call(program, name, &scratch).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StorageError::Run { program, source }.into()),
            Ok(output) if output.status.success() => {
                return Ok(Layout::temporary(scratch, Path::new(&shown))?);
            }
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr);
                let words = words.trim().chars().take(MAX_WORDS).collect();
                return Err(StorageError::Failed { name: name.to_owned(), program, words }.into());
            }
        }
    }
    Err(StorageError::NoProgram(name.to_owned()).into())
}

async fn call(program: &str, name: &str, scratch: &TempDir) -> io::Result<Output> {
    let layout = format!("oci:{}:{NAME}", scratch.path().display());
    let mut command = Command::new(program);
    match program {
        // The signature policy is about images from elsewhere, and the file may not exist.
        "skopeo" => command
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("containers-storage:{name}"))
            .arg(layout),
        _ => command.args(["push", "--quiet", "--format", "oci", name]).arg(layout),
    };
    command.stdin(Stdio::null()).kill_on_drop(true).output().await
}

impl From<StorageError> for CopyError {
    fn from(error: StorageError) -> Self {
        Self::Storage(Box::new(error))
    }
}

// A layout that a program made is opened like any other.
impl From<LayoutError> for CopyError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(Box::new(error))
    }
}
