//! Credentials: given by the caller, or from the files that podman and docker keep.
//!
//! Files are read when a registry asks for credentials, not before and not once for all: a
//! `podman login` takes effect in a running agent. Files may leave passwords to helpers
//! (`credHelpers` for single registries, `credsStore` for all).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Secret;
use super::helper::{self, HelperError};
use crate::blocking::blocking;
use crate::host;

/// How to show who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user name.
    pub user: String,
    /// The password or access key.
    pub password: Secret,
}

/// Files with credentials that cannot be used. Their content is never shown.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file is there and cannot be read.
    #[error("cannot read the credentials file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not what podman and docker write.
    #[error("the credentials file {} is malformed at line {line}, column {column}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// One entry of the file is not base64 of `user:password`.
    #[error("the credentials file {} has a malformed entry for {registry}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The key of the entry.
        registry: String,
    },
    /// The program that keeps the passwords failed.
    #[error("the credentials file {} leaves the password to a helper", path.display())]
    Helper {
        /// The file.
        path: PathBuf,
        /// How it failed.
        source: HelperError,
    },
}

/// Where credentials are looked for: first those given, then the files in order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    given: HashMap<String, Credential>,
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, AuthEntry>>,
    /// Helpers by registry.
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    /// The helper for all other registries.
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
}

impl Credentials {
    /// No credentials at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Credentials from `files` (auth.json, config.json); files that do not exist are skipped.
    pub fn from_files(files: Vec<PathBuf>) -> Self {
        Self { given: HashMap::new(), files }
    }

    /// Adds credentials for `host[:port]` or `host[:port]/path`, which win over the files.
    pub fn give(&mut self, registry: &str, credential: Credential) {
        self.given.insert(normal_key(registry), credential);
    }

    /// The credentials for the repository `host[:port]/path`: those of the longest matching
    /// key, as podman does it.
    ///
    /// # Errors
    /// [`CredentialError`] where a file has to be asked and is unreadable or malformed.
    pub async fn lookup(&self, repository: &str) -> Result<Option<Credential>, CredentialError> {
        let keys = || candidates(repository);
        if let Some(found) = keys().find_map(|key| self.given.get(key)) {
            return Ok(Some(found.clone()));
        }
        for path in &self.files {
            let file = path.clone();
            let text = match blocking(move || host::file::read(&file)).await {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(CredentialError::Read { path: path.clone(), source }),
            };
            let file: AuthFile = serde_json::from_slice(&text).map_err(|error| {
                let (line, column) = (error.line(), error.column());
                CredentialError::Malformed { path: path.clone(), line, column }
            })?;
            if let Some(credential) = file.lookup(path, repository).await? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

impl AuthFile {
    /// The credentials for `repository`: those of its helper, those in the file, or those of the
    /// helper for all.
    async fn lookup(
        self,
        path: &std::path::Path,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        let asked = async |name: &str, server: &str| {
            let found = helper::get(name, server).await;
            found.map_err(|source| CredentialError::Helper { path: path.into(), source })
        };
        let host = repository.split('/').next().unwrap_or_default();
        let helpers = self.cred_helpers.unwrap_or_default();
        let own = helpers.iter().find(|(key, _)| normal_key(key) == host);
        if let Some((server, name)) = own
            && let Some(credential) = asked(name, server).await?
        {
            return Ok(Some(credential));
        }
        let entries: HashMap<String, AuthEntry> = self
            .auths
            .unwrap_or_default()
            .into_iter()
            .map(|(key, entry)| (normal_key(&key), entry))
            .collect();
        for key in candidates(repository) {
            let Some(entry) = entries.get(key) else { continue };
            if let Some(credential) = entry.credential(path, key)? {
                return Ok(Some(credential));
            }
        }
        match &self.creds_store {
            // docker stores its own hub under this name.
            Some(name) if host == "docker.io" => asked(name, "https://index.docker.io/v1/").await,
            Some(name) => asked(name, host).await,
            None => Ok(None),
        }
    }
}

impl AuthEntry {
    /// What the entry holds; `None` where the password lies in a credential helper.
    fn credential(
        &self,
        path: &std::path::Path,
        registry: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credential { user: user.clone(), password: Secret::new(password) }));
        }
        let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) else {
            return Ok(None);
        };
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|raw| String::from_utf8(raw).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let Some((user, password)) = pair else {
            return Err(CredentialError::Entry { path: path.into(), registry: registry.into() });
        };
        // docker pads some entries with NUL.
        let password = Secret::new(password.trim_end_matches('\0'));
        Ok(Some(Credential { user: user.to_owned(), password }))
    }
}

