//! Images that a role changes on the way (`modify_role`), after their originals are at the
//! destination.
//!
//! ```text
//! destination --pull--> local image --role--> changed local image --copy--> destination
//! ```
//! Roles work on local images: `buildah` pulls the original from the destination, the role makes
//! an image beside it whose tag has the suffix, and that is copied like every other image.
//!
//! A changed image that the destination has already is left alone, as in the original.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use crate::image::{Reference, ReferenceError};
use crate::registry::client::RegistryError;

use super::ansible::{self, AnsibleError, BUILD_TOOL, RoleTask};
use super::copy::{self, CopyError, CopyJob, CopyOptions, Location};
use super::plan::{Modification, Plan};
use super::program::{Program, ProgramError};
use super::progress::Progress;
use super::sources::Sources;
use super::yaml::{Map, Value};

/// How long `buildah` may take to move one image.
const BUILDAH_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// Destinations that are asked for a changed image at a time.
const PARALLEL: usize = 16;

/// An image that a role changes.
#[derive(Debug, Clone, PartialEq)]
pub struct ModifyJob {
    /// The original, at the destination.
    pub original: Reference,
    /// The changed image, at the destination.
    pub target: Reference,
    /// How it is changed.
    pub modification: Modification,
}

/// A plan that asks for what no role can do.
#[derive(Debug, thiserror::Error)]
pub enum ModifyPlanError {
    /// A name that no registry could know.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A list of images.
    #[error("Cannot run a modify role on multi-arch image {0}")]
    MultiArch(String),
    /// Variables that are no map.
    #[error("modify_vars of {image} must be a map, this is {found}")]
    Vars {
        /// The image.
        image: String,
        /// What it is.
        found: &'static str,
    },
}

/// An image that was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError {
    /// The destination cannot be asked for it.
    #[error("cannot look up {image}")]
    LookUp {
        /// The changed image.
        image: Box<Reference>,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The original cannot be pulled.
    #[error("cannot pull {image}")]
    Pull {
        /// The original.
        image: Box<Reference>,
        /// Why.
        source: ProgramError,
    },
    /// The role failed.
    #[error("Modifying image {image} failed")]
    Role {
        /// The changed image.
        image: Box<Reference>,
        /// Why.
        source: AnsibleError,
    },
    /// The changed image cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The copy did not begin.
    #[error("cannot make the scratch directory")]
    Scratch(#[from] io::Error),
}

/// Which local images are removed in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cleanup {
    /// Original and result.
    #[default]
    Full,
    /// The original.
    Partial,
    /// None.
    None,
}

/// The changes that `plan` asks for, each once.
///
/// # Errors
/// [`ModifyPlanError`] where one cannot be carried out.
pub fn jobs(plan: &Plan) -> Result<Vec<ModifyJob>, ModifyPlanError> {
    let mut jobs: Vec<ModifyJob> = Vec::new();
    for image in plan.all_images() {
        let (Some(modification), Some(original)) = (&image.modify, image.target()) else {
            continue;
        };
        if image.multi_arch {
            return Err(ModifyPlanError::MultiArch(image.source()));
        }
        if let Some(vars) = modification.vars.as_ref().filter(|vars| vars.as_map().is_none()) {
            return Err(ModifyPlanError::Vars { image: image.source(), found: vars.kind() });
        }
        let target: Reference = image.changed_target().unwrap_or_default().parse()?;
        if jobs.iter().all(|job| job.target != target) {
            let modification = modification.clone();
            jobs.push(ModifyJob { original: original.parse()?, target, modification });
        }
    }
    Ok(jobs)
}

/// Those of `jobs` whose result is not at its destination yet. The copies of the others' originals
/// are taken out of `copies`, unless `plan` wants them unchanged too. Then those whose destination
/// cannot be asked, and why.
pub async fn pending(
    jobs: Vec<ModifyJob>,
    plan: &Plan,
    copies: &mut Vec<CopyJob>,
    sources: &Sources,
) -> (Vec<ModifyJob>, Vec<(Reference, ModifyError)>) {
    let asked = jobs.into_iter().map(|job| async {
        let found = sources.client().resolve(&job.target).await;
        (job, found)
    });
    let asked: Vec<_> = stream::iter(asked).buffered(PARALLEL).collect().await;
    let (mut pending, mut failures, mut done) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (job, found) in asked {
        match found {
            Ok(None) => pending.push(job),
            Ok(Some(_)) => {
                tracing::info!(image = %job.target, "changed already");
                done.insert(job.original.to_string());
            }
            Err(error) => {
                let (image, source) = (Box::new(job.target.clone()), Box::new(error));
                failures.push((job.target, ModifyError::LookUp { image, source }));
            }
        }
    }
    let wanted: BTreeSet<_> = plan
        .all_images()
        .filter(|image| image.modify.is_none())
        .filter_map(super::plan::PlannedImage::target)
        .chain(pending.iter().map(|job| job.original.to_string()))
        .collect();
    copies.retain(|copy| {
        let target = copy.target.to_string();
        wanted.contains(&target) || !done.contains(&target)
    });
    (pending, failures)
}

/// Changes images, one after the other: roles use the host's one image store.
pub struct Modifier<'a> {
    sources: &'a Sources,
    options: &'a CopyOptions,
    cleanup: Cleanup,
    /// Where buildah finds our credentials, if anywhere.
    authfile: Option<&'a std::path::Path>,
    /// Registries whose certificates are not verified.
    insecure: &'a BTreeSet<String>,
}

