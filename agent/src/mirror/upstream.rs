//! Which registry a request to the mirror is meant for.
//!
//! ```text
//! containerd   /v2/nova/nova-api/...?ns=uc.example:8787    the registry as a parameter
//! podman       /v2/uc.example_8787/nova/nova-api/...       as the first part of the path
//! docker       /v2/library/nova/...                        docker.io, the only one it mirrors
//! ```
//!
//! Only the registries that the operator has named are mirrored: the mirror pulls with the
//! node's credentials, and every local user can ask it.

use crate::image::Repository;
use crate::image::reference::DEFAULT_HOST;

/// Registries that are mirrored, `host[:port]`.
#[derive(Debug, Clone, Default)]
pub struct Upstreams(Vec<String>);

/// The request is not for a registry that is mirrored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The registry is not among those that are mirrored.
    #[error(
        "`{name}` is in none of the registries that are mirrored ([mirror] registries: {known})"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The registries that are mirrored.
        known: String,
    },
    /// The name cannot be one.
    #[error("`{name}` is not the name of a repository")]
    Name {
        /// What was asked for.
        name: String,
    },
}

/// How `host[:port]` stands in a path, where no colon may: `uc.example:8787` as
/// `uc.example_8787`. Host names have no underscores, so this is unambiguous.
pub fn path_of_host(host: &str) -> String {
    host.replace(':', "_")
}

impl Upstreams {
    /// The registries `hosts`, `host[:port]` in lower case.
    pub fn new(hosts: Vec<String>) -> Self {
        Self(hosts)
    }

    /// The repository that a request for `name` means, with the parameter `ns` where it has one.
    ///
    /// # Errors
    /// [`UpstreamError`] where that is not in a registry that is mirrored.
    pub fn find(&self, name: &str, ns: Option<&str>) -> Result<Repository, UpstreamError> {
        let (host, path) = match ns {
            Some(ns) => (self.mirrored(|host| host.eq_ignore_ascii_case(ns)), name),
            None => self.by_path(name),
        };
        let host = host.ok_or_else(|| {
            let name = ns.map_or_else(|| name.to_owned(), |ns| format!("{ns}/{name}"));
            UpstreamError::Unknown { name, known: self.0.join(", ") }
        })?;
        format!("{host}/{path}").parse().map_err(|_| UpstreamError::Name { name: name.to_owned() })
    }

    fn by_path<'a>(&self, name: &'a str) -> (Option<&str>, &'a str) {
        if let Some((first, rest)) = name.split_once('/')
            && let Some(host) = self.mirrored(|host| path_of_host(host) == first)
        {
            return (Some(host), rest);
        }
        (self.mirrored(|host| host == DEFAULT_HOST), name)
    }

    fn mirrored(&self, is_it: impl Fn(&str) -> bool) -> Option<&str> {
        self.0.iter().map(String::as_str).find(|host| is_it(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(hosts: &[&str], name: &str, ns: Option<&str>) -> Result<String, UpstreamError> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Upstreams::new(hosts).find(name, ns).map(|repository| repository.to_string())
    }

    #[test]
    fn each_client_names_the_registry_in_its_own_way() {
        let hosts = ["docker.io", "uc.example:8787", "quay.example"];
        for (name, ns, repository) in [
            ("nova/api", Some("uc.example:8787"), "uc.example:8787/nova/api"),
            ("nova/api", Some("UC.example:8787"), "uc.example:8787/nova/api"),
            ("uc.example_8787/nova/api", None, "uc.example:8787/nova/api"),
            ("quay.example/nova", None, "quay.example/nova"),
            ("library/debian", None, "docker.io/library/debian"),
            ("library/debian", Some("docker.io"), "docker.io/library/debian"),
        ] {
            assert_eq!(find(&hosts, name, ns).as_deref(), Ok(repository), "{name} {ns:?}");
        }
    }

    #[test]
    fn other_registries_and_odd_names_are_refused() {
        let hosts = ["uc.example:8787"];
        for (name, ns, words) in [
            ("library/debian", None, "`library/debian` is in none of the registries"),
            ("a/b", Some("internal:80"), "`internal:80/a/b` is in none"),
            ("uc.example_8787", None, "([mirror] registries: uc.example:8787)"),
            ("../x", Some("uc.example:8787"), "`../x` is not the name of a repository"),
            ("A", Some("uc.example:8787"), "`A` is not the name"),
        ] {
            let said = find(&hosts, name, ns).unwrap_err().to_string();
            assert!(said.contains(words), "{name}: {said}");
        }
    }
}
