//! Patterns of `includes` and `excludes`: regular expressions as Python's `re.search` takes them.
//!
//! What the linear-time engine understands is matched by it; look-around and references back go
//! to the one that backtracks, within its limit of steps.

mod python;

/// A pattern, searched anywhere in a name.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// As it was written.
    pattern: String,
    engine: fancy_regex::Regex,
}

/// A pattern that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    /// No regular expression.
    #[error("`{pattern}` is not a regular expression")]
    Malformed {
        /// The pattern.
        pattern: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Too many ways to match.
    #[error("the regular expression `{pattern}` takes too long on `{name}`")]
    TooLong {
        /// The pattern.
        pattern: String,
        /// The name that was searched.
        name: String,
    },
}

impl Pattern {
    /// Reads `pattern`.
    ///
    /// # Errors
    /// [`PatternError::Malformed`] where it is no regular expression.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        let malformed = |source| PatternError::Malformed { pattern: pattern.to_owned(), source };
        let translated = python::translate(pattern).map_err(|problem| malformed(problem.into()))?;
        let engine =
            fancy_regex::Regex::new(&translated).map_err(|error| malformed(error.into()))?;
        Ok(Self { pattern: pattern.to_owned(), engine })
    }

    /// Whether it matches somewhere in `name`.
    ///
    /// # Errors
    /// [`PatternError::TooLong`] where that takes more steps than are allowed.
    pub fn is_in(&self, name: &str) -> Result<bool, PatternError> {
        self.engine.is_match(name).map_err(|_| PatternError::TooLong {
            pattern: self.pattern.clone(),
            name: name.to_owned(),
        })
    }
}

/// Whether one of `patterns` matches somewhere in `name`.
///
/// # Errors
/// [`PatternError::TooLong`], as [`Pattern::is_in`].
pub fn any_in(patterns: &[Pattern], name: &str) -> Result<bool, PatternError> {
    for pattern in patterns {
        if pattern.is_in(name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_python() {
        let name = "h:5000/ns/openstack-nova-api:t1";
        for (pattern, matches) in [
            ("nova", true),
            ("t1$", true),
            ("^nova", false),
            ("(?i)NOVA", true),
            ("nova-(?!api)", false),
            ("(?<=openstack-)nova", true),
            (r"(?P<letter>n)ova.*(?P=letter)", false),
            (r"\bapi\b", true),
            ("[[n]ova", true),
            ("[a-z&&b]ova", true),
            (r"\<nova", false),
            ("", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().is_in(name).unwrap(), matches, "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_and_a_slow_one_is_named() {
        let error = Pattern::parse("nova-(").unwrap_err();
        assert_eq!(error.to_string(), "`nova-(` is not a regular expression");
        let slow = Pattern::parse("(?:a(?=a|$)|aa)*c").unwrap();
        let error = slow.is_in(&"a".repeat(200)).unwrap_err().to_string();
        assert!(error.contains("takes too long on `aaaa"), "{error}");
    }

    #[test]
    fn regression_a_condition_may_name_its_group() {
        for (pattern, matches) in [
            ("(?P<a>n)?(?(a)o|x)va", true),
            ("(n)?(?(1)o|x)va", true),
            ("(?P<a>z)?(?(a)o|x)va", false),
            ("^h(?P<a>z)?(?(a)o|:)", true),
        ] {
            let found = Pattern::parse(pattern).unwrap().is_in("h:5000/ns/nova-api").unwrap();
            assert_eq!(found, matches, "{pattern}");
        }
        for pattern in ["(?(b)o|x)va", "(?(a-b)o)", "(?(a", "(?()a)"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
