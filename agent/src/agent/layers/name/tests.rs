use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use undermount_fs::fill::Layer;
use undermount_fs::view::{SlotTable, View};

use super::*;
use crate::agent::completion::Completer;
use crate::agent::images::Images;
use crate::agent::layers::{LayerShelf, Shown};
use crate::agent::testing::{
    described, image_registry, images, keep_image, keep_index, layer, ready, silent_registry,
};
use crate::control::Runtime;
use crate::registry::client::testing::Server;

/// Two layers, of which the second one has no index.
fn layers(images: &Images) -> [Arc<Layer>; 2] {
    let layers = ["indexed", "not"].map(|name| layer(&[(name, None)]));
    keep_index(images, &layers[0]);
    layers
}

/// The name of an image of `layers` that is here, with its record on disk.
fn recorded(shelf: &LayerShelf, server: &Server, layers: &[Arc<Layer>]) -> Reference {
    let reference: Reference = format!("{}:tag", server.repository()).parse().unwrap();
    let record = NameRecord {
        reference: reference.to_string(),
        manifests: vec![keep_image(&shelf.0.images, layers)],
        ..NameRecord::default()
    };
    shelf.0.records.put(&record).unwrap();
    reference
}

/// The outcome of `work`, which waits for nothing.
async fn at_once<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it waits for the registry")
}

fn shelf(images: Arc<Images>) -> LayerShelf {
    let cache = images.cache().root().to_owned();
    let view = Arc::new(View::new(images.filler().clone()));
    let slots = SlotTable::open(&cache.join("slots")).unwrap();
    let slots = Arc::new(std::sync::Mutex::new(slots));
    let run = cache.join("run");
    std::fs::create_dir(&run).unwrap();
    let shown = Shown::new(view, slots, Runtime::at(&run));
    let completer = Completer::new(images.clone(), Duration::ZERO);
    LayerShelf::new(images, completer, shown, &cache, Handle::current()).unwrap()
}

#[tokio::test]
async fn regression_a_name_that_was_read_by_half_is_read_again() {
    let server = silent_registry().await;
    let cache = tempfile::tempdir().unwrap();
    let shelf = shelf(images(cache.path()));
    let reference = recorded(&shelf, &server, &layers(&shelf.0.images));
    let name = Name::new(reference);
    // A caller asks, and is gone while the indexes are read.
    assert!(name.explain(&shelf.0).now_or_never().is_none());
    let state = name.state.try_lock().unwrap();
    assert!(!state.loaded && state.images.is_empty());
}

#[tokio::test]
async fn regression_a_record_that_cannot_be_read_is_neither_forgotten_nor_written_over() {
    let cache = tempfile::tempdir().unwrap();
    let images = images(cache.path());
    let shelf = shelf(images);
    let reference: Reference = "localhost:1/a:tag".parse().unwrap();
    let mut record = NameRecord { reference: reference.to_string(), ..NameRecord::default() };
    let [before, meanwhile] = [b"before", b"meanwh"].map(|layer| Digest::of(layer));
    record.hold(before);
    shelf.0.records.put(&record).unwrap();
    let name = Name::new(reference.clone());

    let [at, away] = ["podman", "away"].map(|name| cache.path().join(name));
    std::fs::rename(&at, &away).unwrap();
    std::fs::write(&at, "no directory").unwrap();
    name.hold(&shelf.0, &meanwhile).await;
    assert!(name.state.lock().await.others().is_none(), "it may have meant anything");
    std::fs::remove_file(&at).unwrap();
    std::fs::rename(&away, &at).unwrap();
    name.learn_of_others(&shelf.0, &mut *name.state.lock().await).await;
    assert_eq!(shelf.0.records.get(&reference).unwrap(), record);

    name.hold(&shelf.0, &meanwhile).await;
    name.save(&shelf.0, &*name.state.lock().await).await;
    let kept = shelf.0.records.get(&reference).unwrap();
    assert!(kept.others);
    assert_eq!(kept.uses, [(before, 1), (meanwhile, 2)].into());
}

