//! One replacement field of a Python format string over texts (Python's library reference,
//! "Format String Syntax"): `{name}`, `{name!r}`, `{name:_<8.4}`.

/// A field: which label, and how its value is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The label.
    pub label: String,
    /// Whether the value is written as Python would write it in a program (`!r`, `!a`).
    is_quoted: bool,
    layout: Layout,
}

/// The format specification of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Layout {
    fill: Option<char>,
    align: Align,
    /// Characters at least.
    width: usize,
    /// Characters of the value at most.
    precision: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Align {
    #[default]
    Left,
    Right,
    Middle,
}

/// No tag is longer (OCI distribution, "Pulling manifests"), so no field can be meant to be.
const MAX_WIDTH: usize = 128;

impl Field {
    /// Parses what stands between the braces.
    ///
    /// # Errors
    /// What is wrong, in Python's words where it has some.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (head, layout) = text.split_once(':').unwrap_or((text, ""));
        let (label, conversion) = match head.split_once('!') {
            Some((label, conversion)) => (label, Some(conversion)),
            None => (head, None),
        };
        let is_quoted = match conversion {
            None | Some("s") => false,
            Some("r" | "a") => true,
            Some(_) => return Err("Unknown conversion specifier"),
        };
        if label.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("a field needs the name of a label: labels have no positions");
        }
        if label.contains(['.', '[']) {
            return Err("a field is the name of a label, without attribute or position");
        }
        Ok(Self { label: label.to_owned(), is_quoted, layout: Layout::parse(layout)? })
    }

    /// The value laid out.
    pub fn format(&self, value: &str) -> String {
        let quoted = self.is_quoted.then(|| format!("'{value}'"));
        self.layout.apply(quoted.as_deref().unwrap_or(value))
    }
}

impl Layout {
    /// `[[fill]align][0][width][.precision][s]`
    fn parse(text: &str) -> Result<Self, &'static str> {
        let align = |c: &char| match c {
            '<' => Some(Align::Left),
            '>' => Some(Align::Right),
            '^' => Some(Align::Middle),
            _ => None,
        };
        let mut layout = Self::default();
        let chars: Vec<char> = text.chars().collect();
        let mut rest = chars.as_slice();
        match rest {
            [fill, second, after @ ..] if align(second).is_some() => {
                layout.fill = Some(*fill);
                layout.align = align(second).unwrap_or_default();
                rest = after;
            }
            [first, after @ ..] if align(first).is_some() => {
                layout.align = align(first).unwrap_or_default();
                rest = after;
            }
            ['0', ..] => layout.fill = Some('0'),
            _ => {}
        }
        layout.width = number(&mut rest)?.unwrap_or_default();
        if let ['.', after @ ..] = rest {
            rest = after;
            layout.precision =
                Some(number(&mut rest)?.ok_or("Format specifier missing precision")?);
        }
        match rest {
            [] | ['s'] => Ok(layout),
            _ => Err("Invalid format specifier for a text"),
        }
    }

    fn apply(&self, value: &str) -> String {
        let taken: String = value.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
        let padding = self.width.saturating_sub(taken.chars().count());
        let left = match self.align {
            Align::Left => 0,
            Align::Right => padding,
            Align::Middle => padding / 2,
        };
        let fill = |count| std::iter::repeat_n(self.fill.unwrap_or(' '), count);
        fill(left).chain(taken.chars()).chain(fill(padding - left)).collect()
    }
}

/// Takes the digits that `rest` begins with.
fn number(rest: &mut &[char]) -> Result<Option<usize>, &'static str> {
    let count = rest.iter().take_while(|c| c.is_ascii_digit()).count();
    let (digits, after) = rest.split_at(count);
    *rest = after;
    if digits.is_empty() {
        return Ok(None);
    }
    let number = digits.iter().collect::<String>().parse().ok().filter(|&n| n <= MAX_WIDTH);
    number.map(Some).ok_or("no tag is that long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_laid_out_as_python_does() {
        for (field, value) in [
            ("v", "13.0"),
            ("v:", "13.0"),
            ("v:s", "13.0"),
            ("v!s:6", "13.0  "),
            ("v:>6", "  13.0"),
            ("v:_^7", "_13.0__"),
            ("v:.2", "13"),
            ("v:x>4.1s", "xxx1"),
            ("v:06", "13.000"),
            ("v:<<5", "13.0<"),
            ("v!r", "'13.0'"),
        ] {
            assert_eq!(Field::parse(field).unwrap().format("13.0"), value, "{field}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for (field, words) in [
            ("", "labels have no positions"),
            ("0", "labels have no positions"),
            ("v.x", "without attribute"),
            ("v[0]", "without attribute"),
            ("v!x", "Unknown conversion"),
            ("v:d", "Invalid format specifier"),
            ("v:=5", "Invalid format specifier"),
            ("v:.", "missing precision"),
            ("v:9999", "no tag is that long"),
        ] {
            let error = Field::parse(field).unwrap_err();
            assert!(error.contains(words), "{field}: {error}");
        }
    }
}
