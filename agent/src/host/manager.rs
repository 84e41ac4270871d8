//! Words to the service manager that started this process (sd_notify(3)), and descriptors that it
//! keeps for the next one.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// How many seconds a manager may take to make room for a message.
const PATIENCE: i64 = 10;

/// The service manager.
#[derive(Debug)]
pub struct Manager {
    socket: OwnedFd,
    address: UnixAddr,
}

impl Manager {
    /// The manager that listens at `name`, the value of `NOTIFY_SOCKET`: a path, or a name behind
    /// an `@`.
    ///
    /// # Errors
    /// Where that is neither.
    pub fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(name)?,
        };
        let (family, kind) = (AddressFamily::Unix, SockType::Datagram);
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, SendTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(Self { socket, address })
    }

    /// The service does its work now, and what it says about that.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Has the manager keep a copy of `fd`, which every further process of this service is given
    /// under `name` (`FileDescriptorStoreMax=` in systemd.service(5)).
    ///
    /// # Errors
    /// Those of sending. Whether the manager keeps it, it does not tell.
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&format!("FDSTORE=1\nFDNAME={name}"), &[fd.as_raw_fd()])
    }

    /// Has it let go of what it keeps under `name`.
    ///
    /// # Errors
    /// Those of sending.
    pub fn close(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    fn tell(&self, words: &str) {
        // A manager that is gone is nothing that the service could do anything about.
        if let Err(error) = self.send(words, &[]) {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }

    fn send(&self, words: &str, descriptors: &[RawFd]) -> io::Result<()> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        let words = [IoSlice::new(words.as_bytes())];
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        sendmsg(socket, &words, rights, flags, Some(&self.address))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    fn hears(receiver: &UnixDatagram, name: &str) {
        let manager = Manager::at(OsStr::new(name)).unwrap();
        manager.ready("serving");
        manager.keep("device", File::open("/dev/null").unwrap().as_fd()).unwrap();
        manager.close("device").unwrap();
        manager.stopping();
        let mut buffer = [0; 64];
        for words in [
            "READY=1\nSTATUS=serving",
            "FDSTORE=1\nFDNAME=device",
            "FDSTOREREMOVE=1\nFDNAME=device",
            "STOPPING=1",
        ] {
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
