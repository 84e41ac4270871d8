//! Start-up packs: recorded on one machine, packed, unpacked on another.

#![allow(clippy::unwrap_used)]

mod machine;

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use machine::{Expected, Machine, MemorySource, gzip, publish, sample};
use undermount_fs::digest::Digest;
use undermount_fs::fill::{PackBlob, UnpackError};
use undermount_fs::layer::LayerIndex;
use undermount_fs::pack::{Builder, Packed, Profile, UnitName};
use undermount_fs::source::Scope;

/// What the start in these tests reads, in its order.
const START: [&str; 4] = ["lib/d8/f8", "exact", "lib/d0/f9", "lib/d3/f12"];

/// Puts a pack into the source.
fn publish_pack(source: &MemorySource, mut packed: Packed) -> PackBlob {
    let mut bytes = Vec::new();
    packed.file.read_to_end(&mut bytes).unwrap();
    assert_eq!(packed.head, Digest::of(&bytes[..packed.head_size as usize]));
    assert_eq!((packed.size, packed.digest), (bytes.len() as u64, Digest::of(&bytes)));
    source.put(bytes.into());
    PackBlob {
        scope: Scope::new("registry/image"),
        digest: packed.digest,
        size: packed.size,
        head_size: packed.head_size,
        head: packed.head,
    }
}

/// What a start on a machine of its own reads.
async fn record(source: &Arc<MemorySource>, index: &LayerIndex) -> Profile {
    let machine = Machine::new(source.clone());
    let root = machine.mount(std::slice::from_ref(index));
    let recording = machine.view.recorder().begin([index.layer]);
    for path in START {
        machine.read(machine.find(root, path).unwrap(), 0, 1 << 20).await.unwrap();
    }
    let large = machine.find(root, "large").unwrap();
    machine.read(large, 3_000_000, 500_000).await.unwrap();
    recording.profile()
}

async fn pack(source: &Arc<MemorySource>, index: &LayerIndex, profile: &Profile) -> PackBlob {
    let machine = Machine::new(source.clone());
    machine.mount(std::slice::from_ref(index));
    let layers = machine.layers.lock().unwrap().clone();
    publish_pack(source, machine.view.filler().pack(profile, &layers).await.unwrap())
}

struct Fresh {
    machine: Machine,
    root: undermount_fs::view::NodeId,
}

impl Fresh {
    fn new(source: &Arc<MemorySource>, index: &LayerIndex) -> Self {
        let machine = Machine::new(source.clone());
        let root = machine.mount(std::slice::from_ref(index));
        Self { machine, root }
    }

    async fn unpack(&self, pack: &PackBlob) -> Result<undermount_fs::fill::Unpacked, UnpackError> {
        let layers = self.machine.layers.lock().unwrap().clone();
        self.machine.view.filler().unpack(pack, &layers, None).await
    }

    async fn assert_reads(&self, expected: &Expected) {
        assert!(self.machine.files(self.root).await == *expected);
    }
}

#[tokio::test]
async fn a_start_runs_from_the_pack_alone() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index).await;
    assert_eq!(profile.units().len(), START.len() + 2, "two chunks of the large file");
    let pack = pack(&source, &index, &profile).await;
    let fresh = Fresh::new(&source, &index);
    let unpacked = fresh.unpack(&pack).await.unwrap();
    assert_eq!((unpacked.units, unpacked.foreign), (6, 0));
    assert_eq!(unpacked.fetched, pack.size);
    source.down.store(true, Ordering::SeqCst);
    for path in START {
        let node = fresh.machine.find(fresh.root, path).unwrap();
        let bytes = fresh.machine.read(node, 0, 1 << 20).await.unwrap();
        assert!(bytes == expected[&format!("/{path}")], "{path}");
    }
    let large = fresh.machine.find(fresh.root, "large").unwrap();
    let bytes = fresh.machine.read(large, 3_000_000, 500_000).await.unwrap();
    assert!(bytes == expected["/large"][3_000_000..3_500_000]);
    source.down.store(false, Ordering::SeqCst);
    fresh.assert_reads(&expected).await;
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again() {
    let (source, index, _) = sample(gzip);
    let profile = record(&source, &index).await;
    let pack = pack(&source, &index, &profile).await;
    let fresh = Fresh::new(&source, &index);
    fresh.unpack(&pack).await.unwrap();
    let again = fresh.unpack(&pack).await.unwrap();
    assert_eq!((again.units, again.fetched), (0, pack.head_size));
}

#[tokio::test]
async fn a_pack_of_another_image_brings_nothing() {
    let (source, index, _) = sample(gzip);
    let profile = record(&source, &index).await;
    let pack = pack(&source, &index, &profile).await;
    let other = publish(&source, gzip(&machine::archive(&[("a", b"other".to_vec())])));
    let fresh = Fresh::new(&source, &other);
    let unpacked = fresh.unpack(&pack).await.unwrap();
    assert_eq!((unpacked.units, unpacked.fetched), (0, pack.head_size));
    let expected = [("/a".to_owned(), b"other".to_vec())].into();
    fresh.assert_reads(&expected).await;
}

