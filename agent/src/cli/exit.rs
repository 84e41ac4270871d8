//! Exit codes, and how a failure is told: the one place that chooses either.
//!
//! ```text
//! error: <what failed, naming the thing>
//!   caused by: <why>
//!   caused by: <why that>
//! ```

use std::error::Error;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

/// The exit codes of `undermount`. Usage errors exit with 2, which clap does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Success,
    /// 1: the command failed, or part of its work did.
    Failure,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
        })
    }
}

/// What a command returns.
pub type CliResult<T = Exit> = Result<T, CliError>;

/// The failure of a command: any error of the library, boxed. It is not an [`Error`] itself,
/// so that `?` converts every one.
#[derive(Debug)]
pub struct CliError {
    error: Box<dyn Error + Send + Sync>,
    exit: Exit,
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for CliError {
    fn from(error: E) -> Self {
        Self { error: error.into(), exit: Exit::Failure }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(f, "\n  caused by: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Tells the user what failed and gives the exit code for it.
pub fn report(error: CliError) -> ExitCode {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{error}");
    error.exit.into()
}

/// The error and its causes in one line, for lists of failures.
pub fn in_words(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |words, cause| format!("{words}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open `x`")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_told_one_per_line() {
        let error = CliError::from(Outer(std::io::Error::other("disk on fire")));
        assert_eq!(error.to_string(), "error: cannot open `x`\n  caused by: disk on fire");
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(in_words(&error), "cannot open `x`: disk on fire");
    }
}
