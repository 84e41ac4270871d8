//! What is written: the environment, the list of images, and what a dry run has to say.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use indicatif::HumanBytes;
use undermount::prepare::estimate::{Estimate, Share};
use undermount::prepare::format::OutputFormat;
use undermount::prepare::plan::{InsecureList, Plan};
use undermount::prepare::{env_file, yaml};

use super::Habits;
use crate::cli::clock::LocalTime;
use crate::cli::exit::{CliResult, in_words};

/// What is written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Environment file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    output_env_file: Option<PathBuf>,
    /// Whose environment it is
    #[arg(long, value_enum, value_name = "TOOL", default_value_t = Format::Heat)]
    output_format: Format,
    /// Also write the list of images and where they go
    #[arg(long, value_name = "FILE")]
    output_images_file: Option<PathBuf>,
    /// Registries without a verified certificate that deployment is told of: all that are named,
    /// or those of the last entry that has any [default: all; last-entry in the original's
    /// spellings]
    #[arg(long, value_enum, value_name = "WHICH")]
    insecure_registries: Option<Told>,
    /// Look everything up, tell what would move and write the files, but copy nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// [`InsecureList`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Told {
    /// All that the parameters name
    All,
    /// Those of the last entry that has any
    LastEntry,
}

impl From<Told> for InsecureList {
    fn from(told: Told) -> Self {
        match told {
            Told::All => Self::All,
            Told::LastEntry => Self::LastEntry,
        }
    }
}

/// [`OutputFormat`] in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The Heat environment of TripleO
    Heat,
    /// Variables for Kolla-Ansible's globals.yml
    Kolla,
    /// OpenStackVersion and OpenStackDataPlaneNodeSet of OpenStack on OpenShift
    Edpm,
}

impl From<Format> for OutputFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Heat => Self::Heat,
            Format::Kolla => Self::Kolla,
            Format::Edpm => Self::Edpm,
        }
    }
}

impl OutputArgs {
    /// Makes sure that the files can be written, before hours of work.
    pub fn check(&self) -> CliResult<()> {
        for path in [&self.output_env_file, &self.output_images_file] {
            path.as_deref().map_or(Ok(()), env_file::check)?;
        }
        Ok(())
    }

    /// Which insecure registries deployment is told of.
    pub fn told(&self, habits: Habits) -> InsecureList {
        self.insecure_registries.unwrap_or(habits.insecure).into()
    }

    /// Writes the files that the plan comes to.
    pub fn write(&self, plan: &Plan, now: LocalTime) -> CliResult<()> {
        if let Some(path) = &self.output_images_file {
            env_file::write(path, &yaml::write(&plan.upload_list()))?;
        }
        let formatted = OutputFormat::from(self.output_format).write(plan);
        for (parameter, image) in &formatted.unnamed {
            tracing::info!(parameter, image, "the tool has no name for it");
        }
        if self.output_format != Format::Heat && !plan.roles.is_empty() {
            tracing::warn!("lists of single roles are left out: only Heat knows them");
        }
        let text = with_header(&formatted.text, now);
        match &self.output_env_file {
            Some(path) => env_file::write(path, &text)?,
            None => std::io::stdout().write_all(text.as_bytes())?,
        }
        Ok(())
    }
}

/// `text` under a header that says that this command made it now.
pub fn with_header(text: &str, now: LocalTime) -> String {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    env_file::with_header(text, &now.iso(), &format!("undermount {}", arguments.join(" ")))
}

/// The environment file with these parameters, made by this command now.
pub fn environment_text(parameters: yaml::Map, now: LocalTime) -> String {
    let sections = yaml::Map::from_iter([("parameter_defaults", parameters)]);
    with_header(&yaml::write(&sections.into()), now)
}

/// Tells what a copy would move, one line for each image and one for each destination.
pub fn tell_estimate(estimate: &Estimate) {
    let mut lines = String::new();
    for image in &estimate.images {
        let words = match &image.share {
            Ok(share) => words_of(*share),
            Err(error) => in_words(error),
        };
        let role = image.modify_role.as_ref();
        let changed = role.map(|role| format!(", then changed by {role}")).unwrap_or_default();
        lines.push_str(&format!("{}: {words}{changed}\n", image.target));
    }
    for (registry, bytes) in &estimate.space {
        let bytes = HumanBytes(*bytes);
        lines.push_str(&format!(
            "{registry}: {bytes} to move and to store, each blob counted once\n"
        ));
    }
    // A closed stderr leaves nobody to tell.
    let _ = std::io::stderr().write_all(lines.as_bytes());
}

fn words_of(share: Share) -> String {
    let Share { to_move, there, shared } = share;
    let mut words = format!("{} to move", HumanBytes(to_move));
    if there > 0 {
        words.push_str(&format!(", {} are there", HumanBytes(there)));
    }
    if shared > 0 {
        words.push_str(&format!(", {} come with images before it", HumanBytes(shared)));
    }
    words
}
