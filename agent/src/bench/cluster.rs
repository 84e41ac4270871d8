//! The cluster of a bench: the node that is measured and its neighbour, which reach each other
//! over the node's link and in no other way.
//!
//! ```text
//! node 127.0.0.2  --> way to the neighbour: TCP, UDP -->  neighbour 127.0.0.3
//!                 <-- way to the node: TCP, UDP <------
//! ```
//!
//! Each of them tells the other the near end of the way to it instead of its own address
//! (`advertise`).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::BenchError;
use super::link::{Lanes, Link, Shape, member_port};
use crate::peer::keys::{KeyFile, SecretKey};

/// Addresses at which nobody else on this machine is likely to take a port.
const NODE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// What an agent can be told of the rate of its peers, in Mbit/s.
const RATES: (u64, u64) = (1, 1_000_000);

/// The place of an agent in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    key_file: PathBuf,
    listen: SocketAddr,
    advertise: SocketAddr,
    members: Vec<SocketAddr>,
    /// Mbit/s that its peers may take.
    bandwidth: Option<u64>,
}

/// A cluster of two. Dropped, the ways between them end.
pub struct Cluster {
    /// The place of the node that is measured.
    pub node: Seat,
    /// That of its neighbour.
    pub neighbour: Seat,
    /// The way from the node to its neighbour: it counts what the neighbour answers.
    pub way: Link,
    _way_back: Link,
}

impl Cluster {
    /// A cluster whose node has the link `lanes` of this `shape`, with a new key in `directory`.
    ///
    /// # Errors
    /// [`BenchError`] where the key cannot be written, or no port be listened on.
    pub async fn new(directory: &Path, shape: Shape, lanes: &Lanes) -> Result<Self, BenchError> {
        let key_file = directory.join("cluster.key");
        let secret = SecretKey::random().map_err(BenchError::Scratch)?;
        KeyFile::single(secret).write(&key_file)?;
        let (node, neighbour) = (free_port(NODE).await?, free_port(NEIGHBOUR).await?);
        let open = |far, lanes| async move {
            Link::open_to_member(far, lanes).await.map_err(BenchError::Scratch)
        };
        let way = open(neighbour, lanes.clone()).await?;
        let way_back = open(node, lanes.reversed()).await?;
        let bandwidth = half_of(shape);
        let seat = |listen, way: &Link, members| {
            let (key_file, advertise) = (key_file.clone(), way.address());
            Seat { key_file, listen, advertise, members, bandwidth }
        };
        Ok(Self {
            node: seat(node, &way_back, vec![way.address()]),
            neighbour: seat(neighbour, &way, Vec::new()),
            way,
            _way_back: way_back,
        })
    }
}

impl Seat {
    /// What the configuration of its agent says.
    pub fn settings(&self) -> String {
        let members: Vec<String> = self.members.iter().map(ToString::to_string).collect();
        let bandwidth = self.bandwidth.map(|rate| format!("bandwidth = \"{rate} Mbit/s\"\n"));
        format!(
            "[peers]\nenabled = true\nkey_file = {:?}\nlisten = [\"{}\"]\nadvertise = [\"{}\"]\n\
             members = {members:?}\n{}",
            self.key_file,
            self.listen,
            self.advertise,
            bandwidth.unwrap_or_default(),
        )
    }
}

/// A port that was free just now.
async fn free_port(address: Ipv4Addr) -> Result<SocketAddr, BenchError> {
    let (listener, _) = member_port(address).await.map_err(BenchError::Scratch)?;
    listener.local_addr().map_err(BenchError::Scratch)
}

/// What an agent on such a link gives to peers unless it is told otherwise: half of it.
fn half_of(shape: Shape) -> Option<u64> {
    let (least, most) = RATES;
    shape.bits_per_second.map(|bits| (bits / 2_000_000).clamp(least, most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn a_neighbour_gives_half_of_the_link() {
        let half = |bits_per_second| half_of(Shape { bits_per_second, rtt_ms: 0 });
        assert_eq!(half(Some(1_000_000_000)), Some(500));
        assert_eq!(half(Some(8)), Some(1), "less cannot be said");
        assert_eq!(half(None), None);
    }

    #[tokio::test]
    async fn each_is_told_the_way_to_the_other_by_settings_that_an_agent_takes() {
        let shape = Shape { bits_per_second: Some(100_000_000), rtt_ms: 0 };
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(directory.path(), shape, &Lanes::new(shape)).await.unwrap();
        let read = |seat: &Seat| {
            let file = seat.key_file.with_extension("toml");
            std::fs::write(&file, seat.settings()).unwrap();
            Settings::load(&file).unwrap().peers
        };
        let (node, neighbour) = (read(&cluster.node), read(&cluster.neighbour));
        assert!(node.enabled && neighbour.enabled);
        let way = cluster.way.address().to_string();
        assert_eq!(node.members.iter().map(ToString::to_string).collect::<Vec<_>>(), [&*way]);
        assert_eq!(neighbour.advertise.iter().map(ToString::to_string).collect::<Vec<_>>(), [way]);
        assert_ne!(neighbour.listen, neighbour.advertise);
        assert_ne!(node.listen, node.advertise);
        assert_eq!(neighbour.bandwidth.unwrap().bytes_per_second(), 6_250_000);
        assert_eq!(node.key_file, neighbour.key_file);
        KeyFile::read(&node.key_file).unwrap();
    }
}
