//! Peers: nodes that hand each other what they have fetched, so that the registry sends each byte
//! about once, whatever the number of nodes.
//!
//! ```text
//! who is there        membership -> member::Roster
//! where a piece is    placement: rendezvous hashing over the roster
//! how it gets here    exchange: fetch (decides) -> client (asks) -> server of another node
//!                       server: uploads (decides) -> pieces, or as it arrives
//! who may have it     keys: the cluster; realm: private repositories
//! what to fetch first profiles: with the members that rank highest for a repository
//! ```
//!
//! This module knows no registry: what a node reads through for others it reads by a trait
//! ([`origin::Origin`]) that `supply` implements.

pub mod arriving;
pub mod client;
pub mod counters;
pub mod datagram;
pub mod exchange;
pub mod fetch;
pub mod keys;
pub mod link;
pub mod member;
pub mod membership;
pub mod origin;
pub mod pace;
pub mod pieces;
pub mod placement;
pub mod profiles;
pub mod rate;
pub mod realm;
pub mod server;
pub mod standing;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod uploads;
pub mod wanted;
