//! `undermount prepare`: resolve, copy and index the images of a deployment.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use undermount::image::Platform;
use undermount::prepare::copy::{
    self, Attached, CopyError, CopyJob, CopyOptions, Indexing, Location, ManifestFormat,
};
use undermount::prepare::discover::DiscoverError;
use undermount::prepare::draft::Draft;
use undermount::prepare::environment::{self, Environment};
use undermount::prepare::insecure::Insecure;
use undermount::prepare::plan::{InsecureList, Plan};
use undermount::prepare::release::Release;
use undermount::prepare::request::Request;
use undermount::prepare::role::{self, Role};
use undermount::prepare::sources::Sources;
use undermount::prepare::template::TemplateSource;
use undermount::prepare::{self, Resolved, env_file, yaml};
use undermount::registry::client::Client;

use super::client::ClientArgs;
use super::clock::LocalTime;
use super::exit::{CliResult, Exit};
use super::{progress, signals};

/// Where TripleO's Heat templates are installed.
const HEAT_TEMPLATES: &str = "/usr/share/openstack-tripleo-heat-templates";
/// The roles file where none is named.
const ROLES_FILE: &str = "roles_data.yaml";

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

/// What is prepared, and from what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub struct InputArgs {
    /// Heat environment file with ContainerImagePrepare; may be repeated, later files win
    #[arg(short = 'e', long = "environment-file", value_name = "FILE")]
    environment_files: Vec<PathBuf>,
    /// Directory whose *.yaml files are read before the environment files; may be repeated
    /// [default: ~/.tripleo/environments]
    #[arg(long = "environment-directory", value_name = "DIR")]
    environment_directories: Vec<PathBuf>,
    /// Roles file: only images of services that its roles run are prepared. A relative path is
    /// looked for here, then among the Heat templates [default: roles_data.yaml if there is one,
    /// else all images are prepared]
    #[arg(short = 'r', long, value_name = "FILE")]
    roles_file: Option<PathBuf>,
    /// Image template to use in place of the built-in one, such as tripleo-common's
    /// tripleo_containers.yaml.j2
    #[arg(long, value_name = "FILE")]
    template_file: Option<PathBuf>,
    /// TripleO release whose names and rules apply (queens, stein, train, wallaby, zed)
    #[arg(long, value_name = "RELEASE", env = "TRIPLEO_COMPAT", default_value_t)]
    release: Release,
}

/// What is written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Heat environment file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    output_env_file: Option<PathBuf>,
    /// Also write the list of images and where they go
    #[arg(long, value_name = "FILE")]
    output_images_file: Option<PathBuf>,
    /// Registries without a verified certificate that deployment is told of: all that are named,
    /// or those of the last entry that has any [default: all; last-entry in the original's
    /// spellings]
    #[arg(long, value_enum, value_name = "WHICH")]
    insecure_registries: Option<Told>,
    /// Look everything up and write the files, but copy nothing
    #[arg(long)]
    dry_run: bool,
}

/// [`InsecureList`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Told {
    /// All that the parameters name
    All,
    /// Those of the last entry that has any
    LastEntry,
}

impl From<Told> for InsecureList {
    fn from(told: Told) -> Self {
        match told {
            Told::All => Self::All,
            Told::LastEntry => Self::LastEntry,
        }
    }
}

/// How images are copied.
#[derive(Debug, Args)]
#[command(next_help_heading = "Copy")]
pub struct CopyArgs {
    /// Leave out images that their registry does not have, and say which
    #[arg(long)]
    skip_missing: bool,
    /// Images that are copied at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Whether an index is built of each image and attached to it, so that nodes can start it
    /// before it has arrived [default: auto; off in the original's spellings]
    #[arg(long, value_enum, value_name = "WHEN")]
    index: Option<Index>,
    /// Tree of the Apache that serves the undercloud's images; destinations that take no uploads
    /// are written there [default: none; /var/lib/image-serve in the original's spellings]
    #[arg(long, value_name = "DIR", env = "IMAGE_SERVE_DIR")]
    image_serve_dir: Option<PathBuf>,
    /// What manifests look like at the destination [default: keep; docker in the original's
    /// spellings]
    #[arg(long, value_enum, value_name = "FORM")]
    manifests: Option<Manifests>,
    /// Which local copies of modified images are removed in the end: full, partial (the source
    /// copies) or none
    #[arg(long, value_name = "WHICH", default_value_t, value_parser = Cleanup::parse)]
    cleanup: Cleanup,
}

