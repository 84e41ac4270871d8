//! `undermount image`: what an operator does with the images of a registry or image-serve tree.

mod copy;
mod delete;
mod discover;
mod gc;
mod list;
mod show;
mod verify;

use clap::{Args, Subcommand};
use undermount::inventory::{Holder, PlaceError, Wanted};
use undermount::registry::client::{Client, PlainHttp};

use super::client::ClientArgs;
use super::exit::CliResult;

/// Work with images in registries and image-serve trees
#[derive(Debug, Subcommand)]
pub enum Image {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Discover(discover::DiscoverArgs),
    Copy(copy::CopyArgs),
    Push(copy::PushArgs),
    Delete(delete::DeleteArgs),
    Verify(verify::VerifyArgs),
    Gc(gc::GcArgs),
}

impl Image {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        match self {
            Self::List(args) => args.run().await,
            Self::Show(args) => args.run().await,
            Self::Discover(args) => args.run().await,
            Self::Copy(args) => args.run().await,
            Self::Push(args) => args.run().await,
            Self::Delete(args) => args.run().await,
            Self::Verify(args) => args.run().await,
            Self::Gc(args) => args.run().await,
        }
    }
}

/// How the registries of these commands are reached.
#[derive(Debug, Args)]
pub struct ReachArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Speak to the registries without TLS [default: only on loopback addresses]
    #[arg(long, help_heading = "Registries")]
    plain_http: bool,
}

impl ReachArgs {
    fn client(&self) -> Client {
        let mut config = self.client.config();
        if self.plain_http {
            config.plain_http = PlainHttp::Always;
        }
        Client::new(config)
    }
}

/// The place that `wanted` names, and the image there.
async fn open_image(wanted: Wanted) -> Result<(Holder, String), PlaceError> {
    let Some(image) = wanted.image.clone() else {
        return Err(PlaceError::NoImage(wanted.to_string()));
    };
    Ok((Holder::open(wanted.place).await?, image))
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}
