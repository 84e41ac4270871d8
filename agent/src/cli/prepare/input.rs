//! What is prepared, and from what: environments, roles and the image template.

use std::path::{Path, PathBuf};

use clap::Args;
use undermount::prepare::copy::{FileLocation, Location};
use undermount::prepare::environment::{self, Environment};
use undermount::prepare::release::Release;
use undermount::prepare::request::Request;
use undermount::prepare::role::{self, Role, RoleError};
use undermount::prepare::template::TemplateSource;

use crate::cli::clock::LocalTime;
use crate::cli::exit::CliResult;

/// Where TripleO's Heat templates are installed.
const HEAT_TEMPLATES: &str = "/usr/share/openstack-tripleo-heat-templates";
/// The roles file where none is named.
const ROLES_FILE: &str = "roles_data.yaml";

/// What is prepared, and from what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
pub struct InputArgs {
    /// Heat environment file with ContainerImagePrepare; may be repeated, later files win
    #[arg(short = 'e', long = "environment-file", value_name = "FILE")]
    environment_files: Vec<PathBuf>,
    /// Directory whose *.yaml files are read before the environment files and after those of
    /// ~/.tripleo/environments; may be repeated, and TRIPLEO_ENVIRONMENT_DIRECTORY names a last one
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
    /// Read the images of all entries from files of this host in place of their registries:
    /// oci:DIR, oci-archive:FILE, docker-archive:FILE, image-serve:DIR or containers-storage. They
    /// go to the entry's push_destination, else to the undercloud's registry
    #[arg(long, value_name = "FILES", value_parser = parse_from)]
    from: Option<String>,
    /// TripleO release whose names and rules apply (queens, stein, train, wallaby, zed)
    #[arg(long, value_name = "RELEASE", env = "TRIPLEO_COMPAT", default_value_t)]
    release: Release,
}

impl InputArgs {
    /// What the files and flags ask for.
    pub fn request(&self, now: LocalTime, missing: MissingFiles) -> CliResult<Request> {
        let files = environment_files(&self.environment_directories, &self.environment_files)?;
        let environment = read_environment(files, self.release, missing)?;
        let template = match &self.template_file {
            Some(path) => TemplateSource::File(path.clone()),
            None => TemplateSource::BuiltIn(self.release),
        };
        let append_tag = format!("-modified-{}", now.stamp());
        let roles = read_roles(self.roles_file.as_deref())?;
        let release = self.release;
        let request =
            Request::from_environment(&environment, &roles, release, template, append_tag)?;
        Ok(Request { from: self.from.clone(), ..request })
    }
}

/// Files that hold images, all of them.
fn parse_from(text: &str) -> Result<String, String> {
    let words = || {
        format!(
            "`{text}` are no files with images: oci:DIR, oci-archive:FILE, docker-archive:FILE, \
             image-serve:DIR or containers-storage"
        )
    };
    if text.trim_end_matches(':') == "containers-storage" {
        return Ok(text.to_owned());
    }
    match text.parse() {
        Ok(Location::File(FileLocation { name: None, .. })) => Ok(text.to_owned()),
        _ => Err(words()),
    }
}

/// What environment files that do not exist are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingFiles {
    /// Mistakes.
    Refused,
    /// Empty files, with a warning, in the releases whose original takes them so.
    AsInRelease,
}

/// Merges `files`.
pub fn read_environment(
    mut files: Vec<PathBuf>,
    release: Release,
    missing: MissingFiles,
) -> CliResult<Environment> {
    if missing == MissingFiles::AsInRelease && release.takes_missing_environments() {
        let (there, missing): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| path.exists());
        for path in missing {
            let words = "there is no such environment file; as in the original it counts as empty";
            tracing::warn!(path = %path.display(), "{words}");
        }
        files = there;
    }
    Ok(Environment::read(&files)?)
}

/// The *.yaml files of the default directory, then those of `directories` and of the one that
/// TRIPLEO_ENVIRONMENT_DIRECTORY names, then `files`.
pub fn environment_files(directories: &[PathBuf], files: &[PathBuf]) -> CliResult<Vec<PathBuf>> {
    let default = std::env::home_dir().map(|home| home.join(".tripleo/environments"));
    let named = std::env::var_os("TRIPLEO_ENVIRONMENT_DIRECTORY");
    let named = named.filter(|name| !name.is_empty()).map(PathBuf::from);
    let mut all = Vec::new();
    for directory in default.iter().chain(directories).chain(&named) {
        all.extend(environment::files_in(directory)?);
    }
    all.extend(files.iter().cloned());
    Ok(all)
}

/// The roles in the file `named`, or in the default one if it exists.
///
/// # Errors
/// [`RoleError`] where the file cannot be read or is not a list of roles.
pub fn read_roles(named: Option<&Path>) -> Result<Vec<Role>, RoleError> {
    let path = named.unwrap_or(Path::new(ROLES_FILE));
    let installed = Path::new(HEAT_TEMPLATES).join(path);
    let path = if !path.exists() && installed.exists() { &installed } else { path };
    match named {
        None if !path.exists() => Ok(Vec::new()),
        _ => role::read(path),
    }
}
