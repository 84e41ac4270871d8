//! `undermount tripleo container image …`: the spellings of `openstack tripleo container image`.
//!
//! Scripts that call the original keep working with one word exchanged. Flags are the original's;
//! what differs is told in the help of each.

use clap::{Args, Subcommand};

use super::exit::CliResult;
use super::prepare::{Habits, PrepareArgs};

/// `openstack tripleo …` in the original's words
#[derive(Debug, Subcommand)]
pub enum Tripleo {
    /// Containers
    #[command(subcommand)]
    Container(Container),
}

/// What follows `tripleo container`.
#[derive(Debug, Subcommand)]
pub enum Container {
    /// Container images
    #[command(subcommand)]
    Image(Image),
}

/// What follows `tripleo container image`.
#[derive(Debug, Subcommand)]
pub enum Image {
    Prepare(Prepare),
}

/// Prepare images, or print the default list of entries
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Prepare {
    #[command(flatten)]
    prepare: PrepareArgs,
}

impl Tripleo {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        let Self::Container(Container::Image(image)) = self;
        match image {
            Image::Prepare(args) => args.prepare.run(Habits::ORIGINAL).await,
        }
    }
}
