//! What becomes of the view where mounts come and go.

use std::time::Duration;

use super::*;
use crate::agent::testing::{images, keep_image, keep_index, layer, ready, silent_registry};
use crate::registry::client::testing::client;

/// An owner whose runtime directory does not exist.
fn owner(cache: &Path) -> Owner {
    owner_in(cache, Runtime::of(cache))
}

fn owner_in(cache: &Path, runtime: Runtime) -> Owner {
    let images = images(cache);
    Owner::new(Parts {
        completer: Completer::new(images.clone(), Duration::ZERO),
        view: Arc::new(View::new(images.filler().clone())),
        images,
        slots: Arc::new(std::sync::Mutex::new(SlotTable::open(&cache.join("slots")).unwrap())),
        client: client(|_| {}),
        ledger: Arc::default(),
        runtime,
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
    mounts.shown.insert(first.record.dir.clone(), first);
    let second = shown(&owner, &mut mounts, "second").await;
    assert_eq!(owner.parts.view.layers().len(), 2);
    let outcome = owner.attach(&mut mounts, second, "/image".into()).await;
    assert!(matches!(outcome, Err(OwnerError::Record { .. })), "{outcome:?}");
    assert_eq!(mounts.len(), 0);
    assert!(owner.parts.view.layers().is_empty());
}

#[tokio::test]
async fn a_mount_that_cannot_be_shown_is_told_of_and_is_in_the_way_of_another() {
    let cache = tempfile::tempdir().unwrap();
    let owner = owner(cache.path());
    let dir = PathBuf::from("/proc");
    let record = Record {
        dir: dir.clone(),
        reference: "registry.example/lost:1".to_owned(),
        manifest: Digest::of(b"manifest"),
        plain_http: false,
        trees: Vec::new(),
    };
    let lost = Lost { record, reason: "for a reason".to_owned() };
    owner.mounts.lock().await.lost.insert(dir.clone(), lost);
    let mounted = owner.mounts.lock().await.reference(&dir);
    let refusal = check_free(mounted, &dir).await.unwrap_err().to_string();
    assert!(refusal.contains("lost:1 is mounted on /proc already"), "{refusal}");
    assert!(owner.mounts().await[0].trouble.as_ref().unwrap().contains("for a reason"));
    assert_eq!(owner.notice_unmounts().await.unwrap(), 1, "the kernel has it");
    assert_eq!(owner.count().await, 1);
}

#[tokio::test]
async fn regression_a_mount_whose_registry_is_silent_costs_no_other_its_image() {
    let server = silent_registry().await;
    let (cache, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let owner = owner_in(cache.path(), Runtime::at(run.path()));
    let record = |dir: &str, manifest, trees| Record {
        dir: dir.into(),
        reference: format!("{}:1", server.repository()),
        manifest,
        plain_http: true,
        trees,
    };
    let (images, layers) = (&owner.parts.images, [layer(&[("file", None)])]);
    keep_index(images, &layers[0]);
    let trees = vec![layers[0].tree_digest()];
    let away = record("/first", Digest::of(b"away"), trees.clone());
    let here = record("/second", keep_image(images, &layers), trees);
    records::write(&owner.parts.runtime, [&away, &here].into_iter()).unwrap();

    let shown = async {
        while owner.mounted(&here.dir).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = owner.restore() => panic!("it waits for the registry"),
        shown = tokio::time::timeout(Duration::from_secs(60), shown) => shown.unwrap(),
    }
}
