//! A drop-in of registries.conf.d (containers-registries.conf.d(5)). Podman asks the mirror first
//! for images that it pulls as a whole, and the registry itself where it does not answer; since
//! 5.2 it also tells the agent the credentials that it pulls with.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::mirror::upstream::path_of_host;

/// What podman since 5.2 runs with the credentials of each image that it opens.
const AUTH_HELPER: &str = "/usr/libexec/undermount/store-auth-helper";

/// The drop-in for the `mirror` (its address, and the registries `host[:port]`) and for podmans
/// that pass their credentials on (`hands_over`); `None` where it would say nothing.
pub(super) fn text(mirror: Option<&(SocketAddr, Vec<String>)>, hands_over: bool) -> Option<String> {
    if mirror.is_none() && !hands_over {
        return None;
    }
    let mut text = "# Written by `undermount setup podman`; `--undo` removes it.\n".to_owned();
    if hands_over {
        writeln!(text, "additional-layer-store-auth-helper = \"{AUTH_HELPER}\"")
            .expect("a string takes everything");
    }
    let Some((address, hosts)) = mirror else { return Some(text) };
    for host in hosts {
        let path = path_of_host(host);
        write!(
            text,
            "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{host}\"\n\n\
             [[registry.mirror]]\nlocation = \"{address}/{path}\"\ninsecure = true\n"
        )
        .expect("a string takes everything");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_gets_its_mirror_and_stays_its_own_fallback() {
        let mirror = ("127.0.0.1:5055".parse().unwrap(), vec!["uc.example:8787".to_owned()]);
        let document: toml_edit::DocumentMut = text(Some(&mirror), true).unwrap().parse().unwrap();
        assert_eq!(document["additional-layer-store-auth-helper"].as_str(), Some(AUTH_HELPER));
        let registry = &document["registry"][0];
        assert_eq!(registry["location"].as_str(), Some("uc.example:8787"));
        let mirror = registry["mirror"][0]["location"].as_str();
        assert_eq!(mirror, Some("127.0.0.1:5055/uc.example_8787"));
    }

    #[test]
    fn podmans_that_pass_nothing_on_and_have_no_mirror_get_no_drop_in() {
        assert_eq!(text(None, false), None);
        let document: toml_edit::DocumentMut = text(None, true).unwrap().parse().unwrap();
        assert_eq!(document.iter().count(), 1);
    }
}
