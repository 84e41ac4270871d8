//! What a worker works with: the one place where everything is wired.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use undermount_fs::fuse::{Adapter, Xattrs};
use undermount_fs::session::worker::{Inheritance, InheritedMount};
use undermount_fs::session::{DataMode, Lookups, Pulse};
use undermount_fs::view::{SlotTable, View};

use super::opened::Opened;
use super::{LOOKUPS, OwnerConfig, PLAIN, ProcessError, STORE, XATTR};
use crate::agent::api::Services;
use crate::agent::completion::Completer;
use crate::agent::figures::Figures;
use crate::agent::foresight::Foresight;
use crate::agent::images::Images;
use crate::agent::layers::{LayerShelf, Shown};
use crate::agent::owner::{Owner, Parts};
use crate::agent::packing::Packer;
use crate::agent::peers::Peers;
use crate::agent::pins::Pins;
use crate::agent::recordings::Recordings;
use crate::agent::starts::{Recorded, Starts};
use crate::control::Runtime;
use crate::podman::{self, NodeTable};
use crate::supply::{Ledger, Queue};

/// Threads that take requests from the kernel, for each mount.
const FUSE_THREADS: usize = 2;

/// The mounts that a worker inherits.
pub struct Mounts {
    content: Vec<(InheritedMount, Xattrs)>,
    store: Option<InheritedMount>,
    /// What the kernel knows of the content.
    lookups: Option<OwnedFd>,
}

impl Mounts {
    /// `None` where a content mount is missing.
    pub fn of(inheritance: &mut Inheritance) -> Option<Self> {
        let content = [(PLAIN, Xattrs::Refused), (XATTR, Xattrs::Answered)]
            .into_iter()
            .map(|(name, xattrs)| Some((inheritance.mounts.remove(name)?, xattrs)))
            .collect::<Option<_>>()?;
        let lookups = inheritance.keepsakes.remove(LOOKUPS);
        Some(Self { content, store: inheritance.mounts.remove(STORE), lookups })
    }

    /// What the kernel knows of the content; `None` where that cannot be told, so that nothing of
    /// it may ever go.
    fn lookups(&self) -> Option<Lookups> {
        let memory = self.lookups.as_ref()?.try_clone();
        let lookups = memory.and_then(Lookups::open);
        lookups.inspect_err(|error| tracing::error!(%error, "layers stay that nobody needs")).ok()
    }

    fn data_mode(&self) -> DataMode {
        self.content.first().map(|(mount, _)| mount.data_mode()).unwrap_or_default()
    }

    /// Where podman's layer store is, if this is an agent.
    pub fn store_dir(&self) -> Option<PathBuf> {
        self.store.as_ref().map(|mount| mount.dir().to_owned())
    }

    /// Begins to serve them.
    ///
    /// # Errors
    /// [`ProcessError`] where a mount does not take a server.
    pub fn serve(
        self,
        node: &Node,
        runtime: &Runtime,
        handle: &Handle,
    ) -> Result<(), ProcessError> {
        for (mount, xattrs) in self.content {
            let adapter = Adapter::new(node.view.clone(), xattrs, &mount, handle.clone());
            mount.serve(adapter, FUSE_THREADS)?;
        }
        if let Some(mount) = self.store {
            let path = runtime.store_nodes();
            let nodes =
                NodeTable::open(&path).map_err(|source| ProcessError::Runtime { path, source })?;
            let shelf = Arc::new(node.services.layers.clone());
            let store = podman::Store::new(shelf, nodes, &mount, handle.clone());
            mount.serve(store, FUSE_THREADS)?;
        }
        Ok(())
    }
}

/// What a worker does its work with.
pub struct Node {
    view: Arc<View>,
    images: Arc<Images>,
    ledger: Arc<Ledger>,
    queue: Queue,
    /// What it can be asked for.
    pub services: Services,
}

