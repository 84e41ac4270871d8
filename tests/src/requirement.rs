//! What a test needs from the machine, and the words in which it says that it lacks it.
//!
//! ```no_run
//! use undermount_tests::requirement::{self, Need};
//!
//! if requirement::lacking(&[Need::Root, Need::Fuse, Need::Program("umoci")]) {
//!     return;
//! }
//! ```
//!
//! A skipped test passes, but `tests/run` lists it: every reason is appended to the file that
//! `UNDERMOUNT_TEST_SKIPS` names.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};

/// One thing that not every machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// User id 0: mounts, chroot, device nodes, foreign owners.
    Root,
    /// A `/dev/fuse` that opens.
    Fuse,
    /// What data mode passthrough takes: Linux 6.9, and temporary directories on a plain disk file
    /// system.
    Passthrough,
    /// A program on the search path.
    Program(&'static str),
}

impl Need {
    /// Whether this machine has it.
    pub fn is_met(self) -> bool {
        match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Fuse => File::options().read(true).write(true).open("/dev/fuse").is_ok(),
            Self::Passthrough => kernel_version() >= (6, 9) && is_on_disk(&std::env::temp_dir()),
            Self::Program(name) => program(name).is_some(),
        }
    }
}

/// Major and minor number of the running kernel.
fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether `directory` lies on ext4 or xfs.
fn is_on_disk(directory: &Path) -> bool {
    statfs(directory)
        .is_ok_and(|statfs| [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&statfs.filesystem_type()))
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Fuse => f.write_str("/dev/fuse"),
            Self::Passthrough => f.write_str("Linux 6.9 and $TMPDIR on ext4 or xfs"),
            Self::Program(name) => write!(f, "the program `{name}`"),
        }
    }
}

/// The absolute path of an installed program; system directories count even where the search
/// path of the caller leaves them out.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Whether the machine lacks one of `needs`; if so, says which, and the test should return.
pub fn lacking(needs: &[Need]) -> bool {
    let missing: Vec<String> =
        needs.iter().filter(|need| !need.is_met()).map(|need| need.to_string()).collect();
    if missing.is_empty() {
        return false;
    }
    skipped(&format!("needs {}", missing.join(" and ")));
    true
}

/// Records that the running test is skipped, and why.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {reason}", thread.name().unwrap_or("a test"));
    println!("skipped: {line}");
    if let Some(path) = std::env::var_os("UNDERMOUNT_TEST_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        // One write, so that lines of tests that run side by side stay whole.
        file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .expect("the file of skipped tests can be written");
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_found_and_an_unknown_program_is_not() {
        assert!(Need::Program("sh").is_met());
        assert!(!Need::Program("no-program-has-this-name").is_met());
        assert!(!lacking(&[Need::Program("sh")]));
    }
}
