//! Runs programs as a user would, never longer than a deadline, and the `undermount` binary
//! that belongs to the sources under test.
//!
//! Output goes to files, not pipes: a daemon that a command leaves behind may hold them open.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::requirement;

/// How long a command may take that should be quick. On a busy machine with a slow disk even that
/// takes a while, and who is in time does not wait for the end of it.
pub const SOON: Duration = Duration::from_secs(180);
/// How long a program that nobody needs any more may take to end by itself. Some do not: systemd
/// takes SIGTERM for something else.
const STOPPING: Duration = Duration::from_secs(20);

/// A command that ran to its end.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Outcome {
    /// Itself, where the command succeeded; panics with its words otherwise.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(
            self.status.success(),
            "{} failed: {}\n{}{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// What it wrote to stderr, where it failed as a command should: with an exit code of its
    /// own, not by a signal or a panic.
    #[track_caller]
    pub fn refusal(&self) -> &str {
        let code = self.status.code();
        assert!(
            matches!(code, Some(1..=99)) && !self.stderr.contains("panicked at"),
            "{} should have refused: {}\n{}{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        &self.stderr
    }
}

/// An installed program, by its name; its tests have made sure that it is there.
pub fn program(name: &str) -> Command {
    Command::new(requirement::program(name).unwrap_or_else(|| panic!("{name} is not installed")))
}

/// The `undermount` binary built from the sources under test.
///
/// `UNDERMOUNT_BINARY` names another one.
pub fn undermount() -> Command {
    let mut command = Command::new(binary());
    // What the developer has set must not change what a test sees.
    command.env_remove("RUST_LOG");
    command
}

/// The path of the binary that [`undermount()`] runs.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("UNDERMOUNT_BINARY") {
        Some(path) => path.into(),
        None => build(),
    })
}

/// Cargo does not build the binaries of other packages for a test, so this does, beside the
/// test itself: `<target>/<profile>/deps/<test>` and `<target>/<profile>/undermount`.
fn build() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).expect("cargo puts tests below the profile");
    let target = profile.parent().expect("the profile lies in the target directory");
    let name = profile.file_name().and_then(OsStr::to_str).unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells this test about its own package would make other packages' build scripts
    // run again, and everything that depends on them be built again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let about_the_test = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];
        if about_the_test.iter().any(|begin| text.starts_with(begin)) {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        // The whole workspace: one package alone would build its dependencies again with
        // other features.
        .args(["build", "--quiet", "--workspace", "--bins", "--profile"])
        .arg(if name == "debug" { "dev" } else { name })
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the binary under test does not build");
    profile.join("undermount")
}

/// Runs a command to its end; kills it and panics where that takes longer than `deadline`.
#[track_caller]
pub fn run(command: &mut Command, deadline: Duration) -> Outcome {
    let begin = Instant::now();
    let mut running = Running::start(command);
    let Some(status) = running.wait(deadline) else {
        running.kill();
        panic!(
            "{} ran longer than {deadline:?}\n{}{}",
            running.command,
            running.stdout(),
            running.stderr()
        );
    };
    Outcome {
        command: running.command.clone(),
        status,
        stdout: running.stdout(),
        stderr: running.stderr(),
        elapsed: begin.elapsed(),
    }
}

/// Runs a program with `arguments` and expects success within [`SOON`]; gives its stdout.
#[track_caller]
pub fn call<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> String {
    run(program(name).args(arguments), SOON).success().stdout
}

/// A command that runs until it is told to stop, at the latest when this is dropped.
pub struct Running {
    /// The command line, for messages.
    pub command: String,
    child: Child,
    output: TempDir,
}

impl Running {
    /// Starts a command with no input and its output kept.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(output.path().join(name)).unwrap();
        let words = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap_or_else(|error| panic!("{words} does not start: {error}"));
        Self { command: words, child, output }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.text("stdout")
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// How it ended, if it does within `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `find` finds something in what was written so far to stdout and stderr.
    #[track_caller]
    pub fn wait_for<T>(&mut self, deadline: Duration, find: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + deadline;
        loop {
            let ended = self.child.try_wait().unwrap();
            if let Some(found) = find(&(self.stdout() + &self.stderr())) {
                return found;
            }
            let text = || format!("{}\n{}{}", self.command, self.stdout(), self.stderr());
            assert!(ended.is_none(), "ended early: {}", text());
            assert!(Instant::now() < end, "still waiting after {deadline:?}: {}", text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL: the process gets no chance to tidy up.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        drop(self.child.wait());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.output.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGTERM);
            if self.wait(STOPPING).is_none() {
                self.kill();
            }
        }
    }
}

/// `outer`, which runs the program of `inner`, with its arguments, environment and directory.
pub fn like(mut outer: Command, inner: &Command) -> Command {
    outer.args(inner.get_args());
    inner.get_current_dir().map(|directory| outer.current_dir(directory));
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// Copies a program to where it is to run. Another process does it: what this one had open for
/// writing, a process that it starts at that moment would have open as well, and nobody can run a
/// file that somebody may still write.
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    call("cp", &[from, to]);
}

/// The process that started `process`.
pub fn parent(process: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

/// Waits until `condition` holds; panics with `what` otherwise.
#[track_caller]
pub fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_captured() {
        let outcome = run(program("sh").args(["-c", "echo out; echo err >&2; exit 3"]), SOON);
        assert_eq!((outcome.stdout.as_str(), outcome.refusal()), ("out\n", "err\n"));
        assert_eq!(outcome.status.code(), Some(3));
    }

    #[test]
    fn a_daemon_that_keeps_the_output_open_does_not_hold_up_the_test() {
        let outcome = run(program("sh").args(["-c", "sleep 600 & echo $!"]), SOON).success();
        let daemon = Pid::from_raw(outcome.stdout.trim().parse().unwrap());
        kill(daemon, Signal::SIGKILL).expect("the daemon outlives the command");
    }

    #[test]
    #[should_panic(expected = "ran longer than")]
    fn a_command_that_hangs_is_killed_at_the_deadline() {
        run(program("sleep").arg("60"), Duration::from_millis(50));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let mut running = Running::start(program("sh").args(["-c", "echo ready; exec sleep 60"]));
        running.wait_for(SOON, |text| text.contains("ready").then_some(()));
        let id = Pid::from_raw(running.id().cast_signed());
        drop(running);
        assert!(kill(id, None).is_err());
    }
}
