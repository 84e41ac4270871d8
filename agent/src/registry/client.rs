//! A client for any registry: finds and checks manifests, reads blobs in parts or as streams
//! that survive cuts, pushes, mounts and attaches.
//!
//! A [`Client`] serves all registries and is cheap to clone; passes, connections and what was
//! learned about each registry are shared by its clones. [`Client::until`] gives a clone whose
//! operations end at a deadline. Every operation retries what may pass, within the budget of
//! [`RetryPolicy`], and every error names registry, repository and thing.
//!
//! What a registry sends is believed only as far as digests reach: see `blob` for bytes that
//! are checked here and for streams that the reader has to check.

mod attach;
mod auth;
mod blob;
mod certificates;
mod challenge;
mod copy;
mod credentials;
mod elsewhere;
mod endpoint;
mod error;
mod handed;
mod helper;
mod lately;
mod link;
mod lists;
mod manage;
mod manifests;
mod privacy;
mod profiles;
mod progress;
mod publish;
mod referrers;
mod registries_conf;
mod response;
mod retry;
mod route;
mod security;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transport;
mod upload;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::image::Repository;

pub use super::Secret;
pub use attach::FoundArtifact;
pub use blob::BlobReader;
pub use certificates::CertificateError;
pub use copy::{BlobSource, BlobStream, Listener, MemoryBlob, RemoteBlob};
pub use credentials::{Credential, CredentialError, Credentials};
pub use elsewhere::Elsewhere;
pub use error::{Fault, Message, RegistryError, Subject};
pub use handed::{HandedError, keep as keep_handed_credentials};
pub use manifests::{Image, RawManifest};
pub use progress::Pace;
pub use publish::Listed;
pub use registries_conf::{OWN_FILE, RegistriesConf, RegistriesConfError};
pub use response::Meter;
pub use retry::RetryPolicy;
pub use security::Security;
pub use transport::install_crypto_provider;
pub use upload::{Mount, Upload, UploadWriter};

use auth::Access;
use endpoint::Endpoint;
use response::{Reading, expect};
use transport::Transports;

/// Which registries are spoken to without TLS. Loopback addresses are always spoken to in
/// whichever way they understand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// None.
    #[default]
    Never,
    /// These, `host[:port]` in lower case.
    Hosts(Vec<String>),
    /// All of them.
    Always,
}

impl PlainHttp {
    /// Whether `host` is among them.
    fn names(&self, host: &str) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Hosts(hosts) => hosts.iter().any(|plain| plain == host),
        }
    }
}

/// How a [`Client`] behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The `User-Agent` of every request.
    pub user_agent: String,
    /// Registries without TLS.
    pub plain_http: PlainHttp,
    /// Registries, `host[:port]`, whose certificates are not checked ([`Client::security`]).
    pub unverified_tls: Vec<String>,
    /// The address, such as `http://mirror:8080/`, that is asked in place of docker.io.
    pub docker_mirror: Option<reqwest::Url>,
    /// What registries.conf says: where repositories really are, mirrors, and whom to trust.
    pub registries: RegistriesConf,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// CA certificates beside those of the system.
    pub certificates: Vec<reqwest::Certificate>,
    /// Directories with certificates for single registries, by `host[:port]`
    /// (containers-certs.d(5)); the first one that knows a registry counts.
    pub certificate_dirs: Vec<std::path::PathBuf>,
    /// The budget of each operation.
    pub retry: RetryPolicy,
    /// The least pace of a transfer.
    pub pace: Pace,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take.
    pub answer_timeout: Duration,
    /// How long it is believed that a registry lacks the referrers API, or that a mirror hangs.
    pub recall: Duration,
}

