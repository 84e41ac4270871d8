//! How registries are reached: what the flags and the files of podman and docker say.

use std::path::{Path, PathBuf};

use clap::Args;
use undermount::registry::client::{ClientConfig, Credentials, RegistriesConf};

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
        self.over(default_config())
    }

    /// The flags over the configuration `config`.
    pub fn over(&self, mut config: ClientConfig) -> ClientConfig {
        if let Some(file) = &self.authfile {
            config.credentials = Credentials::from_files(vec![file.clone()]);
        }
        config
    }
}

/// What the files of podman and docker say, without any flag.
pub fn default_config() -> ClientConfig {
    ClientConfig {
        credentials: Credentials::from_files(credential_files()),
        certificate_dirs: certificate_dirs(),
        registries: registries_conf(),
        ..ClientConfig::default()
    }
}

/// Where podman, skopeo and docker keep certificates of registries (containers-certs.d(5)).
fn certificate_dirs() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    [
        home.map(|home| home.join(".config/containers/certs.d")),
        Some("/etc/containers/certs.d".into()),
        Some("/etc/docker/certs.d".into()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What podman and skopeo are told about registries (containers-registries.conf(5)).
fn registries_conf() -> RegistriesConf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    match variable("CONTAINERS_REGISTRIES_CONF") {
        // One that is named stands alone, as with podman.
        Some(named) => RegistriesConf::or_broken(RegistriesConf::read(&[named], &[])),
        None => {
            let home = variable("HOME");
            RegistriesConf::or_broken(RegistriesConf::of_system(Path::new("/"), home.as_deref()))
        }
    }
}

/// Where podman, skopeo and docker keep credentials, the first one first
/// (containers-auth.json(5)).
fn credential_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let named = variable("REGISTRY_AUTH_FILE");
    let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let home = variable("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    [
        named,
        Some(super::auth_helper::handed_credentials()),
        runtime,
        Some("/run/containers/0/auth.json".into()),
        in_home(".config/containers/auth.json"),
        in_home(".docker/config.json"),
    ]
    .into_iter()
    .flatten()
    .collect()
}
