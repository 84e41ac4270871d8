//! A process that cannot open another file learns nothing about the files that it has: it must not
//! take them for damaged. Alone in its program, since the limit is that of the whole process.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::object::{Audited, CHUNK, LargeName, Object, ObjectKey, Store, StoreLimits};

/// Runs `work` while this process can open no file.
fn without_descriptors<T>(work: impl FnOnce() -> T) -> T {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    let outcome = work();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    outcome
}

#[test]
fn regression_what_cannot_be_opened_just_now_is_not_removed_as_damaged() {
    let root = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&root.path().join("blobs")).unwrap();
    let digest = blobs.put_bytes(Bytes::from_static(b"manifest")).unwrap();
    let object = Object::name(Bytes::from_static(b"small"));
    let bytes = vec![1; 2 * CHUNK as usize];
    let size = bytes.len() as u64;
    let chunks: Vec<Digest> = bytes.chunks(CHUNK as usize).map(Digest::of).collect();
    let key = ObjectKey::large(size, &chunks);
    let name = LargeName { key: &key, size, chunks: &chunks };
    {
        let store = Store::open(root.path(), StoreLimits::default()).unwrap();
        store.insert(&object).unwrap();
        let partial = store.large_or_new(name).unwrap();
        let first = Verified::name(Bytes::from(bytes).slice(..CHUNK as usize));
        store.fill_chunk(&partial, 0, &first).unwrap();
    }
    // Nothing of it is open.
    let store = Store::open(root.path(), StoreLimits::default()).unwrap();
    let surveyed = store.survey().unwrap();
    let complete = surveyed.iter().find(|found| found.key == Some(*object.key())).unwrap();

    let (blob, audited, opened) = without_descriptors(|| {
        let opened = store.large_or_new(name).map(drop);
        (blobs.get(&digest), store.audit(complete), opened)
    });
    assert!(blob.is_none());
    assert_eq!(audited, Audited::default());
    assert!(opened.is_err());

    assert_eq!(blobs.get(&digest).unwrap().bytes(), &b"manifest"[..]);
    assert!(store.get(object.key(), 5).is_some());
    let partial = store.large(name).unwrap();
    assert!(store.has_chunk(&partial, 0));
    assert_eq!(store.usage().damaged, 0);
}
