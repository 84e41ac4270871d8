//! Python's regular expressions in the words of our engine (Python's library reference, "Regular
//! Expression Syntax").
//!
//! Most words are the same. In Python brackets and doubled signs in a set are characters and no
//! sets of their own, `\<` and `\>` are characters, numbers behind a backslash may be octal,
//! what is behind any other letter is a mistake, and so are flags for the rest behind anything else.

/// What is left to read.
type Rest<'a> = &'a [char];

/// Where an escape stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Set,
    Elsewhere,
}

impl Place {
    /// The letters that mean the same in both languages behind a backslash.
    fn common_escapes(self) -> &'static str {
        match self {
            Self::Set => "dDsSwWafnrtvxuU",
            Self::Elsewhere => "AbBdDsSwWafnrtvxuU",
        }
    }
}

/// `pattern` for the engine.
///
/// # Errors
/// What is wrong, in Python's words. What is wrong in both languages is left to the engine.
pub fn translate(pattern: &str) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut rest = chars.as_slice();
    let mut engine = String::with_capacity(pattern.len());
    loop {
        rest = match rest {
            [] => return Ok(engine),
            ['\\', after @ ..] => escape(after, Place::Elsewhere, &mut engine)?,
            ['[', after @ ..] => set(after, &mut engine)?,
            ['(', '?', after @ ..] => extension(after, &mut engine)?,
            [c, after @ ..] => {
                engine.push(*c);
                after
            }
        };
    }
}

/// What follows `(?`.
fn extension<'a>(rest: Rest<'a>, engine: &mut String) -> Result<Rest<'a>, String> {
    match rest {
        ['#', comment @ ..] => {
            let end = comment.iter().position(|&c| c == ')');
            let end = end.ok_or("missing ), unterminated comment")?;
            Ok(&comment[end + 1..])
        }
        ['<', '=' | '!', ..] => {
            engine.push_str("(?");
            Ok(rest)
        }
        ['<', ..] => Err("unknown extension ?<".to_owned()),
        ['(', condition @ ..] => condition_on_group(condition, engine),
        _ => {
            // How texts are decoded: as text, always.
            let count = rest.iter().take_while(|c| "aimsux".contains(**c)).count();
            let (flags, rest) = rest.split_at(count);
            if matches!(rest, [')', ..]) && count > 0 && !engine.is_empty() && !is_flags(engine) {
                return Err("global flags not at the start of the expression".to_owned());
            }
            engine.push_str("(?");
            engine.extend(flags.iter().filter(|c| !matches!(c, 'a' | 'u')));
            if matches!(rest, [')', ..]) && count > 0 && engine.ends_with('?') {
                engine.push(':');
            }
            Ok(rest)
        }
    }
}

/// Whether there are only flags.
fn is_flags(engine: &str) -> bool {
    let mut groups = engine.trim_end().strip_suffix(')').unwrap_or_default().split(')');
    let is_group = |group: &str| {
        // Between them `x` allows spaces.
        let flags = group.trim_start().strip_prefix("(?");
        flags.is_some_and(|flags| flags == ":" || flags.chars().all(|c| "imsx".contains(c)))
    };
    groups.all(is_group)
}

/// What follows `(?(`: the number or name of a group, where the engine would take a bare name for a
/// pattern.
fn condition_on_group<'a>(rest: Rest<'a>, engine: &mut String) -> Result<Rest<'a>, String> {
    let end = rest.iter().position(|&c| c == ')').ok_or("missing ), unterminated name")?;
    let group: String = rest[..end].iter().collect();
    let is_name = group.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && group.chars().all(|c| c.is_alphanumeric() || c == '_');
    match group.parse::<u32>() {
        Ok(number) => engine.push_str(&format!("(?({number})")),
        Err(_) if is_name => engine.push_str(&format!("(?(<{group}>)")),
        Err(_) => return Err(format!("bad character in group name '{group}'")),
    }
    Ok(&rest[end + 1..])
}

/// What follows `[`.
fn set<'a>(mut rest: Rest<'a>, engine: &mut String) -> Result<Rest<'a>, String> {
    engine.push('[');
    if let ['^', after @ ..] = rest {
        engine.push('^');
        rest = after;
    }
    let mut is_first = true;
    loop {
        match rest {
            [']', after @ ..] if !is_first => {
                engine.push(']');
                return Ok(after);
            }
            _ => rest = member(rest, engine)?,
        }
        if let ['-', after @ ..] = rest
            && !matches!(after, [']', ..])
        {
            engine.push('-');
            rest = member(after, engine)?;
        }
        is_first = false;
    }
}

