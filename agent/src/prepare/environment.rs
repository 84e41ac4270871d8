//! The Heat environment: what the `-e` files say together.
//!
//! Files are merged in the order given, a later one over an earlier: maps are merged pair by
//! pair, everything else is replaced, and a null does not erase a map. That is what
//! `openstack overcloud deploy` does with the same files.

use std::path::{Path, PathBuf};

use super::document::{self, DocumentError};
use super::yaml::{Map, Value};

/// The sections that Heat knows.
const SECTIONS: [&str; 6] = [
    "parameters",
    "parameter_defaults",
    "parameter_merge_strategies",
    "resource_registry",
    "encrypted_param_names",
    "event_sinks",
];

/// A failure to read the environment; it names the file.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The file cannot be read or is not YAML.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The directory cannot be read.
    #[error("cannot read the environment directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is YAML, but not a map of sections.
    #[error("{}: an environment is a map of sections, this is {kind}", path.display())]
    NotAMap {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file has a section that Heat does not know.
    #[error("{}: environment has wrong section \"{section}\"", path.display())]
    WrongSection {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
    },
    /// A section is not a map.
    #[error("{}: `{section}` must be a map, this is {kind}", path.display())]
    SectionNotAMap {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// What it is.
        kind: &'static str,
    },
}

/// What the files say together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Environment {
    sections: Map,
}

impl Environment {
    /// Reads `files` in order and merges them.
    ///
    /// # Errors
    /// [`EnvironmentError`] at the first file that cannot be read or is not an environment.
    pub fn read(files: &[PathBuf]) -> Result<Self, EnvironmentError> {
        let mut merged = Self::default();
        for path in files {
            merged.merge(Self::of(path, document::read("environment file", path)?)?);
        }
        Ok(merged)
    }

    /// The environment in `document`, which was read from `file`.
    fn of(file: &Path, document: Value) -> Result<Self, EnvironmentError> {
        let path = file.to_owned();
        let mut sections = match document {
            Value::Map(sections) => sections,
            Value::Null => Map::default(),
            other => return Err(EnvironmentError::NotAMap { path, kind: other.kind() }),
        };
        if let Some(section) = wrong_section(&sections) {
            return Err(EnvironmentError::WrongSection { path, section });
        }
        for section in ["parameter_defaults", "resource_registry"] {
            match sections.get(section) {
                None | Some(Value::Null | Value::Map(_)) => {}
                Some(other) => {
                    let (section, kind) = (section.to_owned(), other.kind());
                    return Err(EnvironmentError::SectionNotAMap { path, section, kind });
                }
            }
        }
        if let Some(Value::Map(registry)) = sections.get_mut("resource_registry") {
            resolve_templates(registry, file);
        }
        Ok(Self { sections })
    }

    fn merge(&mut self, later: Self) {
        merge_maps(&mut self.sections, later.sections);
    }

    /// The parameter `name` of `parameter_defaults`.
    pub fn parameter(&self, name: &str) -> Option<&Value> {
        self.section("parameter_defaults")?.get(name)
    }

    /// What the resource registry maps the resource type `name` to.
    pub fn resource(&self, name: &str) -> Option<&str> {
        self.section("resource_registry")?.get(name)?.as_text()
    }

    /// The resource types that the resource registry maps, with their templates.
    pub fn resources(&self) -> impl Iterator<Item = (&str, &str)> {
        let registry = self.section("resource_registry").into_iter().flat_map(Map::iter);
        registry.filter_map(|(name, path)| Some((name, path.as_text()?)))
    }

    fn section(&self, name: &str) -> Option<&Map> {
        self.sections.get(name)?.as_map()
    }
}

/// A section that Heat does not know.
fn wrong_section(sections: &Map) -> Option<String> {
    let mut named = sections.iter().map(|(name, _)| name);
    let wrong = named.find(|name| !SECTIONS.contains(name)).map(str::to_owned);
    wrong.or_else(|| sections.odd_keys().next().map(Value::to_string))
}

/// Templates of a resource registry as Heat's client names them: relative to the directory of
/// the file that the registry stands in.
fn resolve_templates(registry: &mut Map, file: &Path) {
    let file = file.to_string_lossy();
    let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory);
    // The client joins the directory to the file as well, so that relative files have `a.yaml/` and
    // `d/d/` for directories. Releases tell containers by parts of the path alone.
    let base = join(&file, directory) + "/";
    for template in registry.values_mut() {
        // Types of Heat's own, as `OS::Heat::None`, and URLs are no paths.
        match template {
            Value::Text(path) if !path.contains("::") && !path.contains("://") => {
                *path = join(&base, path);
            }
            _ => {}
        }
    }
}

/// `path` seen from `base`, whose last part counts only if a slash follows it: Python's `urljoin`.
fn join(base: &str, path: &str) -> String {
    if path.is_empty() {
        return base.to_owned();
    }
    let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
    let is_absolute = path.starts_with('/') || base.starts_with('/');
    let mut parts = Vec::new();
    let before = if path.starts_with('/') { "" } else { directory };
    for part in before.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{}{}", if is_absolute { "/" } else { "" }, parts.join("/"))
}

