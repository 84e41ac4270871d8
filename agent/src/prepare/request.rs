//! What is asked for: the lists of entries, and everything that decides how they are read.

use std::collections::BTreeSet;

use crate::registry::client::ClientConfig;

use super::PrepareError;
use super::credentials::{self, Logins};
use super::entry::{self, Entry};
use super::environment::Environment;
use super::release::Release;
use super::role::{self, Role};
use super::template::TemplateSource;
use super::undercloud::PORT;
use super::yaml::Value;

/// The parameter with the list of entries; a role's own list has the role's name before it.
const ENTRIES: &str = "ContainerImagePrepare";

/// A list of entries and which images it is about.
#[derive(Debug, Clone, Default)]
pub struct EntryList {
    /// The entries, of which later ones win.
    pub entries: Vec<Entry>,
    /// The services that are deployed; where absent, nothing is left out.
    pub services: Option<BTreeSet<String>>,
}

/// Everything that decides what is prepared.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose names and rules apply.
    pub release: Release,
    /// The image template.
    pub template: TemplateSource,
    /// The deployment's list.
    pub main: EntryList,
    /// Lists of roles that have their own, in the order of the roles.
    pub roles: Vec<(String, EntryList)>,
    /// The neutron driver of entries that name none.
    pub neutron_driver: Option<String>,
    /// Whether all architectures are copied where an entry does not say.
    pub multi_arch: bool,
    /// The undercloud's registry, `host:port`, where the environment or the caller knows it.
    pub undercloud: Option<String>,
    /// What modified images have appended to their tag where the entry does not say.
    pub append_tag: String,
    /// Who we are, by registry.
    pub logins: Logins,
    /// Whether parameters name images at the undercloud that go there though their entry has no
    /// `push_destination`, because they are changed on the way.
    pub tells_undercloud: bool,
    /// Files of this host that the images of all entries are read from, in place of registries.
    pub from: Option<String>,
    /// Where to ask in place of docker.io.
    pub docker_mirror: Option<String>,
}

impl Request {
    /// What `environment` asks for, with the services that `roles` run.
    ///
    /// # Errors
    /// [`PrepareError`] where an entry, a role's count or the credentials cannot be understood.
    pub fn from_environment(
        environment: &Environment,
        roles: &[Role],
        release: Release,
        template: TemplateSource,
        append_tag: String,
    ) -> Result<Self, PrepareError> {
        let list = |parameter: &str, value: &Value, roles: &[Role]| {
            Ok::<_, PrepareError>(EntryList {
                entries: entry::entries(parameter, value)?,
                services: role::service_filter(roles, environment, release)?,
            })
        };
        let given = environment.parameter(ENTRIES).filter(|value| value.is_truthy());
        let main = list(ENTRIES, given.unwrap_or(&release.default_entries()), roles)?;
        let mut own = Vec::new();
        for role in roles {
            let parameter = format!("{}{ENTRIES}", role.name);
            if let Some(value) = environment.parameter(&parameter).filter(|value| value.is_truthy())
            {
                let list = list(&parameter, value, std::slice::from_ref(role))?;
                own.push((role.name.clone(), list));
            }
        }
        let truthy = |name: &str| environment.parameter(name).filter(|value| value.is_truthy());
        let drivers = environment.parameter("NeutronMechanismDrivers");
        Ok(Self {
            release,
            template,
            neutron_driver: Some(release.neutron_driver(drivers).to_owned()),
            multi_arch: truthy("AdditionalArchitectures").is_some(),
            undercloud: truthy("LocalContainerRegistry").map(|address| format!("{address}:{PORT}")),
            append_tag,
            logins: credentials::logins(
                environment.parameter("ContainerImageRegistryCredentials"),
            )?,
            tells_undercloud: true,
            from: None,
            docker_mirror: truthy("DockerRegistryMirror").map(Value::to_string),
            main,
            roles: own,
        })
    }

    /// Lets `config` log in and find the mirror as the environment says.
    ///
    /// # Errors
    /// [`PrepareError::Mirror`] where the mirror is no address.
    pub fn configure(&self, config: &mut ClientConfig) -> Result<(), PrepareError> {
        for (registry, credential) in &self.logins {
            config.credentials.give(registry, credential.clone());
        }
        if let Some(mirror) = &self.docker_mirror {
            let wrong = || PrepareError::Mirror(mirror.clone());
            let mut url = reqwest::Url::parse(mirror).map_err(|_| wrong())?;
            if !url.path().ends_with('/') {
                url.set_path(&format!("{}/", url.path()));
            }
            if !matches!(url.scheme(), "http" | "https") {
                return Err(wrong());
            }
            config.docker_mirror = Some(url);
        }
        Ok(())
    }

    /// The list of the deployment and those of roles, with the role's name.
    pub fn lists(&self) -> impl Iterator<Item = (Option<&str>, &EntryList)> {
        let roles = self.roles.iter().map(|(role, list)| (Some(role.as_str()), list));
        std::iter::once((None, &self.main)).chain(roles)
    }
}
