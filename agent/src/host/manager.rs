//! Words to the service manager that started this process (sd_notify(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service manager.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    /// The manager that listens at `name`, the value of `NOTIFY_SOCKET`: a path, or a name behind
    /// an `@`.
    ///
    /// # Errors
    /// Where that is neither.
    pub fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        Ok(Self { socket: UnixDatagram::unbound()?, address })
    }

    /// The service does its work now, and what it says about that.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, words: &str) {
        // A manager that is gone is nothing that the service could do anything about.
        if let Err(error) = self.socket.send_to_addr(words.as_bytes(), &self.address) {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hears(receiver: &UnixDatagram, name: &str) {
        let manager = Manager::at(OsStr::new(name)).unwrap();
        manager.ready("serving");
        manager.stopping();
        let mut buffer = [0; 64];
        for words in ["READY=1\nSTATUS=serving", "STOPPING=1"] {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], words.as_bytes());
        }
    }

    #[test]
    fn a_manager_behind_a_path_and_behind_an_abstract_name_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        hears(&UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap());
        let name = format!("undermount-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        hears(&UnixDatagram::bind_addr(&address).unwrap(), &format!("@{name}"));
    }

    #[test]
    fn a_manager_that_is_gone_does_no_harm() {
        Manager::at(OsStr::new("/does/not/exist")).unwrap().ready("all alone");
    }
}
