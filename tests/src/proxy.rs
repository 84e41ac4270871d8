//! A wire that can be cut: forwards connections to a server and breaks one of them after so
//! many bytes, so that real servers and clients see what a dying peer or network does to them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;

/// The wire; it takes no more connections once it is dropped.
pub struct Wire {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    up: Direction,
    down: Direction,
    cuts: AtomicUsize,
    closed: AtomicBool,
}

/// Bytes until the cut, if one is planned.
#[derive(Default)]
struct Direction {
    planned: AtomicBool,
    left: AtomicI64,
}

impl Wire {
    /// A wire to the server at `target`, `host:port`.
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let (shared, target) = (Arc::clone(&state), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&target) else { continue };
                shared.join(&client, &server);
            }
        });
        Self { address, state }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts the connection that sends the byte `bytes` from now on towards the server.
    pub fn cut_upload_after(&self, bytes: u32) {
        self.state.up.plan(bytes);
    }

    /// Cuts the connection that sends the byte `bytes` from now on towards the client.
    pub fn cut_download_after(&self, bytes: u32) {
        self.state.down.plan(bytes);
    }

    /// How often a connection was cut.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
    }
}

impl State {
    fn join(self: &Arc<Self>, client: &TcpStream, server: &TcpStream) {
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        let ends = [(clone(client), clone(server)), (clone(server), clone(client))];
        for ((from, to), upwards) in ends.into_iter().zip([true, false]) {
            let state = Arc::clone(self);
            thread::spawn(move || {
                let direction = if upwards { &state.up } else { &state.down };
                state.forward(from, to, direction);
            });
        }
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream, direction: &Direction) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if direction.is_cut_by(count) {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Direction {
    fn plan(&self, bytes: u32) {
        self.left.store(bytes.into(), Ordering::SeqCst);
        self.planned.store(true, Ordering::SeqCst);
    }

    /// Whether the cut falls into the next `count` bytes; it happens once.
    fn is_cut_by(&self, count: usize) -> bool {
        let count = i64::try_from(count).unwrap();
        self.planned.load(Ordering::SeqCst)
            && self.left.fetch_sub(count, Ordering::SeqCst) < count
            && self.planned.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wired() -> (Wire, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire::to(&listener.local_addr().unwrap().to_string());
        let client = TcpStream::connect(wire.address()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (wire, client, server)
    }

    fn passes_until_the_cut(wire: &Wire, mut from: TcpStream, mut to: TcpStream) {
        let mut four = [0; 4];
        from.write_all(b"four").unwrap();
        to.read_exact(&mut four).unwrap();
        from.write_all(b"more").unwrap();
        let mut rest = Vec::new();
        to.read_to_end(&mut rest).unwrap();
        assert_eq!((&four, rest.len(), wire.cuts()), (b"four", 0, 1));
    }

    #[test]
    fn bytes_pass_until_the_cut_in_either_direction() {
        let (wire, client, server) = wired();
        wire.cut_upload_after(5);
        passes_until_the_cut(&wire, client, server);
        let (wire, client, server) = wired();
        wire.cut_download_after(5);
        passes_until_the_cut(&wire, server, client);
    }
}
