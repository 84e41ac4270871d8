//! Takes out what could be a secret. Too much rather than too little: a report is sent by mail.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

const HIDDEN: &str = "REDACTED";

/// What is replaced, and by what. `${1}` is what stands before the secret.
static RULES: LazyLock<Vec<(Regex, String)>> = LazyLock::new(|| {
    let hidden = |before: &str| format!("{before}{HIDDEN}");
    [
        // https://user:password@host
        (r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@", format!("${{1}}{HIDDEN}@")),
        // Authorization: Bearer abc
        (r"(?i)\b((?:proxy-)?authorization\W{0,4}(?:basic|bearer)?\s*)[^\s,'\x22]+", hidden("${1}")),
        (r"(?i)\b((?:bearer|basic)\s+)[a-z0-9+/=._~-]{8,}", hidden("${1}")),
        // "password": "abc", token = abc, --password=abc, auth: abc
        (
            r#"(?i)((?:pass(?:word|wd|phrase)?|secret|token|credential|api_?key|\bauth)["']?\s*[:=]\s*)(?:"[^"]*"|'[^']*'|[^\s,&}\]]+)"#,
            hidden("${1}"),
        ),
        // ?token=abc&X-Amz-Signature=abc
        (r"(?i)([?&][^=\s&]*(?:token|signature|sig|credential|key)[^=\s&]*=)[^&\s]+", hidden("${1}")),
        (
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)",
            HIDDEN.to_owned(),
        ),
    ]
    .map(|(pattern, replacement)| (Regex::new(pattern).expect("a valid pattern"), replacement))
    .to_vec()
});

/// `text` without passwords, tokens and private keys.
pub(super) fn redact(text: &str) -> String {
    let mut text = Cow::Borrowed(text);
    for (pattern, replacement) in RULES.iter() {
        if let Cow::Owned(replaced) = pattern.replace_all(&text, replacement) {
            text = Cow::Owned(replaced);
        }
    }
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_their_surroundings_stay() {
        for (text, redacted) in [
            ("proxy https://joe:s3cret@proxy:3128/", "proxy https://REDACTED@proxy:3128/"),
            ("Authorization: Bearer s3cret, x", "Authorization: Bearer REDACTED, x"),
            ("authorization: \"Basic s3cret\"", "authorization: \"Basic REDACTED\""),
            ("sent bearer s3cret.s3cret", "sent bearer REDACTED"),
            ("{\"auth\": \"s3cret\", \"x\": 1}", "{\"auth\": REDACTED, \"x\": 1}"),
            ("password = 's3cret with blanks'", "password = REDACTED"),
            ("identity_token=s3cret", "identity_token=REDACTED"),
            ("GET /blob?token=s3cret&x=1", "GET /blob?token=REDACTED&x=1"),
            ("GET /b?X-Amz-Signature=s3cret", "GET /b?X-Amz-Signature=REDACTED"),
            (
                "-----BEGIN EC PRIVATE KEY-----\ns3cret\n-----END EC PRIVATE KEY-----\nx",
                "REDACTED\nx",
            ),
            ("-----BEGIN PRIVATE KEY-----\ns3cret", "REDACTED"),
        ] {
            let found = redact(text);
            assert!(!found.contains("s3cret"), "{text}: {found}");
            assert_eq!(found, redacted, "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "auth_file = \"/etc/undermount/auth.json\"\n",
            "host:8787/a/b@sha256:0123 author: me\n",
            "36 35 98:0 / /var/lib rw - ext4 /dev/root rw\n",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}
