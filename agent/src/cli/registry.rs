//! `undermount registry`: serve a directory as an OCI registry.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use clap::{Args, ValueEnum};
use undermount::host::manager::Manager;
use undermount::peer::keys::{self, ClusterKeys, KeyFile};
use undermount::peer::membership;
use undermount::registry::GarbageRules;
use undermount::registry::server::{
    IndexPolicy, PullPolicy, PushPolicy, Server, ServerConfig, Source, TlsFiles,
};

use super::exit::{CliResult, Exit};
use super::{service, signals};

/// Serve a directory as an OCI registry
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Directory that holds the blobs and repositories; made if it does not exist
    #[arg(long, value_name = "DIR", required_unless_present = "image_serve")]
    root: Option<PathBuf>,
    /// Serve the tree that `prepare` wrote for an Apache instead, read-only
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root", "push"])]
    image_serve: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8787")]
    listen: String,
    /// Certificate for TLS, with those that sign it (PEM); read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "TLS", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", help_heading = "TLS", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File with those who can log in: names and passwords as `htpasswd -B` writes them
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    htpasswd: Option<PathBuf>,
    /// Who may push and delete; who has logged in may as well [default: users with --htpasswd,
    /// host without]
    #[arg(long, value_enum, value_name = "WHO", help_heading = "Access")]
    push: Option<Push>,
    /// Who may pull
    #[arg(long, value_enum, value_name = "WHO", help_heading = "Access", default_value_t = Pull::Any)]
    pull: Pull,
    /// Whether the layers of pushed images are indexed, so that nodes can mount them lazily
    #[arg(long, value_enum, default_value_t = Index::Auto)]
    index: Index,
    /// How long a push waits for its index; after that it is made in the background
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    index_wait: u64,
    /// Whether nodes may tell which files starts read, of which start-up packs are made
    #[arg(long, value_enum, default_value_t = Profiles::Take)]
    profiles: Profiles,
    /// Take manifests that name blobs or images which were not pushed
    #[arg(long)]
    sparse: bool,
    /// Blobs that one client can read at a time; more are refused for a second (429)
    #[arg(long, value_name = "COUNT", default_value = "256")]
    reads_per_client: NonZeroUsize,
    /// Log each request
    #[arg(long)]
    access_log: bool,
    /// How long requests in progress may take to end when the registry is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    /// File with the cluster key: tell the nodes that have it which other nodes there are
    #[arg(long, value_name = "FILE", help_heading = "Peers")]
    peers_key: Option<PathBuf>,
    #[command(flatten)]
    garbage: GarbageArgs,
}

/// What is removed by itself because no image needs it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Garbage")]
struct GarbageArgs {
    /// How often blobs are looked for that no image needs; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    gc_interval: u64,
    /// How long a blob is kept that was pushed, mounted or asked for and that no manifest names
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    gc_grace: u64,
    /// Remove images that no tag leads to as well
    #[arg(long)]
    gc_untagged: bool,
}

/// [`PushPolicy`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Push {
    /// Clients on this host, unless a proxy asks for them
    #[value(alias = "loopback")]
    Host,
    /// Every client that can connect
    Any,
    /// Only who has logged in
    Users,
    /// Nobody: read-only
    None,
}

/// [`PullPolicy`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    /// Every client that can connect
    Any,
    /// Only who has logged in
    Users,
}

/// [`IndexPolicy`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Index {
    /// Index each image
    Auto,
    /// Index nothing
    Off,
}

/// Whether profiles of starts are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profiles {
    /// From everyone who may pull: a wrong one costs bandwidth, up to the size of a pack
    Take,
    /// From nobody
    Off,
}

impl From<Push> for PushPolicy {
    fn from(push: Push) -> Self {
        match push {
            Push::Host => Self::OwnHost,
            Push::Any => Self::Any,
            Push::Users => Self::Users,
            Push::None => Self::None,
        }
    }
}

impl GarbageArgs {
    fn policy(&self) -> Option<(Duration, GarbageRules)> {
        let rules = GarbageRules {
            grace: Duration::from_secs(self.gc_grace),
            untagged: self.gc_untagged,
            dry_run: false,
        };
        (self.gc_interval > 0).then(|| (Duration::from_secs(self.gc_interval), rules))
    }
}

impl RegistryArgs {
    /// Serves until a signal comes.
    pub async fn run(self) -> CliResult {
        let shutdown = signals::cancelled_by_signals()?;
        let index = match self.index {
            Index::Auto => IndexPolicy::Wait(Duration::from_secs(self.index_wait)),
            Index::Off => IndexPolicy::Off,
        };
        let push = match (self.push, &self.htpasswd) {
            (Some(push), _) => push,
            (None, Some(_)) => Push::Users,
            (None, None) => Push::Host,
        };
        let source = match (self.root, self.image_serve) {
            (_, Some(tree)) => Source::ImageServe(tree),
            (Some(root), None) => Source::Directory(root),
            (None, None) => return Err("name the directory to serve with --root".into()),
        };
        let config = ServerConfig {
            source,
            reads_per_client: Some(self.reads_per_client),
            garbage: self.garbage.policy(),
            push: push.into(),
            pull: match self.pull {
                Pull::Any => PullPolicy::Any,
                Pull::Users => PullPolicy::Users,
            },
            users: self.htpasswd,
            tls: self
                .tls_cert
                .zip(self.tls_key)
                .map(|(certificate, key)| TlsFiles { certificate, key }),
            index,
            profiles: self.profiles == Profiles::Take,
            sparse: self.sparse,
            access_log: self.access_log,
            listen: self.listen,
            grace: Duration::from_secs(self.grace),
        };
        let mut server = Server::bind(config).await?;
        if let Some(path) = self.peers_key {
            server = server.with_routes(seed(path)?);
        }
        let words = format!("listening on {}", server.url());
        writeln!(std::io::stdout(), "{words}")?;
        let manager = service::ready(&words);
        server.run(shutdown).await;
        manager.inspect(Manager::stopping);
        Ok(Exit::Success)
    }
}

/// The routes by which nodes with the key at `path` find each other.
fn seed(path: PathBuf) -> CliResult<Router> {
    let keys = ClusterKeys::new(&KeyFile::read(&path)?);
    // It follows the file for as long as this process lives.
    tokio::spawn(keys::follow(keys.clone(), path));
    Ok(Router::new().nest("/undermount", membership::seed::router(keys)))
}
