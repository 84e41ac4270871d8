//! `tripleo container image list|show|delete`: what a registry has.

use std::io::Write as _;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use undermount::image::{Document, Platform, Reference, Repository};
use undermount::prepare::image_serve::ImageServe;
use undermount::prepare::sources::Sources;
use undermount::registry::client::{Client, Fault, RegistryError};

use super::RegistryArgs;
use crate::cli::exit::{CliResult, Exit};

/// List the images of the undercloud's registry
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// How they are printed
    #[arg(short = 'f', long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Show one image
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Image: host/namespace/name:tag
    image: String,
    /// How it is printed
    #[arg(short = 'f', long, value_enum, default_value_t = Format::Json)]
    format: Format,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Delete an image from the undercloud's registry
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Image: host/namespace/name:tag
    image: String,
    /// Do not ask
    #[arg(short = 'y', long)]
    yes: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// With a frame
    Table,
    /// Values, one per line
    Value,
    /// JSON
    Json,
}

impl ListArgs {
    /// Prints the images.
    pub async fn run(self) -> CliResult {
        let host = self.registry.host().await;
        let client = self.registry.client(&host, &[&host]).await;
        let images = images(&client, &host).await?;
        let text = match self.format {
            Format::Value => images.iter().map(|image| format!("{image}\n")).collect(),
            Format::Json => {
                let rows: Vec<_> =
                    images.iter().map(|image| json!({"Image Name": image})).collect();
                serde_json::to_string_pretty(&rows)? + "\n"
            }
            Format::Table => table("Image Name", &images),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Exit::Success)
    }
}

/// All images of a registry as `docker://host/repository:tag`.
async fn images(client: &Client, host: &str) -> CliResult<Vec<String>> {
    let paths = match client.catalog(host).await {
        Ok(paths) => paths,
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut images = Vec::new();
    for path in paths {
        let repository = Repository::new(host, &path)?;
        match client.tags(&repository).await {
            Ok(tags) => {
                images.extend(tags.iter().map(|tag| format!("docker://{repository}:{tag}")))
            }
            // Its last tag was deleted.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    images.sort();
    Ok(images)
}

fn table(title: &str, rows: &[String]) -> String {
    let width = rows.iter().map(String::len).max().unwrap_or(0).max(title.len());
    let rule = format!("+-{}-+\n", "-".repeat(width));
    let line = |text: &str| format!("| {text:width$} |\n");
    let body: String = rows.iter().map(|row| line(row)).collect();
    format!("{rule}{}{rule}{body}{rule}", line(title))
}

impl ShowArgs {
    /// Prints what is known of the image.
    pub async fn run(self) -> CliResult {
        let image: Reference = self.image.parse()?;
        let host = image.repository().host().to_owned();
        let client = self.registry.client(&host, &[&host]).await;
        let sources = Sources::new(client, Platform::host(), std::env::temp_dir());
        let shown = describe(&sources, &image).await?;
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(&shown)? + "\n",
            _ => shown
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}: {value}\n"))
                .collect(),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Exit::Success)
    }
}

async fn describe(sources: &Sources, image: &Reference) -> CliResult<Value> {
    let raw = sources.image(image).await?;
    let manifest = raw.document().and_then(Document::into_manifest)?;
    let config = sources.config(image).await?;
    let file: Value = serde_json::from_slice(&config.raw)?;
    let tags = sources.client().tags(image.repository()).await?;
    Ok(json!({
        "Name": image.repository().to_string(),
        "Architecture": file["architecture"],
        "Created": file["created"],
        "Digest": raw.digest,
        "DockerVersion": file.get("docker_version").cloned().unwrap_or_else(|| "".into()),
        "Labels": config.labels,
        "Layers": manifest.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(),
        "Os": file["os"],
        "RepoTags": tags,
        "Tag": image.identifier(),
    }))
}

impl DeleteArgs {
    /// Deletes the image from the tree of the Apache that serves it.
    pub async fn run(self) -> CliResult {
        if !self.yes {
            return Err("Action not confirmed, exiting.".into());
        }
        let image: Reference = self.image.parse()?;
        let host = self.registry.host().await;
        let client = self.registry.client(&host, &[&host]).await;
        let repository = Repository::new(&host, image.repository().path())?;
        match client.start_upload(&repository).await {
            // A registry that opens an upload keeps its images in its own way.
            Ok(upload) => {
                let _ = upload.cancel().await;
                let words = "Deleting not supported via the registry API";
                return Err(format!("{words}: {image} on {host}").into());
            }
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let tree = ImageServe::new(&self.registry.image_serve_dir);
        let tag = image.tag().ok_or("name the image by its tag")?;
        match tree.delete(&repository, tag)? {
            true => Ok(Exit::Success),
            false => Err(format!("there is no {image} in the tree").into()),
        }
    }
}