/// `host/a/b`, `host/a`, `host`
fn candidates(repository: &str) -> impl Iterator<Item = &str> {
    let shorter = |key: &&'_ str| key.rfind('/');
    std::iter::successors(Some(repository), move |key| shorter(key).map(|slash| &key[..slash]))
}

/// Keys as docker writes them (`https://index.docker.io/v1/`) become `host[:port][/path]`.
fn normal_key(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let key = match bare {
        // With a scheme only the host counts: the path is that of the API.
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/'),
    };
    let (host, path) = key.split_once('/').map_or((key, None), |(host, path)| (host, Some(path)));
    let host = match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    };
    path.map_or(host.clone(), |path| format!("{host}/{path}"))
}

impl fmt::Display for Credential {
    /// The user; the password is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(content: &str) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, content).unwrap();
        let missing = dir.path().join("missing.json");
        (dir, Credentials::from_files(vec![missing, path]))
    }

    fn auth(user: &str, password: &str) -> serde_json::Value {
        json!({"auth": STANDARD.encode(format!("{user}:{password}"))})
    }

    async fn user(credentials: &Credentials, repository: &str) -> Option<String> {
        credentials.lookup(repository).await.unwrap().map(|found| found.user)
    }

    #[tokio::test]
    async fn the_longest_matching_key_wins() {
        let content = json!({"auths": {
            "quay.io": auth("host", "p:q"),
            "quay.io/a/b": auth("repository", "p"),
            "https://index.docker.io/v1/": auth("docker", "p"),
            "http://10.0.0.1:5000/v2/": {"username": "plain", "password": "p"},
            "helper.io": {},
        }});
        let (_dir, mut credentials) = file(&content.to_string());
        for (repository, expected) in [
            ("quay.io/a/b", Some("repository")),
            ("quay.io/a/b/c", Some("repository")),
            ("quay.io/a/bc", Some("host")),
            ("quay.io:443/a", None),
            ("docker.io/library/x", Some("docker")),
            ("10.0.0.1:5000/x", Some("plain")),
            ("helper.io/x", None),
        ] {
            assert_eq!(user(&credentials, repository).await.as_deref(), expected, "{repository}");
        }
        let found = credentials.lookup("quay.io/x").await.unwrap().unwrap();
        assert_eq!(found.password.expose(), "p:q");
        let given = Credential { user: "given".into(), password: Secret::new("p") };
        credentials.give("Quay.io", given);
        assert_eq!(user(&credentials, "quay.io/a/b").await.as_deref(), Some("given"));
    }

    #[tokio::test]
    async fn a_login_takes_effect_at_the_next_lookup() {
        let (dir, credentials) = file("{}");
        assert_eq!(user(&credentials, "quay.io/x").await, None);
        let content = json!({"auths": {"quay.io": auth("new", "p")}}).to_string();
        std::fs::write(dir.path().join("auth.json"), content).unwrap();
        assert_eq!(user(&credentials, "quay.io/x").await.as_deref(), Some("new"));
    }

    #[tokio::test]
    async fn malformed_files_are_named_and_not_quoted() {
        let bad_entry = json!({"auths": {"quay.io": {"auth": "c2VjcmV0"}}}).to_string();
        for (content, part) in
            [("{\n\"secret\" x", "line 2"), (&bad_entry, "malformed entry for quay.io")]
        {
            let (_dir, credentials) = file(content);
            let message = credentials.lookup("quay.io/x").await.unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("auth.json"), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
