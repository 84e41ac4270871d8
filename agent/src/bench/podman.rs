//! How an image gets to a node with podman: pulled whole, then mounted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::BenchError;
use crate::image::Reference;

/// How long podman may take for one command.
const PODMAN: Duration = Duration::from_secs(3600);

/// What podman is run with unless other flags say otherwise: the driver that everybody uses, and
/// no journal to write to.
const FLAGS: [&str; 2] = ["--storage-driver=overlay", "--events-backend=none"];

/// A storage of podman's own, below a directory of the bench.
pub struct Podman {
    root: PathBuf,
    flags: Vec<OsString>,
}

impl Podman {
    /// A storage that does not exist yet, below `scratch`; `flags` stand before every command.
    pub fn new(scratch: &Path, flags: &[OsString]) -> Self {
        Self { root: scratch.join("podman"), flags: flags.to_vec() }
    }

    /// Whether there is a podman to ask.
    pub async fn is_installed() -> bool {
        let mut version = Command::new("podman");
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        version.status().await.is_ok_and(|status| status.success())
    }

    /// Pulls an image and mounts it; its root directory.
    ///
    /// # Errors
    /// [`BenchError::Command`] with what podman said.
    pub async fn pull(&self, reference: &Reference) -> Result<PathBuf, BenchError> {
        let name = reference.to_string();
        self.run(&["pull", "--quiet", "--tls-verify=false", &name]).await?;
        let said = self.run(&["image", "mount", &name]).await?;
        Ok(PathBuf::from(said.trim_end()))
    }

    /// Unmounts all images and removes the storage.
    ///
    /// # Errors
    /// [`BenchError::Command`] with what podman said.
    pub async fn clear(&self) -> Result<(), BenchError> {
        self.run(&["image", "umount", "--all", "--force"]).await?;
        self.run(&["rmi", "--all", "--force"]).await.map(drop)
    }

    /// A configuration in which no layer store is named: that of the host may name the agent's,
    /// and podman would be as lazy as what it is compared with.
    fn storage_conf(&self) -> Result<PathBuf, BenchError> {
        std::fs::create_dir_all(&self.root).map_err(BenchError::Scratch)?;
        let path = self.root.join("storage.conf");
        let (root, run) = (self.root.join("root"), self.root.join("run"));
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            root.display(),
            run.display()
        );
        std::fs::write(&path, text).map_err(BenchError::Scratch)?;
        Ok(path)
    }

    async fn run(&self, words: &[&str]) -> Result<String, BenchError> {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.root.join("root"));
        command.arg("--runroot").arg(self.root.join("run"));
        command.args(FLAGS).args(&self.flags).args(words);
        command.env("CONTAINERS_STORAGE_CONF", self.storage_conf()?);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let failed = |reason: String| BenchError::Command {
            words: format!("podman {}", words.join(" ")),
            reason,
        };
        let output = tokio::time::timeout(PODMAN, command.output())
            .await
            .map_err(|_| failed(format!("it took longer than {} s", PODMAN.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())),
        }
    }
}
