//! `undermount overcloud container image …`: the spellings of OSP 13 (Queens), where flags do
//! what a `ContainerImagePrepare` list does later.

mod build;
mod upload;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use undermount::image::{Platform, Reference};
use undermount::prepare::discover;
use undermount::prepare::document::DocumentError;
use undermount::prepare::draft::Draft;
use undermount::prepare::entry::{Entry, PushDestination};
use undermount::prepare::env_file;
use undermount::prepare::insecure::Insecure;
use undermount::prepare::label::TagLabel;
use undermount::prepare::pattern::{Pattern, PatternError};
use undermount::prepare::plan::InsecureList;
use undermount::prepare::release::Release;
use undermount::prepare::request::{EntryList, Request};
use undermount::prepare::role::{self, Role, RoleError};
use undermount::prepare::sources::Sources;
use undermount::prepare::template::TemplateSource;
use undermount::prepare::undercloud;
use undermount::prepare::yaml::{self, Map, Value};
use undermount::registry::client::Client;

use super::client::ClientArgs;
use super::clock::LocalTime;
use super::exit::{CliResult, Exit};
use super::prepare::{
    MissingFiles, environment_files, environment_text, look_up, read_environment, read_roles,
    tell_of_insecure,
};

/// `openstack overcloud …` in the original's words
#[derive(Debug, Subcommand)]
pub enum Overcloud {
    /// Containers
    // Scripts may shorten flags and repeat them: argparse lets them, and the last one counts.
    #[command(subcommand, infer_long_args = true, args_override_self = true)]
    Container(Container),
}

/// What follows `overcloud container`.
#[derive(Debug, Subcommand)]
pub enum Container {
    /// Container images
    #[command(subcommand)]
    Image(Image),
}

/// What follows `overcloud container image`.
#[derive(Debug, Subcommand)]
pub enum Image {
    Prepare(Box<PrepareArgs>),
    Upload(Box<upload::UploadArgs>),
    Build(build::BuildArgs),
    /// Tags of images
    #[command(subcommand)]
    Tag(Tag),
}

/// What follows `overcloud container image tag`.
#[derive(Debug, Subcommand)]
pub enum Tag {
    Discover(DiscoverArgs),
}

/// Write the environment and the upload list of images that the flags name
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Image template to use in place of the built-in one
    #[arg(long, value_name = "FILE")]
    template_file: Option<PathBuf>,
    /// Location that images are pulled from, put before their names
    #[arg(long, value_name = "LOCATION")]
    pull_source: Option<String>,
    /// Registry that images are pushed to, and that the parameters name
    #[arg(long, value_name = "LOCATION")]
    push_destination: Option<String>,
    /// Tag of the images [default: current-tripleo]
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Label, or template of labels, that tells the tag
    #[arg(long, value_name = "LABEL")]
    tag_from_label: Option<String>,
    /// Registry and namespace of the images [default: docker.io/tripleoqueens]
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// What image names begin with [default: centos-binary-]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// What image names end with
    #[arg(long, value_name = "SUFFIX")]
    suffix: Option<String>,
    /// Value for the image template; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Regular expression; images whose name it matches are left out; may be repeated
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<String>,
    /// Upload list to write, beside standard output
    #[arg(long, visible_alias = "images-file", value_name = "FILE")]
    output_images_file: Option<PathBuf>,
    /// Environment file to write
    #[arg(long, visible_alias = "env-file", value_name = "FILE")]
    output_env_file: Option<PathBuf>,
    /// Environment file that tells which services are containers; may be repeated
    #[arg(
        short = 'e',
        long = "environment-file",
        visible_alias = "service-environment-file",
        value_name = "FILE"
    )]
    environment_files: Vec<PathBuf>,
    /// Directory of environment files, read after those of ~/.tripleo/environments; may be
    /// repeated, and TRIPLEO_ENVIRONMENT_DIRECTORY names a last one
    #[arg(long = "environment-directory", value_name = "DIR")]
    environment_directories: Vec<PathBuf>,
    /// Roles file that tells which services run
    #[arg(short = 'r', long, value_name = "FILE")]
    roles_file: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Print the tag that an image's labels tell
