//! Fetching all of an image, and checking its indexes against its bytes.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;

use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use undermount_fs::fill::{IngestError, Layer, Pace, Progress};
use undermount_fs::source::Priority;

use super::{ImageError, ImageFault, Images, Ready, SIDE_BY_SIDE, distinct, missing_bytes};
use crate::agent::cache::{Cache, LayerRecord};

impl Images {
    /// Fetches whatever of `ready` is missing here, and checks every index against the bytes of its
    /// layer. `progress` counts compressed bytes.
    ///
    /// # Errors
    /// [`ImageError`] where a layer cannot be had, its index is wrong, or the disk takes no more.
    pub async fn complete(
        &self,
        ready: &Ready,
        pace: Pace,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        let complete = async {
            iter(distinct(&ready.layers))
                .map(|layer| self.complete_layer(layer, pace, progress))
                .buffer_unordered(SIDE_BY_SIDE)
                .try_collect::<()>()
                .await?;
            self.check_kept(ready).await?;
            let (reference, digest) = (ready.image.reference.clone(), ready.image.digest);
            Ok(self.on_disk(move |cache| cache.put_complete(&reference, &digest)).await?)
        };
        complete.await.map_err(|fault: ImageFault| fault.of(&ready.image.reference))
    }

    /// Whether all of `ready` is on the disk: what the disk does not take is fetched all the same. Where
    /// files of complete images may be dropped, nobody relies on it.
    async fn check_kept(&self, ready: &Ready) -> Result<(), ImageFault> {
        if self.cache.store.limits().evict_complete {
            return Ok(());
        }
        self.filler.written().await;
        let layers = distinct(&ready.layers);
        let count = move |cache: &Cache| {
            let mut seen = HashSet::new();
            let counts = layers.iter().map(|it| missing_bytes(&cache.store, &it.tree, &mut seen));
            counts.filter_map(Result::ok).sum()
        };
        match self.on_disk(count).await {
            0 => Ok(()),
            missing => Err(ImageFault::NotKept { missing }),
        }
    }

    /// Fetches the small layers of `ready`, each with one request. One that cannot be had is left to
    /// whoever reads it.
    pub async fn complete_small(&self, ready: &Ready) {
        let small = distinct(&ready.layers).into_iter().filter(|layer| layer.is_small());
        let pace = Pace::unlimited(Priority::Pack);
        let outcomes = iter(small)
            .map(
                |layer| async move { self.complete_layer(layer, pace, &Progress::default()).await },
            )
            .buffer_unordered(SIDE_BY_SIDE);
        let failures = outcomes.filter_map(|outcome| async { outcome.err() });
        let failed: Vec<ImageFault> = failures.collect().await;
        for error in failed {
            tracing::warn!(reference = %ready.image.reference, error = &error as &dyn Error,
                "cannot fetch a small layer");
        }
    }

    async fn complete_layer(
        &self,
        layer: Arc<Layer>,
        pace: Pace,
        progress: &Progress,
    ) -> Result<(), ImageFault> {
        let digest = layer.digest();
        let looked_at = layer.clone();
        let missing = self.on_disk(move |cache| {
            missing_bytes(&cache.store, &looked_at.tree, &mut HashSet::new())
        });
        let is_here = missing.await == Ok(0);
        if self.is_own(&layer) && is_here {
            return Ok(());
        }
        let outcome = if layer.is_checked() && is_here {
            Ok(())
        } else if layer.is_small() && !layer.is_checked() {
            self.filler.fetch_whole(&layer, pace.priority).await
        } else {
            progress.expect(layer.tree.header().layer_size.get());
            self.filler.complete(&layer, pace, progress).await.map(drop)
        };
        if let Err(IngestError::WrongIndex { right, .. }) = &outcome {
            tracing::error!(layer = %digest, "quarantined an index that lies");
            self.note_liar(layer.tree_digest());
            self.on_disk(move |cache| cache.forget_layer(&digest)).await;
            // What is mounted goes on as it is; the next mount shows what the bytes say.
            if let Err(error) = self.keep_index(right).await {
                tracing::warn!(layer = %digest, %error, "cannot keep an index");
            }
        }
        outcome?;
        let record = LayerRecord::own(layer.tree_digest());
        Ok(self.on_disk(move |cache| cache.put_layer(&digest, &record)).await?)
    }
}
