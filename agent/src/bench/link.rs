//! A link between a node and its registry, shaped and watched: a TCP proxy in front of the
//! registry that all variants of a bench go through.
//!
//! ```text
//! node --> accept, one round trip later --> chunks --> [ rate, shared ] --> half a round trip --> registry
//!      <----------------------------------------------- the same, backwards ---------------------
//! ```
//!
//! It models the rate of the link, which all connections share in the order of their bytes, and
//! its round trips. It does not model loss, slow start, queues of switches or other traffic.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// What a link models and what it does not, for reports.
pub const MODEL: &str = "All variants reach the registry through one proxy on this machine. It models the rate of the \
    link, one for each direction, which all connections share in the order of their bytes (a token \
    bucket with no burst), half a round trip of delay each way, and a round trip to connect. It does not model \
    loss, TCP's slow start, queues of switches, other traffic or other nodes that pull at the same \
    time, and it takes processor time of the machine that it runs on.";

/// Bytes that travel together.
const CHUNK: usize = 16 * 1024;

/// Chunks on their way in one direction of one connection.
const IN_FLIGHT: usize = 1024;

/// How long the registry may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The methods that a pull uses.
const METHODS: [&[u8]; 4] = [b"GET ", b"HEAD ", b"POST ", b"PUT "];

/// The shape of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Bits per second in each direction; `None` for as many as there are.
    pub bits_per_second: Option<u64>,
    /// A round trip, in milliseconds.
    pub rtt_ms: u64,
}

/// What went over a link, from when it was opened or last emptied.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// Bytes from the registry.
    pub bytes: u64,
    /// The requests, in the order of their beginning.
    pub requests: Vec<Request>,
    /// Bytes from the registry so far, by milliseconds since the beginning.
    pub progress: Vec<(u64, u64)>,
}

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Method and path.
    pub words: String,
    /// When it was sent, in milliseconds since the beginning.
    pub begin_ms: u64,
    /// When the last byte of the answer came.
    pub end_ms: u64,
    /// Bytes of the answer.
    pub bytes: u64,
}

/// An open link. Dropped, it ends with all its connections.
pub struct Link {
    address: SocketAddr,
    watch: Arc<Watch>,
    _accepting: AbortOnDropHandle<()>,
}

struct Watch {
    state: Mutex<(Instant, Traffic)>,
}

/// One direction of the link.
#[derive(Clone)]
struct Lane {
    shape: Shape,
    free: Arc<Mutex<Instant>>,
}

impl Link {
    /// Opens a link to `registry`, `HOST:PORT`.
    ///
    /// # Errors
    /// Where no port can be listened on.
    pub async fn open(registry: String, shape: Shape) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let watch = Arc::new(Watch { state: Mutex::new((Instant::now(), Traffic::default())) });
        let seen = watch.clone();
        let lanes = [Lane::new(shape), Lane::new(shape)];
        let accepting = tokio::spawn(async move {
            // Connections end with the link.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((node, _)) = listener.accept().await {
                let (registry, lanes, seen) = (registry.clone(), lanes.clone(), seen.clone());
                connections.spawn(async move {
                    if let Err(error) = connect(node, &registry, lanes, seen).await {
                        tracing::debug!(%error, "a connection over the link ended");
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, watch, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Where the registry is to be reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets what went over the link: the beginning of a measurement.
    pub fn begin(&self) {
        *self.watch.state() = (Instant::now(), Traffic::default());
    }

    /// What went over the link since.
    pub fn traffic(&self) -> Traffic {
        self.watch.state().1.clone()
    }
}

async fn connect(
    node: TcpStream,
    registry: &str,
    [there, back]: [Lane; 2],
    watch: Arc<Watch>,
) -> io::Result<()> {
    tokio::time::sleep(Duration::from_millis(there.shape.rtt_ms)).await;
    let far = tokio::time::timeout(CONNECT, TcpStream::connect(registry)).await??;
    node.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((node_read, node_write), (far_read, far_write)) = (node.into_split(), far.into_split());
    let current = Arc::new(Mutex::new(None));
    let (asked, answered) = ((watch.clone(), current.clone()), (watch, current));
    tokio::try_join!(
        carry(node_read, far_write, there, |bytes| asked.0.asked(bytes, &asked.1)),
        carry(far_read, node_write, back, |bytes| answered.0.answered(bytes, &answered.1)),
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

impl Lane {
    fn new(shape: Shape) -> Self {
        Self { shape, free: Arc::new(Mutex::new(Instant::now())) }
    }

    /// When `bytes` that are sent now arrive: after all that was sent before them.
    fn arrival(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free).max(Instant::now());
        *free = match self.shape.bits_per_second {
            Some(rate) => start + Duration::from_secs_f64(bytes as f64 * 8.0 / rate.max(1) as f64),
            None => start,
        };
        *free + Duration::from_micros(self.shape.rtt_ms * 500)
    }
}

/// Which request of the traffic a connection is busy with.
type Current = Mutex<Option<usize>>;

impl Watch {
    fn state(&self) -> MutexGuard<'_, (Instant, Traffic)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self, bytes: &[u8], current: &Current) {
        if !METHODS.iter().any(|method| bytes.starts_with(method)) {
            return;
        }
        let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
        let words = String::from_utf8_lossy(line).trim_end_matches(" HTTP/1.1").to_owned();
        let mut state = self.state();
        let begin_ms = state.0.elapsed().as_millis() as u64;
        let place = state.1.requests.len();
        state.1.requests.push(Request { words, begin_ms, end_ms: begin_ms, bytes: 0 });
        *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    fn answered(&self, bytes: &[u8], current: &Current) {
        let mut state = self.state();
        let now = state.0.elapsed().as_millis() as u64;
        let count = bytes.len() as u64;
        let traffic = &mut state.1;
        traffic.bytes += count;
        match traffic.progress.last_mut() {
            Some(last) if last.0 == now => last.1 = traffic.bytes,
            _ => traffic.progress.push((now, traffic.bytes)),
        }
        let place = *current.lock().unwrap_or_else(PoisonError::into_inner);
        // A request from before the beginning has no place here.
        if let Some(request) = place.and_then(|place| traffic.requests.get_mut(place)) {
            request.end_ms = now;
            request.bytes += count;
        }
    }
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
        let link = Link::open(server().await.to_string(), Shape::default()).await.unwrap();
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

    #[tokio::test]
    async fn nothing_is_faster_than_the_link() {
        let shape = Shape { bits_per_second: Some(8_000_000), rtt_ms: 20 };
        let link = Link::open(server().await.to_string(), shape).await.unwrap();
        let begin = Instant::now();
        let mut streams = Vec::new();
        for _ in 0..2 {
            streams.push(TcpStream::connect(link.address()).await.unwrap());
        }
        let [first, second] = streams.as_mut_slice() else { unreachable!() };
        tokio::join!(ask(first, 100_000), ask(second, 100_000));
        // 200,000 bytes at 1 MB/s, a round trip to connect and one to ask.
        assert!(begin.elapsed() >= Duration::from_millis(240), "{:?}", begin.elapsed());
    }
}
