//! `overcloud container image build`: images built by Kolla, or the list of them.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use undermount::prepare::program::Program;
use undermount::prepare::recipe::bare_name;
use undermount::prepare::upload_list;
use undermount::prepare::yaml::{self, Value};

use crate::cli::exit::{CliResult, Exit};

/// How long Kolla may take for all images.
const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Build images with kolla-build
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// List of images to build; may be repeated
    #[arg(long = "config-file", value_name = "FILE", required = true)]
    config_files: Vec<PathBuf>,
    /// Configuration of kolla-build; may be repeated
    #[arg(long = "kolla-config-file", value_name = "FILE", required = true)]
    kolla_config_files: Vec<PathBuf>,
    /// Print the images that would be built
    #[arg(long)]
    list_images: bool,
    /// Print the images that would be built and what each is built on
    #[arg(long)]
    list_dependencies: bool,
}

impl BuildArgs {
    /// Runs kolla-build.
    pub async fn run(self) -> CliResult {
        let lists = self.list_images || self.list_dependencies;
        let mut switch = tempfile::Builder::new().prefix("kolla_conf_").tempfile()?;
        let setting = if lists { "list_dependencies=true\n" } else { "" };
        switch.write_all(format!("[DEFAULT]\n{setting}").as_bytes())?;
        let names: Vec<_> = upload_list::read(&self.config_files)?
            .iter()
            .filter_map(|record| Some(kolla_name(&record.get("imagename")?.to_string()).to_owned()))
            .collect();
        let mut kolla = Program::new("kolla-build", "kolla, from PyPI", DEADLINE);
        for path in self.kolla_config_files.iter().map(PathBuf::as_path).chain([switch.path()]) {
            kolla = kolla.args([std::ffi::OsStr::new("--config-file"), path.as_os_str()]);
        }
        let output = kolla.args(names).run().await?;
        let text = if lists {
            // JSON is YAML.
            let dependencies = yaml::read(&String::from_utf8_lossy(&output))?;
            let printed = if self.list_dependencies { dependencies } else { flat(&dependencies) };
            yaml::write(&printed).into_bytes()
        } else {
            output
        };
        std::io::stdout().write_all(&text)?;
        Ok(Exit::Success)
    }
}

/// What Kolla calls the image: its name without namespace, tag, distribution and kind of install.
fn kolla_name(imagename: &str) -> &str {
    bare_name(imagename, &["centos-", "rhel-"])
}

/// The images of a tree of dependencies, each before those that are built on it.
fn flat(dependencies: &Value) -> Value {
    fn visit(node: &Value, images: &mut Vec<Value>) {
        match node {
            Value::List(nodes) => nodes.iter().for_each(|node| visit(node, images)),
            Value::Map(map) => {
                for (name, below) in map.iter() {
                    images.push(name.into());
                    visit(below, images);
                }
            }
            image => images.push(image.clone()),
        }
    }
    let mut images = Vec::new();
    visit(dependencies, &mut images);
    Value::List(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kolla_has_names_of_its_own() {
        for (image, name) in [
            ("tripleoqueens/centos-binary-nova-api:current", "nova-api"),
            ("h:5000/ns/rhel-source-keystone", "keystone"),
            ("openstack-aodh:1", "openstack-aodh"),
        ] {
            assert_eq!(kolla_name(image), name);
        }
    }

    #[test]
    fn a_tree_is_listed_from_its_root() {
        let tree = yaml::read(r#"{"base": ["cron", {"openstack-base": ["nova"]}]}"#).unwrap();
        assert_eq!(yaml::write(&flat(&tree)), "- base\n- cron\n- openstack-base\n- nova\n");
    }
}