fn merge_maps(earlier: &mut Map, later: Map) {
    for (name, value) in later {
        match (earlier.get_mut(&name), value) {
            (Some(Value::Map(old)), Value::Map(new)) => merge_maps(old, new),
            (Some(Value::Map(_)), Value::Null) => {}
            (_, value) => {
                earlier.insert(name, value);
            }
        }
    }
}

/// The files `*.yaml` of an environment directory, sorted, without hidden ones; none where it does
/// not exist.
///
/// # Errors
/// [`EnvironmentError::Directory`] where the directory exists and cannot be read.
pub fn files_in(directory: &Path) -> Result<Vec<PathBuf>, EnvironmentError> {
    let read = |source| EnvironmentError::Directory { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let paths: Result<Vec<_>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(read)?;
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.ends_with(b".yaml") && !name.starts_with(b".") && path.is_file()
    });
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Environment, EnvironmentError> {
        let path = Path::new("env.yaml");
        Environment::of(path, document::parse(path, text)?)
    }

    fn merged(texts: &[&str]) -> Environment {
        let mut merged = Environment::default();
        for text in texts {
            merged.merge(parse(text).unwrap());
        }
        merged
    }

    #[test]
    fn later_files_win_and_maps_are_merged() {
        let environment = merged(&[
            "parameter_defaults: {A: 1, Creds: {one: {u: p}}, L: [a]}",
            "parameter_defaults: {A: 2, Creds: {two: {u: p}}, L: [b]}",
            "parameter_defaults: {Creds: null}",
        ]);
        assert_eq!(environment.parameter("A"), Some(&Value::Int(2)));
        assert_eq!(environment.parameter("L"), Some(&["b"].into_iter().collect()));
        assert_eq!(environment.parameter("Creds").unwrap().as_map().unwrap().len(), 2);
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(merged(&["", "parameter_defaults:\n"]).parameter("A"), None);
    }

    #[test]
    fn malformed_files_are_refused_with_file_line_and_column() {
        let error = parse("parameter_defaults:\n  a: b: c\n").unwrap_err().to_string();
        assert!(error.starts_with("env.yaml:2:"), "{error}");
        assert!(error.contains("malformed YAML"), "{error}");
    }

    #[test]
    fn what_heat_would_refuse_is_refused() {
        for (text, words) in [
            ("frobs: {}", "wrong section \"frobs\""),
            ("1: {}", "wrong section \"1\""),
            ("[a]", "this is a list"),
            ("parameter_defaults: [a]", "`parameter_defaults` must be a map"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn regression_templates_are_named_from_the_file_as_heats_client_does() {
        for (file, template, path) in [
            ("/t/environments/e.yaml", "../docker/services/k.yaml", "/t/docker/services/k.yaml"),
            ("/t/e.yaml", "puppet/services/k.yaml", "/t/puppet/services/k.yaml"),
            ("/t/e.yaml", "/u/x/../docker/./services/k.yaml", "/u/docker/services/k.yaml"),
            ("/e.yaml", "../../k.yaml", "/k.yaml"),
            ("d/e.yaml", "docker/services/k.yaml", "d/d/docker/services/k.yaml"),
            ("e.yaml", "docker/services/k.yaml", "e.yaml/docker/services/k.yaml"),
            ("./e.yaml", "puppet/services/k.yaml", "/puppet/services/k.yaml"),
            // An upstream quirk: no `/puppet/services` is left of it.
            ("e.yaml", "../puppet/services/k.yaml", "puppet/services/k.yaml"),
            ("/t/e.yaml", "OS::Heat::None", "OS::Heat::None"),
            ("/t/e.yaml", "file:///u/k.yaml", "file:///u/k.yaml"),
        ] {
            let text = format!("resource_registry: {{Api: '{template}'}}");
            let file = Path::new(file);
            let document = document::parse(file, &text).unwrap();
            let environment = Environment::of(file, document).unwrap();
            assert_eq!(environment.resource("Api"), Some(path), "{template} in {}", file.display());
        }
    }

    #[test]
    fn the_yaml_files_of_a_directory_come_sorted() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yaml", "c.txt"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let names: Vec<_> = files_in(directory.path()).unwrap();
        assert_eq!(names, ["a.yaml", "b.yaml"].map(|name| directory.path().join(name)));
        assert!(files_in(&directory.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn regression_what_is_no_visible_file_is_no_environment_of_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["a.yaml", ".hidden.yaml", ".yaml"] {
            std::fs::write(path(name), "").unwrap();
        }
        std::fs::create_dir(path("directory.yaml")).unwrap();
        // The lock of an editor.
        std::os::unix::fs::symlink("me@host.1234", path(".#a.yaml")).unwrap();
        std::os::unix::fs::symlink("gone", path("dangling.yaml")).unwrap();
        std::os::unix::fs::symlink("a.yaml", path("link.yaml")).unwrap();
        assert_eq!(files_in(directory.path()).unwrap(), ["a.yaml", "link.yaml"].map(path));
    }
}
