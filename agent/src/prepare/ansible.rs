//! Ansible roles that change an image: a playbook in a private directory, run on this host.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::program::{Program, ProgramError};
use super::yaml::{self, Map, Value};

/// How long a playbook may take: roles install packages.
const DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);
/// The tool that roles are told to build with.
pub const BUILD_TOOL: &str = "buildah";

/// A role and the variables that it gets.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleTask {
    /// The role.
    pub role: String,
    /// Its variables.
    pub vars: Map,
}

/// A playbook that did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum AnsibleError {
    /// The playbook cannot be written.
    #[error("cannot write the playbook in the temporary directory")]
    Playbook(#[from] io::Error),
    /// Ansible failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Runs `tasks` one after the other. They may leave files in a directory that only we can read
/// and that is gone afterwards; its path is the variable `modify_dir_path`, unless a task has one.
///
/// # Errors
/// [`AnsibleError`] with the end of what Ansible said.
pub async fn run_roles(tasks: &[RoleTask]) -> Result<(), AnsibleError> {
    let private = std::fs::Permissions::from_mode(0o700);
    let directory =
        tempfile::Builder::new().prefix("undermount-playbook-").permissions(private).tempdir()?;
    let path = directory.path().join("playbook.yaml");
    let workspace = directory.path().to_string_lossy().into_owned();
    std::fs::write(&path, yaml::write(&playbook(tasks, &workspace)))?;
    run_playbook(Path::new("localhost,"), &path).await
}

/// Runs the plays of `playbook` for the hosts of `inventory`, all of which are this one.
///
/// # Errors
/// [`AnsibleError`] with the end of what Ansible said.
pub async fn run_playbook(inventory: &Path, playbook: &Path) -> Result<(), AnsibleError> {
    Program::new("ansible-playbook", "ansible-core", DEADLINE)
        .args(["--connection", "local", "--inventory"])
        .args([inventory, playbook])
        // Neither colours nor cow: what it says is read by people when it fails.
        .env("ANSIBLE_NOCOLOR", "1")
        .env("ANSIBLE_NOCOWS", "1")
        .env("ANSIBLE_RETRY_FILES_ENABLED", "0")
        .run()
        .await?;
    Ok(())
}

fn playbook(tasks: &[RoleTask], workspace: &str) -> Value {
    let tasks: Value = tasks
        .iter()
        .map(|task| {
            let mut vars = task.vars.clone();
            if !vars.contains("modify_dir_path") {
                vars.insert("modify_dir_path", workspace);
            }
            let mut entry = Map::from_iter([("name", format!("Import role {}", task.role))]);
            entry.insert("import_role", Map::from_iter([("name", task.role.as_str())]));
            entry.insert("vars", vars);
            Value::Map(entry)
        })
        .collect();
    let mut play = Map::from_iter([("hosts", "localhost"), ("gather_facts", "no")]);
    play.insert("tasks", tasks);
    [Value::Map(play)].into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_playbook_imports_each_role_with_its_variables() {
        let task =
            RoleTask { role: "r".to_owned(), vars: Map::from_iter([("source_image", "h/n:t")]) };
        assert_eq!(
            yaml::write(&playbook(&[task], "/tmp/x")),
            "- gather_facts: 'no'\n  hosts: localhost\n  tasks:\n  - import_role:\n      name: r\n    \
             name: Import role r\n    vars:\n      modify_dir_path: /tmp/x\n      source_image: h/n:t\n"
        );
    }
}
