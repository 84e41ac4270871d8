//! From text to a [`Value`]: composes the parser's events, follows aliases and merge keys.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_saphyr::granit_parser::{
    ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput, Tag,
};

use super::{Map, Value, scalar};

/// More nodes than any environment has. Aliases of aliases would otherwise let a page of text
/// grow beyond all memory.
const MAX_NODES: usize = 1_000_000;

/// Text that is not one YAML document, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct YamlError {
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: String,
}

impl YamlError {
    fn at(marker: Marker, problem: impl Into<String>) -> Self {
        Self { line: marker.line(), column: marker.col() + 1, problem: problem.into() }
    }
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        Self::at(*error.marker(), error.info())
    }
}

/// Reads the one document in `text`; an empty text is null.
///
/// # Errors
/// [`YamlError`] where the text is malformed, holds several documents, an alias of something
/// unknown, a tag that plain data does not have, or more than a million nodes.
pub fn read(text: &str) -> Result<Value, YamlError> {
    let mut text = Cow::Borrowed(text);
    loop {
        let (document, glued) = {
            let mut composer = Composer::new(&text);
            (composer.document(), composer.glued)
        };
        match glued {
            // PyYAML lets a comment follow quotes and brackets at once, the parser does not.
            Some(at) if text[..at].ends_with(['"', '\'', '[', ']', '{', '}', ',']) => {
                text.to_mut().insert(at, ' ');
            }
            _ => return document,
        }
    }
}

struct Composer<'t> {
    events: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Value>,
    nodes: usize,
    /// Where the parser stopped at a comment with nothing before it: an offset in bytes.
    glued: Option<usize>,
}

impl<'t> Composer<'t> {
    fn new(text: &'t str) -> Self {
        let (events, anchors) = (Parser::new_from_str(text), HashMap::new());
        Self { events, anchors, nodes: 0, glued: None }
    }

    /// The one document.
    fn document(&mut self) -> Result<Value, YamlError> {
        let mut document = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(document.unwrap_or(Value::Null)),
                Event::DocumentStart(..) if document.is_some() => {
                    let problem = "a second document begins; one is expected";
                    return Err(YamlError::at(span.start, problem));
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => document = Some(self.node(event, span)?),
            }
        }
    }

    /// The next event that is not a comment.
    fn next(&mut self) -> Result<(Event<'t>, Span), YamlError> {
        loop {
            match self.events.next_event() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(event)) => return Ok(event),
                Some(Err(error)) => {
                    if *error.kind() == ErrorKind::CommentNotSeparated {
                        self.glued = error.marker().byte_offset();
                    }
                    return Err(error.into());
                }
                None => return Ok((Event::StreamEnd, Span::default())),
            }
        }
    }

    /// The node that `event` begins.
    fn node(&mut self, event: Event<'t>, span: Span) -> Result<Value, YamlError> {
        self.count(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(word, style, anchor, tag) => {
                (typed(&word, style, tag.as_deref(), span)?, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_collection_tag(tag.as_deref(), "seq", span)?;
                (Value::List(self.list()?), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                check_collection_tag(tag.as_deref(), "map", span)?;
                (Value::Map(self.map()?), anchor)
            }
            Event::Alias(id) => return self.alias(id, span),
            other => {
                return Err(YamlError::at(span.start, format!("unexpected {other:?}")));
            }
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<Value, YamlError> {
        let Some(value) = self.anchors.get(&id).cloned() else {
            return Err(YamlError::at(span.start, "an alias stands inside what it refers to"));
        };
        self.count(size(&value), span)?;
        Ok(value)
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(YamlError::at(span.start, format!("more than {MAX_NODES} nodes")));
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<Value>, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span)?),
            }
        }
    }

    /// A mapping. What `<<` merges in counts less than the mapping's own pairs, and less the
    /// later it stands in a list of merged mappings.
    fn map(&mut self) -> Result<Map, YamlError> {
        let mut own = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let is_merge =
                matches!(&event, Event::Scalar(word, ScalarStyle::Plain, _, None) if word == "<<");
            let key = self.node(event, span)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span)?;
            if is_merge {
                merged.extend(merge_sources(value, span)?);
            } else {
                own.push((key, value));
            }
        }
        let mut map = Map::default();
        let foreign = merged.into_iter().rev().flat_map(|map| {
            let named = map.named.into_iter().map(|(name, value)| (Value::Text(name), value));
            named.chain(map.odd)
        });
        for (key, value) in foreign.chain(own) {
            map.insert_any(key, value);
        }
        Ok(map)
    }
}

/// The mappings that a merge key brings in: one, or a list of them.
fn merge_sources(value: Value, span: Span) -> Result<Vec<Map>, YamlError> {
    let sources = match value {
        Value::List(items) => items,
        value => vec![value],
    };
    let maps = sources.into_iter().map(|source| match source {
        Value::Map(map) => Ok(map),
        other => {
            let problem = format!("`<<` merges a map or a list of maps, not {}", other.kind());
            Err(YamlError::at(span.start, problem))
        }
    });
    maps.collect()
}

