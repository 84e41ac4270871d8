use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use undermount_fs::fill::Layer;
use undermount_fs::session::Lookups;
use undermount_fs::view::{Lookup, NodeId, SlotTable, View};

use super::super::super::plan::{Below, Plan};
use super::*;
use crate::agent::images::Images;
use crate::agent::testing::{images, layer};
use crate::control::Runtime;

/// A cache, its runtime directory, and what its keeper holds.
struct Site {
    directory: TempDir,
    images: Arc<Images>,
    keeper: Lookups,
}

/// What a worker shows.
struct Worker {
    view: Arc<View>,
    shown: Shown,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = images(&directory.path().join("cache"));
        std::fs::create_dir(directory.path().join("run")).unwrap();
        Self { directory, images, keeper: Lookups::create().unwrap() }
    }

    fn worker(&self) -> Worker {
        let lookups = Lookups::open(self.keeper.memory().unwrap()).unwrap();
        let view = View::new(self.images.filler().clone()).with_lookups(lookups);
        let view = Arc::new(view);
        let runtime = Runtime::at(&self.directory.path().join("run"));
        let slots = SlotTable::open(&runtime.slots()).unwrap();
        let shown = Shown::new(view.clone(), Arc::new(Mutex::new(slots)), runtime);
        shown.restore(&self.images);
        Worker { view, shown }
    }

    /// A layer whose tree is in the cache.
    fn layer(&self, name: &str) -> Arc<Layer> {
        let layer = layer(&[(name, None)]);
        self.images.cache().blobs.put_bytes(layer.tree.bytes().to_vec().into()).unwrap();
        layer
    }

    fn lines(&self) -> usize {
        let path = Runtime::at(&self.directory.path().join("run")).layers();
        std::fs::read_to_string(path).unwrap().lines().count()
    }
}

impl Worker {
    fn show(&self, layer: &Arc<Layer>) -> PathBuf {
        let plan = Plan { layer: layer.clone(), below: Below::Any, chain: Vec::new() };
        self.shown.show(plan).unwrap()
    }

    /// Looks `directory` up as the kernel does.
    fn look_up(&self, directory: &Path) -> Option<NodeId> {
        let name = directory.file_name().unwrap().as_encoded_bytes();
        match self.view.lookup(NodeId::LAYERS, name).unwrap() {
            Lookup::Found(attr) => Some(attr.node),
            _ => None,
        }
    }

    /// A look at which podman uses nothing.
    fn look(&self) -> usize {
        self.look_beside([])
    }

    /// A look at which podman uses these layers.
    fn look_beside<const N: usize>(&self, used: [Digest; N]) -> usize {
        let due = self.shown.look(&HashSet::from(used));
        self.shown.hide(&due);
        self.shown.drop_forgotten().unwrap()
    }

    fn count(&self) -> (u64, u64, u64) {
        let LayersStatus { shown, leaving, dropped } = self.shown.census();
        (shown, leaving, dropped)
    }
}

#[test]
fn a_layer_goes_at_the_second_look_at_which_nobody_uses_it() {
    let site = Site::new();
    let worker = site.worker();
    let [used, removed] = ["used", "removed"].map(|name| site.layer(name));
    let directory = worker.show(&removed);
    worker.show(&used);
    assert_eq!(worker.look_beside([used.digest()]), 0);
    assert!(worker.shown.has(&directory), "somebody asks");
    assert_eq!(worker.look_beside([used.digest()]), 0);
    assert_eq!(worker.look_beside([used.digest()]), 1);
    assert!(!worker.shown.has(&directory));
    assert_eq!(worker.look_up(&directory), None);
    assert_eq!((worker.count(), site.lines()), ((1, 0, 1), 1));
    assert_eq!(worker.view.layers().len(), 1);
}

#[test]
fn a_layer_that_the_kernel_knows_stays_also_with_the_next_worker() {
    let site = Site::new();
    let worker = site.worker();
    let directory = worker.show(&site.layer("held"));
    let node = worker.look_up(&directory).unwrap();
    assert_eq!([worker.look(), worker.look()], [0, 0]);
    assert_eq!(worker.count(), (0, 1, 0));
    drop(worker);

    let worker = site.worker();
    assert_eq!([worker.look(), worker.look()], [0, 0]);
    assert_eq!((worker.count(), site.lines()), ((0, 1, 0), 1));
    assert_eq!(worker.view.getattr(node).unwrap().node, node);
    worker.view.forget(node, 1);
    assert_eq!((worker.look(), site.lines()), (1, 0));
    drop(worker);

    let worker = site.worker();
    assert_eq!(worker.count(), (0, 0, 0));
    let directory = worker.show(&site.layer("held"));
    assert_ne!(worker.look_up(&directory), Some(node), "its slot is never used again");
}

#[test]
fn a_hidden_layer_that_is_asked_for_is_shown_as_before() {
    let site = Site::new();
    let worker = site.worker();
    let layer = site.layer("wanted");
    let directory = worker.show(&layer);
    let node = worker.look_up(&directory);
    worker.look();
    worker.look();
    assert_eq!((worker.count(), worker.look_up(&directory)), ((0, 1, 0), None));
    assert_eq!(worker.show(&layer), directory);
    assert_eq!((worker.count(), worker.look_up(&directory)), ((1, 0, 0), node));
    assert_eq!(site.lines(), 1);
    worker.look();
    assert_eq!(worker.count(), (1, 0, 0), "it was asked for");
}

#[test]
fn what_this_worker_cannot_show_again_is_left_to_the_next() {
    let site = Site::new();
    let worker = site.worker();
    let lost = layer(&[("lost", None)]);
    worker.show(&lost);
    worker.show(&site.layer("other"));
    drop(worker);
    let worker = site.worker();
    assert_eq!(worker.count(), (1, 0, 0));
    worker.look();
    assert_eq!((worker.look(), site.lines()), (1, 1));
    site.images.cache().blobs.put_bytes(lost.tree.bytes().to_vec().into()).unwrap();
    assert_eq!(site.worker().count(), (1, 0, 0));
}

#[test]
fn a_layer_that_stays_is_visited_again_as_what_it_is_but_ever_more_seldom() {
    let site = Site::new();
    let worker = site.worker();
    let directory = worker.show(&site.layer("held"));
    let node = worker.look_up(&directory);
    worker.look();
    let visits: Vec<usize> = (1..200)
        .filter(|look| {
            let due = worker.shown.look(&HashSet::new());
            let has_name = *look == 1 || !due.is_empty();
            assert_eq!(worker.look_up(&directory), node.filter(|_| has_name), "{look}");
            worker.shown.hide(&due);
            assert_eq!(worker.look_up(&directory), None);
            assert_eq!(worker.shown.drop_forgotten().unwrap(), 0);
            !due.is_empty()
        })
        .collect();
    assert_eq!(visits, [1, 3, 7, 15, 31, 63, 127, 191]);

    let due = (0..64).map(|_| worker.shown.look(&HashSet::new())).find(|due| !due.is_empty());
    worker.show(&site.layer("held"));
    worker.shown.hide(&due.unwrap());
    assert_eq!(worker.look_up(&directory), node, "somebody has asked in between");
    assert_eq!(worker.count(), (1, 0, 0));
}
