//! One entry of `ContainerImagePrepare`, from YAML into types.
//!
//! Unknown keys are ignored, as the original does; a known key of the wrong type is refused with
//! its place, where the original would fail later or do something odd.

use super::pattern::{Pattern, PatternError};
use super::yaml::{Map, Value};

/// One entry: which images, from where, to where.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// Values for the image template. A key that is present and null stays null.
    pub set: Map,
    /// Where the images go.
    pub push_destination: PushDestination,
    /// A deprecated prefix of the source.
    pub pull_source: Option<String>,
    /// The label, or the template of labels, that tells the tag.
    pub tag_from_label: Option<String>,
    /// Where there are any, an image must match one of them.
    pub includes: Vec<Pattern>,
    /// An image must match none of them, unless there are includes.
    pub excludes: Vec<Pattern>,
    /// How the images are changed on the way.
    pub modify: Option<Modify>,
    /// Whether all architectures are copied; where absent the environment decides.
    pub multi_arch: Option<bool>,
}

/// Where an entry's images go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PushDestination {
    /// Nowhere: nodes pull from the source.
    #[default]
    None,
    /// To the undercloud's own registry (`push_destination: true`).
    Undercloud,
    /// To this host, perhaps with a path.
    Registry(String),
}

/// How an entry's images are changed on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Modify {
    /// The Ansible role.
    pub role: String,
    /// What is appended to the tag: a time stamp where the key is absent, nothing where it is
    /// empty.
    pub append_tag: Option<String>,
    /// Variables for the role, unless there are none.
    pub vars: Option<Value>,
    /// Only images that have one of these labels.
    pub only_with_labels: Vec<String>,
    /// Only images of these sources of the template.
    pub only_with_source: Vec<String>,
}

/// An entry that cannot be understood; `at` is its place, such as `ContainerImagePrepare[1].set`.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// A value of the wrong type.
    #[error("{at} must be {expected}, this is {found}")]
    WrongType {
        /// The place.
        at: String,
        /// What would do.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A pattern that is not a regular expression.
    #[error("{at} has a pattern that cannot be used")]
    Pattern {
        /// The place.
        at: String,
        /// The pattern, and why not.
        source: PatternError,
    },
}

/// The entries of the list `value`, which is the parameter `parameter`.
///
/// # Errors
/// [`EntryError`] with the place of the first value that cannot be understood.
pub fn entries(parameter: &str, value: &Value) -> Result<Vec<Entry>, EntryError> {
    let Some(items) = value.as_list() else {
        return Err(wrong_type(parameter.to_owned(), "a list of entries", value));
    };
    let parse = |(position, item)| Entry::parse(&format!("{parameter}[{position}]"), item);
    items.iter().enumerate().map(parse).collect()
}

impl Entry {
    fn parse(at: &str, value: &Value) -> Result<Self, EntryError> {
        let Value::Map(map) = value else { return Err(wrong_type(at.to_owned(), "a map", value)) };
        let keys = Keys { at, map };
        let set = keys.map("set")?;
        let set_keys = Keys { at: &keys.place("set"), map: &set };
        for affix in ["name_prefix", "name_suffix"] {
            set_keys.text(affix)?;
        }
        let modify = keys.text("modify_role")?.map(|role| {
            Ok(Modify {
                role,
                append_tag: match map.contains("modify_append_tag") {
                    true => Some(keys.text("modify_append_tag")?.unwrap_or_default()),
                    false => None,
                },
                vars: keys.present("modify_vars").filter(|vars| vars.is_truthy()).cloned(),
                only_with_labels: keys.words("modify_only_with_labels")?,
                only_with_source: keys.words("modify_only_with_source")?,
            })
        });
        Ok(Self {
            push_destination: keys.push_destination()?,
            pull_source: keys.text("pull_source")?,
            tag_from_label: keys.text("tag_from_label")?,
            includes: keys.patterns("includes")?,
            excludes: keys.patterns("excludes")?,
            modify: modify.transpose()?,
            multi_arch: keys.present("multi_arch").map(Value::is_truthy),
            set,
        })
    }
}

/// The keys of one map, read with the place in their errors.
struct Keys<'a> {
    at: &'a str,
    map: &'a Map,
}

