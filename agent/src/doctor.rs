//! `undermount doctor`: what on this host keeps Undermount from working, and what to do.
//!
//! Each check is two parts: a thin look at the host, bounded in time and never at a mount, and a
//! pure judgement of what was seen, which makes the [`Finding`].

mod agent;
mod disk;
mod kernel;
mod layer_store;
mod limits;
mod registries;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::host::patience::await_look;
use crate::host::podman::Podman;
use crate::image::Reference;
use crate::registry::client::Client;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warning,
    /// Something does not work.
    Broken,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How bad it is.
    pub state: State,
    /// What was seen.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), advice: None }
    }

    /// It works, and `advice` makes it better.
    pub fn warning(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { check, state: State::Warning, found: found.into(), advice }
    }

    /// It does not work, and `advice` helps.
    pub fn broken(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { check, state: State::Broken, found: found.into(), advice }
    }
}

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct Patient {
    /// The cache directory.
    pub cache: PathBuf,
    /// Where podman's layer store is mounted.
    pub store: PathBuf,
    /// Podman, with less patience than this patient has.
    pub podman: Podman,
    /// How long a look at the host may take: podman may hang with the mounts that it looks into.
    pub patience: Duration,
    /// Registries that must answer, `host[:port]`.
    pub registries: Vec<String>,
    /// Images whose registries must answer and serve parts of blobs.
    pub images: Vec<Reference>,
}

/// Looks at everything.
pub async fn examine(patient: &Patient, client: &Client) -> Vec<Finding> {
    let mut findings = kernel::examine();
    findings.push(limits::clock());
    findings.push(limits::descriptors());
    let cache = patient.cache.clone();
    findings.extend(look("disk", patient.patience, move || disk::examine(&cache)).await);
    findings.push(agent::examine(&patient.cache).await);
    let host = patient.clone();
    findings.extend(look("podman", patient.patience, move || layer_store::examine(&host)).await);
    findings.extend(registries::examine(patient, client).await);
    findings
}

/// What a look found, or that it did not come back.
async fn look(
    check: &'static str,
    patience: Duration,
    look: impl FnOnce() -> Vec<Finding> + Send + 'static,
) -> Vec<Finding> {
    let found = await_look(patience, look).await;
    found.unwrap_or_else(|| {
        let found = format!("does not come back within {} seconds", patience.as_secs());
        let advice = "something that it looks into hangs: see `undermount bugreport`";
        vec![Finding::broken(check, found, advice)]
    })
}