/// When indexes are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Index {
    /// For every image
    Auto,
    /// Never
    Off,
}

/// [`ManifestFormat`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Manifests {
    /// As at the source: digests and signatures hold
    Keep,
    /// OCI manifests become docker's, as the original does
    Docker,
}

impl From<Manifests> for ManifestFormat {
    fn from(manifests: Manifests) -> Self {
        match manifests {
            Manifests::Keep => Self::Keep,
            Manifests::Docker => Self::Docker,
        }
    }
}

/// Which local copies of modified images are removed in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Cleanup {
    /// Source and result.
    #[default]
    Full,
    /// The source.
    Partial,
    /// None.
    None,
}

impl Cleanup {
    fn parse(word: &str) -> Result<Self, &'static str> {
        match word {
            "full" => Ok(Self::Full),
            "partial" => Ok(Self::Partial),
            "none" => Ok(Self::None),
            _ => Err("--cleanup must be one of: full, partial, none"),
        }
    }
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::None => "none",
        })
    }
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
    /// The tree of the undercloud's Apache where no flag says.
    image_serve: Option<&'static str>,
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
        image_serve: None,
    };
    /// Those of `openstack tripleo container image prepare`.
    pub const ORIGINAL: Self = Self {
        allows_nothing: true,
        index: Index::Off,
        manifests: Manifests::Docker,
        insecure: Told::LastEntry,
        image_serve: Some(IMAGE_SERVE),
    };
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
        for path in [&self.output.output_env_file, &self.output.output_images_file] {
            path.as_deref().map_or(Ok(()), env_file::check)?;
        }
        let request = self.input.request(now)?;
        let draft = Draft::of(&request).await?;
        if draft.is_empty() {
            let words = "no image of the template is asked for: see includes, excludes and roles";
            if !habits.allows_nothing {
                return Err(words.into());
            }
            tracing::warn!("{words}");
        }
        let mut found = look_up(&request, draft, &self.client, self.copy.skip_missing).await?;
        if !self.output.dry_run {
            self.copy.run(&mut found.resolved, &found.sources, habits).await?;
        }
        tell_missing(&found.resolved.missing);
        let told = self.output.insecure_registries.unwrap_or(habits.insecure);
        tell_of_insecure(&mut found, told.into());
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
    let sources = Sources::new(Client::new(config), Platform::host());
    let resolved = prepare::resolve(request, draft, &sources, skip_missing).await?;
    Ok(Found { resolved, sources, insecure })
}

impl CopyArgs {
    /// Copies what the plan names. Images that turn out to be missing are taken out of it, if
    /// that was asked for.
    async fn run(
        &self,
        resolved: &mut Resolved,
        sources: &Sources,
        habits: Habits,
    ) -> CliResult<()> {
        let jobs = copy::jobs(&resolved.plan)?;
        if jobs.is_empty() {
            return Ok(());
        }
        let report =
            copy::run(jobs, sources, &self.options(habits), progress::for_stderr()).await?;
        let skips = |error: &CopyError| self.skip_missing && error.is_missing();
        let failures: Vec<_> = report.failures().filter(|(_, error)| !skips(error)).collect();
        if !failures.is_empty() {
            return Err(summary(&failures, report.outcomes.len()).into());
        }
        let missing: Vec<_> = report.failures().map(|(job, _)| job.source.clone()).collect();
        resolved.plan.retain(|image| {
            image.source().parse::<Location>().map_or(true, |source| !missing.contains(&source))
        });
        resolved.missing.extend(missing.into_iter().map(DiscoverError::NotFound));
        Ok(())
    }

