//! What an owner answers where it cannot do what it is asked for.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use undermount_fs::session::DataMode;

use crate::agent::binding::BindError;
use crate::agent::images::ImageError;
use crate::image::ReferenceError;

/// Why a request was refused or given up.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The name is not one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The mount point cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Nothing of ours is mounted there.
    #[error("no image is mounted on {}", dir.display())]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// An image of ours is mounted there already.
    #[error("{reference} is mounted on {} already", dir.display())]
    Mounted {
        /// The directory.
        dir: PathBuf,
        /// The image.
        reference: String,
    },
    /// The mounts of this owner are of another kind.
    #[error(
        "the owner of this cache mounts in data mode {present}, not {wanted}: unmount all of its \
         images first, or name another cache"
    )]
    DataMode {
        /// What was asked for.
        wanted: DataMode,
        /// What there is.
        present: DataMode,
    },
    /// What is mounted cannot be written down.
    #[error("cannot write {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be told what is mounted.
    #[error("cannot read the mount table")]
    MountTable {
        /// Why.
        source: io::Error,
    },
    /// What is not here any more of an image that was shown does not come back in time.
    #[error("its manifest or an index is not in the cache, and cannot be fetched in time")]
    Late,
    /// The list of what is mounted was damaged.
    #[error("the list of mounts was damaged, and nobody knows which image it is: unmount it")]
    Nameless,
    /// mount(2) or umount2(2) does not come back.
    #[error("the kernel has not answered within {} s to a mount or unmount of {}", within.as_secs(),
        dir.display())]
    Kernel {
        /// The directory.
        dir: PathBuf,
        /// How long it was waited for.
        within: Duration,
    },
    /// The process is shutting down.
    #[error("interrupted by a shutdown")]
    Interrupted,
}
