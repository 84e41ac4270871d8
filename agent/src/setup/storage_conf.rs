//! The layer store in the text of a storage.conf (containers-storage.conf(5)). Pure: text in,
//! text out, and what the operator wrote stays as it is, comments and all.
//!
//! What is ours is marked by a comment above the key, which says what to take out again:
//!
//! ```text
//! [storage.options]
//! # undermount: "/var/lib/undermount-store:ref" (`undermount setup podman --undo` removes it)
//! additionallayerstores = ["/var/lib/other:ref", "/var/lib/undermount-store:ref"]
//! ```

use std::path::Path;

use toml_edit::{Array, DocumentMut, Item, RawString, Table, TableLike};

const KEY: &str = "additionallayerstores";
/// Begins each comment of ours.
const MARK: &str = "# undermount: ";
const HINT: &str = "(`undermount setup podman --undo` removes it)";
/// Stands in the comment where the header `[storage.options]` is ours too.
const WITH_HEADER: &str = "and this table ";
/// Begins a file that was not there before.
const COPIED: &str = "# undermount: this file (`undermount setup podman --undo` removes it)\n";
const DEFAULTS: &str = "\n[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\n\
                        graphroot = \"/var/lib/containers/storage\"\n";
/// The store's option: references stand in its paths, so that the store knows whose layer it is.
const OPTION: &str = ":ref";

/// The text is none that the store could be put into.
#[derive(Debug, thiserror::Error)]
pub enum StorageConfError {
    /// It is not TOML.
    #[error("it is not valid: {0}")]
    Syntax(String),
    /// It says something else where the store's key belongs.
    #[error("`{key}` is not {expected}")]
    Shape {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// Another storage driver is in use.
    #[error("podman's storage driver is `{driver}`; only `overlay` knows layer stores")]
    Driver {
        /// The driver.
        driver: String,
    },
}

/// The file of a system that has none, before the store is in it: the distribution's, else podman's
/// own defaults, for a file without them is refused.
pub(super) fn begin(distribution: Option<&str>) -> String {
    format!("{COPIED}{}", distribution.unwrap_or(DEFAULTS))
}

/// `text` with the layer store in it, and with no other one of ours.
pub(super) fn connect(text: &str, store: &Path) -> Result<String, StorageConfError> {
    let mut document = parse(text)?;
    take_out(&mut document)?;
    check_driver(&document)?;
    let entry = format!("{}{OPTION}", store.display());
    let storage = table(document.as_table_mut(), "storage")?;
    let has_header = storage
        .get("options")
        .is_some_and(|options| options.as_table().is_none_or(|options| !options.is_implicit()));
    let options = table(storage, "options")?;
    let stores = options.entry(KEY).or_insert_with(|| Item::Value(Array::new().into()));
    let stores = stores.as_array_mut().ok_or(NOT_A_LIST)?;
    if !stores.iter().any(|other| other.as_str() == Some(&entry)) {
        stores.push(&entry);
        mark(options, &entry, if has_header { "" } else { WITH_HEADER });
    }
    Ok(document.to_string())
}

/// `text` without a layer store of ours; `None` where that is what we began the file with: one that
/// somebody has edited since is his.
pub(super) fn disconnect(
    text: &str,
    distribution: Option<&str>,
) -> Result<Option<String>, StorageConfError> {
    let mut document = parse(text)?;
    take_out(&mut document)?;
    let rest = document.to_string();
    let Some(own) = rest.strip_prefix(COPIED) else { return Ok(Some(rest)) };
    let is_as_begun = [distribution, None]
        .into_iter()
        .any(|distribution| begin(distribution).trim_end() == rest.trim_end());
    Ok((!is_as_begun).then(|| own.to_owned()))
}

const NOT_A_LIST: StorageConfError =
    StorageConfError::Shape { key: "storage.options.additionallayerstores", expected: "a list" };

fn parse(text: &str) -> Result<DocumentMut, StorageConfError> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        StorageConfError::Syntax(error.to_string().trim_end().to_owned())
    })
}

/// The table `key` of `parent`, made where it is missing.
fn table<'a>(
    parent: &'a mut dyn TableLike,
    key: &'static str,
) -> Result<&'a mut dyn TableLike, StorageConfError> {
    let new = || {
        let mut table = Table::new();
        // Only shown when something stands in it.
        table.set_implicit(true);
        Item::Table(table)
    };
    let item = parent.entry(key).or_insert_with(new);
    item.as_table_like_mut().ok_or(StorageConfError::Shape { key, expected: "a table" })
}

fn check_driver(document: &DocumentMut) -> Result<(), StorageConfError> {
    let driver = document.get("storage").and_then(|storage| storage.get("driver"));
    match driver.and_then(Item::as_str) {
        None | Some("" | "overlay") => Ok(()),
        Some(driver) => Err(StorageConfError::Driver { driver: driver.to_owned() }),
    }
}

/// Says above the key what is ours in it.
fn mark(options: &mut dyn TableLike, entry: &str, header: &str) {
    let Some(mut key) = options.key_mut(KEY) else { return };
    let above = key.leaf_decor().prefix().and_then(RawString::as_str).unwrap_or_default();
    let marked = format!("{above}{MARK}\"{entry}\" {header}{HINT}\n");
    key.leaf_decor_mut().set_prefix(marked);
}

/// What a mark says is ours.
struct Ours {
    entry: String,
    header: bool,
}