impl Default for ClientConfig {
    /// TLS, no credentials, ten seconds to connect, fifteen to answer, two minutes to be believed.
    fn default() -> Self {
        Self {
            user_agent: concat!("undermount/", env!("CARGO_PKG_VERSION")).to_owned(),
            plain_http: PlainHttp::Never,
            unverified_tls: Vec::new(),
            docker_mirror: None,
            registries: RegistriesConf::default(),
            credentials: Credentials::none(),
            certificates: Vec::new(),
            certificate_dirs: Vec::new(),
            retry: RetryPolicy::default(),
            pace: Pace::default(),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(15),
            recall: Duration::from_secs(120),
        }
    }
}

/// A client for all registries.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Option<tokio::time::Instant>,
    meter: Option<Meter>,
    elsewhere: Option<Arc<dyn Elsewhere>>,
}

struct Shared {
    config: ClientConfig,
    transports: Arc<Transports>,
    endpoints: Mutex<HashMap<String, Arc<Endpoint>>>,
    /// Registries without TLS beside those of the configuration.
    plain_hosts: Mutex<HashSet<String>>,
}

impl Client {
    /// A client that behaves as `config` says. Nothing is connected yet.
    pub fn new(config: ClientConfig) -> Self {
        let transports = Arc::new(Transports::new(&config));
        let shared = Shared {
            config,
            transports,
            endpoints: Mutex::default(),
            plain_hosts: Mutex::default(),
        };
        Self { shared: Arc::new(shared), deadline: None, meter: None, elsewhere: None }
    }

    /// The same client with operations that end at `deadline` at the latest.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Self {
        Self { deadline: Some(deadline.into()), ..self.clone() }
    }

    /// The same client, whose operations add the bytes of all bodies that they receive to
    /// `meter`.
    #[must_use]
    pub fn metered(&self, meter: Meter) -> Self {
        Self { meter: Some(meter), ..self.clone() }
    }

    fn reading(&self) -> Reading {
        Reading { pace: self.shared.config.pace, meter: self.meter.clone() }
    }

    /// Speaks to the registry `host[:port]` without TLS from now on.
    pub fn allow_plain_http(&self, host: &str) {
        let Shared { endpoints, plain_hosts, .. } = &*self.shared;
        let mut endpoints = endpoints.lock().expect("no panic while it is held");
        if plain_hosts.lock().expect("no panic while it is held").insert(host.to_owned()) {
            endpoints.remove(host);
        }
    }

    /// Whether the registry `host[:port]` answers and lets us in.
    ///
    /// # Errors
    /// [`RegistryError`] with the reason why not.
    pub async fn ping(&self, host: &str) -> Result<(), RegistryError> {
        let subject = Subject::Registry(host.to_owned());
        let endpoint = self.endpoint_of(host);
        self.retry(&subject, || async {
            let request = reqwest::Request::new(http::Method::GET, endpoint.url("v2/").await?);
            let response = endpoint.send(request, &Access::none(host)).await?;
            expect(response, &[http::StatusCode::OK]).await.map(drop)
        })
        .await
    }

    fn endpoint(&self, repository: &Repository) -> Arc<Endpoint> {
        self.endpoint_of(repository.host())
    }

    fn endpoint_of(&self, host: &str) -> Arc<Endpoint> {
        let Shared { config, transports, endpoints, plain_hosts } = &*self.shared;
        let mut endpoints = endpoints.lock().expect("no panic while it is held");
        let new = || {
            let plain_hosts = plain_hosts.lock().expect("no panic while it is held");
            let plain = config.plain_http.names(host) || plain_hosts.contains(host);
            Arc::new(Endpoint::new(host, plain, config, transports))
        };
        Arc::clone(endpoints.entry(host.to_owned()).or_insert_with(new))
    }

    /// Tries `attempt` within budget and deadline; what fails is `subject`.
    async fn retry<T, F>(
        &self,
        subject: &Subject,
        attempt: impl FnMut() -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let policy = &self.shared.config.retry;
        retry::retry(policy, self.deadline, attempt).await.map_err(|fault| fault.of(subject))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
