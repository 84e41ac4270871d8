use zerocopy::FromZeros as _;

use super::*;
use crate::codec::Codec;
use crate::digest::Digest;
use crate::index::{InodeFlags, NONE, Sections, TreeHeader, encode_tree};
use crate::object::ObjectKey;

/// A file of `size` bytes at byte `data` of the tar, with its key at place `key`.
fn file(size: u64, data: u64, key: u32) -> InodeRecord {
    InodeRecord {
        mode: libc::S_IFREG.into(),
        size: size.into(),
        data: data.into(),
        key: key.into(),
        xattrs: NONE.into(),
        ..InodeRecord::new_zeroed()
    }
}

/// A sparse file with `count` extents from the `first` on.
fn sparse(size: u64, first: u64, count: u64, key: u32) -> InodeRecord {
    InodeRecord { flags: InodeFlags::SPARSE.into(), ..file(size, first | count << 32, key) }
}

fn extent(offset: u64, data: u64, length: u64) -> Extent {
    Extent { offset: offset.into(), data: data.into(), length: length.into() }
}

/// What `check` says of a layer of 100,000 bytes with these files, the first of which is inode 1.
fn check_with(
    files: &[InodeRecord],
    order: &[u32],
    extents: &[Extent],
    digests: &[Digest],
) -> Result<(), String> {
    let root = InodeRecord {
        mode: libc::S_IFDIR.into(),
        key: NONE.into(),
        xattrs: NONE.into(),
        ..InodeRecord::new_zeroed()
    };
    let sections = Sections {
        inodes: [&[root], files].concat(),
        order: order.iter().map(|&number| number.into()).collect(),
        extents: extents.to_vec(),
        digests: digests.to_vec(),
        ..Sections::default()
    };
    let header = TreeHeader {
        codec: Codec::Plain.number().into(),
        tar_size: 100_000.into(),
        content_size: (1 << 41).into(),
        ..TreeHeader::new_zeroed()
    };
    let tree = LayerTree::new(encode_tree(header, &sections).into()).unwrap();
    tree.check().map_err(|error| error.to_string())
}

fn digests(count: u64) -> Vec<Digest> {
    (0..count).map(|n| Digest::of(&n.to_le_bytes())).collect()
}

#[track_caller]
fn refused(outcome: &Result<(), String>, words: &str) {
    assert!(outcome.as_ref().is_err_and(|error| error.contains(words)), "{outcome:?}");
}

/// A read keeps whatever the order says lies in its spans.
#[test]
fn regression_the_order_names_each_file_once_by_its_place() {
    let files = [file(7, 512, 0), file(900, 1536, 1), file(7, 3000, 0), file(0, 4000, NONE)];
    let check = |order: &[u32]| check_with(&files, order, &[], &digests(2));
    assert_eq!(check(&[1, 2, 3]), Ok(()));
    refused(&check(&[1; 1000]), "each file with content once");
    refused(&check(&[1, 2]), "each file with content once");
    refused(&check(&[1, 2, 2]), "out of order or overlap");
    refused(&check(&[1, 3, 2]), "out of order or overlap");
    refused(&check(&[1, 2, 4]), "has no content");
    refused(&check(&[0, 1, 2]), "has no content");
    refused(&check(&[1, 2, 9]), "no such inode");
}

/// Millions of files could be the same few bytes.
#[test]
fn regression_every_file_has_bytes_of_the_layer_for_itself() {
    let check = |second: InodeRecord, extents: &[Extent]| {
        check_with(&[file(700, 1024, 0), second], &[1, 2], extents, &digests(2))
    };
    assert_eq!(check(file(7, 2240, 1), &[]), Ok(()));
    for place in [1024, 1025, 1723, 1724, 2235] {
        refused(&check(file(7, place, 1), &[]), "out of order or overlap");
    }
    refused(&check(file(7, 99_994, 1), &[]), "outside the layer");
    refused(&check(file(7, u64::MAX, 1), &[]), "out of order or overlap");
    let two = [extent(0, 2560, 10), extent(90, 2570, 10)];
    assert_eq!(check(sparse(100, 0, 2, 1), &two), Ok(()));
    let backwards = [extent(0, 2570, 10), extent(90, 2560, 10)];
    refused(&check(sparse(100, 0, 2, 1), &backwards), "out of order or overlap");
}

#[test]
fn files_without_data_come_first() {
    let files = [sparse(100, 0, 0, 0), file(7, 512, 1), sparse(100, 0, 0, 0)];
    let check = |order: &[u32]| check_with(&files, order, &[], &digests(2));
    assert_eq!(check(&[1, 3, 2]), Ok(()));
    refused(&check(&[3, 1, 2]), "out of order or overlap");
    refused(&check(&[1, 1, 2]), "out of order or overlap");
    refused(&check(&[1, 2, 3]), "out of order or overlap");
}

/// Who gives his chunks the key of another image's file would write into it.
#[test]
fn regression_a_large_file_has_the_key_of_its_chunks() {
    let size = 2 * CHUNK + 5;
    let holes = sparse(size, 0, 0, 0);
    let chunks = digests(3);
    let check = |key: ObjectKey, files: &[InodeRecord], order: &[u32]| {
        let digests = [&[*key.digest()], &chunks[..]].concat();
        check_with(files, order, &[], &digests)
    };
    let right = ObjectKey::large(size, &chunks);
    assert_eq!(check(right, &[holes], &[1]), Ok(()));
    assert_eq!(check(right, &[holes, holes], &[1, 2]), Ok(()));
    refused(&check(ObjectKey::small(b"other"), &[holes], &[1]), "not the one of its chunks");
    let shorter = sparse(size - 1, 0, 0, 0);
    refused(&check(right, &[shorter], &[1]), "not the one of its chunks");
    refused(&check(right, &[holes, shorter], &[1, 2]), "different sizes");
}

/// Each of a million files could have a key, and all chunks behind it: to hash them takes hours.
#[test]
fn regression_objects_share_no_digests() {
    let inner = [digests(4), digests(3)].concat();
    let size = |chunks: usize| chunks as u64 * CHUNK;
    let key = |chunks: &[Digest]| *ObjectKey::large(size(chunks.len()), chunks).digest();
    let second = [&[key(&inner)], &inner[..]].concat();
    let first = [&[key(&second)], &second[..]].concat();
    let files = [sparse(size(8), 0, 0, 0), sparse(size(7), 0, 0, 1)];
    refused(&check_with(&files, &[1, 2], &[], &first), "share digests");
    assert_eq!(check_with(&files[..1], &[1], &[], &first), Ok(()));
}
