//! `tripleo container image push`: one image from a registry to another.

use std::sync::Arc;

use clap::Args;
use undermount::image::{Platform, Reference};
use undermount::prepare::copy::{
    self, Attached, CopyJob, CopyOptions, Indexing, Location, ManifestFormat,
};
use undermount::prepare::modify::Cleanup;
use undermount::prepare::progress::Unseen;
use undermount::prepare::sources::Sources;

use super::RegistryArgs;
use crate::cli::exit::{CliResult, Exit};
use crate::cli::prepare::parse_cleanup;

/// Push an image to the undercloud's registry
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Image to push: host/namespace/name[:tag]
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
    #[arg(long, value_name = "USER", requires = "source_password")]
    source_username: Option<String>,
    /// Password at the image's registry; better kept in the file of `podman login`
    #[arg(long, value_name = "PASSWORD", requires = "source_username")]
    source_password: Option<String>,
    /// Of no use here: no local copy is made. Taken because the original takes it
    #[arg(long, value_name = "WHICH", default_value = "full", value_parser = parse_cleanup, hide = true)]
    cleanup: Cleanup,
    #[command(flatten)]
    registry: RegistryArgs,
}

impl PushArgs {
    /// Pushes as the flags say.
    pub async fn run(self) -> CliResult {
        let (name, tag) = split(&self.image)?;
        let host = self.registry.host().await;
        let source: Reference = format!("{}:{tag}", without_tag(&self.image)).parse()?;
        let target: Reference = format!("{host}/{name}:{tag}{}", self.append_tag).parse()?;
        let hosts = [host.as_str(), source.repository().host()];
        let login = self.source_username.as_deref().zip(self.source_password.as_deref());
        let login = login.map(|login| (source.repository().host(), login));
        let client = self.registry.client_with(&host, &hosts, login).await;
        let sources = Sources::new(client, Platform::host(), std::env::temp_dir());
        if self.dry_run {
            if !self.local {
                sources.manifest(&source).await?;
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
        let source = match self.local {
            true => Location::Storage(source.to_string()),
            false => source.into(),
        };
        let job = CopyJob { source, target: target.into(), multi_arch: self.multi_arch };
        let report = copy::run(vec![job], &sources, &options, Arc::new(Unseen)).await?;
        match report.outcomes.into_iter().find_map(|(_, outcome)| outcome.err()) {
            Some(error) => Err(error.into()),
            None => Ok(Exit::Success),
        }
    }
}

/// `namespace/name` and the tag of an image with exactly one namespace component.
fn split(image: &str) -> Result<(&str, &str), String> {
    let bare = without_tag(image);
    let wrong = || {
        format!(
            "Invalid container. Provided container image should be <registry>/<namespace>/<name>:<tag>, this is `{image}`"
        )
    };
    let (_, name) = bare.split_once('/').ok_or_else(wrong)?;
    if name.split('/').count() != 2 || name.split('/').any(str::is_empty) {
        return Err(wrong());
    }
    let tag = image[bare.len()..].trim_start_matches(':');
    Ok((name, if tag.is_empty() { "latest" } else { tag }))
}

fn without_tag(image: &str) -> &str {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_one_namespace() {
        assert_eq!(split("h:5000/ns/name:t"), Ok(("ns/name", "t")));
        assert_eq!(split("h:5000/ns/name"), Ok(("ns/name", "latest")));
        for image in ["name", "h/name:t", "h:5000/a/b/name:t", "h//name"] {
            assert!(split(image).unwrap_err().starts_with("Invalid container"), "{image}");
        }
    }
}
