//! Layers that are taken away, and a kernel that goes on to use what it knows of them.

#![allow(clippy::unwrap_used)]

mod machine;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::LayerTree;
use undermount_fs::source::Scope;
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{Attr, LayerView, Lookup, NodeId, SlotTable, ViewError};

use machine::{Machine, MemorySource, archive, gzip, publish};

/// Ways in which the layers are shown.
const VIEWS: usize = 3;

/// Two layers, of which the upper one has an opaque directory and is shown in two ways.
struct Stage {
    machine: Machine,
    slots: SlotTable,
    layers: [Arc<Layer>; 2],
    below: Arc<LayerTree>,
}

impl Stage {
    fn new() -> Self {
        let source = Arc::new(MemorySource::default());
        let text = |text: &str| text.as_bytes().to_vec();
        let lower = archive(&[("d/a", text("a")), ("d/sub/x", text("x")), ("low", text("low"))]);
        let upper = archive(&[
            ("d/.wh..wh..opq", text("")),
            ("d/b", text("b")),
            ("d/sub/y", text("y")),
            ("up", text("up")),
        ]);
        let trees = [lower, upper].map(|archive| {
            let index = publish(&source, gzip(&archive));
            Arc::new(LayerTree::new(index.tree.to_vec().into()).unwrap())
        });
        let machine = Machine::new(source);
        let slots = SlotTable::open(&machine.directory.path().join("slots")).unwrap();
        let below = trees[0].clone();
        let layers = trees.map(|tree| Arc::new(Layer::new(tree, Scope::new("registry/image"))));
        Self { machine, slots, layers, below }
    }

    fn layer(&self, n: usize) -> &Arc<Layer> {
        &self.layers[n.min(1)]
    }

    fn view(&self, n: usize) -> LayerView {
        let layer = self.layer(n).clone();
        let below = || ImageTree::merge(vec![self.below.clone()]).unwrap();
        match n {
            0 => LayerView::with_whiteouts(layer, None).unwrap(),
            1 => LayerView::with_markers(layer),
            _ => LayerView::with_whiteouts(layer, Some(&below())).unwrap(),
        }
    }

    fn show(&mut self, n: usize) -> Digest {
        self.machine.view.add_layer(self.view(n), &mut self.slots).unwrap()
    }

    fn hide(&self, n: usize) {
        self.machine.view.hide_layer(&self.view(n).name());
    }

    /// Whether the view could be dropped.
    fn dropped(&mut self, n: usize) -> bool {
        let (name, tree) = (self.view(n).name(), self.layer(n).tree_digest());
        let free = self.machine.view.drop_layer(&name, &tree, &self.slots);
        self.slots.give_up(&free).unwrap();
        !free.is_empty()
    }

    fn root(&self, n: usize) -> Option<NodeId> {
        self.machine.child(NodeId::LAYERS, self.view(n).name().hex().as_bytes())
    }
}

fn is_stale(stage: &Stage, node: NodeId) -> bool {
    matches!(stage.machine.view.getattr(node), Err(ViewError::Stale(_)))
}

#[test]
fn a_hidden_layer_goes_with_the_last_of_its_nodes_that_the_kernel_knows() {
    let mut stage = Stage::new();
    stage.show(0);
    let root = stage.root(0).unwrap();
    let file = stage.machine.find(root, "d/sub/x").unwrap();
    let known = ["d", "d/sub"].map(|path| {
        let node = stage.machine.find(root, path).unwrap();
        (node, path.split('/').count() as u64)
    });
    assert!(!stage.dropped(0), "it is shown");
    stage.hide(0);
    assert_eq!(stage.root(0), None);
    assert!(stage.machine.find(root, "low").is_some(), "who is below it goes on");
    // What `find` has looked up on its way.
    let forget = |node, count| stage.machine.view.forget(node, count);
    forget(stage.machine.find(root, "low").unwrap(), 2);
    forget(known[0].0, 3);
    forget(known[1].0, 2);
    forget(root, 1);
    assert!(!stage.dropped(0), "a file of it is open");
    assert!(!is_stale(&stage, root) && !is_stale(&stage, file));
    stage.machine.view.forget(file, 1);
    assert!(stage.dropped(0));
    assert!(is_stale(&stage, root) && is_stale(&stage, file));
    assert!(!stage.dropped(0), "once");
    stage.show(0);
    let anew = stage.root(0).unwrap();
    assert!(anew != root && is_stale(&stage, root), "its slots are never used again");
}

#[test]
fn a_layer_that_is_wanted_again_is_what_it_was() {
    let mut stage = Stage::new();
    stage.show(0);
    let root = stage.root(0).unwrap();
    stage.hide(0);
    stage.show(0);
    assert_eq!(stage.root(0), Some(root));
    stage.machine.view.forget(root, 2);
    assert!(!stage.dropped(0), "nobody knows it and it is shown");
    stage.hide(0);
    assert!(stage.dropped(0));
}

