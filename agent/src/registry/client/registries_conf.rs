//! What the host's registries.conf says about registries (containers-registries.conf(5), version
//! 2): where a repository really is, its mirrors, which registries are insecure or blocked.
//!
//! Reading (`file`) is apart from deciding: [`RegistriesConf::read`] merges files, the rest is a
//! lookup.

mod file;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::Fault;
use crate::image::Repository;

/// Begins the file that `setup podman` writes. It sends podman to this program's own mirror,
/// where this program itself would meet only itself.
pub const OWN_FILE: &str = "# Written by `undermount";

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesConfError {
    /// It is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no TOML, or something has another form than it should.
    #[error("{}:{line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What the files say, merged.
#[derive(Debug, Clone, Default)]
pub struct RegistriesConf {
    registries: Vec<Registry>,
    /// Why they say nothing: whoever asks is told.
    broken: Option<Arc<RegistriesConfError>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Registry {
    prefix: String,
    place: Place,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    /// `host[:port][/path]` in place of the prefix; where it is empty the name stays.
    location: String,
    insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    place: Place,
    pulls: Pulls,
}

/// Which pulls go to a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pulls {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// Where a repository is read from or written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// Mirrors to ask first, in order: `host[:port]/path`.
    pub mirrors: Vec<String>,
    /// Its own place.
    pub home: String,
}

impl RegistriesConf {
    /// What podman is told on the system below `root` by a user whose home is `home`, who has files
    /// of his own where the system has them as well.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_system(root: &Path, home: Option<&Path>) -> Result<Self, RegistriesConfError> {
        let own = home.map(|home| home.join(".config/containers"));
        let directories = [Some(root.join("etc/containers")), own].into_iter().flatten();
        let directories: Vec<_> = directories.collect();
        let main = directories.iter().rev().map(|dir| dir.join("registries.conf"));
        let more = directories.iter().flat_map(|dir| drop_ins(&dir.join("registries.conf.d")));
        Self::read(&main.collect::<Vec<_>>(), &more.collect::<Vec<_>>())
    }

    /// What was read. Where that went wrong, every request fails and so names the file.
    pub fn or_broken(read: Result<Self, RegistriesConfError>) -> Self {
        read.unwrap_or_else(|error| Self { broken: Some(Arc::new(error)), ..Self::default() })
    }

    /// What the files say together: the first that exists of `main`, then all of `more`. A later
    /// table for a prefix takes the place of an earlier one.
    ///
    /// # Errors
    /// [`RegistriesConfError`] where a file cannot be used.
    pub fn read(main: &[PathBuf], more: &[PathBuf]) -> Result<Self, RegistriesConfError> {
        let mut merged = Self::default();
        for path in main {
            if merged.merge(path)? {
                break;
            }
        }
        for path in more {
            merged.merge(path)?;
        }
        Ok(merged)
    }

    /// Adds what the file says; whether it exists.
    fn merge(&mut self, path: &Path) -> Result<bool, RegistriesConfError> {
        let Some(said) = file::read(path)? else { return Ok(false) };
        said.into_iter().for_each(|registry| self.put(registry));
        Ok(true)
    }

    fn put(&mut self, registry: Registry) {
        self.registries.retain(|known| known.prefix != registry.prefix);
        self.registries.push(registry);
    }

    /// The table with the longest prefix of `repository`, and the length of what it matches.
    fn find(&self, repository: &Repository) -> Option<(&Registry, usize)> {
        let matching = self.registries.iter().filter_map(|registry| {
            Some((registry, matched(&registry.prefix, repository.as_str())?))
        });
        matching.max_by_key(|(registry, _)| registry.prefix.len())
    }

    /// Where `repository` is. `pinned` says whether a digest is asked for, since mirrors may be
    /// for those, or for tags, alone.
    ///
    /// # Errors
    /// [`Fault::Blocked`] where it is, [`Fault::Registries`] where the files are no help.
    pub fn routes(&self, repository: &Repository, pinned: bool) -> Result<Routes, Fault> {
        if let Some(error) = &self.broken {
            return Err(Fault::Registries(Arc::clone(error)));
        }
        let name = repository.as_str();
        let Some((registry, matched)) = self.find(repository) else {
            return Ok(Routes { mirrors: Vec::new(), home: name.to_owned() });
        };
        if registry.blocked {
            return Err(Fault::Blocked);
        }
        let at = |place: &Place| match place.location.as_str() {
            "" => name.to_owned(),
            location => format!("{location}{}", &name[matched..]),
        };
        let wanted = |mirror: &&Mirror| match mirror.pulls {
            Pulls::All => true,
            Pulls::DigestOnly => pinned,
            Pulls::TagOnly => !pinned,
        };
        let mirrors = registry.mirrors.iter().filter(wanted);
        let mirrors = mirrors.map(|mirror| at(&mirror.place)).collect();
        Ok(Routes { mirrors, home: at(&registry.place) })
    }

    /// Whether the registry `host[:port]` may be spoken to without a good certificate, or
    /// without TLS.
    pub fn is_insecure(&self, host: &str) -> bool {
        let names = |place: &Place, prefix: &str| {
            let place_name = if place.location.is_empty() { prefix } else { &place.location };
            place.insecure && matched(host_of(place_name), host).is_some()
        };
        self.registries.iter().any(|registry| {
            names(&registry.place, &registry.prefix)
                || registry.mirrors.iter().any(|mirror| names(&mirror.place, ""))
        })
    }

    /// A `[[registry]]` table for the registry `host[:port]` that says what these files say of it,
    /// and names `mirror`, an insecure one, before all others. A later table takes the place of an
    /// earlier one as a whole.
    pub fn with_mirror(&self, host: &str, mirror: &str) -> toml_edit::Table {
        let covering = self.registries.iter().filter_map(|registry| {
            let rest = &host[matched(&registry.prefix, host)?..];
            Some((registry, rest))
        });
        let known = covering.max_by_key(|(registry, _)| registry.prefix.len());
        let (mut registry, rest) =
            known.map_or_else(Default::default, |(known, rest)| (known.clone(), rest));
        registry.prefix = host.to_owned();
        registry.mirrors.iter_mut().for_each(|mirror| mirror.place.location.push_str(rest));
        match registry.place.location.as_str() {
            "" => registry.place.location = host.to_owned(),
            _ => registry.place.location.push_str(rest),
        }
        let place = Place { location: mirror.to_owned(), insecure: true };
        registry.mirrors.insert(0, Mirror { place, pulls: Pulls::All });
        file::table(&registry)
    }
}