impl<'a> Modifier<'a> {
    /// A modifier that reaches registries as `sources` does.
    pub fn new(
        sources: &'a Sources,
        options: &'a CopyOptions,
        cleanup: Cleanup,
        authfile: Option<&'a std::path::Path>,
        insecure: &'a BTreeSet<String>,
    ) -> Self {
        Self { sources, options, cleanup, authfile, insecure }
    }

    /// Does `jobs`; gives those that failed, and why.
    pub async fn run(
        &self,
        jobs: &[ModifyJob],
        progress: &Arc<dyn Progress>,
    ) -> Vec<(Reference, ModifyError)> {
        let mut failures = Vec::new();
        for job in jobs {
            if let Err(error) = self.modify(job, progress).await {
                failures.push((job.target.clone(), error));
            }
            self.clean(job).await;
        }
        failures
    }

    async fn modify(
        &self,
        job: &ModifyJob,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), ModifyError> {
        self.pull(&job.original).await?;
        ansible::run_roles(&[role_task(job)])
            .await
            .map_err(|source| ModifyError::Role { image: Box::new(job.target.clone()), source })?;
        let copy = CopyJob {
            source: Location::Storage(job.target.to_string()),
            target: job.target.clone().into(),
            multi_arch: false,
        };
        let progress = Arc::clone(progress);
        let report = copy::run(vec![copy], self.sources, self.options, progress).await?;
        match report.outcomes.into_iter().find_map(|(_, outcome)| outcome.err()) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    async fn pull(&self, image: &Reference) -> Result<(), ModifyError> {
        let mut program = buildah(&["pull", "--quiet"]);
        if let Some(path) = self.authfile {
            program = program.args([std::ffi::OsStr::new("--authfile"), path.as_os_str()]);
        }
        if self.insecure.contains(image.repository().host()) {
            program = program.args(["--tls-verify=false"]);
        }
        let pulled = program.args([format!("docker://{image}")]).run().await;
        pulled
            .map(drop)
            .map_err(|source| ModifyError::Pull { image: Box::new(image.clone()), source })
    }

    /// Removes the local images; one that cannot be removed is only told of.
    async fn clean(&self, job: &ModifyJob) {
        let images = match self.cleanup {
            Cleanup::Full => vec![&job.target, &job.original],
            Cleanup::Partial => vec![&job.original],
            Cleanup::None => vec![],
        };
        for image in images {
            if let Err(error) = buildah(&["rmi"]).args([image.to_string()]).run().await {
                tracing::debug!(%image, %error, "the local image stays");
            }
        }
    }
}

fn buildah(arguments: &[&str]) -> Program {
    Program::new("buildah", "buildah", BUILDAH_DEADLINE).args(arguments)
}

/// The role with the variables that the original gives it.
fn role_task(job: &ModifyJob) -> RoleTask {
    let Modification { role, append_tag, vars } = &job.modification;
    let mut vars = vars.as_ref().and_then(Value::as_map).cloned().unwrap_or_default();
    let original = job.original.to_string();
    vars.insert("source_image", original.as_str());
    vars.insert("target_image", original.as_str());
    vars.insert("modified_append_tag", append_tag.as_str());
    vars.insert("container_build_tool", BUILD_TOOL);
    RoleTask { role: role.clone(), vars }
}

/// The task of `hotfix`: installs the packages in `rpms_path` into `image`, as a local image
/// whose tag has `append_tag`.
pub fn hotfix_task(image: &str, rpms_path: &str, append_tag: &str) -> RoleTask {
    let vars = Map::from_iter([
        ("container_build_tool", BUILD_TOOL),
        ("tasks_from", "rpm_install.yml"),
        ("source_image", image),
        ("rpms_path", rpms_path),
        ("modified_append_tag", append_tag),
    ]);
    RoleTask { role: "tripleo-modify-image".to_owned(), vars }
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlannedImage;
    use super::super::yaml;
    use super::*;

    fn plan(multi_arch: bool, vars: &str) -> Plan {
        let vars = Some(yaml::read(vars).unwrap()).filter(Value::is_truthy);
        let append_tag = "-fix".to_owned();
        let image = PlannedImage {
            entry: 0,
            imagename: "r/ns/nova:t".to_owned(),
            image_source: None,
            params: Vec::new(),
            pull_source: None,
            push_destination: Some("d:1".to_owned()),
            is_told: true,
            modify: Some(Modification { role: "m".to_owned(), append_tag, vars }),
            multi_arch,
        };
        Plan { images: vec![image.clone(), image], ..Plan::default() }
    }

    #[test]
    fn each_change_is_done_once_with_the_originals_variables() {
        let jobs = jobs(&plan(false, "{a: 1, source_image: mine}")).unwrap();
        let [job] = jobs.as_slice() else { panic!("{jobs:?}") };
        assert_eq!(job.target.to_string(), "d:1/ns/nova:t-fix");
        assert_eq!(
            yaml::write(&role_task(job).vars.into()),
            "a: 1\ncontainer_build_tool: buildah\nmodified_append_tag: -fix\n\
             source_image: d:1/ns/nova:t\ntarget_image: d:1/ns/nova:t\n"
        );
    }

    #[test]
    fn what_no_role_can_do_is_refused() {
        for (plan, words) in [
            (plan(true, "{}"), "Cannot run a modify role on multi-arch image r/ns/nova:t"),
            (plan(false, "[a]"), "modify_vars of r/ns/nova:t must be a map, this is a list"),
        ] {
            assert_eq!(jobs(&plan).unwrap_err().to_string(), words);
        }
    }
}
