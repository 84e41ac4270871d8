//! One case: a file of `goldens/cases`.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use serde_json::Value;

/// A case and what it should leave behind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The name of its file.
    #[serde(skip)]
    pub name: String,
    /// What it is about.
    pub title: String,
    /// The release whose rules apply.
    pub era: String,
    /// What is wrong with the original's answer, where something is.
    pub upstream_bug: Option<String>,
    /// The servers that it needs beside the source registry.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The command lines, without the program.
    pub steps: Vec<String>,
    /// Files and their contents.
    #[serde(default)]
    pub input: BTreeMap<String, String>,
    /// How stdout is compared, where it is.
    pub stdout_is: Option<StdoutForm>,
    /// What the original left behind.
    pub expect: Expected,
    /// What ours leaves behind instead.
    pub ours: Option<Ours>,
}

/// How stdout is compared.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StdoutForm {
    /// Line by line, in any order.
    Lines,
    /// As data.
    Yaml,
    /// As data.
    Json,
}

/// What is left behind, part by part.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Expected {
    /// Parts of what is said.
    #[serde(default)]
    pub stderr: Vec<String>,
    /// `exit` (0 or 1 per step), `env.yaml`, `images.yaml`, `registry`, `export`, `stdout`.
    #[serde(flatten)]
    pub parts: BTreeMap<String, Value>,
}

/// Where and why ours is another.
#[derive(Debug, Deserialize)]
pub struct Ours {
    /// Why.
    pub reason: String,
    /// The parts that differ.
    #[serde(flatten)]
    pub parts: BTreeMap<String, Value>,
}

impl Case {
    /// All cases, by name.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir(super::directory().join("cases")).unwrap();
        let mut cases: Vec<_> = entries.map(|entry| Self::read(&entry.unwrap().path())).collect();
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        cases
    }

    fn read(path: &std::path::Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let case: Self = serde_saphyr::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        Self { name, ..case }
    }

    /// What should be left behind: what the original left, except where ours is another.
    pub fn expected(&self) -> BTreeMap<String, Value> {
        let mut parts = self.expect.parts.clone();
        parts.extend(self.ours.iter().flat_map(|ours| ours.parts.clone()));
        parts.retain(|_, value| !value.is_null());
        for value in parts.values_mut() {
            sort_sets(value);
        }
        parts
    }
}

/// The words of a command line, in which single quotes keep a word together.
pub fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (position, piece) in line.split('\'').enumerate() {
        let quoted = position % 2 == 1;
        for (position, part) in piece.split(|c| c == ' ' && !quoted).enumerate() {
            if position > 0 {
                words.push(String::new());
            }
            words.last_mut().expect("it begins with one").push_str(part);
        }
    }
    words
}

/// Lists whose order does not count: ports or the server's file system decide it.
const SETS: [&str; 2] = ["DockerInsecureRegistryAddress", "RepoTags"];

/// YAML or JSON as data, each text in it passed through `change`.
pub fn comparable(text: &str, change: &impl Fn(&str) -> String) -> Value {
    let value = serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut value = changed(value, change);
    sort_sets(&mut value);
    value
}

fn changed(value: Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(&text).into(),
        Value::Array(items) => items.into_iter().map(|item| changed(item, change)).collect(),
        Value::Object(map) => {
            map.into_iter().map(|(key, value)| (change(&key), changed(value, change))).collect()
        }
        other => other,
    }
}

fn sort_sets(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::Array(items) if SETS.contains(&key.as_str()) => {
                        items.sort_by_key(Value::to_string);
                    }
                    other => sort_sets(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(sort_sets),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_a_word_together() {
        assert_eq!(words("a --x='{b} c' d"), ["a", "--x={b} c", "d"]);
        assert_eq!(words("a ''"), ["a", ""]);
    }
}