#[tokio::test]
async fn a_pack_that_lies_is_given_up_and_nothing_of_it_is_shown() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index).await;
    let mut builder = Builder::new().unwrap();
    for unit in profile.units() {
        let content = expected["/exact"].as_slice();
        let length = if *unit == profile.units()[1] { content.len() } else { 649 };
        let mut lie = content[..length].to_vec();
        lie[length / 2] ^= 1;
        builder.add(unit, &lie).unwrap();
    }
    let pack = publish_pack(&source, builder.finish().unwrap());
    let fresh = Fresh::new(&source, &index);
    let error = fresh.unpack(&pack).await.unwrap_err();
    assert!(matches!(error, UnpackError::Wrong { .. }), "{error}");
    fresh.assert_reads(&expected).await;
}

#[tokio::test]
async fn a_pack_with_places_that_do_not_exist_brings_the_rest() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index).await;
    let first = profile.units()[0];
    let mut builder = Builder::new().unwrap();
    for (inode, number) in [(u32::MAX, 0), (0, 0), (first.inode, 1), (first.inode, u32::MAX)] {
        builder.add(&UnitName { inode, number, ..first }, b"nowhere").unwrap();
    }
    builder.add(&first, b"of another size").unwrap();
    builder.add(&first, &expected["/lib/d8/f8"]).unwrap();
    let pack = publish_pack(&source, builder.finish().unwrap());
    let fresh = Fresh::new(&source, &index);
    let unpacked = fresh.unpack(&pack).await.unwrap();
    assert_eq!((unpacked.units, unpacked.foreign), (1, 5));
    fresh.assert_reads(&expected).await;
}

#[tokio::test]
async fn a_damaged_truncated_or_missing_pack_is_an_error_and_reads_go_on() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index).await;
    let pack = pack(&source, &index, &profile).await;
    let bytes = source.blobs.lock().unwrap()[&pack.digest].clone();
    let flipped = |place: usize| {
        let mut bytes = bytes.to_vec();
        bytes[place] ^= 1;
        Some(Bytes::from(bytes))
    };
    let damages = [flipped(70), flipped(bytes.len() - 9), None];
    for damaged in damages {
        match damaged {
            Some(bytes) => source.blobs.lock().unwrap().insert(pack.digest, bytes),
            None => source.blobs.lock().unwrap().remove(&pack.digest),
        };
        let fresh = Fresh::new(&source, &index);
        let error = fresh.unpack(&pack).await.unwrap_err();
        assert!(matches!(error, UnpackError::Source { .. }), "{error}");
        fresh.assert_reads(&expected).await;
    }
}

/// A file of zeros, as sparse ones are: its chunks make the same frame again and again.
#[tokio::test]
async fn regression_frames_of_equal_bytes_that_came_early_are_all_unpacked() {
    let source = Arc::new(MemorySource::default());
    let files = [("zeros", vec![0; 3 << 20]), ("after", machine::noise(7, 5_000))];
    let index = publish(&source, gzip(&machine::archive(&files)));
    let machine = Machine::new(source.clone());
    let root = machine.mount(std::slice::from_ref(&index));
    let recording = machine.view.recorder().begin([index.layer]);
    for (path, content) in &files {
        let node = machine.find(root, path).unwrap();
        for offset in (0..content.len() as u64).step_by(1 << 20) {
            machine.read(node, offset, 1 << 20).await.unwrap();
        }
    }
    let pack = pack(&source, &index, &recording.profile()).await;
    let fresh = Fresh::new(&source, &index);
    let filler = fresh.machine.view.filler();
    let layers = fresh.machine.layers.lock().unwrap().clone();
    let unpacked = filler.unpack_opened(filler.open_pack(pack), &layers, None).await.unwrap();
    assert_eq!((unpacked.units, unpacked.foreign), (4, 0));
    source.down.store(true, Ordering::SeqCst);
    fresh.assert_reads(&files.map(|(path, content)| (format!("/{path}"), content)).into()).await;
}

#[tokio::test]
async fn a_head_of_impossible_size_is_not_fetched() {
    let (source, index, _) = sample(gzip);
    let profile = record(&source, &index).await;
    let pack = pack(&source, &index, &profile).await;
    let fresh = Fresh::new(&source, &index);
    for (head_size, size) in [(pack.size + 1, pack.size), (1 << 40, 1 << 41)] {
        let error = fresh.unpack(&PackBlob { head_size, size, ..pack.clone() }).await.unwrap_err();
        assert!(matches!(error, UnpackError::Size { .. }), "{error}");
    }
}
