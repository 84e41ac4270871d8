use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::*;
use crate::digest::{Digest, Verified};

fn object(text: &str) -> Object {
    Object::name(Bytes::copy_from_slice(text.as_bytes()))
}

fn open(root: &Path) -> Store {
    Store::open(root, StoreLimits::default()).unwrap()
}

#[test]
fn objects_read_back_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let object = object("content");
    open(root.path()).insert(&object).unwrap();
    let store = open(root.path());
    let file = store.get(object.key(), 7).unwrap();
    let mut bytes = [0; 7];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"content");
    assert!(store.usage().bytes > 0);
    assert!(store.get(&ObjectKey::small(b"other"), 5).is_none());
}

#[test]
fn regression_an_object_that_two_insert_at_once_counts_once() {
    let root = tempfile::tempdir().unwrap();
    let (store, object) = (open(root.path()), object("content"));
    let draft = || {
        let mut draft = store.draft().unwrap();
        draft.append(object.bytes()).unwrap();
        draft
    };
    // Both have looked before either has put it there.
    let (first, second) = (draft(), draft());
    store.place(first, object.key()).unwrap();
    store.place(second, object.key()).unwrap();
    let surveyed: u64 = store.survey().unwrap().iter().map(|object| object.allocated).sum();
    assert_eq!(store.usage().bytes, surveyed);
}

#[test]
fn an_index_that_lies_about_a_size_does_not_cost_others_their_object() {
    let root = tempfile::tempdir().unwrap();
    let object = object("content");
    let store = open(root.path());
    store.insert(&object).unwrap();
    for _ in 0..2 {
        assert!(store.get(object.key(), 8).is_none());
        assert!(store.get(object.key(), 7).is_some());
    }
}

#[test]
fn objects_are_not_hashed_again_where_the_disk_is_trusted() {
    let root = tempfile::tempdir().unwrap();
    let object = object("content");
    open(root.path()).insert(&object).unwrap();
    let store = open(root.path()).with_verify(Verify::Insert);
    fs::write(store.layout.object(object.key()), "CONTENT").unwrap();
    assert!(store.get(object.key(), 7).is_some());
    fs::write(store.layout.object(object.key()), "CONTEN").unwrap();
    assert!(store.get(object.key(), 7).is_none());
}

#[test]
fn leftovers_of_a_crash_go_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()));
    let leftover = root.path().join("tmp/half");
    fs::write(&leftover, "ha").unwrap();
    drop(open(root.path()));
    assert!(!leftover.exists());
}

/// A store for 40 small objects, and 60 of them, inserted from the oldest to the newest.
fn crowded(root: &Path, pins: Option<Arc<dyn Pins>>) -> (Store, Vec<Object>) {
    let limits = StoreLimits { quota: Some(40 * 4096), ..StoreLimits::default() };
    let store = Store::open(root, limits).unwrap();
    if let Some(pins) = pins {
        store.set_pins(pins);
    }
    let objects: Vec<Object> = (0..60).map(|i| object(&format!("object {i}"))).collect();
    for (i, object) in objects.iter().enumerate() {
        store.insert(object).unwrap();
        let path = store.layout.object(object.key());
        let file = fs::File::options().write(true).open(path).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + i as u64);
        file.set_modified(time).unwrap();
    }
    (store, objects)
}

#[test]
fn a_quota_drops_what_was_not_used_for_longest() {
    let root = tempfile::tempdir().unwrap();
    let (store, objects) = crowded(root.path(), None);
    assert!(store.usage().bytes <= 40 * 4096, "{:?}", store.usage());
    assert!(store.usage().evicted >= 20);
    assert!(store.contains(objects[59].key()));
    assert!(!store.contains(objects[0].key()));
}

#[test]
fn regression_what_is_read_again_and_again_goes_last() {
    let root = tempfile::tempdir().unwrap();
    let (store, objects) = crowded(root.path(), None);
    let here: Vec<&Object> = objects.iter().filter(|o| store.contains(o.key())).collect();
    let (first, second) = (here[0], here[1]);
    // The first read is written down; it is long ago by now, the last one is not.
    assert!(store.get(first.key(), first.bytes().len() as u64).is_some());
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
    let file = fs::File::options().write(true).open(store.layout.object(first.key())).unwrap();
    file.set_modified(long_ago).unwrap();
    assert!(store.get(first.key(), first.bytes().len() as u64).is_some());
    file.set_modified(long_ago).unwrap();
    store.make_room(1).unwrap();
    assert!(store.contains(first.key()));
    assert!(!store.contains(second.key()));
}

