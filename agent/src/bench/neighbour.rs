//! The neighbour of the node that is measured: another node of its cluster, which has started the
//! image before.
//!
//! ```text
//! registry --(as it is, not counted)--> neighbour: mounts, starts      before the time begins
//! registry --(link)--> node <--(the same link)-- neighbour             measured
//! ```
//!
//! It is another one for each run, so that none profits from those before.

use std::path::Path;

use super::cluster::{Cluster, Seat};
use super::link::{Lanes, Link, Shape};
use super::node::Node;
use super::{BenchConfig, BenchError, Variant};

/// A neighbour. [`Neighbour::end`] must end it, or mounts are left.
pub struct Neighbour<'a> {
    node: Node<'a>,
    cluster: Cluster,
    _registry: Link,
}

impl<'a> Neighbour<'a> {
    /// A neighbour of the node with the link `lanes`, whose agent runs; its files are below
    /// `directory`.
    ///
    /// # Errors
    /// [`BenchError`] where the agent does not serve.
    pub async fn set_up(
        config: &'a BenchConfig,
        directory: &Path,
        lanes: &Lanes,
    ) -> Result<Self, BenchError> {
        let cluster = Cluster::new(directory, config.link, lanes).await?;
        let host = config.reference.repository().host().to_owned();
        let registry = Link::open(host, Lanes::new(Shape::default())).await;
        let registry = registry.map_err(BenchError::Scratch)?;
        let seat = Some(&cluster.neighbour);
        let directory = directory.join("neighbour");
        let node = Node::set_up(config, directory, &registry, Variant::LazyPeers, seat).await?;
        Ok(Self { node, cluster, _registry: registry })
    }

    /// Mounts the image and starts the command, until that is ready.
    ///
    /// # Errors
    /// [`BenchError`] where it cannot.
    pub async fn start(&self) -> Result<(), BenchError> {
        let root = self.node.bring().await?;
        self.node.start(&root, "before").await.map(drop)
    }

    /// The place in its cluster of the node that is measured.
    pub fn seat_beside(&self) -> &Seat {
        &self.cluster.node
    }

    /// The way from the node to it: what it answers is counted there.
    pub fn way(&self) -> &Link {
        &self.cluster.way
    }

    /// Waits until `node` and it know each other.
    ///
    /// # Errors
    /// [`BenchError`] where that takes too long.
    pub async fn meets(&self, node: &Node<'_>) -> Result<(), BenchError> {
        node.meets(&self.node).await
    }

    /// Takes away what it has mounted, and ends its agent.
    ///
    /// # Errors
    /// [`BenchError`] where something is left.
    pub async fn end(self) -> Result<(), BenchError> {
        self.node.end().await
    }
}
