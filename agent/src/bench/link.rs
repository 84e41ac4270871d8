//! A link between a node and those it gets an image from, shaped and watched: a TCP proxy in front
//! of the registry that all variants of a bench go through, and one in front of each peer.
//!
//! ```text
//! node --> accept, one round trip later --> chunks --> [ rate, shared ] --> half a round trip --> registry
//!      <----------------------------------------------- the same, backwards ---------------------
//! ```
//!
//! It models the rate of the link, which all connections share in the order of their bytes, and
//! its round trips. It does not model loss, slow start, queues of switches or other traffic. The
//! proxies of one node share its [`Lanes`]: what comes from a peer and what comes from the registry
//! wait for each other.

mod datagrams;
mod lane;
mod watch;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use lane::Lane;
use watch::Watch;

pub use lane::Lanes;
pub use watch::{Request, Traffic};

/// What a link models and what it does not, for reports.
pub const MODEL: &str = "All variants reach the registry through one proxy on this machine. It \
    models the rate of the link, one for each direction, which all connections share in the order of \
    their bytes (a token bucket with no burst), half a round trip of delay each way, and a round trip \
    to connect. With peers, what comes from the neighbour crosses the same link and shares its rate \
    with what comes from the registry; the neighbour sends with half of the rate at most, as agents do \
    unless they are told otherwise, and its datagrams are delayed only. It does not model loss, TCP's \
    slow start, queues of switches, other traffic or other nodes that pull at the same time, and it \
    takes processor time of the machine that it runs on, as does the neighbour.";

/// Bytes that travel together.
const CHUNK: usize = 16 * 1024;

/// Chunks on their way in one direction of one connection.
const IN_FLIGHT: usize = 1024;

/// How long the other side may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// How often a port is tried that is free for TCP and may not be for UDP.
const TRIES: usize = 16;

/// The shape of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Bits per second in each direction; `None` for as many as there are.
    pub bits_per_second: Option<u64>,
    /// A round trip, in milliseconds.
    pub rtt_ms: u64,
}

/// An open way over a link. Dropped, it ends with all its connections.
pub struct Link {
    address: SocketAddr,
    watch: Arc<Watch>,
    _accepting: AbortOnDropHandle<()>,
    _datagrams: Option<AbortOnDropHandle<()>>,
}

