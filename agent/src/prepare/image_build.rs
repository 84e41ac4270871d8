//! Builds images from recipes: Ansible writes a `Dockerfile` for each, `buildah` builds them,
//! those first that others are built on.
//!
//! Recipes are full of Ansible's expressions, so Ansible itself fills in the template.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::ansible::{self, AnsibleError};
use super::program::{Program, ProgramError};
use super::recipe::Recipe;
use super::yaml::{self, Map, Value};

/// What becomes of a recipe, in Ansible's template language (Containerfile(5)).
const TEMPLATE: &str = include_str!("image_build/Dockerfile.j2");
/// Images that are built at a time.
const PARALLEL: usize = 4;

/// What holds for all images of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the lowest images are built on.
    pub base: String,
    /// `host[:port]` of the images' names.
    pub registry: String,
    /// The namespace of their names.
    pub namespace: String,
    /// What stands before each image's name.
    pub prefix: String,
    /// Their tag.
    pub tag: String,
    /// Labels, with `%(name)s` and the like for parts of the image's name.
    pub labels: Vec<(String, String)>,
    /// More variables for every recipe, such as `tcib_distro`.
    pub vars: Map,
}

/// An image to build.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Its name in the tree.
    pub name: String,
    /// The image of this run whose directory its own lies in, which is built before.
    pub parent: Option<String>,
    /// Where its `Dockerfile` goes.
    pub directory: PathBuf,
    /// What it is called.
    pub target: String,
    /// The parent, where it is built on that and not on an image that its recipe names.
    built_on: Option<String>,
    /// Ansible's variables.
    vars: Map,
}

/// How images are built.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Directories of this host that the builds see, as `buildah --volume` has them.
    pub volumes: Vec<String>,
    /// How long one image may take.
    pub deadline: Duration,
    /// Where buildah finds our credentials, if anywhere.
    pub authfile: Option<PathBuf>,
    /// Whether images are pushed to the registry of their name.
    pub push: bool,
}

/// An image that was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `buildah` failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// What it is built on was not built.
    #[error("{0} was not built")]
    Parent(String),
}

impl Settings {
    /// What `recipe` comes to, with its files below `work`.
    pub fn container(&self, recipe: &Recipe, work: &Path) -> Container {
        let directory = work.join(&recipe.place);
        let mut vars = recipe.vars.clone();
        for (key, value) in self.vars.iter() {
            vars.insert(key, value.clone());
        }
        vars.insert("tcib_path", directory.to_string_lossy().into_owned());
        vars.insert("tcib_meta", Map::from_iter([("name", recipe.name.as_str())]));
        if !self.labels.is_empty() {
            vars.insert("tcib_labels", self.labels_of(recipe));
        }
        let parent = recipe.parent.as_deref();
        let on = parent.map_or(self.base.clone(), |name| self.target(name));
        let is_on_parent = vars.get("tcib_from").is_none_or(|from| from.to_string() == on);
        if is_on_parent {
            vars.insert("tcib_from", on);
        }
        let (name, target) = (recipe.name.clone(), self.target(&recipe.name));
        let parent = recipe.parent.clone();
        let built_on = parent.clone().filter(|_| is_on_parent);
        Container { name, parent, built_on, directory, target, vars }
    }

    fn target(&self, name: &str) -> String {
        let Self { registry, namespace, prefix, tag, .. } = self;
        format!("{registry}/{namespace}/{prefix}-{name}:{tag}")
    }

    fn labels_of(&self, recipe: &Recipe) -> Map {
        let title = format!("OpenStack Platform {}", recipe.name);
        let mut labels = Map::from_iter([
            ("maintainer", "OpenStack TripleO Team"),
            ("description", title.as_str()),
            ("summary", title.as_str()),
            ("io.k8s.display-name", title.as_str()),
        ]);
        labels.insert("tcib_managed", Value::Bool(true));
        let parent = recipe.parent.as_deref().unwrap_or(&self.base);
        for (key, value) in &self.labels {
            let value = [
                ("%(registry)s", self.registry.as_str()),
                ("%(namespace)s", &self.namespace),
                ("%(prefix)s", &self.prefix),
                ("%(image)s", parent),
                ("%(tag)s", &self.tag),
                ("%(name)s", &recipe.name),
                ("%%", "%"),
            ]
            .iter()
            .fold(value.clone(), |value, (field, text)| value.replace(field, text));
            labels.insert(key, value);
        }
        labels
    }
}

