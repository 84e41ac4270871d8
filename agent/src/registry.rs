//! Registries, seen from both sides (OCI distribution-spec 1.1).
//!
//! [`client`] speaks to any registry: it finds, checks and fetches, pushes and attaches.
//! [`server`] is one: it serves a directory.

pub mod client;
pub mod server;

mod garbage;
mod secret;

pub use garbage::{Collected, GarbageRules};
pub use secret::Secret;
