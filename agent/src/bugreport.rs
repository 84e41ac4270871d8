//! `undermount bugreport`: what a developer wants to see of a node, in one archive.
//!
//! It is made when something hangs, so it never touches a mount: everything comes from /proc,
//! /sys, /etc and the runtime directory, each piece read by a thread of its own that is left
//! behind where it does not come back. What could be a secret is left out (`redact`).

mod redact;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::host::{patience, program};

/// How long one piece may take to be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of one file is taken, from its end.
const MOST: u64 = 4 << 20;
/// The name of our processes, as the kernel knows them.
const COMM: &str = "undermount";

/// A file of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its path in the archive.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl Piece {
    /// A piece without secrets.
    pub fn new(name: impl Into<String>, text: &str) -> Self {
        Self { name: name.into(), text: redact::redact(text) }
    }
}

/// Looks at the host. `runtime` is the directory below which owners keep their runtime
/// directories.
pub fn collect(runtime: &Path) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for path in [
        "/proc/self/mountinfo",
        "/proc/version",
        "/proc/meminfo",
        "/proc/loadavg",
        "/proc/filesystems",
        "/proc/sys/fs/file-nr",
        "/etc/os-release",
        "/etc/undermount/agent.toml",
        "/etc/undermount/registry.env",
        "/etc/containers/storage.conf",
        "/etc/containers/registries.conf",
    ] {
        pieces.extend(file(Path::new(path)));
    }
    for path in entries(Path::new("/etc/containers/registries.conf.d")) {
        pieces.extend(file(&path));
    }
    for connection in entries(Path::new("/sys/fs/fuse/connections")) {
        pieces.extend(file(&connection.join("waiting")));
    }
    for owner in entries(runtime) {
        pieces
            .extend(["log", "mounts.json"].into_iter().filter_map(|name| file(&owner.join(name))));
    }
    pieces.extend(processes());
    pieces.extend(journal("undermount-agent.service"));
    pieces.extend(journal("undermount-registry.service"));
    pieces
}

/// Writes the archive, for root's eyes only: it holds names of hosts and images.
///
/// # Errors
/// Those of writing; there is no half archive.
pub fn write(pieces: &[Piece], path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for piece in pieces {
        let mut header = tar::Header::new_ustar();
        header.set_size(piece.text.len() as u64);
        header.set_mode(0o600);
        let name = Path::new("undermount-bugreport").join(piece.name.trim_start_matches('/'));
        archive.append_data(&mut header, name, piece.text.as_bytes())?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// A file, or why it could not be read; nothing where there is none.
fn file(path: &Path) -> Option<Piece> {
    let name = path.to_string_lossy().into_owned();
    let wanted = path.to_owned();
    match patience::wait(PATIENCE, move || tail(&wanted)) {
        Some(Ok(text)) => Some(Piece::new(name, &text)),
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Some(Err(error)) => Some(Piece::new(name, &format!("cannot be read: {error}\n"))),
        None => Some(Piece::new(name, "cannot be read: it does not come back\n")),
    }
}

/// The last [`MOST`] bytes of a file.
fn tail(path: &Path) -> io::Result<String> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > MOST {
        file.seek(SeekFrom::End(-(MOST.cast_signed())))?;
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a directory holds, in order; nothing where it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let directory = directory.to_owned();
    let read = move || {
        let entries = fs::read_dir(directory)?;
        entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()
    };
    let mut paths = patience::wait(PATIENCE, read).and_then(Result::ok).unwrap_or_default();
    paths.sort();
    paths
}

/// Our processes. Their command lines are left alone: reading one may wait for a page that its
/// process waits for.
fn processes() -> Vec<Piece> {
    let ours = |process: &PathBuf| {
        let comm = process.join("comm");
        let name = patience::wait(PATIENCE, move || fs::read_to_string(comm)).and_then(Result::ok);
        name.is_some_and(|name| name.trim_end() == COMM)
    };
    let numbered = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.bytes().all(|byte| byte.is_ascii_digit())
    };
    entries(Path::new("/proc"))
        .into_iter()
        .filter(numbered)
        .filter(ours)
        .flat_map(|process| {
            ["status", "wchan", "stack", "limits", "io"].map(|name| file(&process.join(name)))
        })
        .flatten()
        .collect()
}

fn journal(unit: &str) -> Option<Piece> {
    let mut journalctl = Command::new("journalctl");
    journalctl.args(["--unit", unit, "--lines", "5000", "--no-pager", "--output", "short-iso"]);
    let output = program::run(&mut journalctl, 2 * PATIENCE).ok()??;
    let name = format!("journal/{unit}.log");
    output.status.success().then(|| Piece::new(name, &String::from_utf8_lossy(&output.stdout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_pieces_and_is_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.tar.gz");
        let pieces = [Piece::new("/etc/x", "text\n"), Piece::new("doctor.json", "[]")];
        write(&pieces, &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut archive =
            tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["undermount-bugreport/etc/x", "undermount-bugreport/doctor.json"]);
    }

    #[test]
    fn what_hangs_is_named_and_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        // Opening a pipe that nobody writes to waits for ever.
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(file(&pipe).unwrap().text.contains("does not come back"));
        assert_eq!(file(Path::new("/does/not/exist")), None);
    }

    #[test]
    fn only_the_end_of_a_long_file_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text = "x".repeat(usize::try_from(MOST).unwrap()) + "end";
        fs::write(&path, text).unwrap();
        let piece = file(&path).unwrap();
        assert!(piece.text.len() as u64 == MOST && piece.text.ends_with("end"));
    }
}