/// Writes the `Dockerfile` of each of `containers`; `extra` are variables that count above all.
///
/// # Errors
/// [`AnsibleError`] where a file cannot be written or Ansible fails.
pub async fn write_files(
    containers: &[Container],
    work: &Path,
    extra: &Map,
) -> Result<(), AnsibleError> {
    let mut hosts = Map::default();
    for container in containers {
        fs::create_dir_all(&container.directory)?;
        let vars = container.vars.clone();
        let path = container.directory.join(format!("{}.yaml", container.name));
        fs::write(path, yaml::write(&vars.clone().into()))?;
        hosts.insert(&container.name, vars);
    }
    let template = work.join("Dockerfile.j2");
    fs::write(&template, TEMPLATE)?;
    let inventory = work.join("inventory.yaml");
    let all = Map::from_iter([("all", Map::from_iter([("hosts", hosts)]))]);
    fs::write(&inventory, yaml::write(&all.into()))?;
    let playbook = work.join("playbook.yaml");
    fs::write(&playbook, yaml::write(&play(&template, extra)))?;
    ansible::run_playbook(&inventory, &playbook).await
}

fn play(template: &Path, extra: &Map) -> Value {
    let gather = Map::from_iter([
        ("name", Value::from("Gather files")),
        (
            "fetch",
            Map::from_iter([
                ("src", Value::from("{{ item }}")),
                ("dest", Value::from("{{ tcib_path }}/{{ item }}")),
                ("flat", Value::Bool(true)),
            ])
            .into(),
        ),
        ("loop", Value::from("{{ tcib_gather_files | default([]) }}")),
    ]);
    let write = Map::from_iter([
        ("name", Value::from("Write the Dockerfile")),
        (
            "template",
            Map::from_iter([
                ("src", template.to_string_lossy().into_owned()),
                ("dest", "{{ tcib_path }}/Dockerfile".to_owned()),
            ])
            .into(),
        ),
    ]);
    let mut play = Map::from_iter([("hosts", "all"), ("connection", "local")]);
    play.insert("gather_facts", Value::Bool(false));
    play.insert("vars", extra.clone());
    play.insert("tasks", [Value::Map(gather), Value::Map(write)].into_iter().collect::<Value>());
    [Value::Map(play)].into_iter().collect()
}

/// Builds `containers`, in whose order parents come first; gives those that failed, and why.
pub async fn build(containers: &[Container], options: &BuildOptions) -> Vec<(String, BuildError)> {
    let mut failed = Vec::new();
    let mut lost: BTreeSet<&str> = BTreeSet::new();
    for level in levels(containers) {
        let mut ready = Vec::new();
        for container in level {
            match container.built_on.as_deref() {
                Some(parent) if lost.contains(parent) => {
                    lost.insert(&container.name);
                    let error = BuildError::Parent(parent.to_owned());
                    failed.push((container.name.clone(), error));
                }
                _ => ready.push(container),
            }
        }
        let builds = ready
            .into_iter()
            .map(|container| async move { (container, build_one(container, options).await) });
        let mut built = stream::iter(builds).buffered(PARALLEL);
        while let Some((container, outcome)) = built.next().await {
            match outcome {
                Ok(()) => tracing::info!(image = container.target, "built"),
                Err(error) => {
                    lost.insert(&container.name);
                    failed.push((container.name.clone(), error.into()));
                }
            }
        }
    }
    failed
}

/// The images by how many others of the run they stand on.
fn levels(containers: &[Container]) -> Vec<Vec<&Container>> {
    let mut depths: BTreeMap<&str, usize> = BTreeMap::new();
    let mut levels: Vec<Vec<&Container>> = Vec::new();
    for container in containers {
        let parent = container.parent.as_deref().and_then(|parent| depths.get(parent));
        let depth = parent.map_or(0, |depth| depth + 1);
        depths.insert(&container.name, depth);
        if levels.len() == depth {
            levels.push(Vec::new());
        }
        levels[depth].push(container);
    }
    levels
}

