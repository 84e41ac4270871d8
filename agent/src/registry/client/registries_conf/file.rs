//! One registries.conf, as the operator writes it.

use std::io;
use std::path::Path;

use serde::Deserialize;
use toml_edit::{Item, Table, value};

use super::{Mirror, OWN_FILE, Place, Pulls, RegistriesConfError, Registry};
use crate::host;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<RegistryTable>,
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
    insecure: List,
    #[serde(default)]
    block: List,
}

#[derive(Default, Deserialize)]
struct List {
    #[serde(default)]
    registries: Vec<String>,
}

/// The tables of the file at `path`, in order, if there is one.
///
/// # Errors
/// [`RegistriesConfError`] where it cannot be used.
pub(super) fn read(path: &Path) -> Result<Option<Vec<Registry>>, RegistriesConfError> {
    let text = match host::file::read_text(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RegistriesConfError::Read { path: path.to_owned(), source }),
    };
    if text.starts_with(OWN_FILE) {
        return Ok(Some(Vec::new()));
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
    Ok(Some(registries))
}

/// A table as [`read`] takes it.
pub(super) fn table(registry: &Registry) -> Table {
    let mut table = Table::new();
    table["prefix"] = value(&registry.prefix);
    write_place(&mut table, &registry.place);
    if registry.blocked {
        table["blocked"] = value(true);
    }
    let mirrors = registry.mirrors.iter().map(|mirror| {
        let mut table = Table::new();
        write_place(&mut table, &mirror.place);
        match mirror.pulls {
            Pulls::All => {}
            Pulls::DigestOnly => table["pull-from-mirror"] = value("digest-only"),
            Pulls::TagOnly => table["pull-from-mirror"] = value("tag-only"),
        }
        table
    });
    table["mirror"] = Item::ArrayOfTables(mirrors.collect());
    table
}

fn write_place(table: &mut Table, place: &Place) {
    table["location"] = value(&place.location);
    if place.insecure {
        table["insecure"] = value(true);
    }
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
