//! Making and removing the mounts themselves: mount(2) and umount2(2).
//!
//! Mount points are never looked at (stat, readdir) but only mounted and detached: a look would ask
//! the file system behind them, which may have nobody to answer.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::SessionError;

/// The source of the mount, as mount tables show it.
const SOURCE: &str = "undermount";
/// `fuse` for the kernel, `undermount` for the reader of a mount table.
const FILE_SYSTEM: &str = "fuse.undermount";

/// A FUSE mount that is detached when its owner drops it.
#[derive(Debug)]
pub(super) struct MountPoint {
    dir: PathBuf,
}

impl MountPoint {
    /// Mounts `device` at `dir`, which is created (mode 0700) if it is missing, after detaching
    /// what an earlier owner left mounted there. All files get the SELinux context `context`, where
    /// there is one.
    pub(super) fn attach(
        dir: &Path,
        device: &impl AsFd,
        read_only: bool,
        context: Option<&str>,
    ) -> Result<Self, SessionError> {
        detach(dir)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| SessionError::Directory { dir: dir.to_owned(), source })?;
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        flags.set(MsFlags::MS_RDONLY, read_only);
        let options = options(device.as_fd().as_raw_fd(), context);
        let mounted = mount(Some(SOURCE), dir, Some(FILE_SYSTEM), flags, Some(options.as_str()));
        mounted.map_err(|errno| {
            let (dir, source) = (dir.to_owned(), errno.into());
            match context {
                Some(context) if errno == Errno::EINVAL => {
                    SessionError::Context { dir, context: context.to_owned(), source }
                }
                _ => SessionError::Mount { dir, source },
            }
        })?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Takes over what another process has mounted on `dir`, if it is the file system with
    /// `device_number` (`major:minor`); [`SessionError::Estate`] otherwise.
    pub(super) fn inherit(dir: PathBuf, device_number: &str) -> Result<Self, SessionError> {
        let point = Self { dir };
        match point.device_number() {
            Ok(number) if number == device_number => Ok(point),
            _ => {
                let dir = point.dir.display();
                let reason = format!("it is not mounted on {dir} any more");
                point.leave();
                Err(SessionError::Estate { reason })
            }
        }
    }

    /// Leaves the mount to another process.
    pub(super) fn leave(self) {
        // Dropping it would detach it. (The path leaks; the process is about to end.)
        std::mem::forget(self);
    }

    /// The device number of the mounted file system, `major:minor`.
    pub(super) fn device_number(&self) -> io::Result<String> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        device_number(&table, &self.dir)
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other("the mount is not in the mount table"))
    }

    /// Lets the kernel read `bytes` ahead (whole KiB) instead of the 128 KiB that every FUSE mount
    /// starts with. Where /sys is not writable, as in many containers, reads are merely slower.
    pub(super) fn raise_readahead(&self, bytes: u32) -> io::Result<()> {
        let device = self.device_number()?;
        let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
        fs::write(setting, (bytes / 1024).to_string())
    }

    /// Where it is mounted.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.dir) {
            tracing::warn!(error = &error as &dyn std::error::Error, "mount stays behind");
        }
    }
}

/// The mount options of fuse(4). The levels of a context may hold a comma, hence the quotes, which
/// the kernel's SELinux takes away.
fn options(device: RawFd, context: Option<&str>) -> String {
    let context = context.map(|context| format!(",context=\"{context}\"")).unwrap_or_default();
    format!(
        "fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other{context}"
    )
}

/// Detaches everything that is mounted on `dir` itself, at once and without asking the file
/// systems; processes that still use them keep them until they let go. Nothing to detach is
/// success.
///
/// # Errors
/// [`SessionError::Detach`] if the kernel refuses.
pub fn detach(dir: &Path) -> Result<(), SessionError> {
    loop {
        match umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point (any more), or not there at all.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => {
                let dir = dir.to_owned();
                return Err(SessionError::Detach { dir, source: errno.into() });
            }
        }
    }
}

/// The `major:minor` of what is mounted on `dir`, from the text of `/proc/self/mountinfo`
/// (proc_pid_mountinfo(5)): `36 35 98:0 /root /mount/point options...`, with octal escapes in the
/// paths.
fn device_number<'a>(table: &'a str, dir: &Path) -> Option<&'a str> {
    let escape = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![*byte],
    };
    let dir: Vec<u8> = dir.as_os_str().as_bytes().iter().flat_map(escape).collect();
    let fields = |line: &'a str| -> Vec<&'a str> { line.split(' ').take(5).collect() };
    // The last of several mounts is on top.
    let line =
        table.lines().map(fields).rfind(|fields| fields.get(4).map(|d| d.as_bytes()) == Some(&dir));
    line?.get(2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_mount_of_a_directory_with_a_blank_is_found() {
        let table = "21 1 0:20 / /run/a\\040b rw - fuse x rw\n\
                     22 1 0:21 / /run/a\\040b rw - fuse x rw\n\
                     23 1 0:22 / /run/a rw - fuse x rw\n";
        assert_eq!(device_number(table, Path::new("/run/a b")), Some("0:21"));
        assert_eq!(device_number(table, Path::new("/run")), None);
    }

    #[test]
    fn a_context_is_the_last_option_in_quotes() {
        assert!(options(7, None).ends_with(",allow_other"));
        let options = options(7, Some("system_u:object_r:container_ro_file_t:s0:c1,c2"));
        let context = ",context=\"system_u:object_r:container_ro_file_t:s0:c1,c2\"";
        assert!(options.starts_with("fd=7,") && options.ends_with(context), "{options}");
    }

    #[test]
    fn what_is_not_mounted_needs_no_detaching() {
        let dir = tempfile::tempdir().unwrap();
        let root = nix::unistd::geteuid().is_root();
        assert_eq!(detach(dir.path()).is_ok(), root, "without root the kernel refuses to look");
        assert_eq!(detach(&dir.path().join("missing")).is_ok(), root);
    }
}
