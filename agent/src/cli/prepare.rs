//! `undermount prepare`: resolve, copy and index the images of a deployment.

mod copying;
mod input;
mod output;

use std::io::Write as _;

use clap::Args;
use undermount::image::Platform;
use undermount::prepare::draft::Draft;
use undermount::prepare::estimate;
use undermount::prepare::insecure::Insecure;
use undermount::prepare::plan::{InsecureList, Plan, PlannedImage};
use undermount::prepare::request::Request;
use undermount::prepare::sources::Sources;
use undermount::prepare::{self, Resolved, naming};
use undermount::registry::client::Client;

use super::client::ClientArgs;
use super::clock::LocalTime;
use super::exit::{CliResult, Exit};
use super::signals;

use copying::{Index, Manifests};
use input::InputArgs;
use output::{OutputArgs, Told};

pub use copying::{CopyArgs, copy_state};
pub use input::{MissingFiles, environment_files, read_environment, read_roles};
pub use output::environment_text;

/// Copy a deployment's images to the undercloud and write the Heat environment for them
#[derive(Debug, Args)]
pub struct PrepareArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    copy: CopyArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// What differs between our own command and the original's spelling of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habits {
    /// Whether a run that matches no image is a success.
    allows_nothing: bool,
    /// Whether indexes are built where no flag says.
    index: Index,
    /// What manifests look like where no flag says.
    manifests: Manifests,
    /// Which insecure registries deployment is told of where no flag says.
    insecure: Told,
    /// Whether parameters name changed images at the undercloud where their entry names no
    /// destination.
    tells_undercloud: bool,
    /// The tree of the undercloud's Apache where no flag says.
    image_serve: Option<&'static str>,
    /// Whether a run ends with an environment file.
    writes_environment: bool,
    /// What environment files that do not exist are.
    missing_files: MissingFiles,
}

/// Where the undercloud's Apache has its images.
pub const IMAGE_SERVE: &str = "/var/lib/image-serve";

impl Habits {
    /// Those of `undermount prepare`.
    pub const OWN: Self = Self {
        allows_nothing: false,
        index: Index::Auto,
        manifests: Manifests::Keep,
        insecure: Told::All,
        tells_undercloud: true,
        image_serve: None,
        writes_environment: true,
        missing_files: MissingFiles::Refused,
    };
    /// Those of `openstack tripleo container image prepare`.
    pub const ORIGINAL: Self = Self {
        allows_nothing: true,
        index: Index::Off,
        manifests: Manifests::Docker,
        insecure: Told::LastEntry,
        tells_undercloud: false,
        image_serve: Some(IMAGE_SERVE),
        writes_environment: true,
        missing_files: MissingFiles::AsInRelease,
    };
    /// Those of `openstack overcloud container image upload`.
    pub const UPLOAD: Self = Self { writes_environment: false, ..Self::ORIGINAL };
}

impl PrepareArgs {
    /// Prepares as the flags say, until a signal comes.
    pub async fn run(self, habits: Habits) -> CliResult {
        let stopped = signals::cancelled_by_signals()?;
        tokio::select! {
            outcome = self.prepare(habits) => outcome,
            // Dropped in the middle, a copy leaves blobs that the next run finds.
            () = stopped.cancelled() => {
                Err("interrupted; the same command goes on where this one stopped".into())
            }
        }
    }

    async fn prepare(&self, habits: Habits) -> CliResult {
        let now = LocalTime::now();
        self.output.check()?;
        let mut request = self.input.request(now, habits.missing_files)?;
        request.tells_undercloud = habits.tells_undercloud;
        let draft = Draft::of(&request).await?;
        if draft.is_empty() {
            let words = "no image of the template is asked for: see includes, excludes and roles";
            if !habits.allows_nothing {
                return Err(words.into());
            }
            tracing::warn!("{words}");
        }
        let mut found = look_up(&request, draft, &self.client, self.copy.skip_missing).await?;
        if self.output.dry_run {
            let Found { resolved, sources, insecure } = &found;
            let estimate = estimate::estimate(&resolved.plan, sources, &insecure.silent).await;
            output::tell_estimate(&estimate);
        } else {
            self.copy.run(&mut found, &request.logins, habits).await?;
        }
        found.tell_missing();
        tell_of_insecure(&mut found, self.output.told(habits));
        tell_of_untold(&found.resolved.plan);
        self.output.write(&found.resolved.plan, now)?;
        Ok(Exit::Success)
    }
}

/// What registries said about a request.
pub struct Found {
    /// The plan.
    pub resolved: Resolved,
    /// The sources that were asked.
    pub sources: Sources,
    /// The registries without a verified certificate.
    pub insecure: Insecure,
}

impl Found {
    /// A plan that needs no look-up, and the registries of its images.
    pub async fn of_plan(plan: Plan, client: &ClientArgs) -> Self {
        let mut config = client.config();
        let names = plan.all_images().flat_map(|image| {
            let source = naming::registry(image.pull_source.as_deref(), &image.imagename);
            [source, image.push_destination.as_deref()].into_iter().flatten()
        });
        let hosts = names.filter_map(|name| Some(name.split('/').next()?.to_owned())).collect();
        let insecure = Insecure::among(&hosts, &Client::new(config.clone())).await;
        insecure.allow(&mut config);
        let sources = Sources::new(Client::new(config), Platform::host(), std::env::temp_dir());
        Self { resolved: Resolved { plan, missing: Vec::new() }, sources, insecure }
    }

    /// Says which images were left out.
    pub fn tell_missing(&self) {
        for error in &self.resolved.missing {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "left out: {error}");
        }
    }
}

/// Asks the registries about `request`, whose images are those of `draft`.
pub async fn look_up(
    request: &Request,
    draft: Draft,
    client: &ClientArgs,
    skip_missing: bool,
) -> CliResult<Found> {
    let mut config = client.config();
    request.configure(&mut config)?;
    let insecure = Insecure::among(&draft.registries(), &Client::new(config.clone())).await;
    for registry in request.logins.keys().filter(|host| insecure.all().contains(*host)) {
        tracing::warn!(%registry, "the password goes to a registry that nobody vouches for");
    }
    insecure.allow(&mut config);
    let sources = Sources::new(Client::new(config), Platform::host(), std::env::temp_dir());
    let resolved = prepare::resolve(request, draft, &sources, skip_missing).await?;
    Ok(Found { resolved, sources, insecure })
}

/// Notes which insecure registries deployment is told of, and warns of the others.
pub fn tell_of_insecure(found: &mut Found, list: InsecureList) {
    let insecure = found.insecure.all();
    found.resolved.plan.mark_insecure(&insecure, list);
    for registry in found.resolved.plan.untold(&insecure) {
        tracing::warn!(
            %registry,
            "nodes will refuse to pull from it: it has no certificate that can be verified, and \
             DockerInsecureRegistryAddress has those of the last entry only, as in the original; \
             --insecure-registries all lists it"
        );
    }
}

/// Warns of images that parameters do not name where they are.
fn tell_of_untold(plan: &Plan) {
    let untold = |image: &&PlannedImage| !image.is_told && image.push_destination.is_some();
    if let Some(image) = plan.all_images().find(untold) {
        tracing::warn!(
            parameters = image.deployed_name(),
            there = image.changed_target().or(image.target()),
            "entries that change images and have no push_destination: as in the original, their \
             images go to the undercloud and the parameters do not name them there"
        );
    }
}
