//! Undermount: container images that start before they have arrived.
//!
//! ```text
//! cli -> config -> { demo, inventory } -> { prepare, agent } -> { supply, registry } -> image -> undermount-fs
//! ```

pub mod agent;
pub mod bench;
mod blocking;
pub mod bugreport;
pub mod config;
pub mod control;
pub mod demo;
pub mod doctor;
pub mod eager;
pub mod host;
pub mod image;
pub mod inventory;
pub mod metrics;
pub mod mirror;
pub mod peer;
pub mod podman;
pub mod prepare;
pub mod profile;
pub mod registry;
pub mod setup;
pub mod simulate;
pub mod start;
pub mod supply;
