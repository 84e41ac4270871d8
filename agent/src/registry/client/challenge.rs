//! `WWW-Authenticate`: how a registry wants to be shown who asks (RFC 9110, 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// One of the two ways that registries know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from the service `realm`.
    Bearer {
        /// The address of the token service.
        realm: String,
        /// What to call the registry there.
        service: Option<String>,
        /// What the registry thinks the request needs.
        scope: Option<String>,
    },
}

/// The challenge to answer: a token where one is offered, else a password.
pub fn strongest(headers: &HeaderMap) -> Option<Challenge> {
    let challenges: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(challenges.first()).cloned()
}

/// The challenges of one header that this program can answer.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for word in Words(header) {
        match word {
            Word::Scheme(name) => challenges.push((name.to_ascii_lowercase(), Vec::new())),
            Word::Parameter(key, value) => {
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.push((key.to_ascii_lowercase(), value));
                }
            }
        }
    }
    challenges.into_iter().filter_map(|(scheme, parameters)| known(&scheme, parameters)).collect()
}

fn known(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    let get = |wanted: &str| {
        parameters.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.clone())
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
        }),
        _ => None,
    }
}

enum Word {
    Scheme(String),
    Parameter(String, String),
}

/// Splits `Scheme key=value, key="quoted \" value", Scheme2 …`.
struct Words<'a>(&'a str);

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.find(['=', ' ', '\t', ',']).unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        let Some(value) = rest.trim_start().strip_prefix('=') else {
            self.0 = rest;
            return Some(Word::Scheme(name.to_owned()));
        };
        let (value, rest) = take_value(value.trim_start());
        self.0 = rest;
        Some(Word::Parameter(name.to_owned(), value))
    }
}

/// A quoted string or token at the start of `text`, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn headers_of_real_registries_are_read() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (r#"BEARER Realm = "http://a/" , error="x""#, vec![bearer("http://a/", None, None)]),
            ("Bearer realm=http://a/t,service=s", vec![bearer("http://a/t", Some("s"), None)]),
            (
                r#"Basic realm="a, b\" Bearer", Bearer realm="r""#,
                vec![Challenge::Basic, bearer("r", None, None)],
            ),
            (r#"Negotiate, Basic realm="x""#, vec![Challenge::Basic]),
            ("Bearer service=\"no realm\"", vec![]),
            ("", vec![]),
            ("key=\"no scheme\"", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let mut headers = HeaderMap::new();
        assert_eq!(strongest(&headers), None);
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
        assert_eq!(strongest(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=r"));
        assert_eq!(strongest(&headers), Some(bearer("r", None, None)));
    }

    proptest! {
        #[test]
        fn no_header_panics(header in "[a-zB=\", \\\\ü]{0,40}") {
            parse(&header);
        }
    }
}
