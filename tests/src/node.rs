//! A node as a user has it: a cache directory, and the commands `mount`, `umount`, `pull` and
//! `status` on it. Whatever is left mounted goes when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Outcome, SOON, eventually, run, undermount};
use crate::requirement::Need;

/// What [`Node`] needs from the machine.
pub const NEEDS: &[Need] = &[Need::Root, Need::Fuse];

/// How long a command may take that fetches a whole image or builds its index.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A node with its own cache.
pub struct Node {
    scratch: TempDir,
    cache: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// A node with an empty cache.
    pub fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        Self { cache: scratch.path().join("cache"), scratch, mounts: Vec::new() }
    }

    /// A node with its cache in a directory that is not its own.
    pub fn in_cache(cache: &Path) -> Self {
        let mut node = Self::new();
        node.cache = cache.to_owned();
        node
    }

    /// Its cache directory.
    pub fn cache(&self) -> PathBuf {
        self.cache.clone()
    }

    /// `undermount WORD --cache DIR`.
    pub fn command(&self, word: &str) -> Command {
        let mut command = undermount();
        command.arg(word).arg("--cache").arg(self.cache());
        command
    }

    /// An empty directory to mount on.
    pub fn directory(&self, name: &str) -> PathBuf {
        let directory = self.scratch.path().join(name);
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    /// Mounts an image on a new directory.
    #[track_caller]
    pub fn mount(&mut self, reference: &str) -> PathBuf {
        let directory = self.directory(&format!("mount-{}", self.mounts.len()));
        self.try_mount(reference, &directory).success();
        directory
    }

    /// Mounts an image on a new directory, with more flags.
    #[track_caller]
    pub fn mount_with(&mut self, reference: &str, flags: &[&str]) -> PathBuf {
        let directory = self.directory(&format!("mount-{}", self.mounts.len()));
        self.mounts.push(directory.clone());
        let mut command = self.command("mount");
        command.args(["--complete-within", "0"]).args(flags).arg(reference).arg(&directory);
        run(&mut command, PATIENCE).success();
        directory
    }

    /// Mounts an image on a new directory, to be local within so many seconds.
    #[track_caller]
    pub fn mount_completing(&mut self, reference: &str, seconds: u32) -> PathBuf {
        let directory = self.directory(&format!("mount-{}", self.mounts.len()));
        self.mounts.push(directory.clone());
        let mut command = self.command("mount");
        command.args(["--complete-within", &seconds.to_string()]).arg(reference).arg(&directory);
        run(&mut command, PATIENCE).success();
        directory
    }

    /// Tries to mount an image.
    #[track_caller]
    pub fn try_mount(&mut self, reference: &str, directory: &Path) -> Outcome {
        self.try_mount_with(&[], reference, directory)
    }

    /// Tries to mount an image with more flags.
    #[track_caller]
    pub fn try_mount_with(&mut self, flags: &[&str], reference: &str, directory: &Path) -> Outcome {
        self.mounts.push(directory.to_owned());
        // Only what is read is to be fetched, so that it can be counted.
        let mut command = self.command("mount");
        command.args(["--complete-within", "0"]).args(flags).arg(reference).arg(directory);
        run(&mut command, PATIENCE)
    }

    /// Unmounts.
    #[track_caller]
    pub fn umount(&self, directory: &Path) {
        run(self.command("umount").arg(directory), SOON).success();
        assert!(!is_mounted(directory), "{} is still mounted", directory.display());
    }

    /// Fetches all of an image.
    #[track_caller]
    pub fn pull(&self, reference: &str) -> Outcome {
        self.pull_with(&[], reference)
    }

    /// Fetches all of an image, with more flags.
    #[track_caller]
    pub fn pull_with(&self, flags: &[&str], reference: &str) -> Outcome {
        run(self.command("pull").args(flags).arg(reference), PATIENCE).success()
    }

    /// What `status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = run(self.command("status").arg("--json"), SOON).success().stdout;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// What `status --json` says about one mount.
    #[track_caller]
    pub fn mount_status(&self, directory: &Path) -> Value {
        let status = self.status();
        let mounts = status["mounts"].as_array().cloned().unwrap_or_default();
        let found = mounts.into_iter().find(|mount| mount["dir"].as_str() == directory.to_str());
        found.unwrap_or_else(|| panic!("{} is not in {status}", directory.display()))
    }

    /// Bytes fetched for one mount so far, from wherever.
    #[track_caller]
    pub fn fetched(&self, directory: &Path) -> u64 {
        let status = self.mount_status(directory);
        let origins = status["fetched"].as_array().cloned().unwrap_or_default();
        origins.iter().map(|origin| origin["bytes"].as_u64().unwrap()).sum()
    }

    /// The process that serves the mounts.
    #[track_caller]
    pub fn worker(&self) -> i32 {
        let status = self.status();
        let worker = status["worker"].as_i64().and_then(|worker| worker.try_into().ok());
        worker.unwrap_or_else(|| panic!("no worker in {status}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for directory in &self.mounts {
            if is_mounted(directory) {
                drop(run(self.command("umount").arg(directory), SOON));
            }
            if is_mounted(directory) {
                // It may have gone by itself meanwhile.
                let _ = umount2(directory, MntFlags::MNT_DETACH);
            }
        }
    }
}

/// Whether something is mounted on `directory`, told without touching it.
pub fn is_mounted(directory: &Path) -> bool {
    mount_points().iter().any(|point| point == directory)
}

/// All mount points at or below `directory`.
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    mount_points().into_iter().filter(|point| point.starts_with(directory)).collect()
}

fn mount_points() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap();
    text.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect()
}

/// Waits until no process of an `undermount` owner has `directory` in its command line.
#[track_caller]
pub fn assert_no_process_left(directory: &Path) {
    eventually("processes that nobody needs end", PATIENCE, || processes_of(directory).is_empty());
}

/// Processes, other than this one, whose command line names `directory` or something below it.
fn processes_of(directory: &Path) -> Vec<i32> {
    let text = directory.to_string_lossy().into_owned();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| *pid != own)
        .filter(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(&text)
        })
        .collect()
}
