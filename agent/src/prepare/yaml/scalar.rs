//! The type of a plain word: PyYAML's implicit resolver for YAML 1.1.

use std::sync::LazyLock;

use regex::Regex;

use super::Value;

/// `true` and `false` in all the spellings of PyYAML; the bare `y` and `n` of YAML 1.1 are text.
static BOOL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(?:(yes|Yes|YES|true|True|TRUE|on|On|ON)|no|No|NO|false|False|FALSE|off|Off|OFF)$")
});

static INT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^(?:[-+]?0b[0-1_]+ | [-+]?0[0-7_]+ | [-+]?(?:0|[1-9][0-9_]*)
          | [-+]?0x[0-9a-fA-F_]+ | [-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$",
    )
});

static FLOAT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?
          | \.[0-9][0-9_]*(?:[eE][-+][0-9]+)?
          | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
          | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN))$",
    )
});

/// Words that a reader of YAML 1.2, or a less literal one of 1.1, takes for something else than
/// text. They are written in quotes, so that every reader gives back what was meant.
static FOREIGN: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^(?:[-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)? | [-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?
          | 0o[0-7]+ | [yYnN] | = | <<
          | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*)$",
    )
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a literal of this file")
}

/// The value of the plain word `word`.
pub(super) fn resolve(word: &str) -> Value {
    if matches!(word, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(found) = BOOL.captures(word) {
        return Value::Bool(found.get(1).is_some());
    }
    let number = if INT.is_match(word) {
        parse_int(word)
    } else if FLOAT.is_match(word) {
        parse_float(word)
    } else {
        None
    };
    // A number that does not fit is kept as it was written: it names something, it counts nothing.
    number.unwrap_or_else(|| Value::from(word))
}

/// Whether some reader of YAML would take the plain word for anything else than text.
pub(super) fn is_ambiguous(word: &str) -> bool {
    !matches!(resolve(word), Value::Text(_)) || FOREIGN.is_match(word)
}

/// Splits a leading sign off and drops the underscores that YAML 1.1 allows between digits.
fn sign_and_digits(word: &str) -> (bool, String) {
    let digits = word.trim_start_matches(['+', '-']).replace('_', "");
    (word.starts_with('-'), digits)
}

fn parse_int(word: &str) -> Option<Value> {
    let (negative, digits) = sign_and_digits(word);
    let magnitude = if let Some(bits) = digits.strip_prefix("0b") {
        i128::from_str_radix(bits, 2)
    } else if let Some(hex) = digits.strip_prefix("0x") {
        i128::from_str_radix(hex, 16)
    } else if digits.contains(':') {
        return sexagesimal(&digits).map(|value| Value::Int(if negative { -value } else { value }));
    } else if digits.len() > 1 && digits.starts_with('0') {
        i128::from_str_radix(&digits, 8)
    } else {
        digits.parse()
    };
    magnitude.ok().map(|value| Value::Int(if negative { -value } else { value }))
}

/// `1:30` is ninety: minutes and seconds of YAML 1.1.
fn sexagesimal(digits: &str) -> Option<i128> {
    digits
        .split(':')
        .try_fold(0_i128, |value, part| value.checked_mul(60)?.checked_add(part.parse().ok()?))
}

fn parse_float(word: &str) -> Option<Value> {
    let (negative, digits) = sign_and_digits(&word.to_ascii_lowercase());
    let magnitude = match digits.as_str() {
        ".inf" => Some(f64::INFINITY),
        ".nan" => Some(f64::NAN),
        text if text.contains(':') => text
            .split(':')
            .try_fold(0.0, |value, part| Some(value * 60.0 + part.parse::<f64>().ok()?)),
        text => text.parse().ok(),
    }?;
    Some(Value::Float(if negative { -magnitude } else { magnitude }))
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent
/// below 1e-4 and from 1e16 on.
pub(super) fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_have_the_types_of_yaml_1_1() {
        let table = [
            ("yes", Value::Bool(true)),
            ("Off", Value::Bool(false)),
            ("y", Value::from("y")),
            ("~", Value::Null),
            ("017", Value::Int(15)),
            ("08", Value::from("08")),
            ("0o17", Value::from("0o17")),
            ("0x1F", Value::Int(31)),
            ("-1_000", Value::Int(-1000)),
            ("1:30", Value::Int(90)),
            ("17.10", Value::Float(17.1)),
            ("1.", Value::Float(1.0)),
            ("1e3", Value::from("1e3")),
            ("1.5e+3", Value::Float(1500.0)),
            ("-.inf", Value::Float(f64::NEG_INFINITY)),
            ("2020-01-02", Value::from("2020-01-02")),
            ("192.168.24.1:8787", Value::from("192.168.24.1:8787")),
            ("v4.0", Value::from("v4.0")),
        ];
        for (word, value) in table {
            assert_eq!(resolve(word), value, "{word}");
        }
    }

    #[test]
    fn a_number_too_long_to_count_keeps_its_digits() {
        let digits = "9".repeat(60);
        assert_eq!(resolve(&digits), Value::from(digits.as_str()));
    }

    #[test]
    fn floats_print_as_in_python() {
        for (value, text) in [
            (2.10, "2.1"),
            (13.0, "13.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (123_456_789.125, "123456789.125"),
            (0.0, "0.0"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn words_that_other_readers_take_for_numbers_are_ambiguous() {
        for word in ["1e3", "0o17", "y", "2020-01-02", "13", "yes", "", "1.2e5"] {
            assert!(is_ambiguous(word), "{word}");
        }
        for word in ["13.0-40", "v1", "current-tripleo", "quay.io/a/b:c", "1.2.3"] {
            assert!(!is_ambiguous(word), "{word}");
        }
    }
}
