//! Images for tests: in a cache of their own, from a registry made of answers, and layers.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::LayerTree;
use undermount_fs::layer::Indexer;
use undermount_fs::object::StoreLimits;
use undermount_fs::source::Scope;

use super::cache::{Cache, LayerRecord};
use super::images::{Images, Ready, Resolved};
use crate::image::{Document, ImageConfig};
use crate::registry::client::testing::{Reply, Seen, Server, client};
use crate::supply::RegistrySource;

/// A registry that takes every question and answers none.
pub async fn silent_registry() -> Server {
    Server::start(|_| Reply { hangs: true, ..Reply::default() }).await
}

/// A registry of one image: its manifest, which the tag `tag` means, and its config.
pub async fn image_registry(image: [Bytes; 2]) -> Server {
    Server::start(move |seen| image_reply(&image, seen)).await
}

/// What a registry of one image answers.
pub fn image_reply(image: &[Bytes; 2], seen: &Seen) -> Reply {
    let is_named = |bytes: &&Bytes| seen.path.ends_with(&Digest::of(bytes).to_string());
    match image.iter().find(is_named).filter(|_| !seen.path.contains("/referrers/")) {
        Some(bytes) => Reply::new(200, bytes.clone()),
        None if seen.path.ends_with("/tag") => Reply::new(200, image[0].clone()),
        None => Reply::new(404, ""),
    }
}

/// The images in the cache at `cache`, whose registries are on loopback.
pub fn images(cache: &Path) -> Arc<Images> {
    let cache = Cache::open(cache, StoreLimits::default()).unwrap();
    let client = client(|_| {});
    let source = Arc::new(RegistrySource::new(client.clone(), Arc::default()));
    Arc::new(Images::new(cache, client, source, Duration::from_secs(5).into()))
}

/// A layer with these members: a name, and the target where it is a hard link.
pub fn layer(members: &[(&str, Option<&str>)]) -> Arc<Layer> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, link) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        match link {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Link);
                archive.append_link(&mut header, path, target).unwrap();
            }
            None => archive.append_data(&mut header, path, &b""[..]).unwrap(),
        }
    }
    let mut indexer = Indexer::new();
    indexer.write_all(&archive.into_inner().unwrap()).unwrap();
    let tree = LayerTree::new(indexer.finish().unwrap().tree.to_vec().into()).unwrap();
    Arc::new(Layer::new(Arc::new(tree), Scope::new("registry/image")))
}

/// An image of one file, which names it.
pub fn ready(name: &str) -> Ready {
    let config = ImageConfig::parse(r#"{"architecture":"amd64","os":"linux"}"#.into()).unwrap();
    let descriptor = json!({"digest": Digest::of(&config.raw), "size": config.raw.len()});
    let manifest = json!({"schemaVersion": 2, "config": descriptor, "layers": []}).to_string();
    let manifest = Document::parse(manifest.as_bytes(), None).unwrap().into_manifest().unwrap();
    let reference = format!("registry.example/{name}:1").parse().unwrap();
    let image = Resolved { reference, digest: Digest::of(name.as_bytes()), manifest, config };
    Ready { image, layers: vec![layer(&[(name, None)])], packs: Vec::new() }
}

/// The manifest and the config of an image of `layers`.
pub fn described(layers: &[Arc<Layer>]) -> [Bytes; 2] {
    let headers = || layers.iter().map(|layer| layer.tree.header());
    let diff_ids: Vec<Digest> = headers().map(|header| header.diff_id).collect();
    let rootfs = json!({ "diff_ids": diff_ids });
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }).to_string();
    let descriptor = |digest, size| json!({ "mediaType": "", "digest": digest, "size": size });
    let named = headers().map(|header| descriptor(header.layer, header.layer_size.get()));
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor(Digest::of(config.as_bytes()), config.len() as u64),
        "layers": named.collect::<Vec<_>>(),
    });
    [manifest.to_string(), config].map(Bytes::from)
}

/// Keeps the manifest and the config of an image of `layers`; the digest of the manifest.
pub fn keep_image(images: &Images, layers: &[Arc<Layer>]) -> Digest {
    let [manifest, _] =
        described(layers).map(|bytes| images.cache().blobs.put_bytes(bytes).unwrap());
    manifest
}

/// Keeps the index of a layer.
pub fn keep_index(images: &Images, layer: &Layer) {
    let bytes = layer.tree.bytes().to_vec().into();
    let tree = images.cache().blobs.put_bytes(bytes).unwrap();
    images.cache().put_layer(&layer.digest(), &LayerRecord::own(tree)).unwrap();
}
