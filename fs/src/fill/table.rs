//! Where the span table of a layer comes from: memory, disk, the source, or the layer itself.

use std::sync::Arc;

use super::request::no_answer;
use super::{FillError, Filler, Layer, Pace, Progress, blocking};
use crate::digest::Verified;
use crate::index::{Backing, SpanTable};
use crate::source::{Piece, Priority, SourceError};

/// Span tables above this size are not fetched into memory: 700,000 spans.
const TABLE_MAX: u64 = 64 * 1024 * 1024;

impl Filler {
    /// Sees to it that the span table of `layer` is here.
    ///
    /// # Errors
    /// [`FillError`] where it cannot be had.
    pub async fn bring_table(&self, layer: &Layer) -> Result<(), FillError> {
        self.table(layer).await.map(drop)
    }

    /// The span table of `layer`.
    pub(super) async fn table(&self, layer: &Layer) -> Result<Arc<SpanTable>, FillError> {
        layer.table.get_or_try_init(|| self.load_table(layer)).await.cloned()
    }

    /// The span table of `layer`, where it can be had without the layer.
    pub(super) async fn known_table(&self, layer: &Layer) -> Result<Arc<SpanTable>, FillError> {
        let load = || async { open_table(layer, self.table_bytes(layer).await?).await };
        layer.table.get_or_try_init(load).await.cloned()
    }

    /// The pieces that make the whole of `layer`; none where the source has no use for them, or
    /// where they are not known. Never fetches the layer itself.
    pub(super) async fn pieces(&self, layer: &Layer) -> Arc<[Piece]> {
        if !self.source.shares() || layer.is_small() {
            return Arc::default();
        }
        let table = match layer.table.get() {
            Some(table) => Ok(table.clone()),
            None => match self.table_bytes(layer).await {
                Ok(bytes) => open_table(layer, bytes).await,
                Err(error) => Err(error),
            },
        };
        match table {
            Ok(table) => (0..table.count()).map(|span| table.piece(span)).collect(),
            Err(error) => {
                tracing::debug!(layer = %layer.digest(), %error, "a layer's pieces are not known: it is streamed as a whole");
                Arc::default()
            }
        }
    }

    async fn load_table(&self, layer: &Layer) -> Result<Arc<SpanTable>, FillError> {
        let bytes = match self.table_bytes(layer).await {
            Err(FillError::Source(SourceError::NotFound { .. })) => {
                self.rebuild_table(layer).await?
            }
            bytes => bytes?,
        };
        open_table(layer, bytes).await
    }

    /// A layer that was indexed here has its whole spans file on disk, any other the table only.
    async fn table_bytes(&self, layer: &Layer) -> Result<Verified, FillError> {
        let (whole, table) = (layer.tree.header().spans, layer.tree.header().span_table);
        let blobs = self.blobs.clone();
        match blocking(move || blobs.get(&whole).or_else(|| blobs.get(&table))).await? {
            Some(stored) => Ok(stored),
            None => self.fetch_table(layer).await,
        }
    }

    async fn fetch_table(&self, layer: &Layer) -> Result<Verified, FillError> {
        let header = layer.tree.header();
        if header.span_table_size.get() > TABLE_MAX {
            return Err(layer.damaged("its span table is above 64 MiB"));
        }
        let range = 0..header.span_table_size.get();
        let piece = Piece { blob: header.spans, range, digest: header.span_table };
        let fetched = self.request(layer, vec![piece], Priority::Demand).await?;
        let table = fetched.into_iter().next().ok_or_else(|| no_answer(layer))?;
        self.keep_blob(layer, &table).await;
        Ok(table)
    }

    /// The spans of an index that was built here are nowhere else: where they were lost, the
    /// layer is indexed once more.
    async fn rebuild_table(&self, layer: &Layer) -> Result<Verified, FillError> {
        tracing::warn!(layer = %layer.digest(), "the spans of a layer are lost: indexing it again");
        let pace = Pace::unlimited(Priority::Demand);
        let index = self.complete(layer, pace, &Progress::default()).await?;
        let spans = Verified::name(index.spans);
        self.keep_blob(layer, &spans).await;
        Ok(spans)
    }

    async fn keep_blob(&self, layer: &Layer, blob: &Verified) {
        let (blobs, blob) = (self.blobs.clone(), blob.clone());
        if let Ok(Err(error)) = blocking(move || blobs.put(&blob)).await {
            tracing::warn!(layer = %layer.digest(), %error, "cannot keep a span table");
        }
    }
}

async fn open_table(layer: &Layer, bytes: Verified) -> Result<Arc<SpanTable>, FillError> {
    let open = move || {
        let backing = Backing::sealed(bytes.bytes()).map_err(|error| error.to_string())?;
        SpanTable::new(backing).map_err(|error| error.to_string())
    };
    let table = blocking(open).await?.map_err(|error| layer.damaged(error))?;
    if *table.layer() != layer.digest() {
        return Err(layer.damaged("its span table belongs to another layer"));
    }
    let header = layer.tree.header();
    let (blob_end, tar_end) = table.end();
    if blob_end > header.layer_size.get() || tar_end != header.tar_size.get() {
        return Err(layer.damaged("its spans end elsewhere than the layer"));
    }
    Ok(Arc::new(table))
}
