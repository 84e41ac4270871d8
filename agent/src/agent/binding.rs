//! Showing an image at a directory of the user's: a bind mount from the content mount.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use undermount_fs::digest::Digest;

/// An image cannot be shown at a directory, or not be taken away from it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Only absolute paths mean the same to every process.
    #[error("mount point {}: not an absolute path", dir.display())]
    Relative {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no such directory.
    #[error("mount point {}: not a directory that can be read", dir.display())]
    NotDirectory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something that the mount would hide.
    #[error("mount point {}: not empty", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// mount(2) failed.
    #[error("cannot mount on {}", dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// umount2(2) failed.
    #[error("cannot unmount {} (in use? `--lazy` detaches it nevertheless)", dir.display())]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// What umount2(2) said.
        source: io::Error,
    },
}

/// Checks that `dir` can take a mount that hides nothing.
///
/// # Errors
/// [`BindError`] where it is not an empty directory.
pub fn check_mount_point(dir: &Path) -> Result<(), BindError> {
    let dir = dir.to_owned();
    if !dir.is_absolute() {
        return Err(BindError::Relative { dir });
    }
    match fs::read_dir(&dir).and_then(|mut entries| entries.next().transpose()) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(BindError::NotEmpty { dir }),
        Err(source) => Err(BindError::NotDirectory { dir, source }),
    }
}

/// Shows `image`, a directory of a content mount, at `dir`. The flags of the content mount
/// (read-only, nosuid, nodev) go with it.
///
/// # Errors
/// [`BindError::Mount`] with what mount(2) said.
pub fn bind(image: &Path, dir: &Path) -> Result<(), BindError> {
    mount(Some(image), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| BindError::Mount { dir: dir.to_owned(), source: errno.into() })
}

/// Takes away what is mounted at `dir`; what is in use only if `lazy`. Nothing mounted there is
/// no error.
///
/// # Errors
/// [`BindError::Unmount`] with what umount2(2) said.
pub fn unbind(dir: &Path, lazy: bool) -> Result<(), BindError> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if lazy {
        flags |= MntFlags::MNT_DETACH;
    }
    match umount2(dir, flags) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(errno) => Err(BindError::Unmount { dir: dir.to_owned(), source: errno.into() }),
    }
}

/// Whether something is mounted at `dir`, according to the mount table.
///
/// # Errors
/// Those of reading the table.
pub fn is_mounted(dir: &Path) -> io::Result<bool> {
    Ok(MountTable::read()?.has(dir))
}

/// What is mounted at the moment, and where.
pub struct MountTable(Vec<Line>);

/// A mount (proc(5), mountinfo).
struct Line {
    /// Of the file system, `major:minor`.
    device: Vec<u8>,
    /// Which directory of that file system is shown.
    root: Vec<u8>,
    /// Where it is shown.
    point: Vec<u8>,
}

impl MountTable {
    /// The mount table as this process sees it.
    ///
    /// # Errors
    /// Those of reading a file: a table that cannot be read is no empty one.
    pub fn read() -> io::Result<Self> {
        Self::read_from(Path::new("/proc/self/mountinfo"))
    }

    fn read_from(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&fs::read(path)?))
    }

    fn parse(table: &[u8]) -> Self {
        Self(table.split(|&byte| byte == b'\n').filter_map(Line::parse).collect())
    }

    /// Whether something is mounted at `dir`.
    pub fn has(&self, dir: &Path) -> bool {
        self.0.iter().any(|line| line.is_at(dir))
    }

    /// Where images of the content mount at `content` are shown, and their names there.
    pub fn images_of(&self, content: &Path) -> Vec<(PathBuf, Digest)> {
        // The last one is on top.
        let Some(device) = self.0.iter().rfind(|line| line.is_at(content)).map(|it| &it.device)
        else {
            return Vec::new();
        };
        let shown = self.0.iter().filter(|line| line.device == *device);
        shown.filter_map(|line| Some((line.dir(), line.image()?))).collect()
    }
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ').skip(2);
        let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { device: device.to_owned(), root: unescape(root), point: unescape(point) })
    }

    fn is_at(&self, dir: &Path) -> bool {
        self.point == dir.as_os_str().as_encoded_bytes()
    }

    fn dir(&self) -> PathBuf {
        OsStr::from_bytes(&self.point).into()
    }

    /// The name of the image that it shows, if it shows one.
    fn image(&self) -> Option<Digest> {
        let name = self.root.strip_prefix(b"/images/")?;
        Digest::from_hex(std::str::from_utf8(name).ok()?).ok()
    }
}

/// Blanks, tabs, newlines and backslashes stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                text.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                text.push(byte);
                rest = tail;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table =
            b"22 1 0:20 / /proc rw - proc proc rw\n23 1 0:9 /a /mnt/a\\040b\\134 rw - x x x\n";
        let table = MountTable::parse(table);
        let points = [("/proc", true), ("/mnt/a b\\", true), ("/mnt/a", false), ("/a", false)];
        for (dir, mounted) in points {
            assert_eq!(table.has(Path::new(dir)), mounted, "{dir}");
        }
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/no such place")).unwrap());
    }

    #[test]
    fn images_are_found_where_the_kernel_shows_them() {
        let [shown, elsewhere, covered] = [b"shown", b"elsew", b"cover"].map(|it| Digest::of(it));
        let table = format!(
            "20 1 0:7 / /content rw - x x x\n21 1 0:8 / /content rw - x x x\n\
             22 1 0:8 /images/{0} /mnt/a rw - x x x\n23 1 0:8 /images/{0}/b /mnt/b rw - x x x\n\
             24 1 0:8 /layers/{0} /mnt/c rw - x x x\n25 1 0:9 /images/{1} /mnt/d rw - x x x\n\
             26 1 0:7 /images/{2} /mnt/e rw - x x x\n",
            shown.hex(),
            elsewhere.hex(),
            covered.hex(),
        );
        let table = MountTable::parse(table.as_bytes());
        assert_eq!(table.images_of(Path::new("/content")), [("/mnt/a".into(), shown)]);
        assert_eq!(table.images_of(Path::new("/other")), []);
    }

    #[test]
    fn regression_a_mount_table_that_cannot_be_read_is_not_an_empty_one() {
        assert!(MountTable::read_from(Path::new("/proc/self/no such table")).is_err());
    }

    #[test]
    fn only_empty_directories_are_mount_points() {
        let directory = tempfile::tempdir().unwrap();
        check_mount_point(directory.path()).unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let refusals = [
            (directory.path().to_owned(), "not empty"),
            (directory.path().join("file"), "not a directory"),
            (directory.path().join("missing"), "not a directory"),
            ("relative".into(), "not an absolute path"),
        ];
        for (dir, words) in refusals {
            let error = check_mount_point(&dir).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(dir.to_str().unwrap()), "{error}");
        }
    }
}
