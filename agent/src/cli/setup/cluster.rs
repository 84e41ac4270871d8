//! `undermount setup cluster`: the key that makes nodes a cluster.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use undermount::setup::{KeyChange, change_key, next_step};

use crate::cli::exit::{CliResult, Exit};

/// Make the cluster key, or rotate it
///
/// Who has the key belongs to the cluster: keep it secret, and install the same file (mode 0400)
/// on all nodes and on the undercloud. A key that is there already is kept. A rotation takes three
/// steps, each of which is to be installed everywhere before the next, so that no node ever uses
/// a key that another one does not accept; agents notice a new file by themselves.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The file with the key
    #[arg(long, value_name = "FILE", default_value = "/etc/undermount/cluster.key")]
    key_file: PathBuf,
    /// Take the next step of a rotation
    #[arg(long, conflicts_with = "undo")]
    rotate: bool,
    /// Take the last step of a rotation back
    #[arg(long)]
    undo: bool,
}

impl ClusterArgs {
    /// Changes the key, and says what is to be done next.
    pub fn run(self) -> CliResult {
        let change = match (self.rotate, self.undo) {
            (true, _) => KeyChange::Rotate,
            (_, true) => KeyChange::Undo,
            _ => KeyChange::Make,
        };
        let (changed, stage) = change_key(&self.key_file, change)?;
        let mut stdout = std::io::stdout();
        if changed {
            writeln!(stdout, "changed {}", self.key_file.display())?;
        } else {
            writeln!(stdout, "unchanged")?;
        }
        writeln!(std::io::stderr(), "{}", next_step(stage))?;
        Ok(Exit::Success)
    }
}
