//! `undermount bugreport`: one archive with what a developer wants to see of this node.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use undermount::bugreport::{self, Piece};
use undermount::control::{Control, Runtime};
use undermount::host::patience::await_canonical;

use super::config::ConfigArgs;
use super::doctor::DoctorArgs;
use super::exit::{CliResult, Exit};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long each look of the doctor may take: some run podman, which may hang itself.
const LOOK: Duration = Duration::from_secs(20);
/// How long they may take together: the disk, the agent and podman, one after the other.
const DOCTOR: Duration = Duration::from_secs(75);

/// Collect what a developer wants to see of this node, as a tar.gz
///
/// Works while a mount hangs: no mount is touched, and nothing is waited for longer than 20
/// seconds. Passwords, tokens and private keys are left out; look through it all the same before
/// you send it.
#[derive(Debug, Args)]
pub struct BugreportArgs {
    /// File to write [default: undermount-bugreport-TIME.tar.gz here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl BugreportArgs {
    /// Collects, writes, and prints where.
    pub async fn run(self) -> CliResult {
        let path = self.out.clone().unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            format!("undermount-bugreport-{}.tar.gz", now.as_secs()).into()
        });
        let mut pieces = vec![Piece::new("version", concat!(env!("CARGO_PKG_VERSION"), "\n"))];
        pieces.extend(self.own_words().await);
        let root = Runtime::parent();
        pieces.extend(tokio::task::spawn_blocking(move || bugreport::collect(root)).await?);
        bugreport::write(&pieces, &path)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        writeln!(std::io::stdout(), "{}", path.display())?;
        Ok(Exit::Success)
    }

    /// What the configuration, the agent and the doctor say.
    async fn own_words(&self) -> Vec<Piece> {
        let settings = match self.config.settings() {
            Ok(settings) => settings,
            Err(error) => return vec![Piece::new("configuration", &format!("{error}\n"))],
        };
        let configuration = Piece::new("configuration", &settings.to_toml());
        let status = status(&settings.cache.directory).await;
        let doctor = DoctorArgs::in_a_hurry(self.config.clone(), LOOK);
        let checks = tokio::time::timeout(DOCTOR, doctor.findings()).await;
        let checks = checks.map_or("it does not come back\n".to_owned(), |findings| {
            serde_json::to_string_pretty(&findings).expect("findings are plain data")
        });
        vec![configuration, Piece::new("status.json", &status), Piece::new("doctor.json", &checks)]
    }
}

async fn status(cache: &Path) -> String {
    let Some(cache) = await_canonical(PATIENCE, cache).await else {
        return format!("{} does not answer\n", cache.display());
    };
    let asked = async { Control::new(Runtime::of(&cache))?.status().await };
    match tokio::time::timeout(PATIENCE, asked).await {
        Err(_) => "it does not answer\n".to_owned(),
        Ok(Ok(status)) => serde_json::to_string_pretty(&status).expect("a status is plain data"),
        Ok(Err(error)) => format!("{error}\n"),
    }
}
