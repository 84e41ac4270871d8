//! The keeper's end of a FUSE connection: one open `/dev/fuse`.
//!
//! ```text
//! open -> mount(2) -> shake_hands -> worker reads and answers
//!                                      | died: resend, or fail each request
//!                                      ` none comes up: nonblocking_clone -> next_request -> fail
//! ```
//!
//! A connection lives as long as any of its descriptors. Requests that were read from a descriptor
//! belong to that open file until they are answered, whichever process holds it by then. Therefore
//! a worker may die, and its successor must be given the same open file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::IntoBytes;

use super::SessionError;
use super::handshake::{Agreement, DataMode};
use super::wire::{self, RequestHead};

const PATH: &str = "/dev/fuse";

/// How long `FUSE_INIT` may take to arrive. The kernel queues it before mount(2) returns.
const INIT_WITHIN: Duration = Duration::from_secs(10);

nix::ioctl_read!(
    /// `FUSE_DEV_IOC_CLONE`: attaches a fresh descriptor to the connection of another one.
    attach_to_connection, 229, 0, u32
);

/// An open `/dev/fuse`.
#[derive(Debug)]
pub(super) struct Device(File);

impl Device {
    /// Opens a device that belongs to no connection yet.
    pub(super) fn open() -> Result<Self, SessionError> {
        let file = OpenOptions::new().read(true).write(true).open(PATH);
        file.map(Self).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => SessionError::NoDevice { source },
            _ => SessionError::OpenDevice { source },
        })
    }

    /// The device of a connection that another process has begun.
    pub(super) fn inherit(fd: OwnedFd) -> Self {
        Self(fd.into())
    }

    /// Whether the connection lives: its file system is still mounted somewhere, or in use.
    pub(super) fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let state = poll(&mut fds, PollTimeout::ZERO).map(|_| fds[0].revents());
        matches!(state, Ok(Some(events)) if !events.intersects(PollFlags::POLLERR))
    }

    /// Answers the `FUSE_INIT` that mount(2) has queued. `data` decides what is asked of the
    /// kernel, and `mask` which flags may be used at all.
    pub(super) fn shake_hands(&self, data: DataMode, mask: u64) -> Result<Agreement, SessionError> {
        let failed = |reason: String| SessionError::Handshake { reason };
        let ready = wait_readable(self.as_fd(), INIT_WITHIN).map_err(|e| failed(e.to_string()))?;
        if !ready {
            return Err(failed("the kernel sent no FUSE_INIT".to_owned()));
        }
        let mut packet = [0; wire::READ_BUFFER];
        let len = (&self.0).read(&mut packet).map_err(|e| failed(e.to_string()))?;
        let (head, body) = wire::split_request(&packet[..len])
            .ok_or_else(|| failed("short request".to_owned()))?;
        if head.opcode != wire::FUSE_INIT {
            return Err(failed(format!("request {} came before FUSE_INIT", head.opcode)));
        }
        let offer = wire::parse_init(body)
            .filter(|offer| offer.major == wire::MAJOR)
            .ok_or_else(|| failed("the kernel speaks another protocol than FUSE 7".to_owned()))?;
        let agreement = Agreement::reach(&offer, data, mask);
        (&self.0)
            .write_all(&wire::init_reply(head.unique, &agreement.reply()))
            .map_err(|e| failed(e.to_string()))?;
        Ok(agreement)
    }

    /// Puts every request that was read but not answered back into the queue (Linux 6.9).
    pub(super) fn resend(&self) -> io::Result<()> {
        (&self.0).write_all(wire::resend_notice().as_bytes())
    }

    /// Answers request `unique` with `errno` (positive). `Ok(false)` if the kernel awaits no answer
    /// to it.
    pub(super) fn fail(&self, unique: u64, errno: i32) -> io::Result<bool> {
        match (&self.0).write_all(wire::error_reply(unique, errno).as_bytes()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A second descriptor of the connection whose reads do not block. The flag belongs to the
    /// open file, which the workers share, so it cannot be set on this one.
    pub(super) fn nonblocking_clone(&self) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(PATH)?;
        let mut connection = u32::try_from(self.0.as_raw_fd()).map_err(io::Error::other)?;
        // SAFETY: both descriptors are open, and the kernel only reads the number behind the
        // pointer.
        unsafe { attach_to_connection(file.as_raw_fd(), &mut connection) }?;
        Ok(Self(file))
    }

    /// Takes the next request from the queue, and returns its head. `Ok(None)` if the queue is
    /// empty, or the request too short to have a head. `buffer` holds at least
    /// [`wire::READ_BUFFER`] bytes.
    pub(super) fn next_request(&self, buffer: &mut [u8]) -> io::Result<Option<RequestHead>> {
        loop {
            match (&self.0).read(buffer) {
                Ok(len) => return Ok(wire::split_request(&buffer[..len]).map(|(head, _)| head)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // ENOENT: the request was withdrawn while it was being read.
                    Some(libc::EINTR | libc::ENOENT) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd` has something to read or `limit` passes (`false`).
fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool, Errno> {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