/// The value of a scalar, whose type is written (`!!str 17.10`) or implied.
fn typed(
    word: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    span: Span,
) -> Result<Value, YamlError> {
    let Some(tag) = tag else {
        let plain = style == ScalarStyle::Plain;
        return Ok(if plain { scalar::resolve(word) } else { Value::from(word) });
    };
    let wrong = |kind: &str| Err(YamlError::at(span.start, format!("`{word}` is not {kind}")));
    match (tag.core_suffix(), scalar::resolve(word)) {
        (Some("str"), _) => Ok(Value::from(word)),
        (Some("null"), _) => Ok(Value::Null),
        (Some("bool"), value @ Value::Bool(_)) | (Some("int"), value @ Value::Int(_)) => Ok(value),
        (Some("float"), value @ Value::Float(_)) => Ok(value),
        (Some("float"), Value::Int(value)) => Ok(Value::Float(value as f64)),
        (Some("bool"), _) => wrong("a boolean"),
        (Some("int" | "float"), _) => wrong("a number"),
        // Heat reads dates as text.
        _ if tag.original() == "!!timestamp" => Ok(Value::from(word)),
        // To PyYAML the bare `!` is no tag, not even before quotes.
        (_, value) if tag.original() == "!" => Ok(value),
        _ => Err(unknown_tag(tag, span)),
    }
}

fn check_collection_tag(tag: Option<&Tag>, kind: &str, span: Span) -> Result<(), YamlError> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.is_yaml_core_schema_tag(kind) || tag.original() == "!" => Ok(()),
        Some(tag) => Err(unknown_tag(tag, span)),
    }
}

fn unknown_tag(tag: &Tag, span: Span) -> YamlError {
    YamlError::at(span.start, format!("the tag `{}` is not one of plain data", tag.original()))
}

/// How many nodes a value has.
fn size(value: &Value) -> usize {
    match value {
        Value::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Map(map) => {
            1 + map.pairs().map(|(key, value)| size(&key) + size(value)).sum::<usize>()
        }
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
        Value::Map(pairs.into_iter().collect())
    }

    #[test]
    fn an_environment_is_read() {
        let text = "# an environment\nparameter_defaults:\n  A: [OS::TripleO::Services::Redis, 'x']\n  B: {c: \"1\"} # one\n";
        let expected = map([(
            "parameter_defaults",
            map([
                ("A", ["OS::TripleO::Services::Redis", "x"].into_iter().collect()),
                ("B", map([("c", Value::from("1"))])),
            ]),
        )]);
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn an_empty_text_is_null() {
        assert_eq!(read("").unwrap(), Value::Null);
        assert_eq!(read("# nothing\n").unwrap(), Value::Null);
        assert_eq!(read("---\n").unwrap(), Value::Null);
    }

    #[test]
    fn errors_say_where() {
        let error = read("parameter_defaults:\n  ContainerImagePrepare: [\n").unwrap_err();
        assert!(error.line >= 2, "{error}");
        let error = read("a: 1\nb: c: d\n").unwrap_err();
        assert_eq!((error.line, error.column > 1), (2, true), "{error}");
    }

    #[test]
    fn merge_keys_give_way_to_the_maps_own() {
        let text = "base: &b {tag: t1, namespace: n}\nother: &o {tag: t2, extra: e}\n\
                    entry:\n  <<: [*b, *o]\n  namespace: mine\n";
        let value = read(text).unwrap();
        let entry = value.as_map().unwrap().get("entry").unwrap();
        let expected =
            map([("tag", "t1".into()), ("namespace", "mine".into()), ("extra", "e".into())]);
        assert_eq!(*entry, expected);
    }

    #[test]
    fn written_types_count_more_than_implied_ones() {
        assert_eq!(read("!!str 17.10").unwrap(), Value::from("17.10"));
        assert_eq!(read("!!float 17").unwrap(), Value::Float(17.0));
        assert_eq!(read("!!timestamp 2020-01-02").unwrap(), Value::from("2020-01-02"));
        assert!(read("!!int x").unwrap_err().problem.contains("not a number"));
        assert!(read("!!python/object:os.system x").is_err());
    }

    #[test]
    fn later_duplicates_win_and_a_second_document_is_refused() {
        assert_eq!(read("{a: 1, a: 2}").unwrap(), map([("a", Value::Int(2))]));
        assert!(read("a: 1\n---\nb: 2\n").unwrap_err().problem.contains("second document"));
    }

    #[test]
    fn aliases_cannot_grow_without_bound() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(read(&text).unwrap_err().problem.contains("nodes"));
    }

    #[test]
    fn regression_a_comment_may_follow_quotes_and_brackets_at_once() {
        for (text, expected) in [
            ("a: \"x\"#c", "a: x"),
            ("a: 'x'#c\nb: 'y'#d\n", "a: x\nb: y"),
            ("a: [x]#c", "a: [x]"),
            ("a: [x,#c\n y]", "a: [x, y]"),
            ("a: {b: 1}#c", "a: {b: 1}"),
            ("\"ä#\"#c", "'ä#'"),
        ] {
            assert_eq!(read(text).unwrap(), read(expected).unwrap(), "{text}");
        }
        for text in ["a: |#c\n  x", "a: [x, *b#c]", "a: \"x\"c"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn regression_a_bare_exclamation_mark_leaves_the_type_implied() {
        assert_eq!(read("!").unwrap(), Value::Null);
        assert_eq!(read("! 12").unwrap(), Value::Int(12));
        assert_eq!(read("! \"12\"").unwrap(), Value::Int(12));
        assert_eq!(read("! x").unwrap(), Value::from("x"));
    }
}
