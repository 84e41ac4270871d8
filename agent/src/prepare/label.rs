//! `tag_from_label`: how an image's labels tell its tag.
//!
//! The value is the name of a label, or, with a brace in it, a Python format string over the
//! labels: `{version}-{release}`.

mod field;

use std::collections::BTreeMap;

use self::field::Field;

/// The labels of an image.
pub type Labels = BTreeMap<String, String>;

/// A label, or a template of labels, that tells the tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagLabel {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Label(String),
    Field(Field),
}

/// A format string that cannot be understood. The words are Python's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tag_from_label `{text}`: {problem}")]
pub struct TagLabelError {
    text: String,
    problem: &'static str,
}

impl TagLabel {
    /// Parses the value of `tag_from_label`.
    ///
    /// # Errors
    /// [`TagLabelError`] where a brace is not closed or not doubled, or a field cannot be one of
    /// labels.
    pub fn parse(text: &str) -> Result<Self, TagLabelError> {
        let parts = if text.contains('{') {
            parse_format(text)
                .map_err(|problem| TagLabelError { text: text.to_owned(), problem })?
        } else {
            vec![Part::Label(text.to_owned())]
        };
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The tag that `labels` tell, or the first label that is missing.
    ///
    /// # Errors
    /// The name of the missing label.
    pub fn tag(&self, labels: &Labels) -> Result<String, &str> {
        let value = |name: &'_ String| labels.get(name).map(String::as_str);
        let mut tag = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => tag.push_str(text),
                Part::Label(name) => tag.push_str(value(name).ok_or(name.as_str())?),
                Part::Field(field) => {
                    let value = value(&field.label).ok_or(field.label.as_str())?;
                    tag.push_str(&field.format(value));
                }
            }
        }
        Ok(tag)
    }

    /// The value as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn parse_format(text: &str) -> Result<Vec<Part>, &'static str> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '{' | '}' if rest.peek() == Some(&c) => {
                rest.next();
                literal.push(c);
            }
            '}' => return Err("Single '}' encountered in format string"),
            '{' => {
                let mut field = String::new();
                loop {
                    match rest.next() {
                        Some('}') => break,
                        Some('{') => return Err("unexpected '{' in field name"),
                        Some(c) => field.push(c),
                        None if field.is_empty() => {
                            return Err("Single '{' encountered in format string");
                        }
                        None => return Err("expected '}' before end of string"),
                    }
                }
                parts.push(Part::Literal(std::mem::take(&mut literal)));
                parts.push(Part::Field(Field::parse(&field)?));
            }
            c => literal.push(c),
        }
    }
    parts.push(Part::Literal(literal));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Result<String, String> {
        let labels = [("version", "13.0"), ("release", "40"), ("{x", "y")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let label = TagLabel::parse(text).map_err(|error| error.to_string())?;
        label.tag(&labels).map_err(|missing| format!("no {missing}"))
    }

    #[test]
    fn labels_and_templates_of_labels_tell_the_tag() {
        for (text, expected) in [
            ("version", "13.0"),
            ("{version}-{release}", "13.0-40"),
            ("v{{{version}}}", "v{13.0}"),
            ("{version:.2}", "13"),
        ] {
            assert_eq!(tag(text).unwrap(), expected);
        }
    }

    #[test]
    fn a_missing_label_is_named() {
        for (text, missing) in
            [("rdo", "no rdo"), ("{version}-{rdo}", "no rdo"), ("{ version }", "no  version ")]
        {
            assert_eq!(tag(text).unwrap_err(), missing);
        }
    }

    #[test]
    fn malformed_templates_are_refused_in_pythons_words() {
        for (text, words) in [
            ("{version", "expected '}' before end of string"),
            ("{", "Single '{'"),
            ("{version}}", "Single '}'"),
            ("{0}", "labels have no positions"),
            ("{a{b}}", "unexpected '{'"),
        ] {
            let error = tag(text).unwrap_err();
            assert!(error.contains(words) && error.contains(text), "{error}");
        }
    }
}
