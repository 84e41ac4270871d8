//! A drop-in of registries.conf.d (containers-registries.conf.d(5)). Podman asks the mirror first
//! for images that it pulls as a whole, and the registry itself where it does not answer; since
//! 5.2 it also tells the agent the credentials that it pulls with. What the operator's files say of
//! a mirrored registry is said again, since podman takes one table for a registry, the last.

use std::net::SocketAddr;

use toml_edit::{DocumentMut, Item, value};

use crate::mirror::upstream::path_of_host;
use crate::registry::client::{OWN_FILE, RegistriesConf};

/// What podman since 5.2 runs with the credentials of each image that it opens.
const AUTH_HELPER: &str = "/usr/libexec/undermount/store-auth-helper";

/// The drop-in for the `mirror` (its address, and the registries `host[:port]`, of which the operator
/// says what is `known`) and for podmans that pass their credentials on (`hands_over`); `None` where
/// it would say nothing.
pub(super) fn text(
    mirror: Option<&(SocketAddr, Vec<String>)>,
    known: &RegistriesConf,
    hands_over: bool,
) -> Option<String> {
    if mirror.is_none() && !hands_over {
        return None;
    }
    let mut document = DocumentMut::new();
    if hands_over {
        document["additional-layer-store-auth-helper"] = value(AUTH_HELPER);
    }
    if let Some((address, hosts)) = mirror {
        let tables = hosts
            .iter()
            .map(|host| known.with_mirror(host, &format!("{address}/{}", path_of_host(host))));
        document["registry"] = Item::ArrayOfTables(tables.collect());
    }
    Some(format!("{OWN_FILE} setup podman`; `--undo` removes it.\n\n{document}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_gets_its_mirror_and_stays_its_own_fallback() {
        let mirror = ("127.0.0.1:5055".parse().unwrap(), vec!["uc.example:8787".to_owned()]);
        let text = text(Some(&mirror), &RegistriesConf::default(), true).unwrap();
        let document: DocumentMut = text.parse().unwrap();
        assert_eq!(document["additional-layer-store-auth-helper"].as_str(), Some(AUTH_HELPER));
        let registry = &document["registry"][0];
        assert_eq!(registry["location"].as_str(), Some("uc.example:8787"));
        let mirror = registry["mirror"][0]["location"].as_str();
        assert_eq!(mirror, Some("127.0.0.1:5055/uc.example_8787"));
        assert!(text.starts_with(OWN_FILE), "{text}");
    }

    #[test]
    fn podmans_that_pass_nothing_on_and_have_no_mirror_get_no_drop_in() {
        let known = RegistriesConf::default();
        assert_eq!(text(None, &known, false), None);
        let document: DocumentMut = text(None, &known, true).unwrap().parse().unwrap();
        assert_eq!(document.iter().count(), 1);
    }
}
