//! What a registry and an image-serve tree have, in the form that the cases use: digests of
//! configurations and layers, not of manifests, which the original writes anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use undermount_fs::digest::Digest;

use crate::distribution::Api;
use crate::registry::files_below;

const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.oci.image.index.v1+json";

/// The tags of every repository of the registry at `address`.
pub fn registry(address: &str) -> Value {
    let api = Api(address.to_owned());
    let catalog = api.get("/v2/_catalog?n=1000").json();
    let mut repositories = Map::new();
    for name in catalog["repositories"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        let fetch = |reference: &str| {
            let path = format!("/v2/{name}/manifests/{reference}");
            let answer = api.send("GET", &path, &[("Accept", ACCEPT)], &[]);
            let media_type = answer.header("content-type").unwrap_or_default().to_owned();
            Some((media_type, Bytes::from(answer.body.to_vec())))
        };
        let listed = api.get(&format!("/v2/{name}/tags/list"));
        // Its last tag was deleted.
        if listed.status != 200 {
            continue;
        }
        let tags: Map<_, _> = listed.json()["tags"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|tag| (tag.to_owned(), manifest(tag, &fetch)))
            .collect();
        if !tags.is_empty() {
            repositories.insert(name.to_owned(), tags.into());
        }
    }
    repositories.into()
}

/// The manifest that `reference` names: its type, configuration and layers, or its children.
fn manifest(reference: &str, fetch: &impl Fn(&str) -> Option<(String, Bytes)>) -> Value {
    let Some((media_type, body)) = fetch(reference) else {
        return json!({ "DANGLING": reference });
    };
    let document: Value = serde_json::from_slice(&body).expect("a manifest is JSON");
    if let Some(children) = document["manifests"].as_array() {
        let children: Vec<_> = children
            .iter()
            .map(|child| {
                let mut seen = manifest(child["digest"].as_str().expect("a digest"), fetch);
                seen["arch"] = child["platform"]["architecture"].clone();
                seen
            })
            .collect();
        return json!({ "mediaType": media_type, "manifests": children });
    }
    let layers: Vec<_> =
        document["layers"].as_array().into_iter().flatten().map(|layer| &layer["digest"]).collect();
    json!({ "mediaType": media_type, "config": document["config"]["digest"], "layers": layers })
}

/// The repositories below `root`, the tree of the undercloud's Apache.
pub fn tree(root: &Path) -> Value {
    let v2 = root.join("v2");
    let mut repositories = Map::new();
    for (path, _) in files_below(&v2) {
        if path.ends_with("tags/list") {
            let repository = path.ancestors().nth(2).expect("two directories up");
            let name = repository.strip_prefix(&v2).unwrap().to_str().unwrap().to_owned();
            repositories.insert(name, tree_repository(repository));
        }
    }
    let catalog = fs::read(v2.join("_catalog")).ok().map(|bytes| {
        let catalog: Value = serde_json::from_slice(&bytes).expect("the catalog is JSON");
        sorted(&catalog["repositories"])
    });
    json!({ "repos": repositories, "catalog": catalog })
}

fn tree_repository(repository: &Path) -> Value {
    let manifests = repository.join("manifests");
    let mut tags = Map::new();
    for name in names_in(&manifests) {
        let Some(tag) = name.strip_suffix(".type-map") else { continue };
        let map = fs::read_to_string(manifests.join(&name)).unwrap();
        tags.insert(tag.to_owned(), variants(&map, &manifests));
    }
    let list: Value =
        serde_json::from_slice(&fs::read(repository.join("tags/list")).unwrap()).unwrap();
    json!({
        "tags": tags,
        "blobs": names_in(&repository.join("blobs")),
        "tags_list": { "name": list["name"], "tags": sorted(&list["tags"]) },
    })
}

/// The variants of a type-map, by media type.
fn variants(map: &str, manifests: &Path) -> Value {
    let mut found = BTreeMap::new();
    for record in map.split("\n\n") {
        let field = |name| record.lines().find_map(|line| line.strip_prefix(name));
        if let (Some(media_type), Some(uri)) = (field("Content-Type: "), field("URI: ")) {
            let digest = uri.split('/').next().expect("a first part");
            let seen = manifest(digest, &|digest| stored(manifests, digest));
            found.insert(media_type.to_owned(), seen);
        }
    }
    json!(found)
}

/// A manifest as Apache would send it; its bytes are what its directory is called.
fn stored(manifests: &Path, digest: &str) -> Option<(String, Bytes)> {
    let directory: PathBuf = manifests.join(digest);
    let body = fs::read(directory.join("index.json")).ok()?;
    assert_eq!(Digest::of(&body).to_string(), digest, "a manifest in the wrong place");
    let headers = fs::read_to_string(directory.join(".htaccess")).unwrap();
    for name in ["Docker-Content-Digest", "ETag"] {
        assert!(headers.contains(&format!("{name} \"{digest}\"")), "{headers}");
    }
    let (_, rest) = headers.split_once("Content-Type \"").expect("a type");
    Some((rest.split('"').next().expect("a quote").to_owned(), body.into()))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn sorted(list: &Value) -> Value {
    let mut items = list.as_array().cloned().unwrap_or_default();
    items.sort_by_key(Value::to_string);
    items.into()
}
