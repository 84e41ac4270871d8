//! The addresses of this host that peers use.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

use super::identity::MAX_ADDRESSES;

/// Where a node listens, and which addresses it tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// On these addresses.
    At(Vec<SocketAddr>),
    /// On one address of this host in each of these networks, with this port: the same
    /// configuration fits all nodes.
    In(Vec<IpNet>, u16),
}

impl Listen {
    /// The addresses to listen on, as of now.
    ///
    /// # Errors
    /// Where the host has none of them, or not yet.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::At(addresses) => Ok(addresses.clone()),
            Self::In(networks, port) => {
                let own = getifaddrs()?.filter_map(|interface| ip(&interface.address?));
                let chosen = choose(own, networks);
                if chosen.is_empty() {
                    let named: Vec<String> = networks.iter().map(IpNet::to_string).collect();
                    let reason = format!("this host has no address in {}", named.join(", "));
                    return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason));
                }
                Ok(chosen.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect())
            }
        }
    }
}

/// The lowest address in each of `networks`, in the order of the networks.
fn choose(own: impl Iterator<Item = IpAddr>, networks: &[IpNet]) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = own.filter(|ip| !is_link_local(ip)).collect();
    own.sort();
    own.dedup();
    let mut chosen: Vec<IpAddr> = Vec::new();
    for network in networks {
        let first = own.iter().find(|ip| network.contains(*ip));
        chosen.extend(first.filter(|ip| !chosen.contains(ip)));
    }
    chosen.truncate(MAX_ADDRESSES);
    chosen
}

/// Addresses that mean nothing without the interface.
fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(ip))
}

fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    ipv4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(words: &[&str]) -> Vec<IpNet> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn one_address_of_each_network_in_the_order_they_are_named() {
        let own = ["10.0.0.5", "172.16.2.9", "172.16.2.10", "fd00:2::9", "fe80::1", "127.0.0.1"];
        for (named, expected) in [
            (&["172.16.2.0/24"][..], &["172.16.2.9"][..]),
            (&["fd00:2::/64", "172.16.2.0/24"], &["fd00:2::9", "172.16.2.9"]),
            (&["172.16.0.0/12", "172.16.2.0/24"], &["172.16.2.9"]),
            (&["fe80::/10"], &[]),
            (&["192.0.2.0/24"], &[]),
        ] {
            let chosen = choose(own.iter().map(|ip| ip.parse().unwrap()), &networks(named));
            let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(chosen, expected, "{named:?}");
        }
    }

    #[test]
    fn this_host_has_loopback() {
        let found = Listen::In(networks(&["127.0.0.0/8"]), 8788).resolve().unwrap();
        assert_eq!(found, ["127.0.0.1:8788".parse().unwrap()]);
    }

    #[test]
    fn a_network_that_this_host_is_not_in_is_named() {
        let error = Listen::In(networks(&["203.0.113.77/32"]), 1).resolve().unwrap_err();
        assert!(error.to_string().contains("203.0.113.77/32"), "{error}");
    }
}
