//! Files read ahead of the start that needs them, so that the kernel has their names and pages
//! before the program asks.
//!
//! ```text
//! pack: units that have come -> paths -> pipe -> `undermount readahead`, a process:
//!                                                  lists the directory, reads the file
//! ```
//!
//! Otherwise a start asks for thousands of names and files, one after the other, and waits each
//! time until the kernel has woken us and we have woken it. Here another process waits, on another
//! processor. It has the same share as the start whose work it does: with a smaller one it was
//! behind the start for most of the time.
//!
//! It is a process of its own because a thread cannot be killed while it waits for an answer of
//! its own process: the kernel wants that answer first.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::dir::Dir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use undermount_fs::fill::Told;
use undermount_fs::object::CHUNK;
use undermount_fs::pack::UnitName;

use super::images::{Images, Ready};
use crate::profile::{FilePaths, file_paths};

/// The program that the calling process runs, also where its file was replaced.
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// The command that reads ahead; its arguments are the directories that show an image.
const COMMAND: &str = "readahead";

/// Directories with more entries are not listed: that would take longer than it saves.
const ENTRIES_MAX: usize = 4096;

/// How long the last files may take that a pack has brought.
const LAST: Duration = Duration::from_secs(30);

/// The files of a start are read ahead as they come. Dropped, that ends.
pub struct Readahead {
    told: Told,
    task: AbortOnDropHandle<()>,
}

impl Readahead {
    /// Begins to read files of `ready` ahead, below the directories `shown`: of its layers, the
    /// uppermost first, or of the merged image.
    pub fn begin(images: Arc<Images>, ready: Arc<Ready>, shown: Vec<PathBuf>) -> Self {
        let (told, units) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let reference = ready.image.reference.clone();
            if let Err(error) = pass_on(images, ready, &shown, units).await {
                tracing::info!(%reference, %error, "cannot read ahead");
            }
        });
        Self { told, task: AbortOnDropHandle::new(task) }
    }

    /// Where to tell which units have come.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// Nothing more comes: waits until all of it was read, but not for long. What is read slowly is
    /// not here any more, and a start that reads it has to wait for it in either way.
    pub async fn end(self) {
        self.end_within(LAST).await;
    }

    async fn end_within(self, limit: Duration) {
        let Self { told, task } = self;
        drop(told);
        if tokio::time::timeout(limit, task).await.is_err() {
            tracing::info!("what a pack has brought is read too slowly: no longer read ahead");
        }
    }
}

/// Passes `units` on to a process that reads them, until there are no more and all are read.
async fn pass_on(
    images: Arc<Images>,
    ready: Arc<Ready>,
    shown: &[PathBuf],
    mut units: mpsc::UnboundedReceiver<Vec<UnitName>>,
) -> io::Result<()> {
    let Some(mut next) = units.recv().await else { return Ok(()) };
    let (mut process, mut input) = start(shown)?;
    let paths = tokio::task::spawn_blocking(move || {
        let tree = images.merge(&ready).map_err(io::Error::other)?;
        io::Result::Ok(file_paths(&tree, |_| true))
    });
    let paths = paths.await.map_err(io::Error::other)??;
    loop {
        input.write_all(lines(&next, &paths).as_bytes()).await?;
        match units.recv().await {
            Some(units) => next = units,
            None => break,
        }
    }
    drop(input);
    process.wait().await.map(drop)
}

fn start(shown: &[PathBuf]) -> io::Result<(Child, ChildStdin)> {
    let mut command = Command::new(PROGRAM);
    command.arg0("undermount").arg(COMMAND).args(shown);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut process = command.spawn()?;
    let input = process.stdin.take().expect("stdin was asked to be a pipe");
    Ok((process, input))
}

/// One unit a line: its number, a blank, and the path of its file. Paths with line ends are left
/// out.
fn lines(units: &[UnitName], paths: &FilePaths) -> String {
    let line = |unit: &UnitName| {
        let path = paths.get(&(unit.layer, unit.inode))?;
        (!path.contains('\n')).then(|| format!("{} {path}\n", unit.number))
    };
    units.iter().filter_map(line).collect()
}