impl Node {
    /// Opens the cache and wires everything that uses it.
    ///
    /// # Errors
    /// [`ProcessError`] where the cache or the runtime directory cannot be used.
    pub fn new(
        config: &OwnerConfig,
        runtime: &Runtime,
        mounts: &Mounts,
        handle: &Handle,
    ) -> Result<Self, ProcessError> {
        let drained = LayerShelf::was_drained(&config.cache);
        let peers = mounts.store.as_ref().and_then(|_| start_peers(config, drained, handle));
        let opened = Opened::by(config, peers.as_deref(), mounts.lookups())?;
        let completer = completer(config, runtime, &opened);
        let Opened { images, view, client, ledger, queue, sharing } = opened;
        let path = runtime.slots();
        let slots =
            SlotTable::open(&path).map_err(|source| ProcessError::Runtime { path, source })?;
        let slots = Arc::new(Mutex::new(slots));
        let shown = Shown::new(view.clone(), slots.clone(), runtime.clone());
        let layers = LayerShelf::new(
            images.clone(),
            completer.clone(),
            shown,
            &config.cache,
            handle.clone(),
        )?;
        let pins = Arc::new(Pins::open(images.clone(), completer.clone(), &config.cache));
        let recordings = Recordings::new(view.clone());
        let packer = Packer::new(images.clone(), client.clone());
        let owner = Arc::new(Owner::new(Parts {
            images: images.clone(),
            completer,
            view: view.clone(),
            slots,
            client,
            ledger: ledger.clone(),
            runtime: runtime.clone(),
            data_mode: mounts.data_mode(),
        }));
        let services = Services {
            view: view.clone(),
            owner,
            layers,
            pins,
            recordings,
            packer,
            peers,
            sharing,
        };
        Ok(Self { view, images, ledger, queue, services })
    }

    /// What there is to tell Prometheus; `pulse` and `restarts` come from the keeper.
    pub fn figures(&self, pulse: Arc<Pulse>, restarts: u64) -> Figures {
        let Services { owner, layers, pins, peers, sharing, .. } = self.services.clone();
        Figures {
            view: self.view.clone(),
            images: self.images.clone(),
            ledger: self.ledger.clone(),
            queue: self.queue.clone(),
            owner,
            layers,
            pins,
            peers,
            sharing,
            pulse,
            restarts,
            survey: Mutex::default(),
        }
    }

    /// Waits until the disk has what was fetched so far.
    pub async fn written(&self) {
        self.view.filler().written().await;
    }

    /// Shows again what the worker before showed.
    pub async fn restore(&self) {
        self.services.layers.restore().await;
        let pins = self.services.pins.clone();
        tokio::spawn(async move { pins.restore().await });
        self.services.owner.restore().await;
    }
}

/// Completes images, has their starts noticed, and fetches what earlier starts have read, as far as
/// `config` wants it.
fn completer(config: &OwnerConfig, runtime: &Runtime, opened: &Opened) -> Completer {
    let (Opened { images, view, client, sharing, .. }, recorded) = (opened, config.recorded_starts);
    // Only a node that tells others of its starts is told of theirs.
    let told = sharing.as_ref().filter(|_| recorded == Recorded::Share);
    let told = told.map(|sharing| sharing.exchange.clone());
    let (seen, peers) = (runtime.starts(), told.clone());
    let starts = Starts::new(images.clone(), view.clone(), client.clone(), peers, recorded, seen);
    let completer = Completer::new(images.clone(), config.complete_within).with_starts(starts);
    match recorded {
        Recorded::Off => completer,
        Recorded::Share | Recorded::Keep => {
            completer.with_foresight(Foresight::new(images.clone(), told))
        }
    }
}

/// Has an agent take part in its cluster. One that cannot serves its node all the same.
fn start_peers(config: &OwnerConfig, drained: bool, handle: &Handle) -> Option<Arc<Peers>> {
    let started = Peers::start(config.peers.as_ref()?, &config.cache, drained, handle);
    started
        .inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "nothing is shared with peers");
        })
        .ok()
        .map(Arc::new)
}
