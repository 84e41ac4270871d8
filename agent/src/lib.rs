//! Undermount: container images that start before they have arrived.
//!
//! ```text
//! cli -> { prepare, agent, demo } -> { supply, registry } -> image -> undermount-fs
//! ```

pub mod agent;
pub mod control;
pub mod demo;
pub mod image;
pub mod prepare;
pub mod registry;
pub mod supply;
