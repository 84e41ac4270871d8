//! The mirror in a drop-in of registries.conf.d (containers-registries.conf.d(5)): podman asks it
//! first for images that it pulls as a whole, and the registry itself where it does not answer.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::mirror::upstream::path_of_host;

/// The drop-in for the mirror at `address` and the registries `host[:port]`.
pub(super) fn text(address: SocketAddr, hosts: &[String]) -> String {
    let mut text = "# Written by `undermount setup podman`; `--undo` removes it.\n".to_owned();
    for host in hosts {
        let path = path_of_host(host);
        write!(
            text,
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
             [[registry.mirror]]\nlocation = \"{address}/{path}\"\ninsecure = true\n"
        )
        .expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_gets_its_mirror_and_stays_its_own_fallback() {
        let text = text("127.0.0.1:5055".parse().unwrap(), &["uc.example:8787".to_owned()]);
        let document: toml_edit::DocumentMut = text.parse().unwrap();
        let registry = &document["registry"][0];
        assert_eq!(registry["location"].as_str(), Some("uc.example:8787"));
        let mirror = registry["mirror"][0]["location"].as_str();
        assert_eq!(mirror, Some("127.0.0.1:5055/uc.example_8787"));
    }
}
