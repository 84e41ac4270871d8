//! Layer views in the content mounts, and how a new worker brings them back.
//!
//! ```text
//! Plan -> show: a line to the log -> view -> directory of the offer
//! new worker -> restore: each line of the log -> view
//! nobody uses it -> leaving -> the line goes
//! ```
//!
//! What is shown is written down before it shows, in the runtime directory, one JSON object a line:
//! containers keep the nodes of the views that they were started on, whatever podman's names mean
//! by then. The line goes once the kernel can have no such node any more ([`leaving`]).

mod leaving;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::fill::Layer;
use undermount_fs::line_log::LineLog;
use undermount_fs::source::Scope;
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{LayerView, SlotTable, View};

use super::super::images::{Images, put_blob};
use super::plan::{Below, Plan};
use crate::control::Runtime;

pub use self::leaving::Leaving;

/// Why layers cannot be shown, or names not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// A file or directory cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An index cannot be kept.
    #[error("the cache has no room for its index {tree}")]
    NoRoom {
        /// Its digest.
        tree: Digest,
        /// Why not.
        source: io::Error,
    },
    /// A layer that was shown has no index any more.
    #[error("the index {tree} is not in the cache")]
    NoTree {
        /// Its digest.
        tree: Digest,
    },
    /// An index is damaged.
    #[error(transparent)]
    Index(#[from] undermount_fs::index::IndexError),
    /// The layers below do not fit together.
    #[error(transparent)]
    Tree(#[from] undermount_fs::tree::TreeError),
}

impl ShelfError {
    /// What went wrong at `path`.
    pub fn of(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// How a view is made.
#[derive(Debug, Serialize, Deserialize)]
struct Recipe {
    /// The repository in whose name its bytes are fetched.
    scope: String,
    /// The digest of the layer's tree.
    tree: Digest,
    /// The trees of the layers below it, the lowest first; `None` where the view has to suit any
    /// layers below.
    below: Option<Vec<Digest>>,
}

/// The layers that are shown.
pub struct Shown {
    view: Arc<View>,
    slots: Arc<Mutex<SlotTable>>,
    runtime: Runtime,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The log of what is shown; `None` until it is first needed. The lock is here because several
    /// names write to it.
    log: Option<LineLog>,
    /// The views that are held, by their names in the content mounts.
    views: HashMap<Digest, Held>,
    /// Lines of the log that this worker cannot show again; the next worker may be able to.
    lost: Vec<String>,
    /// The number of views that were dropped.
    dropped: u64,
}

/// A view in the content mounts.
struct Held {
    /// Its line in the log.
    line: String,
    /// The digest of its layer's tree.
    tree: Digest,
    /// The digest of its layer.
    layer: Digest,
    /// Whether anybody has asked for it since the last [look](Shown::look).
    asked: bool,
    leaving: Option<Leaving>,
}

impl Held {
    fn new(line: String, layer: &Layer) -> Self {
        let (tree, layer) = (layer.tree_digest(), layer.digest());
        Self { line, tree, layer, asked: true, leaving: None }
    }
}

impl Shown {
    /// Shows layers through `view`, whose slots are in `slots`.
    pub fn new(view: Arc<View>, slots: Arc<Mutex<SlotTable>>, runtime: Runtime) -> Self {
        Self { view, slots, runtime, state: Mutex::default() }
    }

    /// Keeps the indexes that it takes to show a layer as planned, where they are not: without them the
    /// next worker could not show the layer again.
    ///
    /// # Errors
    /// [`ShelfError::NoRoom`] for the first that cannot be kept.
    pub fn keep_indexes(&self, plan: &Plan) -> Result<(), ShelfError> {
        let (blobs, store) = (self.view.filler().blobs(), self.view.filler().store());
        let below = if matches!(plan.below, Below::Several) { &[][..] } else { &plan.chain };
        for layer in below.iter().chain([&plan.layer]) {
            let digest = layer.tree_digest();
            if !blobs.has(&digest) {
                let tree = Verified::name(Bytes::copy_from_slice(layer.tree.bytes()));
                put_blob(blobs, store, &tree)
                    .map_err(|source| ShelfError::NoRoom { tree: digest, source })?;
            }
        }
        Ok(())
    }

    /// Shows a layer as planned, and returns its directory.
    ///
    /// # Errors
    /// [`ShelfError`] where its index is damaged, or the log or the slots cannot be written.
    pub fn show(&self, plan: Plan) -> Result<PathBuf, ShelfError> {
        let tree = |layer: &Arc<Layer>| layer.tree_digest();
        let several = matches!(plan.below, Below::Several);
        let recipe = Recipe {
            scope: plan.layer.scope().to_string(),
            tree: tree(&plan.layer),
            below: (!several).then(|| plan.chain.iter().map(tree).collect()),
        };
        let layer = plan.layer.clone();
        let view = match plan.below {
            Below::Several => LayerView::with_markers(plan.layer),
            Below::Any => LayerView::with_whiteouts(plan.layer, None)?,
            Below::Tree(below) => LayerView::with_whiteouts(plan.layer, Some(&below))?,
        };
        let mount = self.runtime.content(view.needs_xattrs());
        let name = view.name();
        self.hold(view, &recipe, &layer)?;
        Ok(mount.join("layers").join(name.hex()))
    }

    /// Shows `view` of `layer`, unless it is shown already; one that is leaving comes back.
    fn hold(&self, view: LayerView, recipe: &Recipe, layer: &Layer) -> Result<(), ShelfError> {
        let name = view.name();
        let mut state = self.state();
        if let Some(held) = state.views.get_mut(&name) {
            if held.leaving.is_some() {
                self.add(view)?;
                held.leaving = None;
            }
            held.asked = true;
            return Ok(());
        }
        let line = serde_json::to_string(recipe).expect("recipes are plain data");
        self.write_down(&mut state.log, &line)?;
        self.add(view)?;
        state.views.insert(name, Held::new(line, layer));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, view: LayerView) -> Result<(), ShelfError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.runtime.slots();
        self.view.add_layer(view, &mut slots).map(drop).map_err(ShelfError::of(&path))
    }

    fn write_down(&self, log: &mut Option<LineLog>, line: &str) -> Result<(), ShelfError> {
        let written = self.log(log).and_then(|log| log.append(line));
        written.map_err(ShelfError::of(&self.runtime.layers()))
    }

    /// The log behind `log`, which is opened where it is not.
    fn log<'a>(&self, log: &'a mut Option<LineLog>) -> io::Result<&'a mut LineLog> {
        let open = match log.take() {
            Some(open) => open,
            None => LineLog::open(&self.runtime.layers())?.0,
        };
        Ok(log.insert(open))
    }

    /// Shows again what the log lists. Returns whether that takes indexes which are not here.
    pub fn restore(&self, images: &Images) -> bool {
        let text = std::fs::read_to_string(self.runtime.layers()).unwrap_or_default();
        self.state().lost = text.lines().map(str::to_owned).collect();
        self.restore_lost(images)
    }

    /// The same, with what was in vain so far. A layer that cannot be shown is logged as an error: what
    /// still uses it gets errors.
    pub fn restore_lost(&self, images: &Images) -> bool {
        let mut state = self.state();
        let mut lacks_index = false;
        for line in std::mem::take(&mut state.lost) {
            match self.restore_one(images, &line) {
                Ok((name, held)) => drop(state.views.insert(name, held)),
                Err(error) => {
                    lacks_index |= matches!(error, ShelfError::NoTree { .. });
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "cannot show a layer again");
                    state.lost.push(line);
                }
            }
        }
        lacks_index
    }

    fn restore_one(&self, images: &Images, line: &str) -> Result<(Digest, Held), ShelfError> {
        let recipe: Recipe = serde_json::from_str(line)
            .map_err(|error| ShelfError::of(&self.runtime.layers())(error.into()))?;
        let tree = |digest: &Digest| {
            images.tree(digest).ok_or(ShelfError::NoTree { tree: *digest }).map(Arc::new)
        };
        let layer = Arc::new(Layer::new(tree(&recipe.tree)?, Scope::new(&recipe.scope)));
        let held = Held::new(line.to_owned(), &layer);
        let view = match recipe.below {
            None => LayerView::with_markers(layer),
            Some(below) if below.is_empty() => LayerView::with_whiteouts(layer, None)?,
            Some(below) => {
                let below = below.iter().map(tree).collect::<Result<_, _>>()?;
                LayerView::with_whiteouts(layer, Some(&ImageTree::merge(below)?))?
            }
        };
        let name = view.name();
        self.add(view)?;
        Ok((name, held))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::agent::testing::{images, layer};

    #[tokio::test]
    async fn regression_layers_that_are_shown_side_by_side_are_all_written_down() {
        let (cache, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let view = Arc::new(View::new(images(cache.path()).filler().clone()));
        let slots = SlotTable::open(&directory.path().join("slots")).unwrap();
        let runtime = Runtime::at(directory.path());
        let shown = Shown::new(view, Arc::new(Mutex::new(slots)), runtime.clone());
        let layers: Vec<_> = (0..200).map(|n| layer(&[(&format!("file{n}"), None)])).collect();
        std::thread::scope(|scope| {
            for some in layers.chunks(50) {
                let shown = &shown;
                scope.spawn(move || {
                    for layer in some.iter().cloned() {
                        let plan = Plan { layer, below: Below::Any, chain: Vec::new() };
                        shown.show(plan).unwrap();
                    }
                });
            }
        });
        let text = std::fs::read_to_string(runtime.layers()).unwrap();
        let recipe = |line| Some(serde_json::from_str::<Recipe>(line).ok()?.tree);
        let written: HashSet<Digest> = text.lines().filter_map(recipe).collect();
        assert_eq!(written, layers.iter().map(|layer| layer.tree_digest()).collect());
    }
}