impl Link {
    /// Opens a way over `lanes` to `far`, `HOST:PORT`.
    ///
    /// # Errors
    /// Where no port can be listened on.
    pub async fn open(far: String, lanes: Lanes) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Self::accept(listener, far, lanes, None)
    }

    /// Opens a way over `lanes` to the member of a cluster at `far`, which speaks TCP and takes
    /// datagrams on the same port.
    ///
    /// # Errors
    /// Where no port can be listened on.
    pub async fn open_to_member(far: SocketAddr, lanes: Lanes) -> io::Result<Self> {
        let (listener, socket) = member_port(Ipv4Addr::LOCALHOST).await?;
        let datagrams = tokio::spawn(datagrams::carry(socket, far, lanes.there.delay()));
        let datagrams = Some(AbortOnDropHandle::new(datagrams));
        Self::accept(listener, far.to_string(), lanes, datagrams)
    }

    fn accept(
        listener: TcpListener,
        far: String,
        lanes: Lanes,
        _datagrams: Option<AbortOnDropHandle<()>>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let watch = Arc::new(Watch::new());
        let seen = watch.clone();
        let accepting = tokio::spawn(async move {
            // Connections end with the link.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (far, lanes, seen) = (far.clone(), lanes.clone(), seen.clone());
                connections.spawn(async move {
                    if let Err(error) = connect(near, &far, lanes, seen).await {
                        tracing::debug!(%error, "a connection over the link ended");
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, watch, _accepting: AbortOnDropHandle::new(accepting), _datagrams })
    }

    /// Where the other side is to be reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets what went over the link: the beginning of a measurement.
    pub fn begin(&self) {
        self.watch.begin();
    }

    /// What went over the link since; datagrams do not count.
    pub fn traffic(&self) -> Traffic {
        self.watch.traffic()
    }
}

/// A port at `address` for TCP and UDP.
///
/// # Errors
/// Where there is none.
pub async fn member_port(address: Ipv4Addr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = 0;
    loop {
        let listener = TcpListener::bind((address, 0)).await?;
        tries += 1;
        match UdpSocket::bind(listener.local_addr()?).await {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

async fn connect(
    near: TcpStream,
    far: &str,
    Lanes { there, back }: Lanes,
    watch: Arc<Watch>,
) -> io::Result<()> {
    tokio::time::sleep(there.round_trip()).await;
    let far = tokio::time::timeout(CONNECT, TcpStream::connect(far)).await??;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let current = Arc::new(Mutex::new(None));
    let (asked, answered) = ((watch.clone(), current.clone()), (watch, current));
    tokio::try_join!(
        carry(near_read, far_write, there, |bytes| asked.0.asked(bytes, &asked.1)),
        carry(far_read, near_write, back, |bytes| answered.0.answered(bytes, &answered.1)),
    )?;
    Ok(())
}

/// Carries bytes one way until their end; `seen` is told of each chunk when it arrives.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    lane: Lane,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<()> {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let reading = async move {
        loop {
            let mut chunk = vec![0; CHUNK];
            let count = from.read(&mut chunk).await?;
            chunk.truncate(count);
            if count == 0 || sender.send((lane.arrival(count), chunk)).await.is_err() {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let writing = async {
        while let Some((arrival, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(arrival.into()).await;
            seen(&chunk);
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each request with as many bytes as its path says.
    async fn server() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    while let Ok(count @ 1..) = stream.read(&mut request).await {
                        let text = String::from_utf8_lossy(&request[..count]).into_owned();
                        let size = text.split(['/', ' ']).find_map(|word| word.parse().ok());
                        let body = vec![b'x'; size.unwrap_or(0)];
                        stream.write_all(&body).await.unwrap();
                    }
                });
            }
        });
        address
    }

    async fn ask(stream: &mut TcpStream, size: usize) -> Duration {
        let begin = Instant::now();
        stream.write_all(format!("GET /{size} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
        let mut body = vec![0; size];
        stream.read_exact(&mut body).await.unwrap();
        begin.elapsed()
    }

    #[tokio::test]
    async fn bytes_and_requests_are_counted() {
        let link = Link::open(server().await.to_string(), Lanes::new(Shape::default()));
        let link = link.await.unwrap();
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        ask(&mut stream, 10).await;
        link.begin();
        ask(&mut stream, 100_000).await;
        ask(&mut stream, 5).await;
        let traffic = link.traffic();
        assert_eq!(traffic.bytes, 100_005);
        let requests: Vec<(&str, u64)> =
            traffic.requests.iter().map(|one| (one.words.as_str(), one.bytes)).collect();
        assert_eq!(requests, [("GET /100000", 100_000), ("GET /5", 5)]);
        assert_eq!(traffic.progress.last().unwrap().1, 100_005);
    }

    const SLOW: Shape = Shape { bits_per_second: Some(8_000_000), rtt_ms: 20 };

    #[tokio::test]
    async fn nothing_is_faster_than_the_link() {
        let link = Link::open(server().await.to_string(), Lanes::new(SLOW)).await.unwrap();
        assert_slow([link.address(), link.address()]).await;
    }

    #[tokio::test]
    async fn ways_over_the_same_link_share_its_rate_and_are_counted_apart() {
        let (far, lanes) = (server().await, Lanes::new(SLOW));
        let registry = Link::open(far.to_string(), lanes.clone()).await.unwrap();
        let peer = Link::open_to_member(far, lanes).await.unwrap();
        assert_slow([registry.address(), peer.address()]).await;
        assert_eq!((registry.traffic().bytes, peer.traffic().bytes), (100_000, 100_000));
    }

    /// 200,000 bytes at 1 MB/s, a round trip to connect and one to ask.
    async fn assert_slow(ways: [SocketAddr; 2]) {
        let begin = Instant::now();
        let [one, other] = ways.map(TcpStream::connect);
        let (mut one, mut other) = (one.await.unwrap(), other.await.unwrap());
        tokio::join!(ask(&mut one, 100_000), ask(&mut other, 100_000));
        assert!(begin.elapsed() >= Duration::from_millis(240), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn datagrams_arrive_at_the_member_and_not_before_half_a_round_trip() {
        let (_listener, member) = member_port(Ipv4Addr::LOCALHOST).await.unwrap();
        let link = Link::open_to_member(member.local_addr().unwrap(), Lanes::new(SLOW));
        let (link, near) = (link.await.unwrap(), UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await);
        let begin = Instant::now();
        near.unwrap().send_to(b"are you there?", link.address()).await.unwrap();
        let mut datagram = [0; 100];
        let (length, _) = member.recv_from(&mut datagram).await.unwrap();
        assert_eq!(&datagram[..length], b"are you there?");
        assert!(begin.elapsed() >= Duration::from_millis(10), "{:?}", begin.elapsed());
        assert_eq!(link.traffic().bytes, 0);
    }
}