/// One character of a set, or one class.
fn member<'a>(rest: Rest<'a>, engine: &mut String) -> Result<Rest<'a>, String> {
    match rest {
        [] => Err("unterminated character set".to_owned()),
        ['\\', 'b', after @ ..] => {
            literal('\u{8}', engine);
            Ok(after)
        }
        ['\\', after @ ..] => escape(after, Place::Set, engine),
        [c, after @ ..] => {
            literal(*c, engine);
            Ok(after)
        }
    }
}

/// What follows a backslash.
fn escape<'a>(rest: Rest<'a>, place: Place, engine: &mut String) -> Result<Rest<'a>, String> {
    let Some((&c, after)) = rest.split_first() else {
        return Err("bad escape (end of pattern)".to_owned());
    };
    if let Some((code, after)) = octal(rest, place) {
        literal(code, engine);
        return Ok(after);
    }
    match c {
        'Z' if place == Place::Elsewhere => engine.push_str(r"\z"),
        '1'..='9' if place == Place::Elsewhere => engine.extend(['\\', c]),
        c if place.common_escapes().contains(c) => engine.extend(['\\', c]),
        c if c.is_ascii_alphanumeric() => return Err(format!("bad escape \\{c}")),
        c => literal(c, engine),
    }
    Ok(after)
}

/// The character of an octal number: one that begins with 0, has three digits or is in a set. Any
/// other number is that of a group.
fn octal(rest: Rest<'_>, place: Place) -> Option<(char, Rest<'_>)> {
    let digits = rest.iter().take(3).map_while(|c| c.to_digit(8));
    let digits: Vec<u32> = digits.collect();
    let is_octal = place == Place::Set || digits.len() == 3 || digits.first() == Some(&0);
    if digits.is_empty() || !is_octal {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 8 + digit);
    Some((char::from_u32(code)?, &rest[digits.len()..]))
}

/// The character itself, whatever the engine would take it for.
fn literal(c: char, engine: &mut String) {
    match c.is_alphanumeric() {
        true => engine.push(c),
        false => engine.push_str(&format!("\\x{{{:x}}}", u32::from(c))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_reads_in_another_way_is_written_in_another_way() {
        for (python, engine) in [
            (r"nova-\w+:(?=t)", r"nova-\w+:(?=t)"),
            (r"api\Z", r"api\z"),
            (r"\<a\>\-\/", r"\x{3c}a\x{3e}\x{2d}\x{2f}"),
            (r"[[]a", r"[\x{5b}]a"),
            (r"[]a-c-]", r"[\x{5d}a-c\x{2d}]"),
            (r"[^]&&\]\d]", r"[^\x{5d}\x{26}\x{26}\x{5d}\d]"),
            (r"[\b\60]", r"[\x{8}0]"),
            (r"\141\0\08(a)\1", r"a\x{0}\x{0}8(a)\1"),
            ("(?a)(?ai)a(?u:b)(?i:c)", "(?:)(?i)a(?:b)(?i:c)"),
            ("(?#c)(?s)(?i)a", "(?s)(?i)a"),
            ("(?x) (?i) a", "(?x) (?i) a"),
            ("a(?#[)b(?<=c)(?<!d)(?P<e>f)", "ab(?<=c)(?<!d)(?P<e>f)"),
        ] {
            assert_eq!(translate(python).as_deref(), Ok(engine), "{python}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused_though_the_engine_knows_it() {
        for (pattern, words) in [
            (r"\z", r"bad escape \z"),
            (r"\pL", r"bad escape \p"),
            (r"[\A]", r"bad escape \A"),
            (r"[\9]", r"bad escape \9"),
            ("a\\", "end of pattern"),
            ("(?<n>a)", "unknown extension ?<"),
            ("a(?i)b", "global flags not at the start"),
            ("(?i:a)(?i)b", "global flags not at the start"),
            ("(a|(?i)b)", "global flags not at the start"),
            ("(?#a", "unterminated comment"),
            ("[]", "unterminated character set"),
            ("[a-", "unterminated character set"),
        ] {
            let error = translate(pattern).unwrap_err();
            assert!(error.contains(words), "{pattern}: {error}");
        }
    }
}