/// Removes what a mark says is ours, and the mark.
fn take_out(document: &mut DocumentMut) -> Result<(), StorageConfError> {
    let Some(storage) = document.get_mut("storage").and_then(Item::as_table_like_mut) else {
        return Ok(());
    };
    let Some(options) = storage.get_mut("options").and_then(Item::as_table_like_mut) else {
        return Ok(());
    };
    let Some(ours) = unmark(options) else { return Ok(()) };
    let stores = options.get_mut(KEY).and_then(Item::as_array_mut).ok_or(NOT_A_LIST)?;
    stores.retain(|store| store.as_str() != Some(&ours.entry));
    if stores.is_empty() {
        options.remove(KEY);
    }
    if ours.header {
        remove_header(storage);
    }
    Ok(())
}

/// Removes `[storage.options]`, as far as nothing stands below it.
fn remove_header(storage: &mut dyn TableLike) {
    match storage.get_mut("options") {
        // Its own tables, such as [storage.options.overlay], keep it alive without a header.
        Some(Item::Table(options)) => options.set_implicit(true),
        Some(options) if options.as_table_like().is_some_and(TableLike::is_empty) => {
            storage.remove("options");
        }
        _ => {}
    }
}

/// Takes the mark away; what it says.
fn unmark(options: &mut dyn TableLike) -> Option<Ours> {
    let mut key = options.key_mut(KEY)?;
    let above = key.leaf_decor().prefix().and_then(RawString::as_str)?.to_owned();
    let (mut ours, mut rest) = (None, String::new());
    for line in above.split_inclusive('\n') {
        let words = line.trim_start().strip_prefix(MARK).and_then(|words| words.strip_prefix('"'));
        match words.and_then(|words| words.split_once('"')) {
            Some((entry, words)) => {
                let header = words.trim_start().starts_with(WITH_HEADER);
                ours = Some(Ours { entry: entry.to_owned(), header });
            }
            None => rest.push_str(line),
        }
    }
    key.leaf_decor_mut().set_prefix(rest);
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> &'static Path {
        Path::new("/var/lib/undermount-store")
    }

    /// The stores that podman would see.
    fn stores(text: &str) -> Vec<String> {
        let document = parse(text).unwrap();
        let stores = document["storage"]["options"][KEY].as_array().unwrap();
        stores.iter().map(|store| store.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_operators_text_stays_and_comes_back() {
        for text in [
            "",
            "# only a comment\n",
            "[storage]\ndriver = \"overlay\" # the best\n",
            "[storage]\ndriver = \"overlay\"\n\n[storage.options]\n# stores\nadditionalimagestores = [ \"/a\", ]\n\n[storage.options.overlay]\nmountopt = \"nodev\"\n",
            "[storage]\ndriver = 'overlay'\n[storage.options.overlay]\nmountopt = \"nodev\"",
            "[storage.options]\n# another one\nadditionallayerstores = [\"/other:ref\"] # mine\nx = 1\n",
            "storage = { driver = \"overlay\" }\n",
            "storage.driver = \"overlay\"\n",
        ] {
            let connected = connect(text, store()).unwrap();
            assert!(stores(&connected).contains(&"/var/lib/undermount-store:ref".to_owned()));
            assert_eq!(connected.matches(MARK).count(), 1, "{connected}");
            for line in text.lines().filter(|line| !line.contains("additionallayerstores")) {
                assert!(line.starts_with("storage =") || connected.contains(line), "{connected}");
            }
            assert_eq!(connect(&connected, store()).unwrap(), connected, "once is enough");
            let back = disconnect(&connected, None).unwrap().unwrap();
            assert_eq!(back.trim_end(), text.trim_end(), "{connected}");
        }
    }

    #[test]
    fn a_store_that_moved_replaces_the_one_before() {
        let once = connect("[storage.options]\n", Path::new("/old")).unwrap();
        assert_eq!(stores(&connect(&once, store()).unwrap()), ["/var/lib/undermount-store:ref"]);
    }

    #[test]
    fn a_store_that_the_operator_named_himself_stays() {
        let text =
            "[storage.options]\nadditionallayerstores = [\"/var/lib/undermount-store:ref\"]\n";
        assert_eq!(connect(text, store()).unwrap(), text);
        assert_eq!(disconnect(text, None).unwrap().unwrap(), text);
    }

    #[test]
    fn a_file_of_ours_goes_as_a_whole() {
        let theirs = "# the distribution's\n[storage]\ndriver = \"overlay\"\n";
        for distribution in [None, Some(theirs)] {
            let text = connect(&begin(distribution), store()).unwrap();
            assert_eq!(stores(&text), ["/var/lib/undermount-store:ref"]);
            assert!(text.contains("driver = \"overlay\""));
            assert_eq!(disconnect(&text, distribution).unwrap(), None);
            let moved = connect(&text, Path::new("/other")).unwrap();
            assert_eq!(disconnect(&moved, distribution).unwrap(), None);
        }
    }

    #[test]
    fn regression_what_the_operator_wrote_into_a_file_of_ours_stays() {
        let text = connect(&begin(None), store()).unwrap();
        let edited = text.replace("/var/lib/containers/storage\"", "/srv/containers\" # more room");
        assert_ne!(edited, text);
        let rest = disconnect(&edited, None).unwrap().unwrap();
        assert!(rest.contains("graphroot = \"/srv/containers\" # more room\n"), "{rest}");
        assert!(!rest.contains("undermount"), "{rest}");
        assert_eq!(disconnect(&rest, None).unwrap().unwrap(), rest, "it is the operator's now");
    }

    #[test]
    fn what_cannot_be_edited_is_named() {
        for (text, words) in [
            ("[storage\n", "line 1"),
            ("[storage]\ndriver = \"vfs\"\n", "storage driver is `vfs`"),
            ("storage = 5\n", "`storage` is not a table"),
            ("[storage]\noptions = 5\n", "`options` is not a table"),
            ("[storage.options]\nadditionallayerstores = 5\n", "is not a list"),
        ] {
            let said = connect(text, store()).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
