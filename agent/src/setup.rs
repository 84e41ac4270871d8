//! `undermount setup podman`: podman looks into the agent's layer store, or no longer does.
//! (`undermount setup cluster` is in `cluster`.)
//!
//! ```text
//! mount point made -> storage.conf edited -> drop-in of registries.conf.d written
//!     -> `podman info` -> refused? everything as it was
//! ```
//!
//! storage.conf has no drop-in directory before podman 6, and one bad path in it fails *every*
//! podman command. So the operator's file is edited and its text kept (`storage_conf`), podman
//! is asked whether it likes the outcome, and the mount point is never removed: an empty
//! directory does no harm, a missing one does.

mod cluster;
mod registries_conf;
mod storage_conf;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub use cluster::{ClusterError, KeyChange, change_key, next_step};
pub use storage_conf::StorageConfError;

use crate::host::mounts;
use crate::host::podman::{Podman, PodmanError};
use crate::registry::client::{RegistriesConf, RegistriesConfError};

/// Where the system keeps storage.conf, and where distributions keep their own.
const STORAGE_CONF: &str = "etc/containers/storage.conf";
const DISTRIBUTION_STORAGE_CONF: &str = "usr/share/containers/storage.conf";
const DROP_IN: &str = "etc/containers/registries.conf.d/50-undermount.conf";

/// What podman is to know of the agent.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The root of the system that is set up.
    pub root: PathBuf,
    /// Where the layer store is, as that system sees it.
    pub store: PathBuf,
    /// Where the pull-through mirror listens and which registries it mirrors, `host[:port]`.
    pub mirror: Option<(std::net::SocketAddr, Vec<String>)>,
}

/// Podman cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// storage.conf cannot be edited.
    #[error("cannot edit {}", path.display())]
    StorageConf {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: StorageConfError,
    },
    /// Nobody knows what podman is told of the mirrored registries.
    #[error("cannot say again what podman is told of the registries; nothing was changed")]
    Registries(#[from] RegistriesConfError),
    /// Podman does not work as it is; nothing was changed.
    #[error("podman does not work as it is; nothing was changed")]
    Before(#[source] PodmanError),
    /// Podman refuses the new configuration; the old one is back.
    #[error("podman refuses the layer store {}; its configuration is back as it was", store.display())]
    Refused {
        /// The layer store.
        store: PathBuf,
        /// What podman says.
        source: PodmanError,
    },
}

/// Lets podman look into the store; the files that changed, none where all was set up already.
///
/// # Errors
/// [`SetupError`]; podman's configuration is then what it was before.
pub fn connect(plan: &Plan, podman: &Podman) -> Result<Vec<PathBuf>, SetupError> {
    let info = podman.info().map_err(SetupError::Before)?;
    make_mount_point(&below(&plan.root, &plan.store))?;
    let text = match read(&plan.root.join(STORAGE_CONF))? {
        Some(text) => text,
        None => storage_conf::begin(distribution(&plan.root)?.as_deref()),
    };
    let storage = storage_conf::connect(&text, &plan.store).map_err(wrong_storage(&plan.root))?;
    let mirror = plan.mirror.as_ref();
    let known = match mirror {
        Some(_) => RegistriesConf::of_system(&plan.root, None)?,
        None => RegistriesConf::default(),
    };
    let drop_in = registries_conf::text(mirror, &known, info.hands_credentials_over());
    let changes = [
        Change::to(&plan.root.join(STORAGE_CONF), Some(storage))?,
        Change::to(&plan.root.join(DROP_IN), drop_in)?,
    ];
    let changed = apply(&changes)?;
    if !changed.is_empty()
        && let Err(source) = podman.info()
    {
        revert(&changes)?;
        return Err(SetupError::Refused { store: plan.store.clone(), source });
    }
    Ok(changed)
}

/// Takes the store of any earlier [`connect`] out of the podman configuration of the system below
/// `root`; the files that changed. The mount point stays. This works for a podman that is broken
/// or gone as well: it may be broken by what is taken out.
///
/// # Errors
/// [`SetupError`]; podman's configuration is then what it was before.
pub fn disconnect(root: &Path) -> Result<Vec<PathBuf>, SetupError> {
    let path = root.join(STORAGE_CONF);
    let storage = match read(&path)? {
        Some(text) => storage_conf::disconnect(&text, distribution(root)?.as_deref())
            .map_err(wrong_storage(root))?,
        None => None,
    };
    apply(&[Change::to(&path, storage)?, Change::to(&root.join(DROP_IN), None)?])
}

/// Applies all changes or none.
fn apply(changes: &[Change]) -> Result<Vec<PathBuf>, SetupError> {
    let mut changed = Vec::new();
    for change in changes.iter().filter(|change| change.before != change.after) {
        if let Err(error) = put(&change.path, change.after.as_deref()) {
            revert(changes)?;
            return Err(error);
        }
        changed.push(change.path.clone());
    }
    Ok(changed)
}

fn revert(changes: &[Change]) -> Result<(), SetupError> {
    changes.iter().try_for_each(|change| put(&change.path, change.before.as_deref()))
}

/// A file, before and after; `None` where it is not there.
struct Change {
    path: PathBuf,
    before: Option<String>,
    after: Option<String>,
}

impl Change {
    fn to(path: &Path, after: Option<String>) -> Result<Self, SetupError> {
        Ok(Self { path: path.to_owned(), before: read(path)?, after })
    }
}

/// The distribution's storage.conf, which counts where the system has none of its own.
fn distribution(root: &Path) -> Result<Option<String>, SetupError> {
    read(&root.join(DISTRIBUTION_STORAGE_CONF))
}

fn wrong_storage(root: &Path) -> impl FnOnce(StorageConfError) -> SetupError + use<> {
    let path = root.join(STORAGE_CONF);
    move |source| SetupError::StorageConf { path, source }
}

/// A mounted store is left alone: looking at it may wait for its server.
fn make_mount_point(path: &Path) -> Result<(), SetupError> {
    if mounts::is_mount_point(path) {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(failed("create", path))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn read(path: &Path) -> Result<Option<String>, SetupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Puts a file in place in one step, with the mode and owner of the one before; or removes it.
fn put(path: &Path, text: Option<&str>) -> Result<(), SetupError> {
    let Some(text) = text else {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", path)(error))
            }
            _ => Ok(()),
        };
    };
    replace(path, text).map_err(failed("write", path))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A symbolic link, as configuration management likes them, stays one.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    let before = fs::metadata(path).ok();
    let mode = before.as_ref().map_or(0o644, |before| before.mode() & 0o7777);
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some(before) = before {
        std::os::unix::fs::fchown(file.as_file(), Some(before.uid()), Some(before.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SetupError + use<> {
    let path = path.to_owned();
    move |source| SetupError::File { action, path, source }
}
