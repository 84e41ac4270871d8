//! From a [`Value`] to text: the block style of PyYAML's `safe_dump`, keys sorted.
//!
//! Text that some reader would take for another type, or that has a meaning of its own at the
//! place where it stands, is quoted. Lines are not folded.

use std::fmt::Write as _;

use super::{Map, Value, scalar};

/// Writes `value` as a document that ends in a newline.
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Map(map) if !map.is_empty() => write_map(&mut text, map, 0),
        Value::List(items) if !items.is_empty() => write_list(&mut text, items, 0),
        other => {
            write_inline(&mut text, other);
            text.push('\n');
        }
    }
    text
}

/// Writes the pairs of a block map, whose first line is already indented.
fn write_map(text: &mut String, map: &Map, indent: usize) {
    for (position, (key, value)) in map.pairs().enumerate() {
        if position > 0 {
            push_indent(text, indent);
        }
        write_inline(text, &key);
        text.push(':');
        match value {
            Value::Map(map) if !map.is_empty() => {
                text.push('\n');
                push_indent(text, indent + 2);
                write_map(text, map, indent + 2);
            }
            // The items of a list stand below its key, not further in.
            Value::List(items) if !items.is_empty() => {
                text.push('\n');
                push_indent(text, indent);
                write_list(text, items, indent);
            }
            other => {
                text.push(' ');
                write_inline(text, other);
                text.push('\n');
            }
        }
    }
}

/// Writes the items of a block list, whose first line is already indented.
fn write_list(text: &mut String, items: &[Value], indent: usize) {
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            push_indent(text, indent);
        }
        text.push_str("- ");
        match item {
            Value::Map(map) if !map.is_empty() => write_map(text, map, indent + 2),
            Value::List(items) if !items.is_empty() => write_list(text, items, indent + 2),
            other => {
                write_inline(text, other);
                text.push('\n');
            }
        }
    }
}

fn push_indent(text: &mut String, indent: usize) {
    text.extend(std::iter::repeat_n(' ', indent));
}

/// Writes what fits on the line: a scalar or an empty collection. A collection that is a key
/// (which no environment has) is written as its text.
fn write_inline(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Float(value) if value.is_nan() => text.push_str(".nan"),
        Value::Float(value) if value.is_infinite() => {
            text.push_str(if *value > 0.0 { ".inf" } else { "-.inf" });
        }
        Value::Float(value) => {
            // YAML 1.1 needs the point that Python leaves out of 1e+16.
            let digits = scalar::python_float(*value);
            match digits.split_once('e') {
                Some((digits, exponent)) if !digits.contains('.') => {
                    let _ = write!(text, "{digits}.0e{exponent}");
                }
                _ => text.push_str(&digits),
            }
        }
        Value::Int(value) => {
            let _ = write!(text, "{value}");
        }
        Value::List(items) if items.is_empty() => text.push_str("[]"),
        Value::Map(map) if map.is_empty() => text.push_str("{}"),
        Value::Text(word) => write_text(text, word),
        collection => write_text(text, &collection.to_string()),
    }
}

fn write_text(text: &mut String, word: &str) {
    if word.chars().any(|c| c.is_control() || is_unprintable(c)) {
        write_double_quoted(text, word);
    } else if is_plain(word) {
        text.push_str(word);
    } else {
        let _ = write!(text, "'{}'", word.replace('\'', "''"));
    }
}

/// Separators and the byte-order mark, which readers treat in their own ways.
fn is_unprintable(c: char) -> bool {
    matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether the word can stand without quotes in a block.
fn is_plain(word: &str) -> bool {
    let mut chars = word.chars();
    let Some(first) = chars.next() else { return false };
    let second_is_space = chars.next().is_none_or(|c| c == ' ');
    let opens = "#,[]{}&*!|>'\"%@`".contains(first) || ("-?:".contains(first) && second_is_space);
    let marks_document = word.starts_with("---") || word.starts_with("...");
    let spaced = word.starts_with(' ') || word.ends_with(' ');
    let splits = word.contains(": ") || word.ends_with(':') || word.contains(" #");
    !(opens || marks_document || spaced || splits || scalar::is_ambiguous(word))
}

fn write_double_quoted(text: &mut String, word: &str) {
    text.push('"');
    for c in word.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            c if c.is_control() || is_unprintable(c) => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::read;
    use super::*;

    #[test]
    fn the_block_style_is_pyyamls() {
        let text = "parameter_defaults:\n  A: quay.io/a/b:c\n  B:\n  - '{{X}}'\n  - k: v\n    l: 2.1\n  - - 1\n    - x\n  C: {}\n  D: []\n  E: ''\n  F: '13.0'\n  G: null\n";
        assert_eq!(write(&read(text).unwrap()), text);
    }

    #[test]
    fn text_with_a_meaning_of_its_own_is_quoted() {
        for (word, written) in [
            ("yes", "'yes'"),
            ("a: b", "'a: b'"),
            ("it's: x", "'it''s: x'"),
            ("- x", "'- x'"),
            ("-x", "-x"),
            ("two\nlines", "\"two\\nlines\""),
            ("a #b", "'a #b'"),
            ("host:8787", "host:8787"),
            ("1e3", "'1e3'"),
        ] {
            assert_eq!(write(&Value::from(word)), format!("{written}\n"));
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|value| Value::Int(value.into())),
            any::<f64>().prop_filter("NaN equals nothing", |v| !v.is_nan()).prop_map(Value::Float),
            any::<String>().prop_map(Value::Text),
            "[-a-z0-9:.# '_]{0,8}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::List),
                prop::collection::vec(("[-a-z0-9:.# ]{0,6}", inner), 0..5)
                    .prop_map(|pairs| Value::Map(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in any_value()) {
            let text = write(&value);
            prop_assert_eq!(read(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?, value);
        }
    }
}
