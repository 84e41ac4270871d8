//! What the commands that ask about a cache have in common: where it is, and how the answer is
//! printed.

use std::io::Write as _;

use clap::Args;
use serde::Serialize;

use super::exit::{CliResult, Exit};
use super::owner::CacheArgs;

/// Which cache is asked about, and how the answer is printed
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cache: CacheArgs,
}

impl AskArgs {
    /// Prints `answer` as JSON, or as its words say it.
    pub fn tell<T: Serialize>(&self, answer: &T, in_words: impl FnOnce(&T) -> String) -> CliResult {
        let text = if self.json { serde_json::to_string_pretty(answer)? } else { in_words(answer) };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(Exit::Success)
    }
}

/// A size for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
