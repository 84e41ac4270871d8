//! The slowest reads, with names that people know.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use undermount_fs::fill::{Layer, SlowRead};
use undermount_fs::trail::{Origin, Wait};
use undermount_fs::view::View;

use super::owner::Owner;
use crate::blocking::blocking;
use crate::control::{SlowReadStatus, WaitStatus};

/// The slowest reads of `view` in the last day, the slowest first.
pub async fn slowest_reads(view: &View, owner: &Owner) -> Vec<SlowReadStatus> {
    let layers = view.layers();
    let mut found = Vec::new();
    for read in view.filler().meter().slowest() {
        let wanted = read.wanted.layer;
        let layer = layers.iter().find(|layer| layer.digest() == wanted).cloned();
        let image = match owner.image_with(&wanted).await {
            Some(image) => Some(image),
            None => layer.as_ref().map(|layer| layer.scope().to_string()),
        };
        found.push((read, layer, image));
    }
    let tell = |(read, layer, image)| tell(&read, layer, image);
    blocking(move || found.into_iter().map(tell).collect()).await
}

/// Looks for the name of what was read: may take a while.
fn tell(read: &SlowRead, layer: Option<Arc<Layer>>, image: Option<String>) -> SlowReadStatus {
    let wanted = read.wanted;
    // A layer that is not shown any more has no names.
    let path = layer.and_then(|layer| layer.tree.path_of(wanted.inode).ok().flatten());
    let waits = Wait::ALL.map(|what| WaitStatus {
        what: what.name().to_owned(),
        seconds: read.trail.waited(what).as_secs_f64(),
    });
    SlowReadStatus {
        image,
        layer: wanted.layer,
        path: path.map(|path| format!("/{}", String::from_utf8_lossy(&path))),
        offset: wanted.offset,
        length: wanted.length,
        at: read.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        seconds: read.took.as_secs_f64(),
        source: read.origin.map(|origin: Origin| origin.name().to_owned()),
        supplier: read.trail.supplier.clone(),
        fetched: read.trail.fetched(),
        waits: waits.into_iter().filter(|wait| wait.seconds >= 0.001).collect(),
    }
}
