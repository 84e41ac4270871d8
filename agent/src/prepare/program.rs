//! Programs that do a part of the work: `ansible-playbook`, `buildah`, `kolla-build`. Each has a
//! deadline, inherits the environment and is stopped when nobody waits for it any more. What it
//! says is kept, and its end is shown where it fails. Secrets never stand in its arguments.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// How many of a failed program's last lines are shown.
const TAIL: usize = 20;

/// A program that did not do its part.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there.
    #[error("`{program}` is needed and not installed (package {package})")]
    Absent {
        /// The program.
        program: &'static str,
        /// Where it comes from.
        package: &'static str,
    },
    /// It cannot be run.
    #[error("cannot run `{program}`")]
    Run {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("`{program}` ran longer than {} minutes", deadline.as_secs() / 60)]
    TooLong {
        /// The program.
        program: &'static str,
        /// How long it may take.
        deadline: Duration,
    },
    /// It failed.
    #[error("`{program}` failed ({status}):\n{tail}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last lines that it wrote.
        tail: String,
    },
}

/// A program and how it is called.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    package: &'static str,
    deadline: Duration,
    command: Command,
}

impl Program {
    /// `name` of the package `package`, which may take `deadline`.
    pub fn new(name: &'static str, package: &'static str, deadline: Duration) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).kill_on_drop(true);
        Self { name, package, deadline, command }
    }

    /// With more arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end; gives what it wrote to stdout.
    ///
    /// # Errors
    /// [`ProgramError`] where it is absent, fails or takes too long.
    pub async fn run(mut self) -> Result<Vec<u8>, ProgramError> {
        let Self { name: program, package, deadline, .. } = self;
        let output = timeout(deadline, self.command.output())
            .await
            .map_err(|_| ProgramError::TooLong { program, deadline })?
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ProgramError::Absent { program, package },
                _ => ProgramError::Run { program, source },
            })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let tail = tail(&[output.stdout, output.stderr].concat());
        Err(ProgramError::Failed { program, status: output.status, tail })
    }
}

/// The last lines of what a program wrote.
fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn shell(script: &str, deadline: Duration) -> Program {
        Program::new("sh", "dash", deadline).args(["-c", script])
    }

    #[tokio::test]
    async fn a_program_gives_its_output_or_the_end_of_its_words() {
        let output = shell("echo $X", SOON).env("X", "y").run().await.unwrap();
        assert_eq!(output, b"y\n");
        let script = "for i in $(seq 30); do echo line $i; done; echo no >&2; exit 3";
        let error = shell(script, SOON).run().await.unwrap_err().to_string();
        assert!(error.starts_with("`sh` failed (exit status: 3):\nline 12\n"), "{error}");
        assert!(error.ends_with("line 30\nno"), "{error}");
    }

    #[tokio::test]
    async fn an_absent_program_is_named_with_its_package() {
        let program = Program::new("no-such-program", "some-package", SOON);
        let error = program.run().await.unwrap_err().to_string();
        assert_eq!(error, "`no-such-program` is needed and not installed (package some-package)");
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_is_stopped() {
        let error = shell("sleep 100", Duration::from_millis(10)).run().await.unwrap_err();
        assert!(error.to_string().contains("ran longer than 0 minutes"), "{error}");
    }
}
