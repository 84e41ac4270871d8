//! The images that the cases prepare, made from `goldens/images.yaml` byte for byte as the
//! original's tests made them, and served as a registry that takes nothing.
//!
//! Every image has two layers, of which all share one.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use undermount_fs::digest::Digest;

use crate::archive::{Archive, Member, Style};
use crate::distribution::Api;
use crate::http::{Request, Response};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The architectures of images that have several.
const ARCHITECTURES: [&str; 2] = ["ppc64le", "amd64"];

#[derive(Deserialize)]
struct Stock {
    families: Vec<Family>,
    images: Vec<Single>,
}

/// Images that differ in their name and their release only.
#[derive(Deserialize)]
struct Family {
    prefix: String,
    tags: Vec<String>,
    labels: Map<String, Value>,
    releases: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
struct Single {
    repo: String,
    tags: Vec<String>,
    labels: Value,
    #[serde(default)]
    kind: Kind,
}

/// How an image is written down.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Docker's schema 2.
    #[default]
    Docker,
    /// A list of those, one for each architecture.
    List,
    Oci,
    OciIndex,
}

impl Kind {
    fn is_oci(self) -> bool {
        matches!(self, Self::Oci | Self::OciIndex)
    }
}

/// What a repository has: documents by tag and digest, and blobs.
#[derive(Default)]
struct Repository {
    tags: BTreeMap<String, Digest>,
    documents: BTreeMap<Digest, (&'static str, Bytes)>,
    blobs: BTreeMap<Digest, Bytes>,
}

/// The registry.
pub struct Shelf {
    repositories: BTreeMap<String, Repository>,
}

impl Shelf {
    /// With the images of `goldens/images.yaml`.
    pub fn of_goldens() -> Arc<Self> {
        let text = fs::read_to_string(super::directory().join("images.yaml")).unwrap();
        let stock: Stock = serde_saphyr::from_str(&text).unwrap();
        let members = stock.families.into_iter().flat_map(Family::members);
        let mut shelf = Self { repositories: BTreeMap::new() };
        for image in members.chain(stock.images) {
            shelf.repositories.insert(image.repo.clone(), Repository::with(&image));
        }
        Arc::new(shelf)
    }

    /// Answers as a registry that takes nothing.
    pub fn answer(&self, request: &Request) -> Response {
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Response::new(405, "");
        }
        let path = request.path.split('?').next().unwrap_or_default();
        match path.strip_prefix("/v2/") {
            Some("") => Response::new(200, "{}"),
            Some(path) => self.find(path).unwrap_or_else(|| Response::new(404, NOT_FOUND)),
            None => Response::new(404, NOT_FOUND),
        }
        .header("Docker-Distribution-Api-Version", "registry/2.0")
    }

    /// Pushes the repositories whose names are `wanted` to the registry behind `api`.
    pub fn push(&self, api: &Api, wanted: impl Fn(&str) -> bool) {
        for (name, repository) in self.repositories.iter().filter(|(name, _)| wanted(name)) {
            for blob in repository.blobs.values() {
                api.push_blob(name, blob);
            }
            for (tag, digest) in &repository.tags {
                let (media_type, body) = &repository.documents[digest];
                let path = format!("/v2/{name}/manifests/{tag}");
                api.send("PUT", &path, &[("Content-Type", media_type)], body).expect(201);
            }
        }
    }

    /// The digest of the layer that all images share.
    pub fn base_layer(&self) -> String {
        Digest::of(&base_layer().1).to_string()
    }

    fn find(&self, path: &str) -> Option<Response> {
        if path == "_catalog" {
            let names: Vec<_> = self.repositories.keys().collect();
            return Some(Response::new(200, json!({ "repositories": names }).to_string()));
        }
        if let Some(name) = path.strip_suffix("/tags/list") {
            let tags: Vec<_> = self.repositories.get(name)?.tags.keys().collect();
            let body = json!({ "name": name, "tags": tags }).to_string();
            return Some(Response::new(200, body));
        }
        if let Some((name, reference)) = path.split_once("/manifests/") {
            let repository = self.repositories.get(name)?;
            let digest = match repository.tags.get(reference) {
                Some(digest) => *digest,
                None => reference.parse().ok()?,
            };
            let (media_type, body) = repository.documents.get(&digest)?;
            let answer = Response::new(200, body.clone()).header("Content-Type", *media_type);
            return Some(answer.header("Docker-Content-Digest", digest.to_string()));
        }
        let (name, digest) = path.split_once("/blobs/")?;
        let blob = self.repositories.get(name)?.blobs.get(&digest.parse().ok()?)?;
        Some(Response::new(200, blob.clone()).header("Content-Type", "application/octet-stream"))
    }
}

const NOT_FOUND: &str = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}"#;

