//! How far a registry can be trusted to be itself, found out by asking it.
//!
//! Container engines have to be told which registries they may use without a verified
//! certificate; so has this client. Whoever may decide that asks here first.

use std::time::Duration;

use reqwest::Url;
use tokio::time::timeout;

use super::Client;
use super::error::Fault;

/// How long a registry may take to show its certificate.
const DEADLINE: Duration = Duration::from_secs(10);

/// How a registry is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// By a certificate that this host accepts.
    Verified,
    /// By a certificate that this host does not accept.
    Unverified,
    /// Not at all: it does not speak TLS.
    Plain,
    /// Nobody knows: it does not answer.
    Unknown,
}

impl Client {
    /// Finds out how the registry `host[:port]` is protected. What is configured about it does
    /// not count.
    pub async fn security(&self, host: &str) -> Security {
        let Ok(url) = Url::parse(&format!("https://{host}/")) else { return Security::Unknown };
        match self.get_by_tls(&url, true).await {
            Ok(()) => return Security::Verified,
            Err(Fault::NotTls(_)) => return Security::Plain,
            // Without any CA certificate on this host nothing can be verified.
            Err(Fault::Setup(_)) => {}
            Err(fault) if fault.is_from_tls() => {}
            Err(fault) => {
                tracing::debug!(host, fault = %fault.in_words(), "no certificate to look at");
                return Security::Unknown;
            }
        }
        match self.get_by_tls(&url, false).await {
            Ok(()) => Security::Unverified,
            Err(Fault::NotTls(_)) => Security::Plain,
            Err(fault) if fault.is_from_tls() => Security::Plain,
            Err(_) => Security::Unknown,
        }
    }

    /// Asks for `url`; any answer will do.
    async fn get_by_tls(&self, url: &Url, verified: bool) -> Result<(), Fault> {
        let transports = &self.shared.transports;
        let client = match verified {
            true => transports.verified_client_for(url)?,
            false => transports.unverified_client_for(url)?,
        };
        let answer = timeout(DEADLINE, client.get(url.clone()).send()).await;
        let stalled = Fault::Stalled { received: 0, seconds: DEADLINE.as_secs() };
        answer.map_err(|_| stalled)?.map(drop).map_err(Fault::of_request)
    }
}
