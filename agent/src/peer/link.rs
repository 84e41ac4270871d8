//! The speed of the link that an address is on, as the kernel reports it for the interface.

use std::net::IpAddr;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage};

/// Where the kernel describes interfaces (`speed`: Documentation/ABI/testing/sysfs-class-net).
const INTERFACES: &str = "/sys/class/net";

/// The part of a link that peers may take by default: half of it, in bytes per second. `None` where
/// the kernel does not know the speed, as for loopback, virtual interfaces and links that are down:
/// then there is no limit.
pub fn half_of_link(address: IpAddr) -> Option<u64> {
    let interface = interface_of(address)?;
    let said = std::fs::read_to_string(Path::new(INTERFACES).join(interface).join("speed")).ok()?;
    half_of(&said)
}

/// Half of a speed in Mbit/s, in bytes per second.
fn half_of(said: &str) -> Option<u64> {
    let megabits: i64 = said.trim().parse().ok()?;
    u64::try_from(megabits).ok().filter(|megabits| *megabits > 0).map(|megabits| megabits * 62_500)
}

fn interface_of(address: IpAddr) -> Option<String> {
    let mut all = getifaddrs().ok()?;
    let found = all.find(|interface| interface.address.as_ref().and_then(ip) == Some(address));
    found.map(|interface| interface.interface_name)
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    match address.family()? {
        AddressFamily::Inet => Some(address.as_sockaddr_in()?.ip().into()),
        AddressFamily::Inet6 => Some(address.as_sockaddr_in6()?.ip().into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_the_kernel_says_and_nothing_where_it_does_not_know() {
        for (said, half) in [
            ("10000\n", Some(625_000_000)),
            ("1000", Some(62_500_000)),
            ("-1\n", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(half_of(said), half, "{said:?}");
        }
    }

    #[test]
    fn an_interface_is_found_by_its_address() {
        assert_eq!(interface_of("127.0.0.1".parse().unwrap()).as_deref(), Some("lo"));
        assert_eq!(interface_of("192.0.2.1".parse().unwrap()), None);
    }
}
