//! What `overcloud ceph deploy` takes from a prepare file: the ceph image, and who may pull it.

use super::PrepareError;
use super::credentials;
use super::environment::Environment;
use super::undercloud::PORT;
use super::yaml::{Map, Value};

/// The ceph image that the entries of `environment` come to (`container`), and the login at its
/// registry (`registry`). Of each value the last entry that has one counts; a push destination
/// takes the place of the registry.
///
/// # Errors
/// [`PrepareError`] where the credentials cannot be understood.
pub fn image_and_login(environment: &Environment) -> Result<Map, PrepareError> {
    let mut container = Map::default();
    let mut destination = None;
    let entries = environment.parameter("ContainerImagePrepare").and_then(Value::as_list);
    for entry in entries.unwrap_or_default().iter().filter_map(Value::as_map) {
        for (key, value) in entry.get("set").and_then(Value::as_map).into_iter().flat_map(Map::iter)
        {
            if matches!(key, "ceph_namespace" | "ceph_image" | "ceph_tag") {
                container.insert(key, value.clone());
            }
        }
        destination =
            entry.get("push_destination").filter(|value| value.is_truthy()).or(destination);
    }
    let host = match destination {
        Some(Value::Text(host)) => Some(host.trim_end_matches('/').to_owned()),
        Some(_) => environment
            .parameter("LocalContainerRegistry")
            .map(|address| format!("{address}:{PORT}")),
        None => None,
    };
    let namespace = container.get("ceph_namespace").map(Value::to_string);
    if let (Some(host), Some(namespace)) = (&host, &namespace) {
        let path = namespace.split_once('/').map_or(namespace.as_str(), |(_, path)| path);
        container.insert("ceph_namespace", format!("{host}/{path}"));
    }
    container.insert("push_destination_boolean", Value::Bool(destination.is_some()));
    let netloc = container.get("ceph_namespace").map(Value::to_string).unwrap_or_default();
    let netloc = netloc.split('/').next().unwrap_or_default().to_owned();
    let logins = credentials::logins(environment.parameter("ContainerImageRegistryCredentials"))?;
    let mut registry = Map::default();
    if let Some(login) = logins.get(&netloc) {
        registry.insert("registry_url", netloc);
        registry.insert("registry_username", login.user.clone());
        registry.insert("registry_password", login.password.expose());
    }
    let mut found = Map::default();
    found.insert("container", container);
    found.insert("registry", registry);
    Ok(found)
}
