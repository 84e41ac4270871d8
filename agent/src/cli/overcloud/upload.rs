//! `overcloud container image upload`: copies the images of lists.

use std::path::PathBuf;

use clap::Args;
use undermount::prepare::plan::Plan;
use undermount::prepare::{undercloud, upload_list};

use crate::cli::client::ClientArgs;
use crate::cli::exit::{CliResult, Exit};
use crate::cli::prepare::{CopyArgs, Found, Habits};

/// Copy the images of lists to the registries that they name
#[derive(Debug, Args)]
pub struct UploadArgs {
    /// List of images, as `prepare --output-images-file` writes it; may be repeated
    #[arg(long = "config-file", value_name = "FILE", required = true)]
    config_files: Vec<PathBuf>,
    #[command(flatten)]
    copy: CopyArgs,
    #[command(flatten)]
    client: ClientArgs,
}

impl UploadArgs {
    /// Copies the images.
    pub async fn run(self) -> CliResult {
        let records = upload_list::read(&self.config_files)?;
        let undercloud = undercloud::control_plane_registry();
        let images = records.iter().map(|record| upload_list::planned(record, &undercloud));
        let plan = Plan { images: images.collect(), ..Plan::default() };
        let mut found = Found::of_plan(plan, &self.client).await;
        self.copy.run(&mut found, &Default::default(), Habits::UPLOAD).await?;
        found.tell_missing();
        Ok(Exit::Success)
    }
}
