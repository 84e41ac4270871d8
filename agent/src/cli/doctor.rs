//! `undermount doctor`: what is wrong on this host, and what to do.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use undermount::config::{ConfigError, Settings};
use undermount::control::Failure;
use undermount::doctor::{Finding, Patient, State, examine};
use undermount::host::podman::Podman;
use undermount::image::Reference;
use undermount::registry::client::{Client, ClientConfig, RetryPolicy};

use super::client::default_config;
use super::config::ConfigArgs;
use super::exit::{CliResult, Exit};

/// How long a look at this host may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// So much less podman has, to be told of itself.
const PODMAN_ENDS_BEFORE: Duration = Duration::from_secs(5);

/// Look for what keeps Undermount from working on this host, and say what to do
///
/// Looks at the configuration, the kernel, /dev/fuse, the clock, limits, the cache's disk, the
/// agent, podman and its storage.conf, and the registries that are configured or named. Waits for
/// nothing longer than a minute and touches no mount. The exit status is 1 where something is
/// broken.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Images whose registries must answer and serve parts of layers
    #[arg(value_name = "REF")]
    images: Vec<Reference>,
    /// Registry that must answer, besides those of the configuration; may be repeated
    #[arg(long = "registry", value_name = "HOST[:PORT]")]
    registries: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[arg(skip = PATIENCE)]
    patience: Duration,
    /// Whether nothing beyond this host is looked at.
    #[arg(skip)]
    stays_here: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl DoctorArgs {
    /// The checks that concern this host alone, each with `patience`.
    pub fn in_a_hurry(config: ConfigArgs, patience: Duration) -> Self {
        let (images, registries) = (Vec::new(), Vec::new());
        Self { images, registries, json: true, patience, stays_here: true, config }
    }

    /// Looks and tells.
    pub async fn run(self) -> CliResult {
        self.tell(&self.findings().await)
    }

    /// Looks.
    pub async fn findings(&self) -> Vec<Finding> {
        // A broken configuration is the first finding, and no reason to stop looking.
        let (settings, configuration) = match self.config.settings() {
            Ok(settings) => {
                let path = self.config.path();
                let shown = path.display();
                let found = match path.exists() {
                    true => format!("{shown} is valid"),
                    false => format!("the defaults hold, for there is no {shown}"),
                };
                (settings, Finding::ok("configuration", found))
            }
            Err(error) => {
                let advice = "correct it; /etc/undermount/agent.toml explains every key";
                (Settings::default(), Finding::broken("configuration", in_words(&error), advice))
            }
        };
        let (config, certificates) = match settings.client(default_config()) {
            Ok(config) => (config, None),
            Err(error) => {
                let advice = "correct [registries] ca_files";
                let broken = Finding::broken("configuration", in_words(&error), advice);
                (default_config(), Some(broken))
            }
        };
        // A sick registry is to be told of, not waited for.
        let retry = RetryPolicy { retries: 1, ..RetryPolicy::default() };
        let client = Client::new(ClientConfig { retry, ..config });
        let mut findings = vec![certificates.unwrap_or(configuration)];
        findings.extend(examine(&self.patient(&settings), &client).await);
        findings
    }

    fn patient(&self, settings: &Settings) -> Patient {
        let configured = &settings.registries;
        let registries: BTreeSet<String> =
            [&configured.plain_http, &configured.unverified_tls, &settings.mirror.registries]
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .filter(|_| !self.stays_here)
                .chain(self.registries.iter().cloned())
                .collect();
        let podman = self.patience.saturating_sub(PODMAN_ENDS_BEFORE);
        Patient {
            cache: settings.cache.directory.to_path_buf(),
            store: settings.store.mount.to_path_buf(),
            podman: Podman::new(Path::new("podman"), Path::new("/")).within(podman),
            patience: self.patience,
            registries: registries.into_iter().collect(),
            images: self.images.clone(),
        }
    }

    fn tell(&self, findings: &[Finding]) -> CliResult {
        let mut stdout = std::io::stdout();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(findings)?)?;
        } else {
            for finding in findings {
                writeln!(stdout, "{}", as_line(finding))?;
            }
        }
        let broken = findings.iter().any(|finding| finding.state == State::Broken);
        Ok(if broken { Exit::Failure } else { Exit::Success })
    }
}

fn in_words(error: &ConfigError) -> String {
    Failure::of(error).in_words()
}

fn as_line(finding: &Finding) -> String {
    let state = match finding.state {
        State::Ok => "ok",
        State::Warning => "warning",
        State::Broken => "BROKEN",
    };
    let mut words = format!("{state:8} {:14} {}", finding.check, finding.found);
    if let Some(advice) = &finding.advice {
        words += &format!("\n{:24}-> {advice}", "");
    }
    words
}
