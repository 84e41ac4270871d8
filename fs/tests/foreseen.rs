//! What a start is going to read, fetched before it asks.

#![allow(clippy::unwrap_used)]

mod machine;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use machine::{Expected, Machine, MemorySource, gzip, noise, publish, sample};
use undermount_fs::fill::{FillError, Foreseen};
use undermount_fs::layer::LayerIndex;
use undermount_fs::pack::{Profile, UnitName};
use undermount_fs::source::Priority;
use undermount_fs::view::NodeId;

/// What the start in these tests reads, in its order.
const START: [&str; 4] = ["lib/d8/f8", "exact", "lib/d0/f9", "lib/d3/f12"];

/// A machine that has mounted an image and read nothing of it.
struct Fresh {
    machine: Machine,
    root: NodeId,
}

impl Fresh {
    fn new(source: &Arc<MemorySource>, index: &LayerIndex) -> Self {
        let machine = Machine::new(source.clone());
        let root = machine.mount(std::slice::from_ref(index));
        Self { machine, root }
    }

    async fn foresee(&self, profile: &Profile, most: u64) -> Result<Foreseen, FillError> {
        let layers = self.machine.layers.lock().unwrap().clone();
        self.machine.view.filler().fetch_foreseen(profile, &layers, most).await
    }

    async fn read(&self, path: &str) -> Vec<u8> {
        let node = self.machine.find(self.root, path).unwrap();
        self.machine.read(node, 0, 2 << 20).await.unwrap().to_vec()
    }

    /// Reads the start, and a part of the large file.
    async fn start(&self, expected: &Expected) {
        for path in START {
            assert!(self.read(path).await == expected[&format!("/{path}")], "{path}");
        }
        let large = self.machine.find(self.root, "large").unwrap();
        let part = self.machine.read(large, 3_000_000, 500_000).await.unwrap();
        assert!(part == expected["/large"][3_000_000..3_500_000]);
    }
}

/// What a start on a machine of its own reads.
async fn record(source: &Arc<MemorySource>, index: &LayerIndex, expected: &Expected) -> Profile {
    let fresh = Fresh::new(source, index);
    let recording = fresh.machine.view.recorder().begin([index.layer]);
    fresh.start(expected).await;
    recording.profile()
}

#[tokio::test]
async fn a_start_that_was_foreseen_reads_what_is_here() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index, &expected).await;
    source.asked.lock().unwrap().clear();
    let fresh = Fresh::new(&source, &index);
    let came = fresh.foresee(&profile, u64::MAX).await.unwrap();
    assert_eq!(came.units, START.len() as u64 + 2, "two chunks of the large file");
    let size = source.blobs.lock().unwrap()[&index.layer].len() as u64;
    assert!((1..size).contains(&came.fetched), "{came:?} of {size}");
    let asked = source.asked.lock().unwrap().clone();
    let of_layer = asked.iter().filter(|(blob, _)| *blob == index.layer);
    assert!(of_layer.clone().count() > 0);
    assert!(of_layer.clone().all(|(_, priority)| *priority == Priority::Pack));
    assert_eq!(fresh.foresee(&profile, u64::MAX).await.unwrap(), Foreseen::default());

    source.down.store(true, Ordering::SeqCst);
    fresh.start(&expected).await;
    source.down.store(false, Ordering::SeqCst);
    assert!(fresh.machine.files(fresh.root).await == expected);
}

#[tokio::test]
async fn no_more_is_fetched_than_is_allowed() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index, &expected).await;
    let fresh = Fresh::new(&source, &index);
    assert_eq!(fresh.foresee(&profile, 0).await.unwrap(), Foreseen::default());
    let came = fresh.foresee(&profile, 1).await.unwrap();
    assert_eq!(came.units, 1, "what is read first");
    source.down.store(true, Ordering::SeqCst);
    assert!(fresh.read(START[0]).await == expected[&format!("/{}", START[0])]);
}

#[tokio::test]
async fn what_does_not_exist_is_not_foreseen() {
    let (source, index, expected) = sample(gzip);
    let other = publish(&source, gzip(&machine::archive(&[("a", noise(5, 9))])));
    let profile = record(&source, &index, &expected).await;
    let first = profile.units()[0];
    let nowhere = [
        UnitName { layer: other.layer, ..first },
        UnitName { inode: u32::MAX, ..first },
        UnitName { inode: 0, ..first },
        UnitName { number: u32::MAX, ..first },
    ];
    let fresh = Fresh::new(&source, &index);
    let came = fresh.foresee(&Profile::new(nowhere), u64::MAX).await.unwrap();
    assert_eq!(came, Foreseen::default());
    let came = fresh.foresee(&Profile::new(nowhere.into_iter().chain([first])), u64::MAX).await;
    assert_eq!(came.unwrap().units, 1);
}

#[tokio::test]
async fn what_cannot_be_had_ends_it_and_reads_go_on() {
    let (source, index, expected) = sample(gzip);
    let profile = record(&source, &index, &expected).await;
    *source.lost.lock().unwrap() = Some((index.layer, 1_000_000));
    let fresh = Fresh::new(&source, &index);
    let error = fresh.foresee(&profile, u64::MAX).await.unwrap_err();
    assert!(matches!(error, FillError::Source(_)), "{error}");
    *source.lost.lock().unwrap() = None;
    assert!(fresh.machine.files(fresh.root).await == expected);
}

#[tokio::test]
async fn a_small_layer_comes_whole() {
    let source = Arc::new(MemorySource::default());
    let files: Vec<(&str, Vec<u8>)> =
        ["a", "b", "c"].iter().zip(0..).map(|(name, i)| (*name, noise(i, 9_000))).collect();
    let blob = gzip(&machine::archive(&files));
    let size = blob.len() as u64;
    let index = publish(&source, blob);
    let machine = Machine::new(source.clone());
    let root = machine.mount(std::slice::from_ref(&index));
    let recording = machine.view.recorder().begin([index.layer]);
    machine.read(machine.find(root, "b").unwrap(), 0, 9_000).await.unwrap();
    let fresh = Fresh::new(&source, &index);
    let came = fresh.foresee(&recording.profile(), u64::MAX).await.unwrap();
    assert_eq!(came, Foreseen { units: 1, fetched: size });
    source.down.store(true, Ordering::SeqCst);
    assert!(fresh.read("c").await == files[2].1);
}
