//! The undercloud's image preparation: which images a deployment needs, where they come from,
//! where they go and what the Heat parameters say about them.
//!
//! ```text
//! environment -> entry -> template -> filter -> discover -> plan -> copy
//!                                                             \-> env_file
//! ```
//! Everything before the copy is decided before anything moves; the rules are pure functions,
//! and only [`discover`] and [`copy`] talk to registries.

pub mod credentials;
pub mod entry;
pub mod env_file;
pub mod environment;
pub mod filter;
pub mod label;
pub mod plan;
pub mod release;
pub mod role;
pub mod template;
pub mod undercloud;
pub mod yaml;
