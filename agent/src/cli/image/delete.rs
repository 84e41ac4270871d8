//! `undermount image delete`.

use clap::Args;
use undermount::image::Reference;
use undermount::inventory::Wanted;
use undermount::prepare::image_serve::ImageServe;
use undermount::registry::client::{Client, Fault, RegistryError};

use super::{ReachArgs, open_image};
use crate::cli::exit::{CliResult, Exit};

/// Delete images
///
/// A tag is deleted with what only it needs: in a tree at once, in a registry when it collects
/// its garbage. A digest is deleted with all its tags.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// HOST[:PORT]/PATH:TAG, HOST[:PORT]/PATH@DIGEST or image-serve:DIR:PATH:TAG
    #[arg(required = true)]
    images: Vec<Wanted>,
    /// Where a registry cannot delete a tag alone, delete the image with all its tags
    #[arg(long)]
    all_tags: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl DeleteArgs {
    /// Deletes one image after the other; stops at the first that cannot be deleted.
    pub async fn run(self) -> CliResult {
        let client = self.reach.client();
        for wanted in self.images {
            let name = wanted.to_string();
            let (holder, image) = open_image(wanted).await?;
            let reference = holder.reference(&image)?;
            match holder.tree() {
                Some(tree) => delete_from_tree(&ImageServe::new(tree), &reference, &name)?,
                None => delete(&client, &reference, self.all_tags).await?,
            }
            tracing::info!(image = name, "deleted");
        }
        Ok(Exit::Success)
    }
}

fn delete_from_tree(tree: &ImageServe, image: &Reference, name: &str) -> CliResult<()> {
    let tag = image.tag().ok_or_else(|| format!("`{name}`: name an image of a tree by its tag"))?;
    match tree.delete(image.repository(), tag)? {
        true => Ok(()),
        false => Err(format!("the tree has no `{name}`").into()),
    }
}

async fn delete(client: &Client, image: &Reference, all_tags: bool) -> CliResult<()> {
    let repository = image.repository();
    let (Some(tag), None) = (image.tag(), image.digest()) else {
        let digest = image.digest().ok_or("name the image by tag or digest")?;
        return Ok(client.delete_manifest(repository, digest).await?);
    };
    match client.delete_tag(repository, tag).await {
        Err(error) if refuses_tags(&error) && all_tags => {
            let found = client.manifest(image).await?;
            Ok(client.delete_manifest(repository, &found.digest).await?)
        }
        Err(error) if refuses_tags(&error) => {
            let advice = "if only a tag alone cannot be deleted, --all-tags deletes the image";
            Err(format!("{}: {advice} with all its tags", error.in_words()).into())
        }
        deleted => Ok(deleted?),
    }
}

/// Whether the registry deletes images by their digests only, or not at all.
fn refuses_tags(error: &RegistryError) -> bool {
    matches!(error.fault, Fault::Status { status, .. } if status == 400 || status == 405)
}
