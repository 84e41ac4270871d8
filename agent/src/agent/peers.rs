//! This node among the others: membership as the configuration wants it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Identity};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::host;
use crate::peer::keys::{self, ClusterKeys, KeyFile, KeyFileError};
use crate::peer::membership::{self, HttpConfig, Listen, Membership, MembershipConfig, StoreError};

/// A peer that takes no connection within this time is tried again later.
const CONNECT: Duration = Duration::from_millis(500);

/// How an agent shares what it fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersConfig {
    /// The file with the cluster key.
    pub key_file: PathBuf,
    /// Where it listens, UDP and TCP.
    pub listen: Listen,
    /// What it tells others of that; `None` for the same.
    pub advertise: Option<Vec<SocketAddr>>,
    /// URLs of the seeds.
    pub seeds: Vec<String>,
    /// Members that are known without a seed.
    pub members: Vec<SocketAddr>,
    /// Bytes per second that peers may take; `None` for half of what the link carries.
    pub bandwidth: Option<u64>,
    /// Certificates for mTLS between the members.
    pub tls: Option<PeersTls>,
}

/// Files for mTLS (PEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeersTls {
    /// The certificate of this node, with those that sign it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates of all nodes.
    pub ca: PathBuf,
}

/// The node cannot share anything.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// It has no cluster key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// It cannot keep its identity.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate cannot be used.
    #[error("cannot use the certificate file {}: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// No HTTP client can be made.
    #[error("cannot speak to peers")]
    Client(#[source] reqwest::Error),
}

/// This node among the others.
pub struct Peers {
    /// Who they are.
    pub membership: Membership,
    /// The keys of the cluster; they follow the file.
    pub keys: ClusterKeys,
    _key_watch: AbortOnDropHandle<()>,
}

impl Peers {
    /// Begins to take part, with the cache at `cache`; not before it is told to where the node is
    /// drained.
    ///
    /// # Errors
    /// [`PeersError`] where this node cannot: not for want of a network.
    pub fn start(
        config: &PeersConfig,
        cache: &Path,
        drained: bool,
        handle: &Handle,
    ) -> Result<Self, PeersError> {
        let keys = ClusterKeys::new(&KeyFile::read(&config.key_file)?);
        let membership = MembershipConfig {
            keys: keys.clone(),
            listen: config.listen.clone(),
            advertise: config.advertise.clone(),
            seeds: config.seeds.clone(),
            members: config.members.clone(),
            http: HttpConfig {
                members: member_client(config.tls.as_ref())?,
                scheme: if config.tls.is_some() { "https" } else { "http" },
                seeds: seed_client()?,
            },
            protocol: membership::PROTOCOL,
            drained,
            directory: cache.join("peers"),
            bind: membership::udp(),
        };
        let membership = Membership::start(membership, handle)?;
        let watch = keys::follow(keys.clone(), config.key_file.clone());
        let _key_watch = AbortOnDropHandle::new(handle.spawn(watch));
        Ok(Self { membership, keys, _key_watch })
    }

    /// Ends it: with a good-bye, or in silence where another process takes over at once.
    pub async fn end(&self, good_bye: bool) {
        if good_bye {
            self.membership.leave().await;
        } else {
            self.membership.stop().await;
        }
    }
}

/// What speaks HTTP to members: plain, or with the certificates of both ends checked. Members
/// are known by address, so of a certificate it counts who has signed it, not whose name it has.
///
/// # Errors
/// [`PeersError`] where a file cannot be used.
pub fn member_client(tls: Option<&PeersTls>) -> Result<reqwest::Client, PeersError> {
    let builder = client_builder().connect_timeout(CONNECT);
    let builder = match tls {
        None => builder.tls_certs_only([]),
        Some(PeersTls { certificate, key, ca }) => {
            let wrong = |path: &Path, reason: String| PeersError::Certificate {
                path: path.to_owned(),
                reason,
            };
            let read = |path: &PathBuf| {
                host::file::read(path).map_err(|error| wrong(path, error.to_string()))
            };
            let pair = [read(certificate)?, read(key)?].concat();
            let identity =
                Identity::from_pem(&pair).map_err(|error| wrong(certificate, error.to_string()))?;
            let signers = Certificate::from_pem_bundle(&read(ca)?)
                .map_err(|error| wrong(ca, error.to_string()))?;
            builder
                .identity(identity)
                .tls_certs_only(signers)
                .tls_danger_accept_invalid_hostnames(true)
        }
    };
    builder.build().map_err(PeersError::Client)
}

/// Goes where it is sent and nowhere else: a peer redirects by names of members, and one that
/// lies must not choose an address.
fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

/// What speaks HTTP to seeds. Their certificate is not looked at: the request holds no secret,
/// and the answer is sealed with the cluster key.
fn seed_client() -> Result<reqwest::Client, PeersError> {
    client_builder()
        .connect_timeout(CONNECT * 4)
        .tls_certs_only([])
        .tls_danger_accept_invalid_certs(true)
        .build()
        .map_err(PeersError::Client)
}