impl Keys<'_> {
    /// The value of `key` unless it is absent or null.
    fn present(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| **value != Value::Null)
    }

    fn place(&self, key: &str) -> String {
        format!("{}.{key}", self.at)
    }

    /// A text that is not empty; numbers are taken as Python would print them.
    fn text(&self, key: &str) -> Result<Option<String>, EntryError> {
        match self.map.get(key) {
            None => Ok(None),
            Some(value) if !value.is_truthy() => Ok(None),
            Some(value @ (Value::Text(_) | Value::Int(_) | Value::Float(_))) => {
                Ok(Some(value.to_string()))
            }
            Some(other) => Err(wrong_type(self.place(key), "text", other)),
        }
    }

    fn map(&self, key: &str) -> Result<Map, EntryError> {
        match self.present(key) {
            None => Ok(Map::default()),
            Some(Value::Map(map)) => Ok(map.clone()),
            Some(other) => Err(wrong_type(self.place(key), "a map", other)),
        }
    }

    fn words(&self, key: &str) -> Result<Vec<String>, EntryError> {
        let value = self.map.get(key).filter(|value| value.is_truthy());
        let Some(value) = value else { return Ok(Vec::new()) };
        let Value::List(items) = value else {
            return Err(wrong_type(self.place(key), "a list", value));
        };
        let word = |(position, item): (usize, &Value)| match item {
            Value::Text(_) | Value::Int(_) | Value::Float(_) => Ok(item.to_string()),
            other => Err(wrong_type(format!("{}[{position}]", self.place(key)), "text", other)),
        };
        items.iter().enumerate().map(word).collect()
    }

    fn patterns(&self, key: &str) -> Result<Vec<Pattern>, EntryError> {
        let compile = |pattern: String| {
            Pattern::parse(&pattern)
                .map_err(|source| EntryError::Pattern { at: self.place(key), source })
        };
        self.words(key)?.into_iter().map(compile).collect()
    }

    fn push_destination(&self) -> Result<PushDestination, EntryError> {
        match self.map.get("push_destination") {
            None => Ok(PushDestination::None),
            Some(Value::Bool(true)) => Ok(PushDestination::Undercloud),
            Some(value) if !value.is_truthy() => Ok(PushDestination::None),
            Some(Value::Text(host)) => Ok(PushDestination::registry(host)),
            Some(other) => {
                Err(wrong_type(self.place("push_destination"), "true or host:port", other))
            }
        }
    }
}

impl PushDestination {
    /// The registry `host`, perhaps with a path. Slashes at the end are dropped: the original
    /// keeps them in the parameters and not in the pushed names, which then differ.
    pub fn registry(host: &str) -> Self {
        match host.trim_end_matches('/') {
            "" => Self::None,
            host => Self::Registry(host.to_owned()),
        }
    }
}

fn wrong_type(at: String, expected: &'static str, found: &Value) -> EntryError {
    EntryError::WrongType { at, expected, found: found.kind() }
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    fn parse(text: &str) -> Result<Vec<Entry>, EntryError> {
        entries("ContainerImagePrepare", &yaml::read(text).unwrap())
    }

    #[test]
    fn an_entry_is_read_and_unknown_keys_are_ignored() {
        let entries = parse(
            "- {push_destination: 'h:8787/', tag_from_label: rdo_version, includes: [nova-, 'a$'], \
               set: {tag: null}, frobnicate: yes, multi_arch: no, modify_role: r, \
               modify_vars: {a: 1}, modify_only_with_source: [kolla]}\n- push_destination: true\n\
             - {includes: '', excludes: no}\n",
        )
        .unwrap();
        let first = &entries[0];
        assert_eq!(first.push_destination, PushDestination::Registry("h:8787".to_owned()));
        assert_eq!(first.tag_from_label.as_deref(), Some("rdo_version"));
        assert_eq!((first.includes.len(), first.excludes.len()), (2, 0));
        assert!(first.set.contains("tag"));
        assert_eq!(first.multi_arch, Some(false));
        let modify = first.modify.as_ref().unwrap();
        assert_eq!((modify.role.as_str(), &modify.append_tag), ("r", &None));
        assert_eq!(modify.only_with_source, ["kolla"]);
        assert_eq!(entries[1].push_destination, PushDestination::Undercloud);
        assert_eq!(entries[2].push_destination, PushDestination::None);
        assert_eq!((entries[2].includes.len(), entries[2].excludes.len()), (0, 0));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, words) in [
            ("set: {tag: x}", "ContainerImagePrepare must be a list of entries, this is a map"),
            ("[a]", "ContainerImagePrepare[0] must be a map, this is text"),
            ("[{set: [a]}]", "ContainerImagePrepare[0].set must be a map, this is a list"),
            ("[{}, {includes: nova}]", "ContainerImagePrepare[1].includes must be a list"),
            ("[{includes: [{}]}]", "includes[0] must be text, this is a map"),
            ("[{includes: ['nova-(']}]", "[0].includes has a pattern that cannot be used"),
            ("[{push_destination: {}, tag_from_label: {a: b}}]", "tag_from_label must be text"),
            ("[{push_destination: [a]}]", "must be true or host:port, this is a list"),
            ("[{set: {name_suffix: [a]}}]", "[0].set.name_suffix must be text, this is a list"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