async fn build_one(container: &Container, options: &BuildOptions) -> Result<(), ProgramError> {
    let buildah = || {
        let program = Program::new("buildah", "buildah", options.deadline);
        match &options.authfile {
            Some(path) => program.env("REGISTRY_AUTH_FILE", path),
            None => program,
        }
    };
    let log = container.directory.join(format!("{}-build.log", container.name));
    let volumes = options.volumes.iter().flat_map(|volume| ["--volume", volume]);
    buildah()
        .args(["bud", "--net=host", "--format", "docker", "--tls-verify=false"])
        .args(volumes)
        .args([OsStr::new("--logfile"), log.as_os_str()])
        .args(["--tag", &container.target])
        .args([&container.directory])
        .run()
        .await?;
    if options.push {
        let target = &container.target;
        let arguments = ["push", "--tls-verify=false", target];
        buildah().args(arguments).args([format!("docker://{target}")]).run().await?;
    }
    Ok(())
}

/// A directory of its own below `root`, which stays: it has the logs of the builds.
///
/// # Errors
/// Where it cannot be made.
pub fn work_directory(root: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(root)?;
    Ok(tempfile::Builder::new().prefix("build-").tempdir_in(root)?.keep())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, parent: Option<&str>) -> Container {
        with_vars(name, parent, [])
    }

    fn with_vars<const N: usize>(
        name: &str,
        parent: Option<&str>,
        own: [(&str, &str); N],
    ) -> Container {
        let settings = Settings {
            base: "q.io/base:9".to_owned(),
            registry: "localhost".to_owned(),
            namespace: "ns".to_owned(),
            prefix: "openstack".to_owned(),
            tag: "t".to_owned(),
            labels: vec![("who".to_owned(), "%(name)s on %(image)s at 100%%".to_owned())],
            vars: Map::from_iter([("tcib_distro", "centos")]),
        };
        let (parent, place) = (parent.map(str::to_owned), PathBuf::from(name));
        let vars = [("tcib_distro", "mine"), ("tcib_user", "nova")].into_iter().chain(own);
        let vars = Map::from_iter(vars);
        let recipe = Recipe { name: name.to_owned(), parent, place, vars };
        settings.container(&recipe, Path::new("/w"))
    }

    #[test]
    fn a_recipe_gets_the_names_and_variables_of_the_run() {
        let nova = container("nova", Some("os"));
        assert_eq!(nova.target, "localhost/ns/openstack-nova:t");
        let text = yaml::write(&nova.vars.into());
        for line in [
            "tcib_distro: centos\n",
            "tcib_from: localhost/ns/openstack-os:t\n",
            "tcib_path: /w/nova\n",
            "tcib_user: nova\n",
            "  who: nova on os at 100%\n",
            "  tcib_managed: true\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let base = yaml::write(&container("base", None).vars.into());
        assert!(base.contains("tcib_from: q.io/base:9\n"), "{base}");
    }

    #[test]
    fn images_are_built_after_what_they_are_built_on() {
        let containers = [
            container("base", None),
            container("os", Some("base")),
            container("nova", Some("os")),
            container("cron", Some("base")),
            container("ee", Some("elsewhere")),
        ];
        let names: Vec<Vec<_>> = levels(&containers)
            .iter()
            .map(|level| level.iter().map(|container| container.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["base", "ee"], vec!["os", "cron"], vec!["nova"]]);
    }

    #[test]
    fn regression_an_image_with_a_base_of_its_own_is_not_lost_with_its_directory() {
        for (own, stands) in [("q.io/other:1", false), ("localhost/ns/openstack-os:t", true)] {
            let nova = with_vars("nova", Some("os"), [("tcib_from", own)]);
            assert_eq!(nova.built_on.is_some(), stands, "{own}");
            assert!(yaml::write(&nova.vars.into()).contains(&format!("tcib_from: {own}\n")));
        }
        assert_eq!(container("nova", Some("os")).built_on.as_deref(), Some("os"));
    }
}
