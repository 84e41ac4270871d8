//! `tripleo container image hotfix`: new images on this host.

use std::path::PathBuf;

use clap::Args;
use undermount::prepare::ansible;
use undermount::prepare::modify::hotfix_task;

use crate::cli::exit::{CliResult, Exit};

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
