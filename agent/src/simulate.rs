//! A cluster that does not exist: the code of [`peer`](crate::peer) that decides where pieces
//! are, whom to ask and whom to serve, on simulated links and a simulated clock.
//!
//! ```text
//! Scenario -> cast (nodes, pieces) -> world: agenda of events -> Outcome
//!                                      |-- Fetch, Standing      of peer: whom to ask
//!                                      |-- Uploads              of peer: whom to serve
//!                                      |-- ranking              of peer: who owns a piece
//!                                      `-- Uplink, Downlink     who gets how much of a link
//! ```
//!
//! **What is modelled**: a link per node and one of the registry, shared by flows; round trips; a
//! piece that is passed on while it arrives; nodes that begin at different times, are slow, or
//! die without a word; members that are heard of late; windows of pieces that a node fetches at a
//! time. **What is not**: TCP, loss, switches between the nodes, processors, disks, the datagrams
//! of membership (only how late their news are), and requests that several pieces share.
//!
//! The same scenario with the same seed has the same outcome.

mod agenda;
mod arena;
mod cast;
mod link;
mod outcome;
mod random;
mod views;
mod world;

use std::time::Duration;

use serde::Serialize;

pub use outcome::{Outcome, Quantiles};

/// Where nodes get their pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// All from the registry.
    NoPeers,
    /// From each other, once somebody has read them from the registry.
    Peers,
}

/// When nodes become members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Join {
    /// Long before they want anything: agents run before images are mounted.
    Before,
    /// At the moment when they begin to want pieces.
    WithTheWave {
        /// The longest until another member has heard of it.
        delay: Duration,
    },
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// How many nodes.
    pub nodes: usize,
    /// Bytes that each node wants in all.
    pub set: u64,
    /// Bytes that each node wants first, in the same order as all others: what a start reads.
    pub working_set: u64,
    /// The mean size of a piece, in bytes.
    pub piece: u64,
    /// The registry's link, in bytes per second.
    pub registry_link: f64,
    /// The link of a node in either direction, in bytes per second.
    pub node_link: f64,
    /// The part of the nodes that are slow.
    pub slow: f64,
    /// How many times slower their links are.
    pub slow_factor: f64,
    /// The part of the nodes that die while they fetch.
    pub dead: f64,
    /// The time over which the nodes begin.
    pub spread: Duration,
    /// When they become members.
    pub join: Join,
    /// A round trip between any two.
    pub round_trip: Duration,
    /// Pieces of the working set that a node fetches at a time.
    pub window: usize,
    /// Other pieces that it fetches at a time, in an order of its own.
    pub background: usize,
    /// Where nodes get their pieces.
    pub strategy: Strategy,
    /// What decides all that is left to chance.
    pub seed: u64,
}

impl Default for Scenario {
    /// 100 nodes with links of 10 Gbit/s want 8 GB, 1.25 GB of it first; two in a hundred are
    /// 25 times slower, and one in a hundred dies.
    fn default() -> Self {
        Self {
            nodes: 100,
            set: 8_000_000_000,
            working_set: 1_250_000_000,
            piece: 2 << 20,
            registry_link: 1.25e9,
            node_link: 1.25e9,
            slow: 0.02,
            slow_factor: 25.0,
            dead: 0.01,
            spread: Duration::from_secs(5),
            join: Join::Before,
            round_trip: Duration::from_micros(300),
            window: 8,
            background: 16,
            strategy: Strategy::Peers,
            seed: 1,
        }
    }
}

/// Lets a scenario happen.
///
/// # Panics
/// Where it has no nodes or links without a rate.
pub fn simulate(scenario: &Scenario) -> Outcome {
    assert!(scenario.nodes > 0, "there is at least one node");
    assert!(scenario.registry_link > 0.0 && scenario.node_link > 0.0, "links carry something");
    world::World::new(scenario).run()
}

#[cfg(test)]
mod tests;
