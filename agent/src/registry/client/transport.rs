//! Connections: plain or TLS, through the host's proxies or not.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, Once};
use std::time::Duration;

use reqwest::Url;
use reqwest::redirect::{Attempt, Policy};

use super::ClientConfig;
use super::certificates::{self, HostCertificates};
use super::error::Fault;
use super::registries_conf::RegistriesConf;

/// Most redirects that one request follows.
const MAX_REDIRECTS: usize = 10;

/// The HTTP clients, made when they are first needed: setting up TLS reads the CA store.
pub(super) struct Transports {
    user_agent: String,
    connect_timeout: Duration,
    certificates: Vec<reqwest::Certificate>,
    /// Registries, `host[:port]`, whose certificates are not checked.
    unverified: HashSet<String>,
    registries: RegistriesConf,
    /// Directories with certificates for single registries.
    directories: Vec<PathBuf>,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    /// By `host[:port]`.
    of_host: HashMap<(Tls, String), reqwest::Client>,
    /// For all hosts without certificates of their own, by whether they are this machine.
    shared: HashMap<(Tls, bool), reqwest::Client>,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Tls {
    None,
    /// Against listeners, not against impostors.
    Unverified,
    Verified,
}

impl Transports {
    pub fn new(config: &ClientConfig) -> Self {
        Self {
            user_agent: config.user_agent.clone(),
            connect_timeout: config.connect_timeout,
            certificates: config.certificates.clone(),
            unverified: config.unverified_tls.iter().cloned().collect(),
            registries: config.registries.clone(),
            directories: config.certificate_dirs.clone(),
            clients: Mutex::default(),
        }
    }

    /// The client for `url`.
    pub fn client_for(&self, url: &Url) -> Result<reqwest::Client, Fault> {
        let tls = match url.scheme() {
            "https" if self.is_unverified(url.authority()) => Tls::Unverified,
            "https" => Tls::Verified,
            _ => Tls::None,
        };
        self.client(url, tls)
    }

    fn is_unverified(&self, authority: &str) -> bool {
        self.unverified.contains(authority) || self.registries.is_insecure(authority)
    }

    /// A client for `url` that takes no certificate but a good one.
    pub fn verified_client_for(&self, url: &Url) -> Result<reqwest::Client, Fault> {
        self.client(url, Tls::Verified)
    }

    /// A client for `url` that takes any certificate: to find out whether there is one.
    pub fn unverified_client_for(&self, url: &Url) -> Result<reqwest::Client, Fault> {
        self.client(url, Tls::Unverified)
    }

    fn client(&self, url: &Url, tls: Tls) -> Result<reqwest::Client, Fault> {
        let mut clients = self.clients.lock().expect("no panic while it is held");
        let host = (tls, url.authority().to_owned());
        if let Some(client) = clients.of_host.get(&host) {
            return Ok(client.clone());
        }
        let loopback = url.host_str().is_some_and(is_loopback);
        let certificates = match tls {
            Tls::None => None,
            _ => certificates::find(&self.directories, url.authority())?,
        };
        let client = match (certificates, clients.shared.get(&(tls, loopback))) {
            (None, Some(shared)) => shared.clone(),
            (None, None) => {
                let client = self.build(tls, loopback, HostCertificates::default())?;
                clients.shared.insert((tls, loopback), client.clone());
                client
            }
            (Some(own), _) => self.build(tls, loopback, own)?,
        };
        clients.of_host.insert(host, client.clone());
        Ok(client)
    }

    fn build(
        &self,
        tls: Tls,
        loopback: bool,
        host: HostCertificates,
    ) -> Result<reqwest::Client, Fault> {
        install_crypto_provider();
        let mut builder = reqwest::Client::builder()
            .user_agent(&self.user_agent)
            .connect_timeout(self.connect_timeout)
            // One connection per transfer: a lost packet or a long range holds up no other.
            .http1_only()
            .pool_max_idle_per_host(16)
            .tcp_keepalive(Duration::from_secs(30))
            .redirect(Policy::custom(follow));
        // No proxy reaches our loopback addresses.
        if loopback {
            builder = builder.no_proxy();
        }
        builder = match tls {
            Tls::Verified => {
                builder.tls_certs_merge(self.certificates.iter().cloned().chain(host.roots))
            }
            Tls::Unverified => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
            // The CA store is read for nothing, and may be missing, where there is no TLS.
            Tls::None => builder.tls_certs_only([]),
        };
        if let Some(identity) = host.identity {
            builder = builder.identity(identity);
        }
        builder.build().map_err(Fault::Setup)
    }
}

/// Installs the TLS provider that this program uses, unless there is one already.
pub fn install_crypto_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only where a provider is installed, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Redirects are followed (reqwest drops Authorization when the host changes), but never from
/// TLS to plain HTTP.
fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let from_tls = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if from_tls && attempt.url().scheme() != "https" {
        return attempt.error("a redirect from https to http");
    }
    attempt.follow()
}

/// Whether `host` (with or without a port) is this machine.
pub fn is_loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None if host.matches(':').count() == 1 => host.split(':').next().unwrap_or_default(),
        None => host,
    };
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_told_by_their_address() {
        for (host, loopback) in [
            ("127.0.0.1", true),
            ("127.8.9.1:5000", true),
            ("[::1]:5000", true),
            ("::1", true),
            ("localhost:80", true),
            ("10.0.0.1", false),
            ("127.0.0.1.example.org", false),
            ("localhost.example.org", false),
            ("[::2]", false),
        ] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }
}