struct Pinned(Vec<ObjectKey>);

impl Pins for Pinned {
    fn keys(&self) -> HashSet<ObjectKey> {
        self.0.iter().copied().collect()
    }
}

#[test]
fn what_is_pinned_or_open_stays_and_a_store_full_of_it_takes_nothing_more() {
    let root = tempfile::tempdir().unwrap();
    let oldest = object("object 0");
    let (store, objects) = crowded(root.path(), Some(Arc::new(Pinned(vec![*oldest.key()]))));
    assert!(store.contains(oldest.key()));
    assert!(!store.contains(objects[1].key()));

    let here: Vec<&Object> = objects.iter().filter(|o| store.contains(o.key())).collect();
    let open: Vec<_> =
        here.iter().map(|o| store.get(o.key(), o.bytes().len() as u64).unwrap()).collect();
    assert_eq!(store.make_room(u64::MAX).unwrap(), 0);
    let error = (0..60).find_map(|i| store.insert(&object(&format!("new {i}"))).err());
    assert!(error.is_some_and(|error| error.is_full()));
    assert!(store.usage().unkept > 0);
    assert!(here.iter().all(|object| store.contains(object.key())));
    drop(open);
}

const LARGE: u64 = 2 * CHUNK + 5;

/// A content of [`LARGE`] bytes.
struct Large {
    key: ObjectKey,
    chunks: Vec<Verified>,
    digests: Vec<Digest>,
}

impl Large {
    fn of(byte: u8) -> Self {
        let content = Bytes::from(vec![byte; LARGE as usize]);
        let starts = (0..content.len()).step_by(CHUNK as usize);
        let end = |start: usize| content.len().min(start + CHUNK as usize);
        let chunks: Vec<Verified> =
            starts.map(|start| Verified::name(content.slice(start..end(start)))).collect();
        let digests: Vec<Digest> = chunks.iter().map(|chunk| *chunk.digest()).collect();
        Self { key: ObjectKey::large(LARGE, &digests), chunks, digests }
    }

    fn name(&self) -> LargeName<'_> {
        LargeName { key: &self.key, size: LARGE, chunks: &self.digests }
    }

    /// Puts all of it into `store`.
    fn keep(&self, store: &Store) -> Arc<Partial> {
        let partial = store.large_or_new(self.name()).unwrap();
        for (number, chunk) in self.chunks.iter().enumerate() {
            store.fill_chunk(&partial, number, chunk).unwrap();
        }
        assert!(store.contains(&self.key));
        partial
    }
}

#[test]
fn regression_an_audit_that_finds_a_decayed_chunk_is_believed_by_who_reads_the_object() {
    let root = tempfile::tempdir().unwrap();
    let (store, large) = (open(root.path()), Large::of(7));
    let (partial, key) = (large.keep(&store), large.key);
    // As a disk that decays does: nothing but the bytes tells.
    let decay = || fs::File::options().write(true).open(store.layout.object(&key));
    partial.transfer(true, || decay()?.write_all_at(b"decay", CHUNK + 9)).unwrap();
    assert!(partial.has(1) && !partial.is_touched(), "nobody could know");

    let survey = store.survey().unwrap();
    let object = survey.iter().find(|object| object.key == Some(key)).unwrap();
    assert!(store.audit(object).damaged);
    let partial = store.large(large.name()).unwrap();
    assert_eq!([0, 1, 2].map(|chunk| store.has_chunk(&partial, chunk)), [true, false, true]);
    store.fill_chunk(&partial, 1, &large.chunks[1]).unwrap();
    assert!(store.contains(&key));
}

#[test]
fn regression_who_completes_an_evicted_object_gives_no_other_file_its_place() {
    let root = tempfile::tempdir().unwrap();
    let (store, large) = (open(root.path()), Large::of(7));
    let Large { key, chunks, .. } = &large;
    let evicted = store.large_or_new(large.name()).unwrap();
    store.fill_chunk(&evicted, 0, &chunks[0]).unwrap();
    let found = store.survey().unwrap().into_iter().find(|object| object.key == Some(*key));
    assert!(store.discard(&found.unwrap()) > 0);
    let begun_again = store.large_or_new(large.name()).unwrap();
    store.fill_chunk(&begun_again, 2, &chunks[2]).unwrap();
    for number in [1, 2] {
        store.fill_chunk(&evicted, number, &chunks[number]).unwrap();
    }
    assert!(!store.contains(key), "the file that was begun again lacks two chunks");
    for number in [0, 1] {
        store.fill_chunk(&begun_again, number, &chunks[number]).unwrap();
    }
    assert!(store.contains(key));
}

