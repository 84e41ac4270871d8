//! Backing files: what the kernel reads by itself, without asking a worker.
//!
//! ```text
//! open(device, file) -> backing id -> OPEN is answered with it -> close(device, id)
//! ```
//!
//! A backing id names a file within one FUSE connection, until the id is given back or the
//! connection ends. The process that registered the file may close its own descriptor at once. The
//! ioctls are those of `FUSE_PASSTHROUGH` in `include/uapi/linux/fuse.h` (Linux 6.9).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use fuser::BackingId;

nix::ioctl_write_ptr!(
    /// `FUSE_DEV_IOC_BACKING_CLOSE`.
    give_back, 229, 2, u32
);

/// Registers the regular file `file` with the connection of `device`, and returns its backing id.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ELOOP for a file on a file system that is itself stacked on another
/// one.
pub(super) fn open(device: BorrowedFd<'_>, file: impl AsFd) -> io::Result<u32> {
    BackingId::create_raw(device, file)
}

/// Gives the backing id `id` back. Files that are open through it stay readable.
pub(super) fn close(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel only reads the number behind the pointer.
    unsafe { give_back(device.as_raw_fd(), &id) }?;
    Ok(())
}

/// Checks, with an empty file, whether the kernel takes files of the directory `store`.
pub(super) fn probe(device: BorrowedFd<'_>, store: &Path) -> io::Result<()> {
    let file = tempfile::tempfile_in(store)?;
    close(device, open(device, &file)?)
}
