//! A cache that is open, and the way to the registries that fill it.

use std::path::Path;
use std::sync::Arc;

use undermount_fs::disk::{Disk as _, LocalDisk};
use undermount_fs::object::StoreLimits;
use undermount_fs::session::Lookups;
use undermount_fs::source::Source;
use undermount_fs::view::View;

use super::{CacheLock, OwnerConfig, ProcessError};
use crate::agent::cache::{Cache, CacheError};
use crate::agent::images::Images;
use crate::agent::peers::Peers;
use crate::agent::sharing::Sharing;
use crate::agent::upkeep::{Pinned, Upkeep};
use crate::image::Reference;
use crate::registry::client::Client;
use crate::supply::{Ledger, Queue, RegistrySource};

/// Looks after a cache that no owner uses, which `lock` sees to.
///
/// # Errors
/// [`ProcessError`] where the cache cannot be used.
pub fn upkeep(lock: &CacheLock, config: &OwnerConfig) -> Result<Upkeep, ProcessError> {
    let config = OwnerConfig { cache: lock.cache.clone(), ..config.clone() };
    Ok(Upkeep::new(Opened::by(&config, None, None)?.images, Vec::new()))
}

/// A cache that is open, and the way to the registries.
pub struct Opened {
    /// The images in the cache.
    pub images: Arc<Images>,
    /// What shows them.
    pub view: Arc<View>,
    /// How registries are spoken to.
    pub client: Client,
    /// What comes from them.
    pub ledger: Arc<Ledger>,
    /// What is still to come.
    pub queue: Queue,
    /// What is shared with other nodes, if anything is.
    pub sharing: Option<Sharing>,
}

impl Opened {
    /// Opens the cache that `config` names, and shares what it fetches with `peers`. What the kernel
    /// knows of what is shown is counted in `lookups`.
    ///
    /// # Errors
    /// [`CacheError`] where it cannot be used.
    pub fn by(
        config: &OwnerConfig,
        peers: Option<&Peers>,
        lookups: Option<Lookups>,
    ) -> Result<Self, CacheError> {
        let limits = StoreLimits {
            quota: config.quota,
            reserve: config.reserve.unwrap_or_else(|| usual_reserve(&config.cache)),
            evict_complete: config.evict_complete,
        };
        let cache = Cache::open_with(&config.cache, limits, config.verify)?;
        let client = Client::new(config.client.clone());
        let ledger = Arc::new(Ledger::default());
        let registry = Arc::new(RegistrySource::new(client.clone(), ledger.clone()));
        let queue = registry.queue();
        let sharing = peers.and_then(|peers| share(config, peers, &registry, &cache));
        let (source, asked): (Arc<dyn Source>, _) = match &sharing {
            Some(sharing) => {
                let peers = Arc::new(sharing.source(registry));
                (peers.clone(), client.beside(peers))
            }
            None => (registry, client.clone()),
        };
        let images = Images::new(cache, asked, source, config.patience);
        let images = Arc::new(images);
        let view = View::new(images.filler().clone());
        let view = Arc::new(match lookups {
            Some(lookups) => view.with_lookups(lookups),
            None => view,
        });
        images.filler().store().set_pins(Arc::new(Pinned::new(&images, &view)));
        Ok(Self { images, view, client, ledger, queue, sharing })
    }
}

/// Shares with `peers`. A node that cannot serves its own programs all the same.
fn share(
    config: &OwnerConfig,
    peers: &Peers,
    registry: &Arc<RegistrySource>,
    cache: &Cache,
) -> Option<Sharing> {
    let known = cache.references().into_iter().filter_map(|record| {
        let reference: Reference = record.reference.parse().ok()?;
        Some(reference.repository().host().to_owned())
    });
    let sharing = Sharing::new(config.peers.as_ref()?, config, peers, registry.clone(), known);
    sharing
        .inspect_err(|error| {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "nothing is shared with peers");
        })
        .ok()
}

/// What stays free of the file system that holds `cache`, if nobody says otherwise.
fn usual_reserve(cache: &Path) -> u64 {
    const MOST: u64 = 1 << 30;
    let space = LocalDisk.space(cache);
    // A file system that does not tell has no reserve.
    space.map_or(0, |space| (space.total / 20).min(MOST))
}
