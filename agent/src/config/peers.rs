//! `[peers]`: whether and how this node shares what it fetches.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::{self, AbsolutePath, Value};
use crate::agent::peers::{PeersConfig, PeersTls};
use crate::image::Repository;
use crate::peer::membership::Listen;

/// `[peers]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// Whether it does.
    pub enabled: bool,
    /// The file with the cluster key.
    pub key_file: AbsolutePath,
    /// The networks whose addresses of this node are used, the best first.
    pub network: Vec<Network>,
    /// The port on them, UDP and TCP.
    pub port: Port,
    /// Addresses to listen on, instead of those of [`Self::network`].
    pub listen: Vec<PeerAddress>,
    /// Addresses to tell the others, where they see other ones.
    pub advertise: Vec<PeerAddress>,
    /// The registries of the undercloud that know the members.
    pub seeds: Vec<SeedName>,
    /// Members that are known without a seed.
    pub members: Vec<PeerAddress>,
    /// What peers may take; `None` for half of what the link carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Certificate of this node, with those that sign it (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<AbsolutePath>,
    /// Private key of the certificate (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<AbsolutePath>,
    /// Who signs the certificates of all nodes (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<AbsolutePath>,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            key_file: AbsolutePath::new("/etc/undermount/cluster.key"),
            network: Vec::new(),
            port: Port(8788),
            listen: Vec::new(),
            advertise: Vec::new(),
            seeds: Vec::new(),
            members: Vec::new(),
            bandwidth: None,
            tls_certificate: None,
            tls_key: None,
            tls_ca: None,
        }
    }
}

impl PeerSettings {
    /// What is wrong between keys that are right each, and what to do.
    pub(super) fn mistake(&self) -> Option<String> {
        let unspecified = self.listen.iter().any(|address| address.0.ip().is_unspecified());
        let tls = [&self.tls_certificate, &self.tls_key, &self.tls_ca];
        let given = tls.iter().filter(|file| file.is_some()).count();
        let words = if self.enabled && self.network.is_empty() && self.listen.is_empty() {
            "peers need `network`, such as [\"172.16.2.0/24\"], or `listen`: the addresses of \
             this node on the network that they share"
        } else if !self.network.is_empty() && !self.listen.is_empty() {
            "`network` and `listen` both say where to listen: name one of them"
        } else if unspecified && self.advertise.is_empty() {
            "who listens on every address has to say in `advertise` which one the others are to use"
        } else if self.advertise.iter().any(|address| address.0.ip().is_unspecified()) {
            "nobody can reach the address in `advertise`"
        } else if self.members.iter().any(|address| address.0.ip().is_unspecified()) {
            "nobody can reach the address in `members`"
        } else if [self.listen.len(), self.advertise.len(), self.network.len()]
            .iter()
            .any(|count| *count > 4)
        {
            "a node has at most four addresses"
        } else if given != 0 && given != tls.len() {
            "TLS between peers takes all of `tls_certificate`, `tls_key` and `tls_ca`"
        } else {
            return None;
        };
        Some(words.to_owned())
    }

    /// How the agent takes part; `None` where it does not. `plain_http` names the registries that
    /// are spoken to without TLS.
    pub(super) fn peers(&self, plain_http: &[String]) -> Option<PeersConfig> {
        let addresses =
            |list: &[PeerAddress]| list.iter().map(|address| address.0).collect::<Vec<_>>();
        let listen = if self.listen.is_empty() {
            let networks = self.network.iter().map(|network| network.0).collect();
            Listen::In(networks, self.port.0)
        } else {
            Listen::At(addresses(&self.listen))
        };
        let advertise = addresses(&self.advertise);
        let tls = match (&self.tls_certificate, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(ca)) => Some(PeersTls {
                certificate: certificate.to_path_buf(),
                key: key.to_path_buf(),
                ca: ca.to_path_buf(),
            }),
            _ => None,
        };
        self.enabled.then(|| PeersConfig {
            key_file: self.key_file.to_path_buf(),
            listen,
            advertise: (!advertise.is_empty()).then_some(advertise),
            seeds: self.seeds.iter().map(|seed| seed.url(plain_http)).collect(),
            members: addresses(&self.members),
            bandwidth: self.bandwidth.map(Bandwidth::bytes_per_second),
            tls,
        })
    }
}

/// A network in CIDR notation, IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Value for Network {
    fn allowed() -> String {
        "a network, such as `172.16.2.0/24` or `fd00:2::/64`".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A port that can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Port(u16);

impl Value for Port {
    fn allowed() -> String {
        "a port from 1 to 65535".to_owned()
    }

    fn of_integer(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|port| *port > 0).map(Self)
    }
}

