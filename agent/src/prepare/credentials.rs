//! `ContainerImageRegistryCredentials`: who we are at which registry.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::NamedTempFile;

use crate::registry::client::{Credential, Secret};

use super::yaml::Value;

/// Who we are, by registry host and port.
pub type Logins = BTreeMap<String, Credential>;

/// Credentials that cannot be understood. The messages have the original's words, and name
/// registries and users only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not a map.
    #[error("ContainerImageRegistryCredentials: Credentials data must be a dict")]
    NotAMap,
    /// A registry that is not text.
    #[error("ContainerImageRegistryCredentials: Key must be a registry host string: {0}")]
    RegistryNotText(String),
    /// Not one user and one password.
    #[error(
        "ContainerImageRegistryCredentials: {0}: Credentials entry must be a dict with a single item"
    )]
    NotOneLogin(String),
    /// A user or password that is not text.
    #[error(
        "ContainerImageRegistryCredentials: {registry}: Username and password must be strings: {user} (quote numbers)"
    )]
    NotText {
        /// The registry.
        registry: String,
        /// The user.
        user: String,
    },
}

/// The logins in the parameter, by registry host and port.
///
/// # Errors
/// [`CredentialsError`] where the parameter is not a map of registry to `{user: password}`.
pub fn logins(value: Option<&Value>) -> Result<Logins, CredentialsError> {
    let registries = match value {
        None => return Ok(BTreeMap::new()),
        Some(value) if !value.is_truthy() => return Ok(BTreeMap::new()),
        Some(Value::Map(registries)) => registries,
        Some(_) => return Err(CredentialsError::NotAMap),
    };
    if let Some(registry) = registries.odd_keys().next() {
        return Err(CredentialsError::RegistryNotText(registry.to_string()));
    }
    registries
        .iter()
        .map(|(registry, value)| Ok((registry.to_owned(), login(registry, value)?)))
        .collect()
}

/// `logins` in the form of `podman login` (containers-auth.json(5)), in a file below `directory`
/// that only we can read and that is gone when it is dropped; nothing where there are no logins.
///
/// # Errors
/// Where the file cannot be written.
pub fn auth_file(logins: &Logins, directory: &Path) -> std::io::Result<Option<NamedTempFile>> {
    if logins.is_empty() {
        return Ok(None);
    }
    let auths: BTreeMap<_, _> = logins
        .iter()
        .map(|(registry, Credential { user, password })| {
            let word = STANDARD.encode(format!("{user}:{}", password.expose()));
            (registry, serde_json::json!({ "auth": word }))
        })
        .collect();
    let mut file = tempfile::Builder::new()
        .prefix("undermount-auth-")
        .suffix(".json")
        .tempfile_in(directory)?;
    file.write_all(serde_json::json!({ "auths": auths }).to_string().as_bytes())?;
    Ok(Some(file))
}

fn login(registry: &str, value: &Value) -> Result<Credential, CredentialsError> {
    let users = value.as_map().filter(|users| users.len() == 1);
    let users = users.ok_or_else(|| CredentialsError::NotOneLogin(registry.to_owned()))?;
    let not_text = |user| CredentialsError::NotText { registry: registry.to_owned(), user };
    let Some((user, password)) = users.iter().next() else {
        return Err(not_text(users.odd_keys().map(Value::to_string).collect()));
    };
    let password = password.as_text().ok_or_else(|| not_text(user.to_owned()))?;
    Ok(Credential { user: user.to_owned(), password: Secret::new(password) })
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    #[test]
    fn one_user_per_registry_is_read() {
        let value = yaml::read("'r:5000': {alice: s3cret}").unwrap();
        let logins = logins(Some(&value)).unwrap();
        assert_eq!(logins["r:5000"].password.expose(), "s3cret");
        assert!(!format!("{logins:?}").contains("s3cret"));
    }

    #[test]
    fn anything_else_is_refused_without_telling_secrets() {
        for (text, words) in [
            ("[hush]", "Credentials data must be a dict"),
            (
                "{quay.io: {a: hush, c: hush}}",
                "quay.io: Credentials entry must be a dict with a single item",
            ),
            ("{quay.io: hush}", "single item"),
            ("{quay.io: {a: 1234}}", "quay.io: Username and password must be strings: a"),
            ("{quay.io: {1: hush}}", "quay.io: Username and password must be strings: 1"),
            ("{1: {a: hush}}", "Key must be a registry host string: 1"),
        ] {
            let error = logins(Some(&yaml::read(text).unwrap())).unwrap_err().to_string();
            let tells = ["hush", "1234"].iter().any(|secret| error.contains(secret));
            assert!(error.contains(words) && !tells, "{error}");
        }
        assert!(logins(Some(&Value::Null)).unwrap().is_empty());
    }
}
