//! Garbage, collected when an operator or the clock asks for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::response::IntoResponse as _;
use http::{HeaderMap, Uri};

use super::super::auth::Access;
use super::super::error::ApiError;
use super::super::garbage::collect;
use super::super::listen::Peer;
use super::{Answer, Parameters, Registry, Writer};
use crate::blocking::blocking;
use crate::registry::{Collected, GarbageRules};

/// POST of `/gc?grace=<seconds>&untagged=<bool>&dry_run=<bool>`, for who may push; what is
/// absent is as [`GarbageRules::default`] has it. Answers what was removed.
pub async fn collect_garbage(
    State(registry): State<Arc<Registry>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    registry.gate.admit(peer, &headers, Access::Push, None).await?;
    let rules = rules(&Parameters::of(&uri)?)?;
    Ok(Json(registry.collect(rules).await?).into_response())
}

fn rules(parameters: &Parameters) -> Result<GarbageRules, ApiError> {
    let malformed =
        |name: &'static str, value: &str| ApiError::Parameter { name, value: value.to_owned() };
    let flag = |name: &'static str| match parameters.get(name) {
        None => Ok(false),
        Some(text) => text.parse().map_err(|_| malformed(name, text)),
    };
    let grace = match parameters.get("grace") {
        None => GarbageRules::default().grace,
        Some(text) => Duration::from_secs(text.parse().map_err(|_| malformed("grace", text))?),
    };
    Ok(GarbageRules { grace, untagged: flag("untagged")?, dry_run: flag("dry_run")? })
}

impl Registry {
    /// Collects garbage to its end, even when nobody waits for it.
    pub async fn collect(&self, rules: GarbageRules) -> Result<Collected, ApiError> {
        let Writer { storage, sessions, stop, .. } = self.writer()?;
        let (storage, sessions, stop) = (Arc::clone(storage), Arc::clone(sessions), stop.clone());
        let collecting = blocking(move || {
            let is_busy = |repository: &_| sessions.upload_to(repository);
            collect(&storage, &rules, SystemTime::now(), is_busy, &stop)
        });
        let collected = self.to_its_end(async { Ok(collecting.await?) }).await?;
        if !rules.dry_run {
            self.metrics.collected.inc_by(collected.blobs);
            self.metrics.collected_bytes.inc_by(collected.bytes);
        }
        let Collected { manifests, links, blobs, bytes } = collected;
        tracing::info!(
            manifests,
            links,
            blobs,
            bytes,
            dry_run = rules.dry_run,
            "garbage collected"
        );
        Ok(collected)
    }
}
