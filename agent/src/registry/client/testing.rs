//! A registry made of answers: a raw HTTP/1.1 server on loopback that can also misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::image::Repository;

use super::{Client, ClientConfig, Pace, PlainHttp, RetryPolicy};

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// First and last byte of the Range header.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// An answer, and how much of it comes in which way.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Claims a body of this length.
    pub claimed: Option<usize>,
    /// Closes the connection with a reset after so many bytes of the body.
    pub reset_after: Option<usize>,
    /// Sends byte by byte with such pauses.
    pub trickle: Option<Duration>,
    /// Answers so much later.
    pub late: Duration,
    /// Never answers.
    pub hangs: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// `blob`, or the part of it that `seen` asks for.
    pub fn blob(seen: &Seen, blob: &Bytes) -> Self {
        match seen.range() {
            None => Self::new(200, blob.clone()),
            Some((first, _)) if first >= blob.len() => Self::new(416, ""),
            Some((first, last)) => {
                let last = last.min(blob.len() - 1);
                let range = format!("bytes {first}-{last}/{}", blob.len());
                Self::new(206, blob.slice(first..=last)).header("Content-Range", range)
            }
        }
    }
}

/// A running server; stops when dropped.
pub struct Server {
    pub host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                connections.spawn(async move { serve(stream, &log, &*answer).await });
            }
        });
        Self { host, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn repository(&self) -> Repository {
        Repository::new(&self.host, "a/b").unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client for the test's servers, with pauses that do not slow the tests down.
pub fn client(change: impl FnOnce(&mut ClientConfig)) -> Client {
    let mut config = ClientConfig {
        plain_http: PlainHttp::Always,
        retry: RetryPolicy {
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(10),
            ..RetryPolicy::default()
        },
        pace: Pace { window: Duration::from_secs(5), least: 100, silence: Duration::from_secs(5) },
        answer_timeout: Duration::from_secs(5),
        ..ClientConfig::default()
    };
    change(&mut config);
    Client::new(config)
}

async fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Seen>>,
    answer: &(dyn Fn(&Seen) -> Reply + Sync),
) {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read_request(&mut stream).await {
        log.lock().unwrap().push(seen.clone());
        let reply = answer(&seen);
        if send(stream.get_mut(), &seen, reply).await.is_none() {
            return;
        }
    }
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await {
        Ok(1..) => Some(line.trim_end().to_owned()),
        _ => None,
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let first = read_line(stream).await?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut seen = Seen { method, path, ..Seen::default() };
    loop {
        let line = read_line(stream).await?;
        let Some((name, value)) = line.split_once(':') else { break };
        seen.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if seen.header("transfer-encoding") == "chunked" {
        loop {
            let size = usize::from_str_radix(&read_line(stream).await?, 16).ok()?;
            let at = seen.body.len();
            seen.body.resize(at + size, 0);
            stream.read_exact(&mut seen.body[at..]).await.ok()?;
            read_line(stream).await?;
            if size == 0 {
                return Some(seen);
            }
        }
    }
    seen.body.resize(seen.header("content-length").parse().unwrap_or(0), 0);
    stream.read_exact(&mut seen.body).await.ok()?;
    Some(seen)
}

/// Sends `reply`; `None` where the connection is over.
async fn send(stream: &mut TcpStream, seen: &Seen, reply: Reply) -> Option<()> {
    if reply.hangs {
        sleep(Duration::from_secs(60)).await;
    }
    sleep(reply.late).await;
    let length = reply.claimed.unwrap_or(reply.body.len());
    let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
    if seen.method == "HEAD" {
        return Some(());
    }
    let body = match reply.reset_after {
        Some(sent) => reply.body.slice(..sent.min(reply.body.len())),
        None => reply.body,
    };
    match reply.trickle {
        Some(pause) => {
            for byte in body {
                stream.write_all(&[byte]).await.ok()?;
                sleep(pause).await;
            }
        }
        None => stream.write_all(&body).await.ok()?,
    }
    stream.flush().await.ok()?;
    if reply.reset_after.is_some() {
        // Lets the bytes out first: a reset throws away what the other side has not read.
        sleep(Duration::from_millis(20)).await;
        stream.set_zero_linger().ok()?;
        return None;
    }
    reply.claimed.is_none().then_some(())
}
