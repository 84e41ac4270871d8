//! What becomes of the view where mounts come and go.

use super::*;
use crate::agent::testing::{images, ready};
use crate::registry::client::testing::client;

/// An owner whose runtime directory does not exist.
fn owner(cache: &Path) -> Owner {
    let images = images(cache);
    Owner::new(Parts {
        completer: Completer::new(images.clone(), Duration::ZERO),
        view: Arc::new(View::new(images.filler().clone())),
        images,
        slots: Arc::new(std::sync::Mutex::new(SlotTable::open(&cache.join("slots")).unwrap())),
        client: client(|_| {}),
        ledger: Arc::default(),
        runtime: Runtime::of(cache),
        data_mode: DataMode::Cached,
    })
}

/// Shows an image that is to be mounted on `/mount`.
async fn shown(owner: &Owner, mounts: &mut Mounts, name: &str) -> Mounted {
    let ready = Arc::new(ready(name));
    let tree = owner.merge(&ready).await.unwrap();
    let record = Record {
        dir: "/mount".into(),
        reference: ready.image.reference.to_string(),
        manifest: ready.image.digest,
        plain_http: false,
        trees: ready.layers.iter().map(|layer| layer.tree_digest()).collect(),
    };
    let name = owner.show(mounts, &ready, tree).unwrap();
    let completion = owner.parts.completer.begin(ready.clone(), false, Vec::new());
    Mounted { record, name, ready, completion }
}

#[tokio::test]
async fn regression_an_image_whose_mount_was_taken_away_leaves_the_view_at_the_next_mount() {
    let cache = tempfile::tempdir().unwrap();
    let owner = owner(cache.path());
    let mut mounts = owner.mounts.lock().await;
    let first = shown(&owner, &mut mounts, "first").await;
    mounts.insert(first.record.dir.clone(), first);
    let second = shown(&owner, &mut mounts, "second").await;
    assert_eq!(owner.parts.view.layers().len(), 2);
    let outcome = owner.attach(&mut mounts, second, "/image".into()).await;
    assert!(matches!(outcome, Err(OwnerError::Record { .. })), "{outcome:?}");
    assert!(mounts.is_empty());
    assert!(owner.parts.view.layers().is_empty());
}
