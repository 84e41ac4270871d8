//! What `overcloud ceph deploy` takes from a prepare file: the ceph image, and who may pull it.
//!
//! The rules are those of `parse_container_image_prepare` in tripleoclient 20, which reads one
//! file and knows nothing of the rest of the environment.

use super::PrepareError;
use super::credentials;
use super::environment::Environment;
use super::undercloud;
use super::yaml::{Map, Value};

/// What tells the ceph image in an entry's `set`.
const KEYS: [&str; 3] = ["ceph_namespace", "ceph_image", "ceph_tag"];

/// The ceph image that the entries of `environment` come to (`container`), and the login at its
/// registry (`registry`). Of each value the last entry that has one counts. The push destination
/// of the namespace's entry, or of the last one before it that has any, takes the place of the
/// namespace's registry; `push_destination_boolean` is about the last entry that has the key.
///
/// # Errors
/// [`PrepareError`] where there are no entries or the credentials cannot be understood.
pub async fn image_and_login(environment: &Environment) -> Result<Map, PrepareError> {
    let entries = environment.parameter("ContainerImagePrepare").and_then(Value::as_list);
    let entries = entries.ok_or(PrepareError::NoEntries)?;
    let pushes = |entry: &Map| entry.get("push_destination") == Some(&Value::Bool(true));
    let undercloud = match entries.iter().filter_map(Value::as_map).any(pushes) {
        true => undercloud::registry().await,
        false => String::new(),
    };
    let container = image(entries, &undercloud);
    let namespace = container.get(KEYS[0]).map(Value::to_string).unwrap_or_default();
    let host = namespace.split('/').next().unwrap_or_default();
    let logins = credentials::logins(environment.parameter("ContainerImageRegistryCredentials"))?;
    let mut registry = Map::default();
    if let Some(login) = logins.get(host) {
        registry.insert("registry_url", host);
        registry.insert("registry_username", login.user.clone());
        registry.insert("registry_password", login.password.expose());
    }
    let mut found = Map::default();
    found.insert("container", container);
    found.insert("registry", registry);
    Ok(found)
}

/// The values of [`KEYS`]; `undercloud` is what `push_destination: true` stands for.
fn image(entries: &[Value], undercloud: &str) -> Map {
    let mut image = Map::default();
    let mut destination = "";
    for entry in entries.iter().filter_map(Value::as_map) {
        if let Some(value) = entry.get("push_destination") {
            let host = match value {
                Value::Bool(true) => Some(undercloud),
                other => other.as_text(),
            };
            destination = host.unwrap_or(destination);
            image.insert("push_destination_boolean", Value::Bool(host.is_some()));
        }
        let set = entry.get("set").and_then(Value::as_map);
        for (key, value) in KEYS.iter().filter_map(|&key| Some((key, set?.get(key)?))) {
            let value = match key {
                "ceph_namespace" if !destination.is_empty() => moved(value, destination),
                _ => value.clone(),
            };
            image.insert(key, value);
        }
    }
    image
}

/// The namespace at `destination` in place of its registry.
fn moved(namespace: &Value, destination: &str) -> Value {
    let namespace = namespace.to_string();
    let path = namespace.split_once('/').map_or("", |(_registry, path)| path);
    let parts = destination.split('/').chain(path.split('/')).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("/").into()
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;

    /// Namespace and `push_destination_boolean`.
    fn found(entries: &str) -> (String, Option<bool>) {
        let image = image(yaml::read(entries).unwrap().as_list().unwrap(), "uc:8787");
        let pushes = image.get("push_destination_boolean");
        let namespace = image.get("ceph_namespace").map(Value::to_string).unwrap_or_default();
        (namespace, pushes.map(Value::is_truthy))
    }

    #[test]
    fn the_destination_counts_from_its_entry_on() {
        for (entries, namespace, pushes) in [
            ("[{set: {ceph_namespace: q.io/ceph}}]", "q.io/ceph", None),
            ("[{push_destination: 'h:1/', set: {ceph_namespace: q.io/c}}]", "h:1/c", Some(true)),
            (
                "[{push_destination: true, set: {ceph_namespace: q.io/a/b}}]",
                "uc:8787/a/b",
                Some(true),
            ),
            ("[{push_destination: h, set: {ceph_namespace: ceph}}]", "h", Some(true)),
            ("[{set: {ceph_namespace: q.io/c}}, {push_destination: h}]", "q.io/c", Some(true)),
            ("[{push_destination: h}, {set: {ceph_namespace: q.io/c}}]", "h/c", Some(true)),
            ("[{push_destination: no, set: {ceph_namespace: q.io/c}}]", "q.io/c", Some(false)),
            (
                "[{push_destination: h}, {push_destination: null, set: {ceph_namespace: q.io/c}}]",
                "h/c",
                Some(false),
            ),
        ] {
            assert_eq!(found(entries), (namespace.to_owned(), pushes), "{entries}");
        }
    }

    #[test]
    fn the_last_value_counts() {
        let entries =
            "[{set: {ceph_namespace: a/b, ceph_tag: 1}}, {set: {ceph_tag: 2.10, tag: x}}]";
        let image = image(yaml::read(entries).unwrap().as_list().unwrap(), "");
        assert_eq!(image.get("ceph_tag"), Some(&Value::Float(2.1)));
        assert_eq!((image.get("ceph_image"), image.get("tag")), (None, None));
    }

    #[tokio::test]
    async fn a_file_without_entries_is_refused() {
        let error = image_and_login(&Environment::default()).await.unwrap_err();
        assert!(error.to_string().contains("no list ContainerImagePrepare"), "{error}");
    }
}