/// The files that count in a directory, in their order.
fn drop_ins(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    files
}

fn host_of(name: &str) -> &str {
    name.split('/').next().unwrap_or_default()
}

/// How many bytes of `name` the prefix stands for: itself, whole components of a path, a host
/// whatever its port, or any host below a domain (`*.example.com`).
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = host_of(name).split(':').next().unwrap_or_default();
        return (host.ends_with(domain) && host.len() > domain.len()).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (!prefix.is_empty() && (rest.is_empty() || rest.starts_with(['/', ':'])))
        .then_some(prefix.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[&str]) -> Result<RegistriesConf, String> {
        let directory = tempfile::tempdir().unwrap();
        let paths = files.iter().enumerate().map(|(number, text)| {
            let path = directory.path().join(format!("{number}.conf"));
            std::fs::write(&path, text).unwrap();
            path
        });
        let paths: Vec<_> = paths.collect();
        let absent = directory.path().join("absent");
        let main = [absent, paths[0].clone()];
        RegistriesConf::read(&main, &paths[1..]).map_err(|error| error.to_string())
    }

    fn routes(conf: &RegistriesConf, name: &str, pinned: bool) -> Option<Vec<String>> {
        let routes = conf.routes(&name.parse().unwrap(), pinned).ok()?;
        Some(routes.mirrors.into_iter().chain([routes.home]).collect())
    }

    const CONF: &str = r#"
        unqualified-search-registries = ["quay.io", "docker.io"]
        [[registry]]
        prefix = "quay.io/tripleo"
        location = "mirror.example.com:5000/t"
        [[registry.mirror]]
        location = "near.example.com/t"
        insecure = true
        [[registry.mirror]]
        location = "far.example.com/t"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "quay.io/tripleo/secret"
        blocked = true
        [[registry]]
        prefix = "*.corp.example"
        insecure = true
        [[registry]]
        location = "plain.example.com:5000"
        insecure = true
    "#;

    #[test]
    fn the_longest_prefix_says_where_a_repository_is() {
        let conf = read(&[CONF]).unwrap();
        let (near, far) = ("near.example.com/t/nova", "far.example.com/t/nova");
        let home = "mirror.example.com:5000/t/nova";
        for (name, pinned, expected) in [
            ("quay.io/tripleo/nova", false, Some(vec![near, home])),
            ("quay.io/tripleo/nova", true, Some(vec![near, far, home])),
            ("quay.io/tripleo2/nova", true, Some(vec!["quay.io/tripleo2/nova"])),
            ("quay.io/tripleo/secret/x", true, None),
            ("a.corp.example/x", true, Some(vec!["a.corp.example/x"])),
        ] {
            let expected: Option<Vec<String>> =
                expected.map(|routes| routes.into_iter().map(str::to_owned).collect());
            assert_eq!(routes(&conf, name, pinned), expected, "{name}");
        }
    }

    #[test]
    fn insecure_registries_are_those_that_are_named() {
        let conf = read(&[CONF]).unwrap();
        for (host, insecure) in [
            ("near.example.com", true),
            ("far.example.com", false),
            ("plain.example.com:5000", true),
            ("plain.example.com", false),
            ("a.corp.example", true),
            ("a.corp.example:8787", true),
            ("corp.example", false),
            ("quay.io", false),
        ] {
            assert_eq!(conf.is_insecure(host), insecure, "{host}");
        }
    }

    #[test]
    fn regression_a_table_with_a_mirror_more_keeps_what_was_said_before() {
        let conf = read(&[CONF]).unwrap();
        let written = |conf: &RegistriesConf, host: &str, mirror: &str| {
            let mut text = toml_edit::DocumentMut::new();
            let tables = [conf.with_mirror(host, mirror)].into_iter().collect();
            text["registry"] = toml_edit::Item::ArrayOfTables(tables);
            text.to_string()
        };
        for (host, insecure) in
            [("plain.example.com:5000", true), ("a.corp.example:8787", true), ("quay.io", false)]
        {
            let conf = read(&[CONF, &written(&conf, host, "127.0.0.1:5055/m")]).unwrap();
            let (name, mirrored) = (format!("{host}/ns/x"), "127.0.0.1:5055/m/ns/x".to_owned());
            assert_eq!(routes(&conf, &name, false), Some(vec![mirrored, name]));
            assert_eq!(conf.is_insecure(host), insecure, "{host}");
        }
        let other = "[[registry]]\nlocation = 'here.example'\nprefix = 'uc.example'\nblocked = true\n\
                     [[registry.mirror]]\nlocation = 'far.example/t'\ninsecure = true\n\
                     pull-from-mirror = 'tag-only'\n";
        assert_eq!(
            written(&read(&[other]).unwrap(), "uc.example", "m/uc"),
            "[[registry]]\nprefix = \"uc.example\"\nlocation = \"here.example\"\nblocked = true\n\n\
             [[registry.mirror]]\nlocation = \"m/uc\"\ninsecure = true\n\n\
             [[registry.mirror]]\nlocation = \"far.example/t\"\ninsecure = true\n\
             pull-from-mirror = \"tag-only\"\n"
        );
    }

    #[test]
    fn later_files_win_by_prefix_and_our_own_does_not_count() {
        let later = "[[registry]]\nprefix = 'quay.io/tripleo'\nlocation = 'other.example.com'\n";
        let own = format!("{OWN_FILE} setup podman`.\n[[registry]]\nprefix='a.b'\nblocked=true\n");
        let conf = read(&[CONF, later, &own]).unwrap();
        let there = routes(&conf, "quay.io/tripleo/nova", true);
        assert_eq!(there.unwrap(), ["other.example.com/nova"]);
        assert!(routes(&conf, "a.b/c", true).is_some());
    }

    #[test]
    fn version_one_is_understood() {
        let conf = read(&["[registries.insecure]\nregistries = ['h:1']\n[registries.block]\n\
                           registries = ['bad.example']\n"]);
        let conf = conf.unwrap();
        assert!(conf.is_insecure("h:1") && routes(&conf, "bad.example/x", true).is_none());
    }

    #[test]
    fn mistakes_are_named_with_their_file() {
        for (text, words) in [
            ("\n[[registry]\n", "0.conf:2: "),
            ("[[registry]]\ninsecure = true\n", "has neither `prefix` nor `location`"),
            ("[[registry]]\nlocation = 'https://x'\n", "leave out scheme"),
            ("\n\n[[registry]]\nblocked = 'x'\n", "0.conf:4: "),
        ] {
            let error = read(&[text]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
