//! Layer views in the content mounts, and how a new worker brings them back.
//!
//! What is shown is written down before it shows, in the runtime directory, one JSON object a
//! line: containers keep the nodes of the views that they were started on, whatever podman's
//! names mean by then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::line_log::LineLog;
use undermount_fs::source::Scope;
use undermount_fs::tree::ImageTree;
use undermount_fs::view::{LayerView, SlotTable, View};

use super::super::images::Images;
use super::plan::{Below, Plan};
use crate::control::Runtime;

/// The shelf cannot keep what it must.
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
    /// In whose name its bytes are fetched.
    scope: String,
    /// The digest of the layer's tree.
    tree: Digest,
    /// Those of the layers below it, the lowest first; `None` where it has to suit all.
    below: Option<Vec<Digest>>,
}

/// The layers that are shown.
pub struct Shown {
    view: Arc<View>,
    slots: Arc<Mutex<SlotTable>>,
    runtime: Runtime,
}

impl Shown {
    /// Shows layers through `view`, whose slots are in `slots`.
    pub fn new(view: Arc<View>, slots: Arc<Mutex<SlotTable>>, runtime: Runtime) -> Self {
        Self { view, slots, runtime }
    }

    /// Shows a layer as planned; its directory.
    ///
    /// # Errors
    /// [`ShelfError`] where its index is damaged, or it cannot be written down.
    pub fn show(&self, plan: Plan) -> Result<PathBuf, ShelfError> {
        let tree = |layer: &Arc<Layer>| layer.tree_digest();
        let several = matches!(plan.below, Below::Several);
        let recipe = Recipe {
            scope: plan.layer.scope.to_string(),
            tree: tree(&plan.layer),
            below: (!several).then(|| plan.chain.iter().map(tree).collect()),
        };
        let view = match plan.below {
            Below::Several => LayerView::with_markers(plan.layer),
            Below::Any => LayerView::with_whiteouts(plan.layer, None)?,
            Below::Tree(below) => LayerView::with_whiteouts(plan.layer, Some(&below))?,
        };
        let mount = self.runtime.content(view.needs_xattrs());
        let name = view.name();
        if !self.view.has_layer(&name) {
            self.write_down(&recipe)?;
            self.add(view)?;
        }
        Ok(mount.join("layers").join(name.hex()))
    }

    fn add(&self, view: LayerView) -> Result<(), ShelfError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.runtime.slots();
        self.view.add_layer(view, &mut slots).map(drop).map_err(ShelfError::of(&path))
    }

    fn write_down(&self, recipe: &Recipe) -> Result<(), ShelfError> {
        let line = serde_json::to_string(recipe).expect("recipes are plain data");
        let path = self.runtime.layers();
        let written = LineLog::open(&path).and_then(|(mut log, _)| log.append(&line));
        written.map_err(ShelfError::of(&path))
    }

    /// Shows again what was shown before. A layer that cannot be shown any more is logged: what
    /// still uses it gets errors.
    pub fn restore(&self, images: &Images) {
        let text = std::fs::read_to_string(self.runtime.layers()).unwrap_or_default();
        for line in text.lines() {
            if let Err(error) = self.restore_one(images, line) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "cannot show a layer again");
            }
        }
    }

    fn restore_one(&self, images: &Images, line: &str) -> Result<(), ShelfError> {
        let recipe: Recipe = serde_json::from_str(line)
            .map_err(|error| ShelfError::of(&self.runtime.layers())(error.into()))?;
        let tree = |digest: &Digest| {
            images.tree(digest).ok_or(ShelfError::NoTree { tree: *digest }).map(Arc::new)
        };
        let layer = Arc::new(Layer::new(tree(&recipe.tree)?, Scope::new(&recipe.scope)));
        let view = match recipe.below {
            None => LayerView::with_markers(layer),
            Some(below) if below.is_empty() => LayerView::with_whiteouts(layer, None)?,
            Some(below) => {
                let below = below.iter().map(tree).collect::<Result<_, _>>()?;
                LayerView::with_whiteouts(layer, Some(&ImageTree::merge(below)?))?
            }
        };
        self.add(view)
    }
}
