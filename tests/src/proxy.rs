//! A wire that can be cut: forwards connections to a server and breaks one of them after so
//! many bytes, so that real servers see what a dying client or network does to them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::thread;

/// The wire; it takes no more connections once it is dropped.
pub struct Wire {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Bytes towards the server until the cut; negative: no cut is planned.
    until_cut: AtomicI64,
    cuts: AtomicUsize,
    closed: std::sync::atomic::AtomicBool,
}

impl Wire {
    /// A wire to the server at `target`, `host:port`.
    pub fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            until_cut: AtomicI64::new(-1),
            cuts: AtomicUsize::new(0),
            closed: false.into(),
        });
        let (shared, target) = (Arc::clone(&state), target.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&target) else { continue };
                shared.join(client, server);
            }
        });
        Self { address, state }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Cuts the connection through which the byte `bytes` from now on goes towards the server.
    pub fn cut_after(&self, bytes: u32) {
        self.state.until_cut.store(bytes.into(), Ordering::SeqCst);
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
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let (mut from_server, mut to_client) =
            (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_server, &mut to_client);
            let _ = to_client.shutdown(Shutdown::Both);
        });
        let state = Arc::clone(self);
        thread::spawn(move || state.upstream(client, server));
    }

    fn upstream(&self, mut client: TcpStream, mut server: TcpStream) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            if self.is_cut(count) || server.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }

    fn is_cut(&self, count: usize) -> bool {
        let count = i64::try_from(count).unwrap();
        if self.until_cut.load(Ordering::SeqCst) < 0 {
            return false;
        }
        let cut = self.until_cut.fetch_sub(count, Ordering::SeqCst) < count;
        if cut {
            self.until_cut.store(-1, Ordering::SeqCst);
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_until_the_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire::to(&listener.local_addr().unwrap().to_string());
        wire.cut_after(5);
        let mut client = TcpStream::connect(wire.address()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut four = [0; 4];
        client.write_all(b"four").unwrap();
        server.read_exact(&mut four).unwrap();
        client.write_all(b"more").unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
        assert_eq!((&four, rest.len(), wire.cuts()), (b"four", 0, 1));
    }
}
