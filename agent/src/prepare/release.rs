//! Which TripleO the run is for: names, defaults and the rules that changed over the years.
//!
//! | | queens | stein | zed (train, wallaby) |
//! |---|---|---|---|
//! | parameter names | `DockerXImage` | `DockerXImage` | `ContainerXImage` |
//! | `tag_from_label` beside `set.tag` | starts at the tag | starts at the tag | is ignored |
//! | `set.neutron_driver` | counts | does not | counts |
//! | a default tag that the repository lacks | an error | an error | its last tag stands in |
//! | service is left out | unless `/docker/services/` | `OS::Heat::None`, `/puppet/services` | `OS::Heat::None` |

use std::fmt;
use std::str::FromStr;

use super::yaml::{self, Map, Value};

/// A family of TripleO releases with one set of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    /// Queens (OSP 13).
    Queens,
    /// Rocky and Stein: what the documents describe.
    #[default]
    Stein,
    /// Train to Zed.
    Zed,
}

/// A word that is not the name of a release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a release (queens, stein, train, wallaby or zed)")]
pub struct UnknownRelease(String);

/// What is built in for a release: tables, not rules.
struct BuiltIn {
    /// The image template, in Jinja.
    images: &'static str,
    /// The `ContainerImagePrepare` list that is used where there is none, in YAML.
    entries: &'static str,
}

impl Release {
    fn built_in(self) -> BuiltIn {
        match self {
            Self::Queens => BuiltIn {
                images: include_str!("release/queens.yaml.j2"),
                entries: include_str!("release/queens-default.yaml"),
            },
            Self::Stein => BuiltIn {
                images: include_str!("release/stein.yaml.j2"),
                entries: include_str!("release/stein-default.yaml"),
            },
            Self::Zed => BuiltIn {
                images: include_str!("release/zed.yaml.j2"),
                entries: include_str!("release/zed-default.yaml"),
            },
        }
    }

    /// The built-in image template.
    pub fn image_template(self) -> &'static str {
        self.built_in().images
    }

    /// The `ContainerImagePrepare` list of an environment that has none.
    pub fn default_entries(self) -> Value {
        yaml::read(self.built_in().entries).expect("a file of this source tree, held by a test")
    }

    /// `parameter_defaults` to start from: the default list, with `push_destination: true` in
    /// each entry where `local_push` says so, and with login on the nodes where `login` does.
    pub fn default_parameters(self, local_push: bool, login: bool) -> Map {
        let mut entries = self.default_entries();
        if let (true, Value::List(entries)) = (local_push, &mut entries) {
            for entry in entries {
                if let Value::Map(entry) = entry {
                    entry.insert("push_destination", Value::Bool(true));
                }
            }
        }
        let mut parameters = Map::default();
        parameters.insert("ContainerImagePrepare", entries);
        if login {
            parameters.insert("ContainerImageRegistryLogin", Value::Bool(true));
        }
        parameters
    }

    /// The values that a `set` has for the keys it does not name.
    pub fn default_set(self) -> Map {
        let entries = self.default_entries();
        let first = entries.as_list().and_then(<[Value]>::first);
        let set = first.and_then(Value::as_map).and_then(|entry| entry.get("set"));
        set.and_then(Value::as_map).cloned().unwrap_or_default()
    }

    /// Whether `tag_from_label` counts although `set` names a tag.
    pub fn label_beats_tag(self) -> bool {
        self != Self::Zed
    }

    /// Whether discovery starts at the last tag of a repository that lacks the default tag.
    pub fn last_tag_stands_in(self) -> bool {
        self == Self::Zed
    }

    /// Whether `modify_only_with_labels` means images that have all of the labels; else one of
    /// them is enough.
    pub fn wants_all_labels(self) -> bool {
        self != Self::Zed
    }

    /// Whether an environment file that does not exist is taken for an empty one.
    pub fn takes_missing_environments(self) -> bool {
        self != Self::Zed
    }

    /// Whether a service whose template is `path` in the resource registry has no container.
    pub fn drops_service(self, path: &str) -> bool {
        match self {
            Self::Queens => !path.contains("/docker/services/"),
            Self::Stein => path == "OS::Heat::None" || path.contains("/puppet/services"),
            Self::Zed => path == "OS::Heat::None",
        }
    }

    /// Whether an entry's own `neutron_driver` counts; else that of the deployment does, which
    /// [`Self::neutron_driver`] tells.
    pub fn entry_sets_neutron_driver(self) -> bool {
        self != Self::Stein
    }

    /// The `neutron_driver` of the deployment, from `NeutronMechanismDrivers`.
    pub fn neutron_driver(self, mechanism_drivers: Option<&Value>) -> &'static str {
        let Some(drivers) = mechanism_drivers.filter(|value| **value != Value::Null) else {
            return "ovn";
        };
        let names = |driver: &str| match drivers {
            Value::Text(text) => text.contains(driver),
            Value::List(items) => items.iter().any(|item| item.as_text() == Some(driver)),
            Value::Map(names) => names.contains(driver),
            _ => false,
        };
        if self != Self::Zed && names("opendaylight_v2") {
            "odl"
        } else if names("ovn") {
            "ovn"
        } else {
            "other"
        }
    }
}

impl FromStr for Release {
    type Err = UnknownRelease;

    fn from_str(word: &str) -> Result<Self, UnknownRelease> {
        match word.to_ascii_lowercase().as_str() {
            "queens" => Ok(Self::Queens),
            "rocky" | "stein" => Ok(Self::Stein),
            "train" | "ussuri" | "victoria" | "wallaby" | "xena" | "yoga" | "zed" => Ok(Self::Zed),
            _ => Err(UnknownRelease(word.to_owned())),
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queens => "queens",
            Self::Stein => "stein",
            Self::Zed => "zed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_release_has_readable_defaults() {
        for release in [Release::Queens, Release::Stein, Release::Zed] {
            let set = release.default_set();
            assert_eq!(set.get("tag").unwrap().as_text(), Some("current-tripleo"), "{release}");
            assert_eq!(release.to_string().parse(), Ok(release));
        }
    }

    #[test]
    fn later_releases_follow_zed_and_unknown_ones_are_refused() {
        assert_eq!("Train".parse(), Ok(Release::Zed));
        assert_eq!("wallaby".parse(), Ok(Release::Zed));
        assert!("ocata".parse::<Release>().unwrap_err().to_string().contains("`ocata`"));
    }

    #[test]
    fn the_neutron_driver_follows_the_mechanism_drivers() {
        let list = |words: &[&str]| words.iter().copied().collect::<Value>();
        for (drivers, stein, zed) in [
            (None, "ovn", "ovn"),
            (Some(Value::Null), "ovn", "ovn"),
            (Some(list(&["ovn", "sriov"])), "ovn", "ovn"),
            (Some(list(&["openvswitch"])), "other", "other"),
            (Some(list(&["opendaylight_v2"])), "odl", "other"),
            (Some(Value::from("openvswitch,ovn")), "ovn", "ovn"),
            (Some([("ovn", Value::Null)].into_iter().collect::<Map>().into()), "ovn", "ovn"),
        ] {
            assert_eq!(Release::Stein.neutron_driver(drivers.as_ref()), stein);
            assert_eq!(Release::Zed.neutron_driver(drivers.as_ref()), zed);
        }
    }
}
