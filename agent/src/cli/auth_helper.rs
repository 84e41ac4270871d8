//! `undermount auth-helper`: podman tells the agent the credentials that it pulls with.

use std::io::Read as _;
use std::path::PathBuf;

use clap::Args;
use undermount::control::Runtime;
use undermount::registry::client::keep_handed_credentials;

use super::exit::{CliResult, Exit};

/// More than the credentials of an image ever take.
const LIMIT: u64 = 1 << 20;

/// Take over the credentials that podman (5.2 or later) pulls with, on standard input (run by it)
///
/// It is what `additional-layer-store-auth-helper` in registries.conf names, through
/// /usr/libexec/undermount/store-auth-helper; `undermount setup podman` writes that. They are kept
/// in /run, where only root can read them.
#[derive(Debug, Args)]
pub struct AuthHelperArgs {}

impl AuthHelperArgs {
    /// Keeps them.
    pub fn run(self) -> CliResult {
        let mut text = Vec::new();
        std::io::stdin().take(LIMIT).read_to_end(&mut text)?;
        keep_handed_credentials(&text, &handed_credentials())?;
        Ok(Exit::Success)
    }
}

/// Where they are.
pub fn handed_credentials() -> PathBuf {
    Runtime::parent().join("store-auth.json")
}
