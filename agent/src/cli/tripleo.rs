//! `undermount tripleo container image …`: the spellings of `openstack tripleo container image`.
//!
//! Scripts that call the original keep working with one word exchanged. Flags are the original's.

mod catalog;
mod cliff;
mod hotfix;
mod push;
mod tcib;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use undermount::prepare::ceph;
use undermount::prepare::env_file;
use undermount::prepare::environment::Environment;
use undermount::prepare::insecure::Insecure;
use undermount::prepare::release::Release;
use undermount::prepare::{undercloud, yaml};
use undermount::registry::client::{Client, ClientConfig, Credential, Secret};

use super::client::ClientArgs;
use super::clock::LocalTime;
use super::exit::{CliResult, Exit};
use super::prepare::{Habits, IMAGE_SERVE, PrepareArgs, environment_text};

/// `openstack tripleo …` in the original's words
#[derive(Debug, Subcommand)]
pub enum Tripleo {
    /// Containers
    // Scripts may shorten flags and repeat them: argparse lets them, and the last one counts.
    #[command(subcommand, infer_long_args = true, args_override_self = true)]
    Container(Container),
}

/// What follows `tripleo container`.
#[derive(Debug, Subcommand)]
pub enum Container {
    /// Container images
    #[command(subcommand)]
    Image(Image),
}

/// What follows `tripleo container image`.
#[derive(Debug, Subcommand)]
pub enum Image {
    Prepare(Box<Prepare>),
    Push(push::PushArgs),
    List(catalog::ListArgs),
    Show(catalog::ShowArgs),
    Delete(catalog::DeleteArgs),
    Hotfix(hotfix::HotfixArgs),
    Build(Box<tcib::BuildArgs>),
}

/// Prepare images, or print the default list of entries
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Prepare {
    #[command(flatten)]
    prepare: PrepareArgs,
    /// File that events are appended to, from info on; a relative path is below the home
    /// directory, as in the original
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    log_file: Option<PathBuf>,
    #[command(subcommand)]
    topic: Option<PrepareTopic>,
}

#[derive(Debug, Subcommand)]
enum PrepareTopic {
    Default(DefaultArgs),
}

/// Print the list of entries that is used where the environment has none
#[derive(Debug, Args)]
pub struct DefaultArgs {
    /// File to write as well; an existing one is moved to FILE.backup
    #[arg(long, value_name = "FILE")]
    output_env_file: Option<PathBuf>,
    /// Push to the undercloud's registry
    #[arg(long)]
    local_push_destination: bool,
    /// Let nodes log in to registries
    #[arg(long)]
    enable_registry_login: bool,
    /// TripleO release whose list it is
    #[arg(long, value_name = "RELEASE", env = "TRIPLEO_COMPAT", default_value_t)]
    release: Release,
}

impl Tripleo {
    /// The file that gets the events beside stderr.
    pub fn log_file(&self) -> Option<PathBuf> {
        let Self::Container(Container::Image(Image::Prepare(prepare))) = self else { return None };
        let path = prepare.log_file.as_ref()?;
        Some(std::env::home_dir().unwrap_or_default().join(path))
    }

    /// Runs the command.
    pub async fn run(self) -> CliResult {
        let Self::Container(Container::Image(image)) = self;
        match image {
            Image::Prepare(args) => match args.topic {
                Some(PrepareTopic::Default(args)) => args.run(),
                None => args.prepare.run(Habits::ORIGINAL).await,
            },
            Image::Push(args) => args.run().await,
            Image::List(args) => args.run().await,
            Image::Show(args) => args.run().await,
            Image::Delete(args) => args.run().await,
            Image::Hotfix(args) => args.run().await,
            Image::Build(args) => args.run().await,
        }
    }
}

impl DefaultArgs {
    fn run(self) -> CliResult {
        if self.local_push_destination && self.enable_registry_login {
            tracing::warn!("nodes log in to registries, but pull from the undercloud's");
        }
        let parameters = self
            .release
            .default_parameters(self.local_push_destination, self.enable_registry_login);
        let text = environment_text(parameters, LocalTime::now());
        if let Some(path) = &self.output_env_file {
            if path.exists() {
                let mut backup = path.clone().into_os_string();
                backup.push(".backup");
                std::fs::rename(path, backup)?;
            }
            env_file::write(path, &text)?;
        }
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Exit::Success)
    }
}

/// A registry and who we are there, as the original's commands have it.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Registry to work on, `host:port` [default: the undercloud's]
    #[arg(long, value_name = "URL")]
    registry_url: Option<String>,
    /// User at the registry
    #[arg(long, value_name = "USER")]
    username: Option<String>,
    /// Password at the registry; better kept in the file of `podman login`
    #[arg(long, value_name = "PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Tree of the Apache that serves the undercloud's images
    #[arg(long, value_name = "DIR", env = "IMAGE_SERVE_DIR", default_value = IMAGE_SERVE)]
    image_serve_dir: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

impl RegistryArgs {
    /// The registry, `host:port`.
    async fn host(&self) -> String {
        match &self.registry_url {
            Some(url) => without_transport(url).trim_end_matches('/').to_owned(),
            None => undercloud::registry().await,
        }
    }

    /// A client that reaches `hosts`, with the flags' login at `host`.
    async fn client(&self, host: &str, hosts: &[&str]) -> Client {
        self.client_with(host, hosts, None).await
    }

    /// The same with a user and a password at one more registry.
    async fn client_with(
        &self,
        host: &str,
        hosts: &[&str],
        other: Option<(&str, (&str, &str))>,
    ) -> Client {
        let own = self.username.as_deref().zip(self.password.as_deref()).map(|own| (host, own));
        let mut config = self.client.config();
        for (host, (user, password)) in other.into_iter().chain(own) {
            let (user, password) = (user.to_owned(), Secret::new(password));
            config.credentials.give(host, Credential { user, password });
        }
        reach(config, hosts).await
    }
}

/// A name, or a registry's URL, without the `docker://` or `http://` that may stand before it.
fn without_transport(name: &str) -> &str {
    name.split_once("://").map_or(name, |(_, rest)| rest)
}

/// A client that speaks to `hosts` in whichever way they understand.
async fn reach(mut config: ClientConfig, hosts: &[&str]) -> Client {
    let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
    Insecure::among(&hosts, &Client::new(config.clone())).await.allow(&mut config);
    Client::new(config)
}

/// Verbs for comparing with the original; nobody types them
#[derive(Debug, Subcommand)]
pub enum Harness {
    /// What `overcloud ceph deploy` takes from a prepare file
    CephRegistry {
        /// The prepare file
        file: PathBuf,
    },
}

impl Harness {
    /// Runs the verb.
    pub async fn run(self) -> CliResult {
        let Self::CephRegistry { file } = self;
        let found = ceph::image_and_login(&Environment::read(&[file])?).await?;
        std::io::stdout().write_all(yaml::write(&found.into()).as_bytes())?;
        Ok(Exit::Success)
    }
}