#[test]
fn a_listing_tells_of_all_but_the_directory_itself_and_its_parent() {
    let mut stage = Stage::new();
    stage.show(0);
    let root = stage.root(0).unwrap();
    let mut listed = Vec::new();
    let cut = |listed: &mut Vec<NodeId>, room: usize| {
        stage.machine.view.readdirplus(root, 0, |entry| {
            let is_full = listed.len() == room;
            if !is_full {
                listed.push(entry.attr.node);
            }
            is_full
        })
    };
    cut(&mut listed, 3).unwrap();
    stage.machine.view.readdir(root, 0, |_| false).unwrap();
    assert_eq!(listed.len(), 3, "two of them are dots");
    stage.hide(0);
    stage.machine.view.forget(root, 1);
    assert!(!stage.dropped(0));
    stage.machine.view.forget(listed[2], 1);
    assert!(stage.dropped(0));
}

#[test]
fn where_nothing_is_counted_nothing_goes() {
    let mut stage = Stage::new();
    let filler = stage.machine.view.filler().clone();
    stage.machine.view = undermount_fs::view::View::new(filler);
    stage.show(0);
    stage.hide(0);
    assert!(!stage.dropped(0));
}

/// A kernel: what it knows, and how often it was told.
#[derive(Default)]
struct Kernel(BTreeMap<NodeId, (Attr, u64)>);

impl Kernel {
    fn learn(&mut self, attr: Attr) {
        let known = self.0.entry(attr.node).or_insert((attr, 0));
        assert_eq!(known.0, attr, "a node is something else");
        known.1 += 1;
    }

    fn node(&self, n: usize) -> NodeId {
        let known = self.0.len();
        if known == 0 || n.is_multiple_of(4) {
            return NodeId::LAYERS;
        }
        *self.0.keys().nth(n % known).unwrap()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Show(usize),
    Hide(usize),
    Drop(usize),
    Walk(usize, usize),
    List(usize, usize),
    Forget(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let view = 0..VIEWS;
    prop_oneof![
        view.clone().prop_map(Step::Show),
        view.clone().prop_map(Step::Hide),
        view.prop_map(Step::Drop),
        (any::<usize>(), any::<usize>()).prop_map(|(n, name)| Step::Walk(n, name)),
        (any::<usize>(), 0..6_usize).prop_map(|(n, room)| Step::List(n, room)),
        (any::<usize>(), any::<bool>()).prop_map(|(n, all)| Step::Forget(n, all)),
    ]
}

fn walk(stage: &Stage, kernel: &mut Kernel, n: usize, name: usize) {
    let parent = kernel.node(n);
    let hex;
    let name = if parent == NodeId::LAYERS {
        hex = stage.view(name % VIEWS).name().hex();
        hex.as_str()
    } else {
        ["d", "a", "b", "sub", "x", "y", "low", "up"][name % 8]
    };
    if let Ok(Lookup::Found(attr)) = stage.machine.view.lookup(parent, name.as_bytes()) {
        kernel.learn(attr);
    }
}

fn list(stage: &Stage, kernel: &mut Kernel, n: usize, room: usize) {
    let mut entries = Vec::new();
    let listed = stage.machine.view.readdirplus(kernel.node(n), 0, |entry| {
        let is_full = entries.len() == room;
        if !is_full && !entry.name.starts_with(b".") {
            entries.push(entry.attr);
        }
        is_full
    });
    if listed.is_ok() {
        entries.into_iter().for_each(|attr| kernel.learn(attr));
    }
}

fn forget(stage: &Stage, kernel: &mut Kernel, n: usize, all: bool) {
    let place = n % kernel.0.len().max(1);
    let Some((&node, known)) = kernel.0.iter_mut().nth(place) else { return };
    let count = if all { known.1 } else { 1 };
    known.1 -= count;
    if known.1 == 0 {
        kernel.0.remove(&node);
    }
    stage.machine.view.forget(node, count);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn what_the_kernel_knows_is_there_and_what_it_has_forgotten_can_go(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let (mut stage, mut kernel) = (Stage::new(), Kernel::default());
        for step in steps {
            match step {
                Step::Show(n) => drop(stage.show(n)),
                Step::Hide(n) => stage.hide(n),
                Step::Drop(n) => {
                    stage.dropped(n);
                }
                Step::Walk(n, name) => walk(&stage, &mut kernel, n, name),
                Step::List(n, room) => list(&stage, &mut kernel, n, room),
                Step::Forget(n, all) => forget(&stage, &mut kernel, n, all),
            }
            for (node, (attr, _)) in &kernel.0 {
                prop_assert_eq!(&stage.machine.view.getattr(*node).unwrap(), attr);
            }
        }
        (0..VIEWS).for_each(|n| stage.hide(n));
        while !kernel.0.is_empty() {
            forget(&stage, &mut kernel, 0, true);
        }
        (0..VIEWS).for_each(|n| {
            stage.dropped(n);
        });
        prop_assert!(stage.machine.view.layers().is_empty());
    }
}
