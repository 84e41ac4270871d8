//! YAML as TripleO's own tools read and write it.
//!
//! Heat environments are read by PyYAML, which is YAML 1.1: `yes` is true, `017` is fifteen and
//! `2.10` is the number 2.1, so that a tag written without quotes loses its zero. A reader of
//! YAML 1.2 would give other tags than the operator has today. This module keeps the types
//! apart, prints them as Python does where they become part of a name ([`Value`]'s `Display`),
//! and writes the block style of `yaml.safe_dump` ([`write()`]).
//!
//! The grammar is left to serde-saphyr's parser; the types of plain words are ours (`scalar`).

mod read;
mod scalar;
mod write;

use std::collections::BTreeMap;
use std::fmt;

pub use read::{YamlError, read};
pub use write::write;

/// A YAML node with its type resolved.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `yes`, `on` and their opposites.
    Bool(bool),
    /// An integer, in whatever base it was written.
    Int(i128),
    /// A number with a point.
    Float(f64),
    /// Everything else, dates included: Heat reads those as text too.
    Text(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping.
    Map(Map),
}

/// A mapping. Its order is not kept: nothing in a Heat environment depends on it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Map {
    named: BTreeMap<String, Value>,
    /// Pairs whose key is not text, which no environment needs but every reader must survive.
    odd: Vec<(Value, Value)>,
}

impl Value {
    /// What the node is, in words for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Whether Python would take the node for true: not null, false, zero or empty.
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(map) => !map.is_empty(),
        }
    }

    /// The text of a text node.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs of a map.
    pub fn as_map(&self) -> Option<&Map> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Map> for Value {
    fn from(map: Map) -> Self {
        Self::Map(map)
    }
}

impl<T: Into<Self>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

/// The node as Python's `str()` gives it: what a template makes of it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => f.write_str(&scalar::python_float(*value)),
            Self::Text(text) => f.write_str(text),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(Self::repr).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Map(map) => {
                let pair = |(key, value): (Self, &Self)| key.repr() + ": " + &value.repr();
                let pairs: Vec<_> = map.pairs().map(pair).collect();
                write!(f, "{{{}}}", pairs.join(", "))
            }
        }
    }
}

impl Value {
    /// Python's `repr()`: as `str()`, with text in quotes.
    fn repr(&self) -> String {
        match self {
            Self::Text(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
            other => other.to_string(),
        }
    }
}

impl Map {
    /// The value of the text key `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.named.get(name)
    }

    /// The value of the text key `name`, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.named.get_mut(name)
    }

    /// Sets `name` and gives its former value.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.named.insert(name.into(), value.into())
    }

    /// Sets a key of any type; the later of two equal keys counts, as in PyYAML.
    fn insert_any(&mut self, key: Value, value: Value) {
        match key {
            Value::Text(name) => {
                self.named.insert(name, value);
            }
            key => match self.odd.iter_mut().find(|(known, _)| *known == key) {
                Some((_, known)) => *known = value,
                None => self.odd.push((key, value)),
            },
        }
    }

    /// Whether there is a pair with the text key `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    /// Whether there are no pairs at all.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.odd.is_empty()
    }

    /// The number of pairs.
    pub fn len(&self) -> usize {
        self.named.len() + self.odd.len()
    }

    /// The pairs with text keys, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.named.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The values of the text keys, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.named.values_mut()
    }

    /// The keys that are not text.
    pub fn odd_keys(&self) -> impl Iterator<Item = &Value> {
        self.odd.iter().map(|(key, _)| key)
    }

    /// All pairs, those with text keys first.
    fn pairs(&self) -> impl Iterator<Item = (Value, &Value)> {
        let named = self.named.iter().map(|(name, value)| (Value::from(name.as_str()), value));
        named.chain(self.odd.iter().map(|(key, value)| (key.clone(), value)))
    }
}

/// The pairs with text keys.
impl IntoIterator for Map {
    type Item = (String, Value);
    type IntoIter = std::collections::btree_map::IntoIter<String, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.named.into_iter()
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Map {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let named = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self { named, odd: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_as_python_prints_them() {
        let text = "{n: null, b: yes, f: 2.10, i: 017, t: it's, l: [a, 1.0], e: {}}";
        let value = read(text).unwrap();
        let printed = "{'b': True, 'e': {}, 'f': 2.1, 'i': 15, 'l': ['a', 1.0], 'n': None, \
                       't': 'it\\'s'}";
        assert_eq!(value.to_string(), printed);
    }

    #[test]
    fn truth_is_pythons() {
        for (text, truth) in [
            ("null", false),
            ("''", false),
            ("[]", false),
            ("0", false),
            ("'0'", true),
            ("on", true),
        ] {
            assert_eq!(read(text).unwrap().is_truthy(), truth, "{text}");
        }
    }
}