/// An address of a node. Without a port it has that of the peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(SocketAddr);

impl Value for PeerAddress {
    fn allowed() -> String {
        "an address with a port, such as `172.16.2.11:8788` or `[fd00:2::11]:8788`".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|address: &SocketAddr| address.port() > 0).map(Self)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A registry that knows the members, with or without its scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedName {
    scheme: Option<&'static str>,
    host: String,
}

impl SeedName {
    /// The URL below which the seed answers. Without a scheme it is `https`, but for loopback
    /// and the registries of `plain_http`.
    fn url(&self, plain_http: &[String]) -> String {
        let bare = self.host.rsplit_once(':').map_or(&self.host[..], |(name, _)| name);
        let bare = bare.trim_matches(['[', ']']);
        let loopback =
            bare == "localhost" || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        let plain = loopback || plain_http.contains(&self.host);
        let scheme = self.scheme.unwrap_or(if plain { "http" } else { "https" });
        format!("{scheme}://{}/undermount", self.host)
    }
}

impl Value for SeedName {
    fn allowed() -> String {
        "a registry, HOST:PORT, http://HOST:PORT or https://HOST:PORT".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        let scheme = ["http", "https"]
            .into_iter()
            .find(|scheme| text.strip_prefix(*scheme).is_some_and(|rest| rest.starts_with("://")));
        let rest = scheme.map_or(text, |scheme| &text[scheme.len() + "://".len()..]);
        let host = rest.trim_end_matches('/').to_ascii_lowercase();
        let repository: Repository = format!("{host}/x").parse().ok()?;
        (repository.host() == host).then_some(Self { scheme, host })
    }
}

impl fmt::Display for SeedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Some(scheme) => write!(f, "{scheme}://{}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// What a link carries in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    megabits: u64,
}

impl Bandwidth {
    const UNITS: [(&str, u64); 2] = [("Mbit/s", 1), ("Gbit/s", 1000)];

    /// The same in bytes.
    pub fn bytes_per_second(self) -> u64 {
        self.megabits * 125_000
    }
}

impl Value for Bandwidth {
    fn allowed() -> String {
        "a number with Mbit/s or Gbit/s, from 1 Mbit/s to 1000 Gbit/s".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        let megabits = Self::UNITS.into_iter().find_map(|(unit, factor)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(factor)
        })?;
        (1..=1_000_000).contains(&megabits).then_some(Self { megabits })
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Mbit/s", self.megabits)
    }
}

macro_rules! written_as_shown {
    ($($name:ident),+) => {
        $(impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        })+
    };
}

macro_rules! read_as_value {
    ($($name:ident),+) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                value::deserialize(deserializer)
            }
        })+
    };
}

written_as_shown!(Network, PeerAddress, SeedName, Bandwidth);
read_as_value!(Network, Port, PeerAddress, SeedName, Bandwidth);

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(word: &str) -> Option<String> {
        value::from_word::<SeedName>(word)
            .ok()
            .map(|seed| seed.url(&["undercloud:8787".to_owned()]))
    }

    #[test]
    fn a_seed_is_a_registry_with_the_scheme_it_is_spoken_to() {
        for (word, url) in [
            ("undercloud:8787", Some("http://undercloud:8787/undermount")),
            ("Other:8787", Some("https://other:8787/undermount")),
            ("http://other:8787/", Some("http://other:8787/undermount")),
            ("https://undercloud:8787", Some("https://undercloud:8787/undermount")),
            ("127.0.0.1:5000", Some("http://127.0.0.1:5000/undermount")),
            ("[::1]:5000", Some("http://[::1]:5000/undermount")),
            ("[fd00::1]:5000", Some("https://[fd00::1]:5000/undermount")),
            ("ftp://x", None),
            ("a/b", None),
            ("", None),
        ] {
            assert_eq!(seed(word).as_deref(), url, "{word}");
        }
    }

    #[test]
    fn bandwidth_is_counted_in_bits() {
        for (word, bytes) in [
            ("1 Mbit/s", Some(125_000)),
            ("10Gbit/s", Some(1_250_000_000)),
            ("0 Mbit/s", None),
            ("5 MB/s", None),
            ("5", None),
            ("9999999999999999999 Gbit/s", None),
        ] {
            let read = value::from_word::<Bandwidth>(word).ok();
            assert_eq!(read.map(Bandwidth::bytes_per_second), bytes, "{word}");
        }
    }
}
