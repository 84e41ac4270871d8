//! Backing files: what the kernel reads by itself, without asking a worker.
//!
//! A file is given to a FUSE connection and gets a number there, its backing id, until the
//! connection ends or the number is given back. The process that gave it may close it at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use fuser::BackingId;

nix::ioctl_write_ptr!(
    /// `FUSE_DEV_IOC_BACKING_CLOSE`.
    give_back, 229, 2, u32
);

/// The number of `file`, a regular one, in the connection of `device`.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ELOOP for a file that is itself stacked on another file system.
pub(super) fn open(device: BorrowedFd<'_>, file: impl AsFd) -> io::Result<u32> {
    BackingId::create_raw(device, file)
}

/// Gives the number `id` back. Open files that are read through it go on.
pub(super) fn close(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel only reads the number behind the pointer.
    unsafe { give_back(device.as_raw_fd(), &id) }?;
    Ok(())
}

/// Tries whether the kernel takes files of the directory `store`.
pub(super) fn probe(device: BorrowedFd<'_>, store: &Path) -> io::Result<()> {
    let file = tempfile::tempfile_in(store)?;
    close(device, open(device, &file)?)
}
