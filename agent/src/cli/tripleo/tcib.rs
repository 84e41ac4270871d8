//! `tripleo container image build`: images from TripleO's tree of recipes, without Kolla.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use undermount::prepare::document;
use undermount::prepare::image_build::{self, BuildOptions, Settings};
use undermount::prepare::recipe::{Recipe, Recipes, bare_name};
use undermount::prepare::yaml::{Map, Value};

use crate::cli::exit::{CliResult, Exit, in_words};

/// Modules of RHEL whose version can be chosen.
const MODULES: [&str; 4] = ["container-tools", "mariadb", "redis", "virt"];
/// What tools put before names of images.
const DISTRIBUTIONS: [&str; 4] = ["openstack-", "centos-", "rhel-", "ubi8-"];
/// Keys that packages are checked with, which the builds see where this host has them.
const KEYS: &str = "/etc/pki/rpm-gpg";

/// Build images from TripleO's tree of recipes (tcib), with Ansible and buildah
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// File with the registries' credentials [default: containers/auth.json below
    /// $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    authfile: Option<PathBuf>,
    /// Image that the lowest image is built on
    #[arg(long, value_name = "IMAGE", default_value = "centos:stream9")]
    base: String,
    /// List of the images to build, here or in the configuration directory; without it all are
    #[arg(long, value_name = "FILE", default_value = "tripleo_containers.yaml")]
    config_file: PathBuf,
    /// Directory with the tree `tcib`
    #[arg(long, value_name = "DIR", default_value = "/usr/share/tripleo-common/container-images")]
    config_path: PathBuf,
    /// Distribution, which recipes know as tcib_distro
    #[arg(long, value_name = "NAME", default_value = "centos")]
    distro: String,
    /// Its release, which recipes know as tcib_release
    #[arg(long, value_name = "NUMBER", default_value = "9")]
    release: String,
    /// Another variable for the recipes, tcib_KEY=VALUE; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    tcib_extras: Vec<String>,
    /// Image to leave out; may be repeated
    #[arg(long = "exclude", value_name = "NAME")]
    excludes: Vec<String>,
    /// YAML file with variables that count above all recipes
    #[arg(long, value_name = "FILE")]
    extra_config: Option<PathBuf>,
    /// Namespace of the images' names
    #[arg(long, value_name = "NAMESPACE", default_value = "tripleomastercentos9")]
    namespace: String,
    /// Registry of the images' names
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    registry: String,
    /// Write the Dockerfiles and build nothing
    #[arg(long)]
    skip_build: bool,
    /// Tag of the images
    #[arg(long, value_name = "TAG", default_value = "latest")]
    tag: String,
    /// What the images' names begin with
    #[arg(long, value_name = "PREFIX", default_value = "openstack")]
    prefix: String,
    /// Push what was built
    #[arg(long)]
    push: bool,
    /// Label of the images, KEY=VALUE; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Directory of this host that the builds see; may be repeated
    #[arg(long = "volume", value_name = "FROM:TO")]
    volumes: Vec<String>,
    /// Directory with the repositories of packages
    #[arg(long, value_name = "DIR", default_value = "/etc/yum.repos.d")]
    repo_dir: PathBuf,
    /// Directory for the Dockerfiles and the logs of the builds, which stay there
    #[arg(long, value_name = "DIR", default_value = "/tmp/container-builds")]
    work_dir: PathBuf,
    /// Versions of RHEL's modules: mariadb:10.3,virt:8.3
    #[arg(long, value_name = "MODULES", value_delimiter = ',')]
    rhel_modules: Vec<String>,
    /// How long one image may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    build_timeout: u64,
}

impl BuildArgs {
    /// Builds; tells in the end what failed.
    pub async fn run(self) -> CliResult {
        let settings = self.settings()?;
        let recipes = self.recipes()?;
        let wanted = self.wanted(&recipes)?;
        let chosen: Vec<&Recipe> = recipes.choose(&wanted, &self.excludes)?;
        let extra = match &self.extra_config {
            Some(path) => map_in("extra configuration", path)?,
            None => Map::default(),
        };
        let work = image_build::work_directory(&self.work_dir)?;
        tracing::info!(directory = %work.display(), images = chosen.len(), "writing Dockerfiles");
        let containers: Vec<_> =
            chosen.iter().map(|recipe| settings.container(recipe, &work)).collect();
        image_build::write_files(&containers, &work, &extra).await?;
        if self.skip_build {
            return Ok(Exit::Success);
        }
        let failed = image_build::build(&containers, &self.options()).await;
        if failed.is_empty() {
            return Ok(Exit::Success);
        }
        let words = failed.iter().map(|(name, error)| format!("\n  {name}: {}", in_words(error)));
        let (failures, images): (String, _) = (words.collect(), containers.len());
        Err(format!("{} of {images} images were not built:{failures}", failed.len()).into())
    }

