//! Peers: nodes that hand each other what they have fetched, so that the registry sends each
//! byte about once whatever the number of nodes.
//!
//! ```text
//! who is there        membership -> member::Roster
//! where a piece is    placement: rendezvous hashing over the roster
//! how it gets here    fetch (decides) -> client (asks) -> server of another node
//! ```
//!
//! This module knows no registry: what a node reads through for others comes in by a trait that
//! `supply` implements.

pub mod fetch;
pub mod keys;
pub mod member;
pub mod placement;
pub mod standing;
pub mod uploads;