impl Family {
    fn members(self) -> impl Iterator<Item = Single> {
        let (_, base) = self.prefix.split_once('/').expect("a namespace");
        let base = base.to_owned();
        self.releases.clone().into_iter().map(move |(name, release)| {
            let mut labels = self.labels.clone();
            labels.insert("name".to_owned(), format!("{base}{name}").into());
            labels.insert("release".to_owned(), release.to_string().into());
            Single {
                repo: format!("{}{name}", self.prefix),
                tags: self
                    .tags
                    .iter()
                    .map(|tag| tag.replace("{release}", &release.to_string()))
                    .collect(),
                labels: labels.into(),
                kind: Kind::Docker,
            }
        })
    }
}

impl Repository {
    fn with(image: &Single) -> Self {
        let mut repository = Self::default();
        let top = match image.kind {
            Kind::Docker | Kind::Oci => repository.add_image(image, "amd64").0,
            Kind::List | Kind::OciIndex => repository.add_list(image),
        };
        repository.tags.extend(image.tags.iter().map(|tag| (tag.clone(), top)));
        repository
    }

    fn add_list(&mut self, image: &Single) -> Digest {
        let children = ARCHITECTURES.map(|architecture| {
            let (digest, media_type, size) = self.add_image(image, architecture);
            json!({
                "mediaType": media_type,
                "size": size,
                "digest": digest,
                "platform": { "architecture": architecture, "os": "linux" },
            })
        });
        let media_type = if image.kind.is_oci() { OCI_INDEX } else { LIST };
        let list = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": children });
        self.add_document(media_type, &list).0
    }

    fn add_image(&mut self, image: &Single, architecture: &str) -> (Digest, &'static str, usize) {
        let name = image.repo.rsplit('/').next().unwrap_or_default();
        let layers = [base_layer(), own_layer(name, architecture)];
        let created = "2020-01-01T00:00:00Z";
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": created,
            "docker_version": "1.13.1",
            "config": { "Cmd": ["/bin/true"], "Labels": image.labels },
            "rootfs": { "type": "layers", "diff_ids": layers.each_ref().map(|(tar, _)| Digest::of(tar)) },
            "history": [{ "created": created }, { "created": created }],
        });
        let oci = image.kind.is_oci();
        let mut describe = |media_type: &str, bytes: Bytes| {
            let digest = Digest::of(&bytes);
            let descriptor =
                json!({ "mediaType": media_type, "size": bytes.len(), "digest": digest });
            self.blobs.insert(digest, bytes);
            descriptor
        };
        let config_type = if oci { OCI_CONFIG } else { CONFIG };
        let layer_type = if oci { OCI_LAYER } else { LAYER };
        let mut manifest = json!({
            "schemaVersion": 2,
            "config": describe(config_type, config.to_string().into()),
            "layers": layers.map(|(_, blob)| describe(layer_type, blob.into())),
        });
        if !oci {
            manifest["mediaType"] = MANIFEST.into();
        }
        self.add_document(if oci { OCI_MANIFEST } else { MANIFEST }, &manifest)
    }

    /// The digest, type and size of a document, as its descriptor has them.
    fn add_document(
        &mut self,
        media_type: &'static str,
        document: &Value,
    ) -> (Digest, &'static str, usize) {
        let body = Bytes::from(document.to_string());
        let (digest, size) = (Digest::of(&body), body.len());
        self.documents.insert(digest, (media_type, body));
        (digest, media_type, size)
    }
}

/// The layer of all images: archive and blob.
fn base_layer() -> (Vec<u8>, Vec<u8>) {
    layer(&[
        Member::file("etc/os-release", "ID=fixture\nVERSION_ID=9\n"),
        Member::file("usr/share/base.txt", [b'x'; 4096]),
    ])
}

fn own_layer(name: &str, architecture: &str) -> (Vec<u8>, Vec<u8>) {
    layer(&[Member::file("opt/image.txt", format!("{name} {architecture} \n"))])
}

/// An archive as Python's `tarfile` pads it, and its gzip without compression, which does not
/// depend on a version of zlib.
fn layer(members: &[Member]) -> (Vec<u8>, Vec<u8>) {
    const RECORD: usize = 20 * 512;
    let mut archive = Archive::new(Style::Ustar);
    members.iter().for_each(|member| archive.add(&member.clone().mtime(0, 0)));
    let mut tar = archive.finish();
    tar.resize(tar.len().next_multiple_of(RECORD), 0);
    let mut blob = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let length = u16::try_from(tar.len()).expect("the archives are small");
    blob.push(1);
    blob.extend(length.to_le_bytes());
    blob.extend((!length).to_le_bytes());
    blob.extend(&tar);
    let mut crc = flate2::Crc::new();
    crc.update(&tar);
    blob.extend(crc.sum().to_le_bytes());
    blob.extend(u32::from(length).to_le_bytes());
    (tar, blob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_layer_is_that_of_the_original_tests() {
        let digest = "sha256:c73a26dd8edca713aee345250149b83386189db64571733c52df9fbcef3659e6";
        assert_eq!(Digest::of(&base_layer().1).to_string(), digest);
    }
}
