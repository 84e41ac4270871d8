//! The undercloud's image preparation: which images a deployment needs, where they come from,
//! where they go and what the Heat parameters say about them.
//!
//! ```text
//! environment -> request -> draft -> discover -> plan -> copy
//!                  |          |                    \-> env_file
//!      entry, role, release  template, filter
//! ```
//! Everything before the copy is decided before anything moves; the rules are pure functions,
//! and only [`discover`] and [`copy`] talk to registries.

pub mod ansible;
pub mod ceph;
pub mod copy;
pub mod credentials;
pub mod discover;
pub mod document;
pub mod draft;
pub mod entry;
pub mod env_file;
pub mod environment;
pub mod estimate;
pub mod filter;
pub mod format;
pub mod image_build;
pub mod image_serve;
pub mod insecure;
pub mod label;
pub mod modify;
pub mod named;
pub mod naming;
pub mod pattern;
pub mod plan;
pub mod program;
pub mod progress;
pub mod recipe;
pub mod release;
pub mod request;
pub mod role;
pub mod sources;
pub mod template;
pub mod undercloud;
pub mod upload_list;
pub mod yaml;

use self::copy::origin::Origins;
use self::credentials::CredentialsError;
use self::discover::DiscoverError;
use self::draft::{Draft, DraftEntry};
use self::entry::EntryError;
use self::environment::EnvironmentError;
use self::pattern::PatternError;
use self::plan::{EntryContext, Plan, plan_entry};
use self::request::Request;
use self::role::RoleError;
use self::sources::Sources;
use self::template::TemplateError;

/// A preparation that ended before anything was copied.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The environment cannot be read.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The roles cannot be understood.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// An entry cannot be understood.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// There are no entries where only entries are of use.
    #[error("the environment has no list ContainerImagePrepare")]
    NoEntries,
    /// A pattern cannot be searched for.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The credentials cannot be understood.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// `DockerRegistryMirror` is no address.
    #[error("DockerRegistryMirror: `{0}` is not an address (http://host:port/)")]
    Mirror(String),
    /// The template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// An image of this host that nodes would have to pull from it.
    #[error(
        "{0} is read from files of this host, where no node can pull it: give its entry a \
         push_destination"
    )]
    NoDestination(String),
    /// Images could not be looked up; all of them are listed.
    #[error(transparent)]
    Discover(#[from] DiscoverErrors),
}

/// Everything that could not be looked up.
#[derive(Debug)]
pub struct DiscoverErrors {
    /// The failures in the order of the entries; there is at least one.
    pub errors: Vec<DiscoverError>,
}

impl std::error::Error for DiscoverErrors {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.errors.as_slice() {
            [only] => only.source(),
            _ => None,
        }
    }
}

impl std::fmt::Display for DiscoverErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [only] = self.errors.as_slice() {
            return only.fmt(f);
        }
        write!(f, "{} images cannot be looked up:", self.errors.len())?;
        for error in &self.errors {
            write!(f, "\n  {error}")?;
            let mut cause = std::error::Error::source(error);
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

/// A plan and what it could not include.
#[derive(Debug)]
pub struct Resolved {
    /// What will be copied and written.
    pub plan: Plan,
    /// Images that their registries do not have, left out because that was asked for.
    pub missing: Vec<DiscoverError>,
}

/// Asks the registries and makes the plan for `draft`. With `skip_missing`, images that do not
/// exist are left out of it.
///
/// # Errors
/// [`DiscoverErrors`] with all images that cannot be looked up.
pub async fn resolve(
    request: &Request,
    draft: Draft,
    sources: &Sources,
    skip_missing: bool,
) -> Result<Resolved, PrepareError> {
    let mut resolver =
        Resolver { request, sources, skip_missing, missing: Vec::new(), failed: Vec::new() };
    let mut plan = resolver.plan(&draft.main).await;
    for (role, entries) in &draft.roles {
        let own = resolver.plan(entries).await;
        plan.roles.push((role.clone(), own));
    }
    if resolver.failed.is_empty() {
        Ok(Resolved { plan, missing: resolver.missing })
    } else {
        Err(DiscoverErrors { errors: resolver.failed }.into())
    }
}

struct Resolver<'a> {
    request: &'a Request,
    sources: &'a Sources,
    skip_missing: bool,
    missing: Vec<DiscoverError>,
    failed: Vec<DiscoverError>,
}

impl Resolver<'_> {
    async fn plan(&mut self, entries: &[DraftEntry]) -> Plan {
        let mut plan = Plan::default();
        let origins = Origins::new(self.sources);
        for (position, draft) in entries.iter().enumerate() {
            let mut images = Vec::new();
            for found in discover::resolve(draft, self.request.release, &origins).await {
                match found {
                    Ok(image) => images.push(image),
                    Err(error) if self.skip_missing && error.is_missing() => {
                        self.missing.push(error)
                    }
                    Err(error) => self.failed.push(error),
                }
            }
            let context = EntryContext {
                position,
                push_destination: draft.push_destination.clone(),
                is_told: draft.is_told,
                default_append_tag: self.request.append_tag.clone(),
                multi_arch: self.request.multi_arch,
            };
            plan.images.extend(plan_entry(&draft.entry, images, &context));
        }
        plan
    }
}
