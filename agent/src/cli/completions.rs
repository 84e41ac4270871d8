//! `undermount completions`: what a shell needs to complete our words.

use std::io::Write as _;

use clap::Args;
use clap_complete::Shell;

use super::exit::{CliResult, Exit};

/// Print the completions for a shell
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints them.
    pub fn run(self, mut command: clap::Command) -> CliResult {
        // The generator cannot fail half way through memory, as it could through a pipe.
        let mut words = Vec::new();
        clap_complete::generate(self.shell, &mut command, "undermount", &mut words);
        std::io::stdout().write_all(&words)?;
        Ok(Exit::Success)
    }
}
