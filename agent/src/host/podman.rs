//! Podman, asked whether it works.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::program;

/// How long podman may take to say something about itself, unless somebody says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// The installed podman.
#[derive(Debug, Clone)]
pub struct Podman {
    program: PathBuf,
    root: PathBuf,
    patience: Duration,
}

/// Podman does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum PodmanError {
    /// It cannot be started.
    #[error("cannot start {}; is podman installed?", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It does not come back.
    #[error("`podman info` took longer than {seconds} seconds")]
    Slow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// It refuses.
    #[error("`podman info` says: {0}")]
    Refused(String),
    /// It says something that nobody understands.
    #[error("`podman info` answers in an unknown form")]
    Answer(#[source] serde_json::Error),
}

/// What podman says about itself, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its version, such as `4.3.1`.
    pub version: String,
    /// Its storage driver.
    pub driver: String,
    /// The additional layer stores that it looks into, `PATH[:ref]`.
    pub layer_stores: Vec<String>,
}

impl Info {
    /// Which generation of the layer-store protocol it speaks: since 5.1 it asks only for layers
    /// with a TOC annotation, before for every layer.
    pub fn generation(&self) -> u8 {
        if self.major_minor() >= (5, 1) { 2 } else { 1 }
    }

    /// Whether it runs `additional-layer-store-auth-helper` (since 5.2).
    pub fn hands_credentials_over(&self) -> bool {
        self.major_minor() >= (5, 2)
    }

    fn major_minor(&self) -> (u32, u32) {
        let mut numbers = self.version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

#[derive(Deserialize)]
struct Answer {
    version: Version,
    store: Store,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "Version")]
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Store {
    graph_driver_name: String,
    #[serde(default)]
    graph_options: Map<String, Value>,
}

impl Podman {
    /// The podman of the system below `root`, by name or path.
    pub fn new(program: &Path, root: &Path) -> Self {
        Self { program: program.to_owned(), root: root.to_owned(), patience: PATIENCE }
    }

    /// The same podman, waited for no longer than `patience`.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// What podman says about itself: every one of its commands fails where this does.
    ///
    /// # Errors
    /// [`PodmanError`] with podman's own words.
    pub fn info(&self) -> Result<Info, PodmanError> {
        let answer = program::run(self.command().args(["info", "--format", "json"]), self.patience)
            .map_err(|source| PodmanError::Start { program: self.program.clone(), source })?
            .ok_or(PodmanError::Slow { seconds: self.patience.as_secs() })?;
        if !answer.status.success() {
            let words = String::from_utf8_lossy(&answer.stderr);
            return Err(PodmanError::Refused(words.trim().to_owned()));
        }
        let answer: Answer = serde_json::from_slice(&answer.stdout).map_err(PodmanError::Answer)?;
        Ok(Info {
            version: answer.version.version,
            driver: answer.store.graph_driver_name,
            layer_stores: layer_stores(&answer.store.graph_options),
        })
    }

    fn command(&self) -> Command {
        if self.root == Path::new("/") {
            return Command::new(&self.program);
        }
        let mut command = Command::new("chroot");
        command.arg(&self.root).arg(&self.program);
        command
    }
}

/// The option is a list in one string; podman 4.3 shows only one of several.
fn layer_stores(options: &Map<String, Value>) -> Vec<String> {
    let option = options.get("overlay.additionallayerstore").and_then(Value::as_str);
    option.into_iter().flat_map(|stores| stores.split(',')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_follows_from_the_version() {
        for (version, generation) in
            [("4.3.1", 1), ("5.0.3", 1), ("5.1.0", 2), ("5.10.0-rc1", 2), ("6.0.0", 2), ("odd", 1)]
        {
            let driver = "overlay".to_owned();
            let info = Info { version: version.to_owned(), driver, layer_stores: Vec::new() };
            assert_eq!(info.generation(), generation, "{version}");
        }
    }

    #[test]
    fn a_missing_podman_is_named() {
        let podman = Podman::new(Path::new("/does/not/exist/podman"), Path::new("/"));
        let said = podman.info().unwrap_err().to_string();
        assert!(said.contains("/does/not/exist/podman; is podman installed?"), "{said}");
    }

    #[test]
    fn the_words_of_a_podman_that_refuses_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("podman");
        std::fs::write(&program, "#!/bin/sh\necho no good >&2\nexit 125\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let said = Podman::new(&program, Path::new("/")).info().unwrap_err().to_string();
        assert_eq!(said, "`podman info` says: no good");
    }
}