    fn recipes(&self) -> CliResult<Recipes> {
        let root = self.config_path.join("tcib");
        if !root.is_dir() {
            return Err(format!("Configuration directory {} was not found.", root.display()).into());
        }
        Ok(Recipes::read(&root)?)
    }

    /// The images of the list that come from TripleO, or all.
    fn wanted(&self, recipes: &Recipes) -> CliResult<Vec<String>> {
        let installed = self.config_path.join(&self.config_file);
        let path = if self.config_file.is_file() { &self.config_file } else { &installed };
        if !path.is_file() {
            tracing::warn!(file = %path.display(), "there is no such list: all images are built");
            return Ok(recipes.names());
        }
        let list = map_in("list of images", path)?;
        let images = list.get("container_images").and_then(Value::as_list);
        let no_list = || format!("{} has no list `container_images`", path.display());
        let is_ours = |image: &&Map| {
            image.get("image_source").is_some_and(|source| source.as_text() == Some("tripleo"))
        };
        let ours = images.ok_or_else(no_list)?.iter().filter_map(Value::as_map).filter(is_ours);
        let names = ours.filter_map(|image| Some(image.get("imagename")?.to_string()));
        Ok(names.map(|name| bare_name(&name, &DISTRIBUTIONS).to_owned()).collect())
    }

    fn settings(&self) -> Result<Settings, String> {
        let mut vars = Map::from_iter([
            ("tcib_distro", self.distro.as_str()),
            ("tcib_release", self.release.as_str()),
        ]);
        for extra in &self.tcib_extras {
            let (key, value) = pair("--tcib-extras", extra)?;
            if !key.starts_with("tcib_") {
                return Err(format!(
                    "Wrong key format {key}. We expect \"tcib_\" prefix, such as tcib_{key}"
                ));
            }
            vars.insert(key, value);
        }
        if !self.rhel_modules.is_empty() {
            vars.insert("tcib_rhel_modules", self.modules()?);
        }
        let labels = self.labels.iter().map(|label| {
            pair("--label", label).map(|(key, value)| (key.to_owned(), value.to_owned()))
        });
        Ok(Settings {
            base: self.base.clone(),
            registry: self.registry.clone(),
            namespace: self.namespace.clone(),
            prefix: self.prefix.clone(),
            tag: self.tag.clone(),
            labels: labels.collect::<Result<_, _>>()?,
            vars,
        })
    }

    fn modules(&self) -> Result<Map, String> {
        let module = |text: &String| {
            let wrong = "Wrong format for --rhel-modules, must be a comma separated list of \
                         <module>:<version>";
            let (name, version) = text.split_once(':').ok_or(wrong)?;
            if !MODULES.contains(&name) {
                let known = MODULES.join(", ");
                return Err(format!("{name} is not part of supported modules {known}"));
            }
            Ok((name.to_owned(), version.to_owned()))
        };
        self.rhel_modules.iter().map(module).collect()
    }

    fn options(&self) -> BuildOptions {
        let mut volumes = self.volumes.clone();
        for (from, to) in [(Path::new(KEYS), KEYS), (&self.repo_dir, "/etc/distro.repos.d")] {
            // A directory that is not there would make buildah refuse to build anything.
            if from.is_dir() {
                volumes.push(format!("{}:{to}:z", from.display()));
            }
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let default = runtime.map(|runtime| runtime.join("containers/auth.json"));
        BuildOptions {
            volumes,
            deadline: Duration::from_secs(self.build_timeout),
            authfile: self.authfile.clone().or(default).filter(|path| path.is_file()),
            push: self.push,
        }
    }
}

fn pair<'a>(flag: &str, text: &'a str) -> Result<(&'a str, &'a str), String> {
    text.split_once('=').ok_or_else(|| format!("{flag} {text}: use KEY=VALUE"))
}

fn map_in(what: &'static str, path: &Path) -> CliResult<Map> {
    match document::read(what, path)? {
        Value::Map(map) => Ok(map),
        Value::Null => Ok(Map::default()),
        other => Err(format!("{}: must be a map, this is {}", path.display(), other.kind()).into()),
    }
}
