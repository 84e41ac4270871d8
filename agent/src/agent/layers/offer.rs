//! What podman is offered for a layer once it is planned how to show it.

use std::collections::BTreeSet;
use std::sync::Arc;

use undermount_fs::codec::Codec;
use undermount_fs::digest::Digest;
use undermount_fs::fill::Layer;
use undermount_fs::index::InodeRecord;

use super::plan::{Below, Plan, Refusal, plan};
use super::shown::{ShelfError, Shown};
use crate::agent::images::Indexed;
use crate::podman::{Compression, LayerInfo, Offer};

/// Shows layer `place` of `image`, for which podman asks by `key`, and makes the offer; `others` as
/// in [`plan`]. A layer that podman `uses` already is offered in any case.
pub fn make(
    shown: &Shown,
    image: &Indexed,
    place: usize,
    key: &Digest,
    others: Option<&[Arc<Indexed>]>,
    uses: bool,
) -> Result<Offer, Refusal> {
    let plan = plan(image, place, key, others)?;
    let not_shown = |error: ShelfError| Refusal::NotShown(error.to_string());
    shown.keep_indexes(&plan).or_else(|error| if uses { Ok(()) } else { Err(not_shown(error)) })?;
    let info = info(&plan.layer).to_json(key);
    let blob_size = plan.layer.tree.header().layer_size.get();
    let directory = shown.show(plan).map_err(not_shown)?;
    Ok(Offer { directory, info, blob_size })
}

/// How a planned layer will be served, for `undermount explain`.
pub fn way(plan: &Plan) -> &'static str {
    match plan.below {
        Below::Any => "lazily",
        Below::Tree(_) => "lazily, opaque directories as whiteouts",
        Below::Several => "lazily, opaque directories as extended attributes",
    }
}

fn info(layer: &Layer) -> LayerInfo {
    let header = layer.tree.header();
    let distinct = |ids: &dyn Fn(&InodeRecord) -> u32| {
        let ids = layer.tree.inodes().iter().map(ids);
        ids.collect::<BTreeSet<u32>>().into_iter().collect()
    };
    LayerInfo {
        blob: header.layer,
        blob_size: header.layer_size.get(),
        diff_id: header.diff_id,
        diff_size: header.tar_size.get(),
        compression: match layer.tree.codec() {
            Codec::Plain => Compression::None,
            Codec::Gzip => Compression::Gzip,
            Codec::Zstd => Compression::Zstd,
        },
        uids: distinct(&|inode| inode.uid.get()),
        gids: distinct(&|inode| inode.gid.get()),
    }
}
