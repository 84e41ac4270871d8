//! Images for tests: in a cache of their own, from a registry made of answers, and layers.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::LayerTree;
use undermount_fs::layer::Indexer;
use undermount_fs::object::StoreLimits;
use undermount_fs::source::Scope;

use super::cache::Cache;
use super::images::{Images, Ready, Resolved};
use crate::image::{Document, ImageConfig};
use crate::registry::client::testing::{Reply, Server, client};
use crate::supply::RegistrySource;

/// A registry that takes every question and answers none.
pub async fn silent_registry() -> Server {
    Server::start(|_| Reply { hangs: true, ..Reply::default() }).await
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