#[derive(Debug, Args)]
pub struct DiscoverArgs {
    /// Image whose labels are read
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// Label, or template of labels, that tells the tag
    #[arg(long, value_name = "LABEL")]
    tag_from_label: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

impl Overcloud {
    /// Runs the command.
    pub async fn run(self) -> CliResult {
        let Self::Container(Container::Image(image)) = self;
        match image {
            Image::Prepare(args) => args.run().await,
            Image::Upload(args) => args.run().await,
            Image::Build(args) => args.run().await,
            Image::Tag(Tag::Discover(args)) => args.run().await,
        }
    }
}

impl PrepareArgs {
    async fn run(self) -> CliResult {
        let now = LocalTime::now();
        for path in [&self.output_env_file, &self.output_images_file] {
            path.as_deref().map_or(Ok(()), env_file::check)?;
        }
        let request = self.request()?;
        let draft = Draft::of(&request).await?;
        let mut found = look_up(&request, draft, &self.client, false).await?;
        tell_of_insecure(&mut found, InsecureList::All);
        let plan = &found.resolved.plan;
        let list = yaml::write(&plan.upload_list());
        if let Some(path) = &self.output_images_file {
            env_file::write(path, &list)?;
        }
        if let Some(path) = &self.output_env_file {
            env_file::write(path, &environment_text(plan.parameter_defaults(), now))?;
        }
        std::io::stdout().write_all(list.as_bytes())?;
        Ok(Exit::Success)
    }

    fn request(&self) -> CliResult<Request> {
        let release = Release::Queens;
        let services = self.services(release)?;
        let runs = |service: &str| {
            let name = format!("OS::TripleO::Services::{service}");
            services.as_ref().is_some_and(|services| services.contains(&name))
        };
        let neutron_driver = match (runs("OpenDaylightApi"), runs("OVNController")) {
            (true, _) => Some("odl".to_owned()),
            (false, true) => Some("ovn".to_owned()),
            (false, false) => None,
        };
        let template = match &self.template_file {
            Some(path) => TemplateSource::File(path.clone()),
            None => TemplateSource::BuiltIn(release),
        };
        Ok(Request {
            release,
            template,
            main: EntryList { entries: vec![self.entry()?], services },
            roles: Default::default(),
            neutron_driver,
            multi_arch: false,
            // Where `upload` takes what the list names no destination for.
            undercloud: Some(undercloud::control_plane_registry()),
            append_tag: String::new(),
            logins: Default::default(),
            tells_undercloud: false,
            from: None,
            docker_mirror: None,
        })
    }

    /// The services that run in containers, or nothing where no file tells of any.
    fn services(&self, release: Release) -> CliResult<Option<BTreeSet<String>>> {
        let files = environment_files(&self.environment_directories, &self.environment_files)?;
        if files.is_empty() {
            return Ok(None);
        }
        let environment = read_environment(files, release, MissingFiles::AsInRelease)?;
        let roles = self.roles()?;
        // Without roles nothing runs.
        let mut services = role::service_filter(&roles, &environment, release)?.unwrap_or_default();
        // What the files do not map to a container is none.
        services.retain(|service| environment.resource(service).is_some());
        Ok(Some(services))
    }

    /// The roles; none where their file cannot be read, as in the original.
    fn roles(&self) -> CliResult<Vec<Role>> {
        let roles = match read_roles(self.roles_file.as_deref()) {
            Err(RoleError::Document(error @ DocumentError::Read { .. })) => {
                tracing::warn!("{error}");
                Vec::new()
            }
            roles => roles?,
        };
        if roles.is_empty() {
            tracing::warn!("there are no roles: no service runs, and no image is asked for");
        }
        Ok(roles)
    }

    fn entry(&self) -> CliResult<Entry> {
        let mut set = Map::default();
        let named = [
            ("tag", &self.tag),
            ("namespace", &self.namespace),
            ("name_prefix", &self.prefix),
            ("name_suffix", &self.suffix),
        ];
        for (key, value) in named {
            if let Some(value) = value {
                set.insert(key, Value::from(value.as_str()));
            }
        }
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                format!("Malformed --set({pair}). Use the variable=value format.")
            })?;
            set.insert(key, value);
        }
        let excludes: Result<_, PatternError> =
            self.exclude.iter().map(|text| Pattern::parse(text)).collect();
        let destination = self.push_destination.as_deref().unwrap_or_default();
        // A script's unset variable is a flag that is not there.
        let unless_empty = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(Entry {
            set,
            push_destination: PushDestination::registry(destination),
            pull_source: unless_empty(&self.pull_source),
            tag_from_label: unless_empty(&self.tag_from_label),
            excludes: excludes?,
            ..Entry::default()
        })
    }
}

impl DiscoverArgs {
    async fn run(self) -> CliResult {
        let image: Reference =
            self.image.strip_prefix("docker://").unwrap_or(&self.image).parse()?;
        let mut config = self.client.config();
        let host = [image.repository().host().to_owned()].into();
        Insecure::among(&host, &Client::new(config.clone())).await.allow(&mut config);
        let sources = Sources::new(Client::new(config), Platform::host(), std::env::temp_dir());
        let label = self.tag_from_label.as_deref().map(TagLabel::parse).transpose()?;
        let tag = discover::tag_of_labels(&image, &self.image, label.as_ref(), &sources).await?;
        writeln!(std::io::stdout(), "{tag}")?;
        Ok(Exit::Success)
    }
}
