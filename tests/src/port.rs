//! Ports for what must know its port before it listens.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Below these ports services have theirs.
const FIRST: u16 = 10_000;
/// Where the kernel begins if nobody has said otherwise.
const USUAL: u16 = 32_768;

/// A port of loopback where nothing listens. The kernel gives it to nobody who asks for any port,
/// as other tests do all the time, unless it has been told to give all of them.
pub fn unused() -> SocketAddr {
    let end = match first_given_by_the_kernel() {
        ..=FIRST => USUAL,
        first => first,
    };
    let random = || RandomState::new().hash_one(std::process::id());
    let mut ports = (0..1000).map(|_| FIRST + (random() % u64::from(end - FIRST)) as u16);
    let found = ports.find_map(|port| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        TcpListener::bind(address).is_ok().then_some(address)
    });
    found.expect("a port is free")
}

/// The first port of those for whom any will do, ip(7).
fn first_given_by_the_kernel() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(USUAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unused_port_is_none_that_the_kernel_gives() {
        let port = unused().port();
        let given = first_given_by_the_kernel();
        assert!(port >= FIRST && (port < given || given <= FIRST), "{port}");
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