    fn options(&self, habits: Habits) -> CopyOptions {
        let index = self.index.unwrap_or(habits.index);
        let manifests = self.manifests.unwrap_or(habits.manifests).into();
        let (indexing, attached) = match index {
            Index::Auto => (Indexing::Build, Attached::Always),
            // Who wants no index wants few requests: none for images that are there.
            Index::Off => (Indexing::Off, Attached::WithImage),
        };
        let image_serve = habits.image_serve.map(PathBuf::from);
        CopyOptions {
            jobs: self.jobs.into(),
            streams: self.jobs.into(),
            indexing,
            attached,
            manifests,
            image_serve: self.image_serve_dir.clone().or(image_serve),
            scratch: std::env::temp_dir(),
            state: Some(copy_state()),
        }
    }
}

/// Where copies write down what they begin (XDG Base Directory Specification, "state").
pub fn copy_state() -> PathBuf {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(std::env::home_dir()?.join(".local/state"));
    let state = state.filter(|state| state.is_absolute()).or_else(home);
    state.unwrap_or_else(|| "/var/lib".into()).join("undermount/copy")
}

/// Which images failed and why, one line each.
fn summary(failures: &[(&CopyJob, &CopyError)], images: usize) -> String {
    let others = if failures.len() < images { "the others were, and " } else { "" };
    let mut words = format!(
        "{} of {images} images could not be copied; {others}no environment file was written",
        failures.len()
    );
    for (job, error) in failures {
        words.push_str(&format!("\n  {}: {}", job.target, in_words(*error)));
    }
    words
}

/// The error and its causes in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
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

fn tell_missing(missing: &[DiscoverError]) {
    for error in missing {
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "left out: {error}");
    }
}

impl InputArgs {
    fn request(&self, now: LocalTime) -> CliResult<Request> {
        let environment = read_environment(&self.environment_directories, &self.environment_files)?;
        let template = match &self.template_file {
            Some(path) => TemplateSource::File(path.clone()),
            None => TemplateSource::BuiltIn(self.release),
        };
        let append_tag = format!("-modified-{}", now.stamp());
        let roles = read_roles(self.roles_file.as_deref())?;
        Ok(Request::from_environment(&environment, &roles, self.release, template, append_tag)?)
    }
}

/// Merges the *.yaml files of `directories`, or of the default one, with `files`.
pub fn read_environment(directories: &[PathBuf], files: &[PathBuf]) -> CliResult<Environment> {
    let default = std::env::home_dir().map(|home| home.join(".tripleo/environments"));
    let directories = match directories {
        [] => default.into_iter().collect(),
        named => named.to_vec(),
    };
    let mut all = Vec::new();
    for directory in directories {
        all.extend(environment::files_in(&directory)?);
    }
    all.extend(files.iter().cloned());
    Ok(Environment::read(&all)?)
}

/// The roles in the file `named`, or in the default one if it exists.
pub fn read_roles(named: Option<&Path>) -> CliResult<Vec<Role>> {
    let path = named.unwrap_or(Path::new(ROLES_FILE));
    let installed = Path::new(HEAT_TEMPLATES).join(path);
    let path = if !path.exists() && installed.exists() { &installed } else { path };
    match named {
        None if !path.exists() => Ok(Vec::new()),
        _ => Ok(role::read(path)?),
    }
}

impl OutputArgs {
    /// Writes the files that the plan comes to.
    fn write(&self, plan: &Plan, now: LocalTime) -> CliResult<()> {
        if let Some(path) = &self.output_images_file {
            env_file::write(path, &yaml::write(&plan.upload_list()))?;
        }
        match &self.output_env_file {
            Some(path) => env_file::write(path, &environment_text(plan.parameter_defaults(), now))?,
            None => {
                let text = environment_text(plan.parameter_defaults(), now);
                std::io::stdout().write_all(text.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// The environment file with these parameters, made by this command now.
pub fn environment_text(parameters: yaml::Map, now: LocalTime) -> String {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let command = format!("undermount {}", arguments.join(" "));
    env_file::environment(parameters, &now.iso(), &command)
}
