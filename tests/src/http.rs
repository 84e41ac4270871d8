//! A small HTTP/1.1 server on plain sockets, because a test must be able to break the protocol:
//! cut a body short, send it a byte at a time, reset the connection in the middle.
//!
//! Each connection is served by a thread until it closes, idles or the server stops. The port
//! outlives [`Server::down`] and is given to nobody else, so that [`Server::up`] comes back at the
//! same address.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::process::{SOON, eventually};

/// The first byte of a TLS connection (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What a client asked for. Bodies are not read: the servers of the tests are read-only.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The range asked for, with an open end as the largest number.
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { Some(u64::MAX) } else { last.parse().ok() };
        Some((first.parse().ok()?, last?))
    }
}

/// What goes wrong while a response is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Another status with an empty body, perhaps with `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// The whole body with 200, though a range was asked for.
    WholeForRange,
    /// The connection closes after so many bytes of the body.
    Short(usize),
    /// The connection is reset after so many bytes of the body.
    Reset(usize),
    /// One byte of the body is another.
    Wrong,
    /// The body comes in pieces of so many bytes, one in each period.
    Trickle(usize, Duration),
    /// Nothing is ever sent.
    Stall,
    /// The head comes a byte at a time, one in each period.
    SlowHead(Duration),
    /// The body is repeated without end, and its length is not announced.
    Endless,
}

/// What is sent, unless a fault comes in between.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(&'static str, String)>,
    /// The whole body; its length is announced.
    pub body: Bytes,
    /// What goes wrong.
    pub fault: Option<Fault>,
}

impl Response {
    /// A response without headers of its own.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), fault: None }
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// A server that stops when dropped.
pub struct Server {
    address: SocketAddr,
    handler: Arc<Handler>,
    running: Mutex<Option<Running>>,
    /// Keeps the port while nobody listens there.
    kept: Mutex<Option<OwnedFd>>,
}

impl Server {
    /// Serves `handler` on a free port.
    pub fn start(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), handler)
    }

    /// Serves `handler` where `listener` listens.
    pub fn on(
        listener: TcpListener,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let handler: Arc<Handler> = Arc::new(handler);
        let running = Mutex::new(Some(Running::start(listener, handler.clone())));
        Self { address, handler, running, kept: Mutex::default() }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Refuses connections and breaks those that are open.
    pub fn down(&self) {
        drop(lock(&self.running).take());
        *lock(&self.kept) = Some(keep(self.address));
    }

    /// Serves again at the same address.
    pub fn up(&self) {
        // The old connections of the port may take a moment to vanish.
        let mut listener = None;
        eventually("the port is free again", SOON, || {
            listener = TcpListener::bind(self.address).ok();
            listener.is_some()
        });
        *lock(&self.running) = listener.map(|it| Running::start(it, self.handler.clone()));
        *lock(&self.kept) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the port of a server that is down. Who connects to it is refused, and who asks the kernel
/// for any port, as tests beside this one do, does not get it; who names it may listen there.
fn keep(address: SocketAddr) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    eventually("the port can be kept", SOON, || {
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).is_ok()
    });
    socket
}

struct Running {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn start(listener: TcpListener, handler: Arc<Handler>) -> Self {
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let acceptor = {
            let (stop, connections) = (stop.clone(), connections.clone());
            thread::spawn(move || accept(&listener, &handler, &stop, &connections))
        };
        Self { address, stop, connections, acceptor: Some(acceptor) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the acceptor, which then sees that it should stop.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
        for connection in lock(&self.connections).iter() {
            drop(connection.shutdown(Shutdown::Both));
        }
    }
}

fn accept(
    listener: &TcpListener,
    handler: &Arc<Handler>,
    stop: &Arc<AtomicBool>,
    connections: &Mutex<Vec<TcpStream>>,
) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(copy) = stream.try_clone() else { continue };
        lock(connections).push(copy);
        let (handler, stop) = (handler.clone(), stop.clone());
        // A client that goes away in the middle is no fault of the server.
        thread::spawn(move || drop(serve(stream, &handler, &stop)));
    }
}

fn serve(stream: TcpStream, handler: &Arc<Handler>, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    // A client may try TLS at once, or through a proxy after its CONNECT.
    while reader.fill_buf()?.first() != Some(&TLS_HANDSHAKE) {
        let Some(request) = read_request(&mut reader)? else { break };
        let response = handler(&request);
        if !send(&stream, &request, response, stop)? {
            return stream.shutdown(Shutdown::Both);
        }
    }
    if reader.buffer().first() == Some(&TLS_HANDSHAKE) {
        // What servers without TLS say to it.
        (&stream).write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
    }
    stream.shutdown(Shutdown::Both)
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None => return Ok(Some(Request { method, path, headers })),
        }
    }
}

/// Sends the response with its fault; whether the connection may go on.
fn send(
    mut stream: &TcpStream,
    request: &Request,
    response: Response,
    stop: &AtomicBool,
) -> io::Result<bool> {
    let fault = response.fault;
    if fault == Some(Fault::Stall) {
        while !stop.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(20));
        }
        return Ok(false);
    }
    let mut head = format!("HTTP/1.1 {} X\r\n", response.status);
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if fault == Some(Fault::Endless) {
        head.push_str("Connection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        return send_for_ever(stream, &response.body, stop);
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", response.body.len()));
    if let Some(Fault::SlowHead(period)) = fault {
        send_slowly(stream, head.as_bytes(), period, stop)?;
    } else {
        stream.write_all(head.as_bytes())?;
    }
    if request.method == "HEAD" {
        return Ok(true);
    }
    let body = response.body.as_ref();
    match fault {
        Some(Fault::Short(count)) if count < body.len() => {
            stream.write_all(&body[..count])?;
            Ok(false)
        }
        Some(Fault::Reset(count)) if count < body.len() => {
            stream.write_all(&body[..count])?;
            // What was sent should arrive before the reset does.
            thread::sleep(Duration::from_millis(30));
            reset(stream)?;
            Ok(false)
        }
        Some(Fault::Trickle(size, period)) => {
            for piece in body.chunks(size.max(1)) {
                if stop.load(Ordering::Acquire) {
                    return Ok(false);
                }
                stream.write_all(piece)?;
                thread::sleep(period);
            }
            Ok(true)
        }
        _ => stream.write_all(body).map(|()| true),
    }
}

fn send_for_ever(mut stream: &TcpStream, body: &[u8], stop: &AtomicBool) -> io::Result<bool> {
    let body = if body.is_empty() { b"more and more" } else { body };
    while !stop.load(Ordering::Acquire) {
        stream.write_all(body)?;
    }
    Ok(false)
}

fn send_slowly(
    mut stream: &TcpStream,
    bytes: &[u8],
    period: Duration,
    stop: &AtomicBool,
) -> io::Result<()> {
    for byte in bytes {
        if stop.load(Ordering::Acquire) {
            return Ok(());
        }
        stream.write_all(&[*byte])?;
        thread::sleep(period);
    }
    Ok(())
}

/// Makes the closing of the connection a reset: no lingering, unread bytes are dropped.
fn reset(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(&stream.as_fd(), sockopt::Linger, &linger)?;
    Ok(())
}
