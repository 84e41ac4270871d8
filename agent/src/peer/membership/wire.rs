//! How datagrams leave and arrive: the seam to the network, and UDP.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::UdpSocket;

/// Carries datagrams as networks do: some are lost, some arrive twice or late.
pub trait Wire: Send + Sync + 'static {
    /// Sends to the first of these addresses that can be reached from here, or loses the datagram.
    fn send(&self, to: &[SocketAddr], datagram: &[u8]);

    /// Waits for a datagram, and returns its length in `buffer`. What does not fit is cut off. Only
    /// one task receives at a time.
    ///
    /// # Errors
    /// Where nothing can be received now; a later attempt may succeed.
    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>>;
}

/// UDP on some addresses of this host.
#[derive(Debug)]
pub struct Udp {
    sockets: Vec<UdpSocket>,
    lost: AtomicUsize,
}

impl Udp {
    /// Listens on these addresses.
    ///
    /// # Errors
    /// Those of bind(2), with the address.
    pub fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        let sockets = addresses.iter().map(bind).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { sockets, lost: AtomicUsize::new(0) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.iter().map(UdpSocket::local_addr).collect()
    }
}

fn bind(address: &SocketAddr) -> io::Result<UdpSocket> {
    let bound = std::net::UdpSocket::bind(address).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    });
    bound.map_err(|error| io::Error::new(error.kind(), format!("UDP {address}: {error}")))
}

impl Wire for Udp {
    fn send(&self, to: &[SocketAddr], datagram: &[u8]) {
        let reach = |address: &SocketAddr| {
            let family = |socket: &&UdpSocket| {
                socket.local_addr().is_ok_and(|own| own.is_ipv4() == address.is_ipv4())
            };
            self.sockets.iter().find(family).map(|socket| (socket, *address))
        };
        let sent = to.iter().find_map(reach).map(|(socket, to)| socket.try_send_to(datagram, to));
        if !matches!(sent, Some(Ok(_))) {
            // Gossip bears loss; a network that loses everything shows in the list of members.
            let lost = self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(?to, ?sent, lost, "a datagram cannot be sent");
        }
    }

    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>> {
        async move {
            loop {
                let ready: FuturesUnordered<_> =
                    self.sockets.iter().map(|socket| socket.readable()).collect();
                if let Some(outcome) = ready.into_future().await.0 {
                    outcome?;
                }
                for socket in &self.sockets {
                    match socket.try_recv(buffer) {
                        Ok(length) => return Ok(length),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        .boxed()
    }
}
