//! `undermount mount`, `umount`, `pull` and `status`: what the owner of a cache is asked for.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use undermount::control::{MountRequest, PullRequest, Transfer, UnmountRequest};

use super::exit::{CliResult, Exit};
use super::owner::{self, CacheArgs, Log};
use super::signals;

/// How often `mount --foreground` looks whether it is still mounted.
const LOOK: Duration = Duration::from_millis(500);

/// An image and its registry
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Image to fetch, HOST[:PORT]/NAME[:TAG][@DIGEST]
    #[arg(value_name = "REF")]
    reference: String,
    /// Speak to the registry without TLS [default: only on loopback addresses]
    #[arg(long)]
    plain_http: bool,
}

impl From<ImageArgs> for PullRequest {
    fn from(args: ImageArgs) -> Self {
        Self { reference: args.reference, plain_http: args.plain_http }
    }
}

/// Mount an image, read-only; its files are fetched when they are read
///
/// Returns when the image is ready. Set-user-id bits and device nodes have no effect in the mount.
#[derive(Debug, Args)]
pub struct MountArgs {
    #[command(flatten)]
    image: ImageArgs,
    /// Empty directory to mount it on
    dir: PathBuf,
    /// Stay until Ctrl-C or SIGTERM, then unmount
    #[arg(long)]
    foreground: bool,
    /// Leave the image's packs aside: fetch only what is read
    #[arg(long)]
    no_packs: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl MountArgs {
    /// Mounts, and waits if it is to stay.
    pub async fn run(self) -> CliResult {
        let dir = std::path::absolute(&self.dir)?;
        let dir = dir.canonicalize().unwrap_or(dir);
        undermount::agent::check_mount_point(&dir)?;
        let log = if self.foreground { Log::Inherited } else { Log::File };
        let shutdown = if self.foreground { Some(signals::cancelled_by_signals()?) } else { None };
        let control = owner::running_or_started(&self.cache, log).await?;
        let data_mode = self.cache.data_mode();
        let (image, no_packs) = (self.image.into(), self.no_packs);
        let request = MountRequest { image, dir: dir.clone(), data_mode, no_packs };
        let bar = bar("fetching layers without an index");
        control.mount(&request, |transfer| show(&bar, transfer)).await?;
        bar.finish_and_clear();
        if let Some(shutdown) = shutdown {
            let words = format!("{} is mounted on {}", request.image.reference, dir.display());
            writeln!(std::io::stderr(), "{words}")?;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = gone(&dir) => return Ok(Exit::Success),
            }
            control.unmount(&UnmountRequest { dir, lazy: true }).await?;
        }
        Ok(Exit::Success)
    }
}

/// Returns when nothing of ours is mounted at `dir` any more. As long as the mount table cannot be
/// read, nobody knows.
async fn gone(dir: &Path) {
    while undermount::agent::is_mounted(dir).unwrap_or(true) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Unmount an image
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    dir: PathBuf,
    /// Detach it now, even if it is in use
    #[arg(long)]
    lazy: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

impl UmountArgs {
    /// Unmounts.
    pub async fn run(self) -> CliResult {
        let dir = std::path::absolute(&self.dir)?;
        let dir = dir.canonicalize().unwrap_or(dir);
        let Some(control) = owner::running(&self.cache).await? else {
            return Err(format!("no image is mounted on {}", dir.display()).into());
        };
        control.unmount(&UnmountRequest { dir, lazy: self.lazy }).await?;
        Ok(Exit::Success)
    }
}

/// Fetch all of an image, so that it mounts and reads without a registry
#[derive(Debug, Args)]
pub struct PullArgs {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

impl PullArgs {
    /// Fetches, and prints the digest of the manifest.
    pub async fn run(self) -> CliResult {
        let control = owner::running_or_started(&self.cache, Log::File).await?;
        let request: PullRequest = self.image.into();
        let bar = bar("fetching");
        let manifest = control.pull(&request, |transfer| show(&bar, transfer)).await?;
        bar.finish_and_clear();
        writeln!(std::io::stdout(), "{manifest}")?;
        Ok(Exit::Success)
    }
}

/// A bar on a terminal, nothing elsewhere.
fn bar(what: &'static str) -> ProgressBar {
    let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(style).expect("the template is valid");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(what);
    bar
}

fn show(bar: &ProgressBar, transfer: Transfer) {
    if transfer.total > 0 {
        bar.set_length(transfer.total);
        bar.set_position(transfer.bytes.min(transfer.total));
    }
}
