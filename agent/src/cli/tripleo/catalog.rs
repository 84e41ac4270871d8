//! `tripleo container image list|show|delete`: what a registry has.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use serde_json::{Value, json};
use undermount::image::{Document, Platform, Reference, Repository};
use undermount::prepare::discover::DiscoverError;
use undermount::prepare::image_serve::ImageServe;
use undermount::prepare::sources::Sources;
use undermount::registry::client::{Client, Fault, RegistryError};

use super::cliff::{ListFormat, Record, RecordFormat};
use super::{RegistryArgs, without_transport};
use crate::cli::exit::{CliError, CliResult, Exit};

/// The column of the list of images.
const IMAGE_NAME: &str = "Image Name";

/// List the images of the undercloud's registry
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    format: ListFormat,
}

/// Show one image
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Image: host/namespace/name:tag
    image: String,
    #[command(flatten)]
    format: RecordFormat,
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

impl ListArgs {
    /// Prints the images.
    pub async fn run(self) -> CliResult {
        let host = self.registry.host().await;
        let client = self.registry.client(&host, &[&host]).await;
        let images = images(&client, &host).await?;
        let rows = images.into_iter().map(|image| Record(vec![(IMAGE_NAME, image.into())]));
        self.format.print(&[IMAGE_NAME], rows.collect())?;
        Ok(Exit::Success)
    }
}

/// All images of a registry as `docker://host/repository:tag`, in the order of its catalog.
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
    Ok(images)
}

impl ShowArgs {
    /// Prints what is known of the image.
    pub async fn run(self) -> CliResult {
        let image: Reference = without_transport(&self.image).parse()?;
        let host = image.repository().host().to_owned();
        let client = self.registry.client(&host, &[&host]).await;
        let sources = Sources::new(client, Platform::host(), std::env::temp_dir());
        self.format.print(describe(&sources, &image).await?)?;
        Ok(Exit::Success)
    }
}

/// What the original tells of an image: its name, then the rest by the alphabet.
async fn describe(sources: &Sources, image: &Reference) -> CliResult<Record> {
    let raw = sources.image(image).await.map_err(|error| -> CliError {
        match error.is_not_found() {
            true => DiscoverError::NotFound(image.clone().into()).into(),
            false => error.into(),
        }
    })?;
    let manifest = raw.document().and_then(Document::into_manifest)?;
    let config = sources.config(image).await?;
    let file: Value = serde_json::from_slice(&config.raw)?;
    let tags = sources.client().tags(image.repository()).await?;
    let layers: Vec<_> = manifest.layers.iter().map(|layer| layer.digest).collect();
    Ok(Record(vec![
        ("Name", image.repository().to_string().into()),
        ("Architecture", file["architecture"].clone()),
        ("Created", file["created"].clone()),
        ("Digest", json!(raw.digest)),
        ("DockerVersion", file.get("docker_version").cloned().unwrap_or_else(|| "".into())),
        ("Labels", json!(config.labels)),
        ("Layers", json!(layers)),
        ("Os", file["os"].clone()),
        ("RepoTags", json!(tags)),
        ("Tag", image.identifier().into()),
    ]))
}

/// Asks whoever sits at the terminal; without one nothing is confirmed.
fn is_confirmed() -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        tracing::error!("User interaction required, cannot confirm.");
        return Ok(false);
    }
    let mut output = io::stdout();
    output.write_all(b"Are you sure you want to delete this image [y/N]? ")?;
    output.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.to_lowercase().starts_with('y'))
}

impl DeleteArgs {
    /// Deletes the image from the tree of the Apache that serves it.
    pub async fn run(self) -> CliResult {
        if !self.yes && !is_confirmed()? {
            return Err("Action not confirmed, exiting.".into());
        }
        let image: Reference = without_transport(&self.image).parse()?;
        let host = self.registry.host().await;
        // What is asked is the image's own registry, perhaps the same by another name: nothing is
        // deleted here that is somewhere else.
        let repository = image.repository();
        let client = self.registry.client(&host, &[&host, repository.host()]).await;
        match client.start_upload(repository).await {
            // A registry that opens an upload keeps its images in its own way.
            Ok(upload) => {
                let _ = upload.cancel().await;
                let words = "Deleting not supported via the registry API";
                return Err(format!("{words}: {image}").into());
            }
            Err(RegistryError { fault: Fault::Status { .. } | Fault::NotFound(_), .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let tree = ImageServe::new(&self.registry.image_serve_dir);
        let tag = image.tag().ok_or("name the image by its tag")?;
        if tree.delete(repository, tag)? {
            return Ok(Exit::Success);
        }
        let words = format!("there is no {image} in the tree");
        if tree.tags(repository).is_empty() {
            return Err(words.into());
        }
        // What a second run of a script finds.
        tracing::warn!("{words}");
        Ok(Exit::Success)
    }
}
