//! The messages between keeper and worker.
//!
//! A SOCK_SEQPACKET pair, whose one end is the worker's standard input. One packet is one message
//! in JSON; the descriptors travel beside the first message (SCM_RIGHTS). After an upgrade keeper
//! and worker are of different versions: a reader ignores fields that it does not know, and new
//! fields have defaults.
//!
//! ```text
//! keeper                            worker
//!   | -- start + descriptors ---------> |  resumes the mounts
//!   | <------------- ready / failed --- |
//!   | <----------- alive, alive, ... -- |  serves
//!   | <--------------------- replace -- |  an upgrade: exits, the named program takes over
//!   | <------------------------ done -- |  no more work: the keeper says stop
//!   | -- stop ------------------------> |  clears up, exits; the keeper unmounts
//! ```
//!
//! Either side notices the other's death by end of file.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::task::Poll;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::handshake::Agreement;

/// The version of the messages. A worker refuses a keeper that speaks another one.
pub(super) const PROTOCOL: u32 = 1;

const MAX_MESSAGE: usize = 64 * 1024;
const MAX_DESCRIPTORS: usize = 32;

/// A message from the keeper to its worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub(super) enum ToWorker {
    /// The first message, with the descriptors.
    Start(Start),
    /// The worker is to clear up and exit.
    Stop,
}

/// A message from the worker to its keeper: see the methods of [`super::worker::Worker`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub(super) enum ToKeeper {
    Ready,
    /// A sign of life. A worker that has given one and then falls silent is replaced.
    Alive,
    Failed {
        reason: String,
    },
    Replace {
        program: PathBuf,
    },
    Done,
}

/// Everything that a worker needs to resume.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// The keeper's [`PROTOCOL`].
    pub(super) protocol: u32,
    pub(super) history: History,
    pub(super) mounts: Vec<StartMount>,
    /// Names of the descriptors that are neither devices nor tables.
    pub(super) keepsakes: Vec<String>,
    /// Whether another keeper goes on with the mounts when this one is gone.
    #[serde(default)]
    pub(super) entrusted: bool,
}

/// One mount. The descriptors of all mounts precede those of the keepsakes. Each mount has its
/// device, its table of requests in hand if they are `recorded`, and its table of open files if it
/// is in `passthrough` mode, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StartMount {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) agreement: Agreement,
    pub(super) recorded: bool,
    #[serde(default)]
    pub(super) passthrough: bool,
}

/// What happened to the workers before this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// How many workers have been started in place of another one. A keeper that goes on with the
    /// mounts of a previous one counts from 1.
    pub restarts: u64,
    /// How the last one ended, in words; `None` for the first worker.
    pub last_exit: Option<String>,
}

impl History {
    /// `last_exit` of a worker whose keeper handed over to another one, as planned.
    pub const HANDED_OVER: &str = "its keeper was restarted";
    /// `last_exit` of a worker whose keeper was killed.
    pub const KEEPER_LOST: &str = "its keeper was killed";
}

/// One end of the connection.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// A message and the descriptors that came with it.
pub(super) type Parcel<T> = (T, Vec<OwnedFd>);

impl Link {
    /// A connected pair. Neither end survives an exec.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let kind = SockType::SeqPacket;
        let (near, far) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(near), far))
    }

    /// The end of a pair that is open as `fd`.
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends one message without waiting for the other side to read: `WouldBlock` where the socket
    /// is full, EMSGSIZE where the message or the number of descriptors is too large.
    pub(super) fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::from(Errno::EMSGSIZE));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], rights, flags, None)?;
        Ok(())
    }

    /// Sends one packet of raw bytes, for [`super::worker`], whose `fuser` reads FUSE requests from
    /// a pair.
    pub(super) fn send_raw(&self, bytes: &[u8]) -> io::Result<()> {
        Ok(nix::unistd::write(&self.0, bytes).map(drop)?)
    }

    /// Waits for the next message; `None` once the other side is gone.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<Parcel<T>>> {
        self.receive_with(MsgFlags::empty())
    }

    /// The next message if there is one, without waiting.
    pub(super) fn try_receive<T: DeserializeOwned>(&self) -> io::Result<Poll<Option<Parcel<T>>>> {
        match self.receive_with(MsgFlags::MSG_DONTWAIT) {
            Ok(message) => Ok(Poll::Ready(message)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Poll::Pending),
            Err(error) => Err(error),
        }
    }

    fn receive_with<T: DeserializeOwned>(&self, flags: MsgFlags) -> io::Result<Option<Parcel<T>>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let (len, descriptors) = match self.receive_packet(&mut bytes, flags) {
            Err(Errno::ECONNRESET) => return Ok(None),
            other => other?,
        };
        match len {
            0 => Ok(None),
            len => Ok(Some((serde_json::from_slice(&bytes[..len])?, descriptors))),
        }
    }

    fn receive_packet(
        &self,
        bytes: &mut [u8],
        flags: MsgFlags,
    ) -> nix::Result<(usize, Vec<OwnedFd>)> {
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut slices = [IoSliceMut::new(bytes)];
        let received = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut descriptors = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just made these descriptors for this process, and no one
                // else knows their numbers.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        Ok((received.bytes, descriptors))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (keeper, worker) = Link::pair().unwrap();
        let worker = Link::from_fd(worker);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        let start = Start {
            protocol: PROTOCOL,
            history: History::default(),
            mounts: Vec::new(),
            keepsakes: vec!["file".to_owned()],
            entrusted: false,
        };
        keeper.send(&ToWorker::Start(start), &[file.as_fd()]).unwrap();
        keeper.send(&ToWorker::Stop, &[]).unwrap();

        let (message, mut descriptors) = worker.receive::<ToWorker>().unwrap().unwrap();
        assert!(matches!(message, ToWorker::Start(start) if start.keepsakes == ["file"]));
        let mut same = std::fs::File::from(descriptors.remove(0));
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "kept");
        let (message, descriptors) = worker.receive::<ToWorker>().unwrap().unwrap();
        assert!(matches!(message, ToWorker::Stop) && descriptors.is_empty());
    }

    #[test]
    fn the_death_of_the_other_side_is_noticed() {
        let (keeper, worker) = Link::pair().unwrap();
        drop(worker);
        assert!(keeper.receive::<ToKeeper>().unwrap().is_none());
    }

    #[test]
    fn fields_of_a_newer_version_are_ignored() {
        let message = r#"{"message":"failed","reason":"no room","exit":3}"#;
        let ToKeeper::Failed { reason } = serde_json::from_str(message).unwrap() else {
            panic!("another message")
        };
        assert_eq!(reason, "no room");
    }
}
