//! Registries without a certificate that can be verified: found by asking, told to deployment in
//! `DockerInsecureRegistryAddress`, and spoken to all the same.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, stream};

use crate::registry::client::{Client, ClientConfig, PlainHttp, Security};

/// Registries that are known to be protected, and are not asked.
const KNOWN: [&str; 5] = [
    "docker.io",
    "registry-1.docker.io",
    "registry.access.redhat.com",
    "registry.redhat.io",
    "trunk.registry.rdoproject.org",
];
/// Registries that are asked at a time.
const PARALLEL: usize = 16;

/// Registries, `host[:port]`, that deployment has to be told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Insecure {
    /// Those with a certificate that this host does not accept.
    pub unverified: BTreeSet<String>,
    /// Those without TLS.
    pub plain: BTreeSet<String>,
    /// Those that did not answer; deployment is not told of them.
    pub silent: BTreeSet<String>,
}

impl Insecure {
    /// Asks each of `registries`. One that does not answer counts as protected, as in the
    /// original.
    pub async fn among(registries: &BTreeSet<String>, client: &Client) -> Self {
        let asked = registries.iter().filter(|host| !KNOWN.contains(&host.as_str()));
        let found: Vec<(&String, Security)> = stream::iter(asked)
            .map(|host| async move { (host, client.security(host).await) })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut insecure = Self::default();
        for (host, security) in found {
            tracing::debug!(registry = %host, ?security, "asked for its certificate");
            match security {
                Security::Verified => {}
                Security::Unknown => _ = insecure.silent.insert(host.clone()),
                Security::Unverified => _ = insecure.unverified.insert(host.clone()),
                Security::Plain => _ = insecure.plain.insert(host.clone()),
            }
        }
        insecure
    }

    /// All of them.
    pub fn all(&self) -> BTreeSet<String> {
        self.unverified.union(&self.plain).cloned().collect()
    }

    /// Lets `config` speak to them.
    pub fn allow(&self, config: &mut ClientConfig) {
        config.unverified_tls.extend(self.unverified.iter().cloned());
        match &mut config.plain_http {
            PlainHttp::Always => {}
            PlainHttp::Hosts(hosts) => hosts.extend(self.plain.iter().cloned()),
            never @ PlainHttp::Never => {
                *never = PlainHttp::Hosts(self.plain.iter().cloned().collect());
            }
        }
    }
}