#[tokio::test]
async fn regression_a_container_starts_without_the_indexes_of_other_layers() {
    let server = silent_registry().await;
    let cache = tempfile::tempdir().unwrap();
    let shelf = shelf(images(cache.path()));
    let layers = layers(&shelf.0.images);
    let name = Name::new(recorded(&shelf, &server, &layers));
    let key = layers[0].digest();
    assert!(at_once(name.offer(&shelf.0, &key, Occasion::Path)).await.is_ok());
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn regression_who_wants_a_layer_does_not_wait_for_an_explanation() {
    let server = silent_registry().await;
    let cache = tempfile::tempdir().unwrap();
    let shelf = shelf(images(cache.path()));
    let layers = layers(&shelf.0.images);
    keep_index(&shelf.0.images, &layers[1]);
    let name = Name::new(recorded(&shelf, &server, &layers));
    let offer = async {
        while server.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        name.offer(&shelf.0, &layers[0].digest(), Occasion::Path).await
    };
    tokio::select! {
        _ = name.explain(&shelf.0) => panic!("nobody has told what the name means"),
        offer = at_once(offer) => assert!(offer.is_ok()),
    }
}

#[tokio::test]
async fn regression_a_layer_whose_index_comes_later_is_offered_at_the_next_question() {
    let cache = tempfile::tempdir().unwrap();
    let shelf = shelf(images(cache.path()));
    let layers = layers(&shelf.0.images);
    let server = image_registry(described(&layers)).await;
    let name = Name::new(format!("{}:tag", server.repository()).parse().unwrap());
    let key = layers[1].digest();
    for occasion in [Occasion::Path, Occasion::Pull] {
        let refusal = at_once(name.offer(&shelf.0, &key, occasion)).await.unwrap_err();
        assert!(matches!(refusal, Refusal::NoIndex(_)), "{refusal}");
    }
    keep_index(&shelf.0.images, &layers[1]);
    name.state.lock().await.inquiry = Inquiry::default();
    assert!(at_once(name.offer(&shelf.0, &key, Occasion::Path)).await.is_ok());
}

#[tokio::test]
async fn regression_indexes_are_waited_for_until_their_deadline_only() {
    let server = silent_registry().await;
    let cache = tempfile::tempdir().unwrap();
    let shelf = shelf(images(cache.path()));
    let images = &shelf.0.images;
    let layers = layers(images);
    let reference = recorded(&shelf, &server, &layers);
    let image = images.kept(&reference, &Digest::of(&described(&layers)[0])).unwrap();
    let image = images.indexed_here(image).await;
    let end = Instant::now() + Duration::from_millis(1);
    // Less than the client itself waits for an answer.
    let soon = Duration::from_secs(4);
    let indexed = tokio::time::timeout(soon, images.indexed_until(&image, end)).await;
    assert!(indexed.expect("it ends at its deadline").is_none());
}

/// An image of this one layer.
fn of_layer(layer: &Arc<Layer>) -> Known {
    let mut image = ready(&layer.digest().hex()).image;
    let described = serde_json::json!([{ "mediaType": "l", "digest": layer.digest(), "size": 1 }]);
    image.manifest.layers = serde_json::from_value(described).unwrap();
    Known::new(Indexed::new(image, vec![Ok(layer.clone())], Vec::new()))
}

#[tokio::test]
async fn what_podman_does_not_use_is_let_go_at_the_second_look() {
    let name = Name::new("localhost:1/a:tag".parse().unwrap());
    let [old, used, latest] = ["old", "used", "latest"].map(|name| layer(&[(name, None)]));
    {
        let mut state = name.state.lock().await;
        state.loaded = true;
        state.images = [&old, &used, &latest].map(of_layer).into();
        state.record.hold(used.digest());
    }
    assert!(!name.let_go(), "somebody has just asked");
    assert_eq!(Arc::strong_count(&old), 2);
    assert!(!name.let_go(), "podman uses it");
    let held = [&old, &used, &latest].map(Arc::strong_count);
    assert_eq!(held, [1, 2, 2], "the index of the one that is neither used nor the latest");
    {
        let mut state = name.state.lock().await;
        assert_eq!(state.others().unwrap().len(), 3, "what it has meant counts as ever");
        assert_eq!(state.place(&old.digest()), Some((0, 0)));
        state.record.release(&used.digest());
    }
    name.note_asked();
    assert!(!name.let_go());
    assert!(name.let_go(), "all of it can go");
    let mut state = name.state.lock().await;
    (state.loaded, state.record.others) = (false, true);
    drop(state);
    assert!(!name.let_go(), "it holds what is not written down");
}
