//! One registries.conf, as the operator writes it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::{Mirror, OWN_FILE, Place, Pulls, RegistriesConfError, Registry};
use crate::host;

/// What a file says.
#[derive(Default)]
pub(super) struct Said {
    /// Which registries are searched, in place of those of files before it.
    pub search: Option<Vec<String>>,
    /// More registries that are searched.
    pub more_search: Vec<String>,
    /// What short names mean.
    pub aliases: BTreeMap<String, String>,
    /// Its tables, in order.
    pub registries: Vec<Registry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<RegistryTable>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// The lists of version 1.
    registries: Option<VersionOne>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryTable {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorTable {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Pulls>,
}

#[derive(Default, Deserialize)]
struct VersionOne {
    #[serde(default)]
    search: List,
    #[serde(default)]
    insecure: List,
    #[serde(default)]
    block: List,
}

#[derive(Default, Deserialize)]
struct List {
    #[serde(default)]
    registries: Vec<String>,
}

/// What the file at `path` says, if there is one.
///
/// # Errors
/// [`RegistriesConfError`] where it cannot be used.
pub(super) fn read(path: &Path) -> Result<Option<Said>, RegistriesConfError> {
    let text = match host::file::read_text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RegistriesConfError::Read { path: path.to_owned(), source }),
    };
    if text.starts_with(OWN_FILE) {
        return Ok(Some(Said::default()));
    }
    let malformed =
        |line, reason| RegistriesConfError::Malformed { path: path.to_owned(), line, reason };
    let file: File = toml_edit::de::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        malformed(line, error.message().to_owned())
    })?;
    let tables = file.registry.into_iter().map(RegistryTable::registry);
    let mut registries: Vec<Registry> =
        tables.collect::<Result<_, _>>().map_err(|reason| malformed(1, reason))?;
    let old = file.registries.unwrap_or_default();
    let insecure = old.insecure.registries.into_iter().map(|name| (name, true, false));
    let blocked = old.block.registries.into_iter().map(|name| (name, false, true));
    registries.extend(insecure.chain(blocked).map(|(prefix, insecure, blocked)| {
        let place = Place { location: String::new(), insecure };
        Registry { prefix, place, blocked, mirrors: Vec::new() }
    }));
    Ok(Some(Said {
        search: file.unqualified_search_registries,
        more_search: old.search.registries,
        aliases: file.aliases,
        registries,
    }))
}

impl RegistryTable {
    fn registry(self) -> Result<Registry, String> {
        let prefix = if self.prefix.is_empty() { self.location.clone() } else { self.prefix };
        if prefix.is_empty() {
            return Err("a [[registry]] has neither `prefix` nor `location`".to_owned());
        }
        for name in [&prefix, &self.location] {
            check(name)?;
        }
        let place = Place { location: self.location, insecure: self.insecure };
        let by_digest = self.mirror_by_digest_only;
        let mirrors = self.mirror.into_iter().map(|table| {
            check(&table.location)?;
            let default = if by_digest { Pulls::DigestOnly } else { Pulls::All };
            let pulls = table.pull_from_mirror.unwrap_or(default);
            let place = Place { location: table.location, insecure: table.insecure };
            Ok(Mirror { place, pulls })
        });
        let mirrors = mirrors.collect::<Result<_, String>>()?;
        Ok(Registry { prefix, place, blocked: self.blocked, mirrors })
    }
}

fn check(name: &str) -> Result<(), String> {
    match name.contains("://") || name.ends_with('/') {
        true => Err(format!("`{name}` is not HOST[:PORT][/PATH]: leave out scheme and last slash")),
        false => Ok(()),
    }
}
