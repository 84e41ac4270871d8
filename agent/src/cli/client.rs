//! How registries are reached: what the flags and the files of podman and docker say.

use std::path::PathBuf;

use clap::Args;
use undermount::registry::client::{ClientConfig, Credentials};

/// How registries are reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registries")]
pub struct ClientArgs {
    /// File with registry credentials, as `podman login` writes it [default: those of podman and
    /// docker]
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
}

impl ClientArgs {
    /// The configuration that the flags come to.
    pub fn config(&self) -> ClientConfig {
        let files = match &self.authfile {
            Some(file) => vec![file.clone()],
            None => credential_files(),
        };
        ClientConfig { credentials: Credentials::from_files(files), ..ClientConfig::default() }
    }
}

/// Where podman, skopeo and docker keep credentials, the first one first
/// (containers-auth.json(5)).
pub fn credential_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let named = variable("REGISTRY_AUTH_FILE");
    let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let home = variable("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    [
        named,
        runtime,
        Some("/run/containers/0/auth.json".into()),
        in_home(".config/containers/auth.json"),
        in_home(".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}
