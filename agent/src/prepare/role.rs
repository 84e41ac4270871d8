//! Roles and the services that they run: which images a deployment needs at all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::document::{self, DocumentError};
use super::environment::Environment;
use super::release::Release;
use super::yaml::Value;

/// A role of the roles file.
#[derive(Debug, Clone, PartialEq)]
pub struct Role {
    /// The name, which its parameters begin with.
    pub name: String,
    count_default: Value,
    services_default: Vec<String>,
}

/// Roles that cannot be read or understood.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The file cannot be read or is not YAML.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The file is not a list of roles.
    #[error("{}: a roles file is a list of maps that each have a `name`", path.display())]
    NotRoles {
        /// The file.
        path: PathBuf,
    },
    /// `<Role>Count` is not a number.
    #[error("Unable to convert {role}Count to an int: {value}")]
    Count {
        /// The role.
        role: String,
        /// Its count.
        value: String,
    },
    /// `<Role>Services` is not a list.
    #[error("{role}Services must be a list of services")]
    Services {
        /// The role.
        role: String,
    },
}

/// Reads the roles file at `path`.
///
/// # Errors
/// [`RoleError`] where the file cannot be read or is not a list of roles.
pub fn read(path: &Path) -> Result<Vec<Role>, RoleError> {
    let own = || path.to_owned();
    match document::read("roles file", path)? {
        Value::Null => Ok(Vec::new()),
        Value::List(items) => {
            let roles: Option<_> = items.iter().map(Role::parse).collect();
            roles.ok_or_else(|| RoleError::NotRoles { path: own() })
        }
        _ => Err(RoleError::NotRoles { path: own() }),
    }
}

impl Role {
    fn parse(value: &Value) -> Option<Self> {
        let role = value.as_map()?;
        let services = match role.get("ServicesDefault") {
            None | Some(Value::Null) => Vec::new(),
            Some(services) => words(services)?,
        };
        Some(Self {
            name: role.get("name")?.as_text()?.to_owned(),
            count_default: role.get("CountDefault").cloned().unwrap_or(Value::Int(0)),
            services_default: services,
        })
    }

    /// The services that this role runs, none where there is no node of it.
    fn services(&self, environment: &Environment) -> Result<Vec<String>, RoleError> {
        let count = environment.parameter(&format!("{}Count", self.name));
        let count = count.unwrap_or(&self.count_default);
        let number = match count {
            Value::Int(number) => Some(*number),
            Value::Bool(truth) => Some(i128::from(*truth)),
            Value::Float(number) => Some(*number as i128),
            Value::Text(text) => python_int(text),
            _ => None,
        };
        let number = number.ok_or_else(|| RoleError::Count {
            role: self.name.clone(),
            value: count.to_string(),
        })?;
        if number <= 0 {
            return Ok(Vec::new());
        }
        match environment.parameter(&format!("{}Services", self.name)) {
            None => Ok(self.services_default.clone()),
            Some(services) => {
                words(services).ok_or_else(|| RoleError::Services { role: self.name.clone() })
            }
        }
    }
}

/// A number as Python's `int()` reads it: spaces around it, single underscores between digits.
fn python_int(text: &str) -> Option<i128> {
    let text = text.trim();
    let is_grouped = text.contains('_')
        && text.trim_start_matches(['+', '-']).split('_').all(|part| !part.is_empty());
    match is_grouped {
        true => text.replace('_', "").parse().ok(),
        false => text.parse().ok(),
    }
}

/// The services that `roles` run in containers; none where there are no roles, which means that
/// nothing is left out.
///
/// # Errors
/// [`RoleError`] where a role's count or services cannot be understood.
pub fn service_filter(
    roles: &[Role],
    environment: &Environment,
    release: Release,
) -> Result<Option<BTreeSet<String>>, RoleError> {
    if roles.is_empty() {
        return Ok(None);
    }
    let mut services = BTreeSet::new();
    for role in roles {
        services.extend(role.services(environment)?);
    }
    services.retain(|service| match (environment.resource(service), release) {
        (Some(path), release) => !release.drops_service(path),
        // In Queens only what the registry maps to a containerised service has an image.
        (None, Release::Queens) => environment.resources().next().is_none(),
        (None, _) => true,
    });
    Ok(Some(services))
}

fn words(value: &Value) -> Option<Vec<String>> {
    value.as_list()?.iter().map(|item| item.as_text().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: &str = "- {name: Controller, CountDefault: 1, ServicesDefault: [Api, Db]}\n\
                         - {name: Compute, CountDefault: 0, ServicesDefault: [Agent]}\n\
                         - {name: Spare}\n";

    fn filter(environment: &str, release: Release) -> Result<Vec<String>, RoleError> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            directory.path().join(name)
        };
        let roles = read(&path("roles.yaml", ROLES)).unwrap();
        let environment = Environment::read(&[path("env.yaml", environment)]).unwrap();
        Ok(service_filter(&roles, &environment, release)?.unwrap().into_iter().collect())
    }

    #[test]
    fn counts_and_services_decide() {
        for (environment, services) in [
            ("", vec!["Api", "Db"]),
            ("parameter_defaults: {ComputeCount: '2', ControllerCount: 0}", vec!["Agent"]),
            ("parameter_defaults: {ControllerServices: [Web]}", vec!["Web"]),
            ("resource_registry: {Db: 'OS::Heat::None'}", vec!["Api"]),
            (
                "parameter_defaults: {ControllerServices: [Db]}\nresource_registry: {Db: 'OS::Heat::None'}",
                vec![],
            ),
        ] {
            assert_eq!(filter(environment, Release::Zed).unwrap(), services, "{environment}");
        }
    }

    #[test]
    fn older_releases_tell_containers_from_puppet() {
        let registry =
            "resource_registry: {Db: /t/puppet/services/db.yaml, Api: /t/docker/services/a.yaml}";
        assert_eq!(filter(registry, Release::Zed).unwrap(), ["Api", "Db"]);
        assert_eq!(filter(registry, Release::Stein).unwrap(), ["Api"]);
        assert_eq!(filter(registry, Release::Queens).unwrap(), ["Api"]);
    }

    #[test]
    fn a_count_that_is_no_number_is_refused_by_name() {
        let error =
            filter("parameter_defaults: {ControllerCount: many}", Release::Zed).unwrap_err();
        assert_eq!(error.to_string(), "Unable to convert ControllerCount to an int: many");
    }

    #[test]
    fn without_roles_nothing_is_left_out() {
        let filter = service_filter(&[], &Environment::default(), Release::Zed).unwrap();
        assert_eq!(filter, None);
    }
}
