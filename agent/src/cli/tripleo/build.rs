//! `tripleo container image hotfix|build`: new images on this host.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use undermount::prepare::ansible;
use undermount::prepare::modify::hotfix_task;

use crate::cli::exit::{CliResult, Exit};

/// The client that builds; by its path, since `openstack` may be a wrapper that calls us.
const CLIENT: &str = "/usr/bin/openstack";

/// Install packages into images: leaves `IMAGE-TAG` among the images of this host
#[derive(Debug, Args)]
pub struct HotfixArgs {
    /// Image to change; may be repeated
    #[arg(long = "image", value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Directory with the packages
    #[arg(long, value_name = "DIR")]
    rpms_path: PathBuf,
    /// What the tags of the new images end in
    #[arg(long, value_name = "TAG", default_value = "latest")]
    tag: String,
}

impl HotfixArgs {
    /// Runs the role for each image.
    pub async fn run(self) -> CliResult {
        let rpms = self.rpms_path.to_str().ok_or("--rpms-path must be UTF-8")?;
        let append_tag = format!("-{}", self.tag);
        let tasks: Vec<_> =
            self.images.iter().map(|image| hotfix_task(image, rpms, &append_tag)).collect();
        ansible::run_roles(&tasks).await?;
        Ok(Exit::Success)
    }
}

/// Build images: handed to the original's client, with all its flags
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct BuildArgs {
    /// Flags of the original
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAG")]
    flags: Vec<String>,
}

impl BuildArgs {
    /// Runs the client to its end.
    pub fn run(self) -> CliResult {
        let mut client = Command::new(CLIENT);
        client.args(["tripleo", "container", "image", "build"]).args(&self.flags);
        match client.status() {
            Ok(status) if status.success() => Ok(Exit::Success),
            Ok(status) => Err(format!("{CLIENT} could not build the images: {status}").into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(format!(
                "images are built by {CLIENT} (package python3-tripleoclient), which is not installed"
            )
            .into()),
            Err(error) => Err(format!("cannot run {CLIENT}: {error}").into()),
        }
    }
}