#[test]
fn regression_nobody_puts_chunks_of_his_own_in_the_place_of_a_large_object() {
    let root = tempfile::tempdir().unwrap();
    let (store, large, other) = (open(root.path()), Large::of(7), Large::of(8));
    let lie = LargeName { chunks: &other.digests, ..large.name() };
    let error = store.large_or_new(lie).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Name { key } if key == large.key), "{error}");
    // Also where the object has begun to come in.
    let partial = store.large_or_new(large.name()).unwrap();
    assert!(store.fill_chunk(&partial, 0, &other.chunks[0]).is_err());
    store.fill_chunk(&partial, 0, &large.chunks[0]).unwrap();
    assert_eq!([0, 1, 2].map(|chunk| store.has_chunk(&partial, chunk)), [true, false, false]);
    // An audit by his chunks finds nothing wrong with those of others.
    assert!(store.audit_incomplete(lie).is_none());
    let (audited, holes) = store.audit_incomplete(large.name()).unwrap();
    assert!(!audited.damaged && holes.is_empty());
    drop((partial, store));
    let store = open(root.path());
    assert!(store.large(lie).is_none());
    let partial = store.large(large.name()).unwrap();
    assert!(store.has_chunk(&partial, 0), "it is here all the same");
}

#[test]
fn regression_a_size_that_is_wrong_drops_no_object() {
    let root = tempfile::tempdir().unwrap();
    let (store, large, small) = (open(root.path()), Large::of(7), object("small"));
    large.keep(&store);
    store.insert(&small).unwrap();
    let other = Large::of(8);
    for store in [store, open(root.path())] {
        assert!(store.get(&large.key, 5).is_none());
        assert!(store.large(LargeName { key: small.key(), ..other.name() }).is_none());
        assert!(store.contains(&large.key) && store.contains(small.key()));
        assert_eq!(store.usage().damaged, 0);
    }
}

#[test]
fn a_small_object_that_somebody_made_large_is_replaced_when_it_comes_in() {
    let root = tempfile::tempdir().unwrap();
    let (store, small) = (open(root.path()), object("small"));
    store.insert(&small).unwrap();
    let path = store.layout.object(small.key());
    fs::File::options().write(true).open(path).unwrap().set_len(CHUNK + 1).unwrap();
    assert!(store.get(small.key(), 5).is_none());
    store.insert(&small).unwrap();
    assert!(store.get(small.key(), 5).is_some());
    assert_eq!(store.usage().damaged, 1);
}

/// Who looks for a chunk while somebody else brings the last one finds it or not; the object is
/// whole in any case.
#[test]
fn regression_who_looks_while_a_chunk_comes_finds_no_damage() {
    let root = tempfile::tempdir().unwrap();
    let large = Large::of(7);
    for round in 0..100 {
        let store = open(root.path());
        for (number, chunk) in large.chunks.iter().enumerate().skip(1) {
            let partial = store.large_or_new(large.name()).unwrap();
            store.fill_chunk(&partial, number, chunk).unwrap();
        }
        drop(store);
        // What is here has to be hashed once more.
        let store = open(root.path());
        let partial = store.large(large.name()).unwrap();
        let begin = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                store.has_chunk(&partial, 0);
            });
            begin.wait();
            store.fill_chunk(&partial, 0, &large.chunks[0]).unwrap();
        });
        assert!(store.has_chunk(&partial, 0), "round {round}");
        assert!(store.contains(&large.key), "round {round}");
        assert_eq!(store.usage().damaged, 0, "round {round}");
        let found = store.survey().unwrap().into_iter().find(|it| it.key == Some(large.key));
        store.discard(&found.unwrap());
    }
}

#[test]
fn regression_a_chunk_that_has_come_meanwhile_is_not_damaged() {
    let root = tempfile::tempdir().unwrap();
    let (store, large) = (open(root.path()), Large::of(7));
    let partial = store.large_or_new(large.name()).unwrap();
    assert!(!partial.has(1));
    large.keep(&store);
    // As who has looked before.
    let moved = partial.withdraw(1, || panic!("it is sound"));
    assert!(!moved.unwrap() && store.contains(&large.key));
}
