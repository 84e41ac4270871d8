use futures_util::FutureExt as _;
use serde_json::json;
use tokio::runtime::Handle;
use undermount_fs::view::{SlotTable, View};

use super::*;
use crate::agent::completion::Completer;
use crate::agent::images::Images;
use crate::agent::layers::{LayerShelf, Shown};
use crate::agent::testing::{images, silent_registry};
use crate::control::Runtime;

/// Keeps manifest and config of an image whose one layer has no index; the manifest's digest.
fn keep_image(images: &Images) -> Digest {
    let blobs = &images.cache().blobs;
    let keep = |json: serde_json::Value| blobs.put_bytes(json.to_string().into()).unwrap();
    let layer = Digest::of(b"layer");
    let config = keep(json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": [layer] },
    }));
    let descriptor = |digest| json!({ "mediaType": "m", "digest": digest, "size": 1 });
    keep(json!({
        "schemaVersion": 2, "config": descriptor(config), "layers": [descriptor(layer)],
    }))
}

fn shelf(images: Arc<Images>) -> LayerShelf {
    let cache = images.cache().root().to_owned();
    let view = Arc::new(View::new(images.filler().clone()));
    let slots = SlotTable::open(&cache.join("slots")).unwrap();
    let slots = Arc::new(std::sync::Mutex::new(slots));
    let shown = Shown::new(view, slots, Runtime::of(&cache));
    let completer = Completer::new(images.clone(), Duration::ZERO);
    LayerShelf::new(images, completer, shown, &cache, Handle::current()).unwrap()
}

#[tokio::test]
async fn regression_a_name_that_was_read_by_half_is_read_again() {
    let server = silent_registry().await;
    let cache = tempfile::tempdir().unwrap();
    let images = images(cache.path());
    let reference: Reference = format!("{}:tag", server.repository()).parse().unwrap();
    let record = NameRecord {
        reference: reference.to_string(),
        manifests: vec![keep_image(&images)],
        ..NameRecord::default()
    };
    let shelf = shelf(images);
    shelf.0.records.put(&record).unwrap();
    let name = Name::new(reference);
    // Somebody asks, and goes away while the registry is asked for an index of the layer.
    assert!(name.explain(&shelf.0).now_or_never().is_none());
    let state = name.state.try_lock().unwrap();
    assert!(!state.loaded && state.images.is_empty());
}