/// Reads the units that `input` names, as `lines` writes them, below the first of the
/// directories `shown` that has the file. What cannot be read is left alone: whoever needs it will
/// ask for it.
///
/// # Errors
/// Where `input` cannot be read, or one of the directories not be opened.
pub fn read_all(input: impl BufRead, shown: &[PathBuf]) -> io::Result<()> {
    let shown: Vec<File> = shown.iter().map(File::open).collect::<io::Result<_>>()?;
    let mut listed: Vec<HashSet<PathBuf>> = vec![HashSet::new(); shown.len()];
    let mut buffer = Vec::new();
    for line in input.lines() {
        let line = line?;
        let Some((number, path)) = line.split_once(' ') else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        for (root, listed) in shown.iter().zip(&mut listed) {
            list_beside(root, Path::new(path), listed);
            if read_unit(root, Path::new(path), number, &mut buffer).is_ok() {
                break;
            }
        }
    }
    Ok(())
}

/// Lists the directory of `path`, once: one question for all of its names.
fn list_beside(root: &File, path: &Path, listed: &mut HashSet<PathBuf>) {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
    else {
        return;
    };
    if listed.insert(directory.to_owned())
        && let Ok(directory) = open_below(root, directory, OFlag::O_DIRECTORY)
        && let Ok(mut directory) = Dir::from_fd(directory)
    {
        directory.iter().take(ENTRIES_MAX).for_each(drop);
    }
}

fn read_unit(root: &File, path: &Path, number: u32, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut file = File::from(open_below(root, path, OFlag::O_NONBLOCK)?);
    file.seek(SeekFrom::Start(u64::from(number) * CHUNK))?;
    buffer.clear();
    file.take(CHUNK).read_to_end(buffer).map(drop)
}

/// Opens what lies at `path` below `root`. A symbolic link is not followed: what an image says
/// must not lead to files of this host. Takes Linux 5.6; before it nothing is read ahead.
fn open_below(root: &File, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(resolve);
    Ok(openat2(root, path, how)?)
}

#[cfg(test)]
mod tests {
    use undermount_fs::digest::Digest;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_long_until_all_is_read() {
        let (told, mut units) = mpsc::unbounded_channel::<Vec<UnitName>>();
        let task = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let ended = Readahead { told, task }.end_within(Duration::from_millis(1));
        tokio::time::timeout(LAST, ended).await.unwrap();
        assert_eq!(units.recv().await, None, "nothing more is told");
    }

    #[test]
    fn units_are_named_by_the_paths_of_their_files() {
        let layer = Digest::of(b"layer");
        let unit = |inode, number| UnitName { layer, inode, number };
        let path = |inode, path: &str| ((layer, inode), path.to_owned());
        let paths = FilePaths::from([path(1, "a/b c"), path(2, "x\ny")]);
        assert_eq!(lines(&[unit(1, 3), unit(2, 0), unit(7, 0)], &paths), "3 a/b c\n");
    }

    #[test]
    fn a_file_is_read_where_the_uppermost_layer_has_it_and_beside_others() {
        let (upper, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(lower.path().join("d")).unwrap();
        std::fs::write(lower.path().join("d/file"), vec![7; CHUNK as usize + 5]).unwrap();
        let shown = [upper.path().to_owned(), lower.path().to_owned()];
        let words = "what\n-1 d/file\n0 d\n0 ../d/missing\n1 d/file\n9 d/file\n";
        read_all(words.as_bytes(), &shown).unwrap();
        let read = |root: &Path, path: &str| {
            let mut buffer = Vec::new();
            let root = File::open(root).unwrap();
            read_unit(&root, Path::new(path), 1, &mut buffer).map(|()| buffer)
        };
        assert_eq!(read(lower.path(), "d/file").unwrap(), [7; 5]);
        read(upper.path(), "d/file").unwrap_err();
        // What a link of an image names may be anything of this host.
        std::os::unix::fs::symlink(lower.path().join("d"), upper.path().join("d")).unwrap();
        std::os::unix::fs::symlink("d/file", lower.path().join("link")).unwrap();
        for (root, path) in [(&upper, "d/file"), (&lower, "link"), (&lower, "../etc/passwd")] {
            read(root.path(), path).unwrap_err();
        }
    }
}
