//! Programs of the host, never waited for longer than a deadline.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// The output of a command that ends within `patience`; `None` of one that does not, which is
/// killed.
///
/// # Errors
/// Where it cannot be started.
pub fn run(command: &mut Command, patience: Duration) -> io::Result<Option<Output>> {
    // Files, not pipes: nothing that the program leaves behind can hold them up.
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    let end = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            // It is not buried: what waits for a dead mount does not die of this, and nobody
            // shall wait with it.
            child.kill()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    };
    Ok(Some(Output { status, stdout: content(stdout)?, stderr: content(stderr)? }))
}

fn content(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_status_are_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let output = run(&mut command, Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_program_that_hangs_is_not_waited_for() {
        let mut command = Command::new("sleep");
        command.arg("600");
        assert!(run(&mut command, Duration::from_millis(50)).unwrap().is_none());
    }
}
