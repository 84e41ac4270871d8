//! Images for tests: in a cache of their own, from a registry made of answers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use undermount_fs::object::StoreLimits;

use super::cache::Cache;
use super::images::Images;
use crate::registry::client::testing::{Reply, Server, client};
use crate::supply::RegistrySource;

/// A registry that takes every question and answers none.
pub async fn silent_registry() -> Server {
    Server::start(|_| Reply { hangs: true, ..Reply::default() }).await
}

/// The images in the cache at `cache`, whose registries are on loopback.
pub fn images(cache: &Path) -> Arc<Images> {
    let cache = Cache::open(cache, StoreLimits::default()).unwrap();
    let client = client(|_| {});
    let source = Arc::new(RegistrySource::new(client.clone(), Arc::default()));
    Arc::new(Images::new(cache, client, source, Duration::from_secs(5).into()))
}
