//! `tripleo container image push`: one image from a registry to another.

use std::sync::Arc;

use clap::Args;
use undermount::image::{Platform, Reference};
use undermount::prepare::copy::{
    self, Attached, CopyJob, CopyOptions, Indexing, Location, ManifestFormat,
};
use undermount::prepare::naming::without_tag;
use undermount::prepare::progress::Unseen;
use undermount::prepare::sources::Sources;
use undermount::registry::client::Client;

use super::{RegistryArgs, without_transport};
use crate::cli::exit::{CliResult, Exit};

/// Push an image to the undercloud's registry
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Image to push: host/namespace/name[:tag]; with `containers-storage:` before it, or with
    /// `--local`, one of this host
    image: String,
    /// Take the image from the images of this host (buildah, podman)
    #[arg(long)]
    local: bool,
    /// What is appended to the tag
    #[arg(long, value_name = "TAG", default_value = "", allow_hyphen_values = true)]
    append_tag: String,
    /// All architectures
    #[arg(long)]
    multi_arch: bool,
    /// Look the image up, but copy nothing
    #[arg(long)]
    dry_run: bool,
    /// User at the image's registry
    #[arg(long, value_name = "USER")]
    source_username: Option<String>,
    /// Password at the image's registry; better kept in the file of `podman login`
    #[arg(long, value_name = "PASSWORD")]
    source_password: Option<String>,
    /// Of no use here: no local copy is made. Taken because the original takes it
    #[arg(long, hide = true)]
    cleanup: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// The transport of images of this host.
const STORAGE: &str = "containers-storage:";

impl PushArgs {
    /// Pushes as the flags say.
    pub async fn run(self) -> CliResult {
        let is_local = self.local || self.image.starts_with(STORAGE);
        let image = without_transport(self.image.strip_prefix(STORAGE).unwrap_or(&self.image));
        let (name, tag) = split(image, is_local)?;
        let host = self.registry.host().await;
        let target: Reference = format!("{host}/{name}:{tag}{}", self.append_tag).parse()?;
        let source = format!("{}:{tag}", without_tag(image));
        let (source, client) = if is_local {
            (Location::Storage(source), self.registry.client(&host, &[&host]).await)
        } else {
            let source: Reference = source.parse()?;
            let from = source.repository().host();
            let login = self.source_login().map(|login| (from, login));
            let client = self.registry.client_with(&host, &[&host, from], login).await;
            (source.into(), client)
        };
        if is_local && (self.source_username.is_some() || self.source_password.is_some()) {
            tracing::warn!("Source credentials ignored for local images");
        }
        self.push(CopyJob { source, target: target.into(), multi_arch: self.multi_arch }, client)
            .await
    }

    async fn push(&self, job: CopyJob, client: Client) -> CliResult {
        let sources = Sources::new(client, Platform::host(), std::env::temp_dir());
        if self.dry_run {
            if let Location::Registry(source) = &job.source {
                sources.manifest(source).await?;
            }
            return Ok(Exit::Success);
        }
        let options = CopyOptions {
            jobs: 1,
            streams: 4,
            indexing: Indexing::Off,
            attached: Attached::Never,
            manifests: ManifestFormat::Docker,
            image_serve: Some(self.registry.image_serve_dir.clone()),
            profiles: None,
            scratch: std::env::temp_dir(),
            state: None,
        };
        let report = copy::run(vec![job], &sources, &options, Arc::new(Unseen)).await?;
        match report.outcomes.into_iter().find_map(|(_, outcome)| outcome.err()) {
            Some(error) => Err(error.into()),
            None => Ok(Exit::Success),
        }
    }

    /// User and password at the image's registry; half of them is none, as in the original.
    fn source_login(&self) -> Option<(&str, &str)> {
        match (self.source_username.as_deref(), self.source_password.as_deref()) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (None, _) => {
                tracing::warn!("Skipping authentication - missing source username");
                None
            }
            (_, None) => {
                tracing::warn!("Skipping authentication - missing source password");
                None
            }
        }
    }
}

/// What the image is called below its registry, and its tag. One of a registry has exactly one
/// component before its name.
fn split(image: &str, is_local: bool) -> Result<(&str, &str), String> {
    let bare = without_tag(image);
    let wrong = || {
        format!(
            "Invalid container. Provided container image should be <registry>/<namespace>/<name>:<tag>, this is `{image}`"
        )
    };
    let (_, name) = bare.split_once('/').ok_or_else(wrong)?;
    let depth = name.split('/').count();
    if name.split('/').any(str::is_empty) || (depth != 2 && !is_local) {
        return Err(wrong());
    }
    let tag = image[bare.len()..].trim_start_matches(':');
    Ok((name, if tag.is_empty() { "latest" } else { tag }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_namespace() {
        assert_eq!(split("h:5000/ns/name:t", false), Ok(("ns/name", "t")));
        assert_eq!(split("h:5000/ns/name", false), Ok(("ns/name", "latest")));
        for image in ["name", "h/name:t", "h:5000/a/b/name:t", "h//name"] {
            assert!(split(image, false).unwrap_err().starts_with("Invalid container"), "{image}");
        }
        assert_eq!(split("localhost/name:t", true), Ok(("name", "t")));
        assert_eq!(split("localhost/a/b/name", true), Ok(("a/b/name", "latest")));
        assert!(split("name:t", true).is_err() && split("localhost//name", true).is_err());
    }
}
