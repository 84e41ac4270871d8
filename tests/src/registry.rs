//! Registries as processes: ours and Debian's `docker-registry`, on free loopback ports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use serde_json::Value;

use crate::image::Image;
use crate::network::Host;
use crate::process::{Running, SOON, program, run, undermount};

/// A registry that serves until it is stopped or dropped. Its directory stays.
pub struct Registry {
    running: Running,
    address: String,
}

impl Registry {
    /// `undermount registry` over `root`.
    pub fn undermount(root: &Path) -> Self {
        Self::undermount_with(root, &[])
    }

    /// `undermount registry` over `root`, with more flags.
    pub fn undermount_with(root: &Path, flags: &[&str]) -> Self {
        let mut command = undermount();
        command.arg("registry").arg("--root").arg(root);
        command.args(["--listen", "127.0.0.1:0"]).args(flags);
        Self::start(&mut command)
    }

    /// Debian's `docker-registry` over `root`.
    pub fn docker(root: &Path) -> Self {
        Self::docker_with(root, |_| ())
    }

    /// Debian's `docker-registry` over `root`, with changes to its configuration.
    pub fn docker_with(root: &Path, change: impl FnOnce(&mut Value)) -> Self {
        write_docker_config(root, change);
        Self::start(program("docker-registry").arg("serve").arg(docker_config(root)))
    }

    /// Debian's `docker-registry` over `root` on another host, with changes to its configuration.
    pub fn docker_on(host: &Host, root: &Path, change: impl FnOnce(&mut Value)) -> Self {
        write_docker_config(root, change);
        let mut command = host.command(Path::new(program("docker-registry").get_program()));
        Self::start(command.arg("serve").arg(docker_config(root)))
    }

    /// Starts a registry that says where it listens.
    pub fn start(command: &mut Command) -> Self {
        let mut running = Running::start(command);
        let address = running.wait_for(SOON, |text| {
            let (_, rest) = text.split_once("listening on ")?;
            let rest = rest.strip_prefix("http://").unwrap_or(rest);
            // Up to the end of the line, lest half an address be taken for a whole one.
            let end = rest.find(['\n', '"', ','])?;
            Some(rest[..end].to_owned())
        });
        Self { running, address }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Copies an image of an OCI layout here with `skopeo`; returns its reference.
    pub fn push(&self, layout: &Path, name: &str, repository: &str) -> String {
        let reference = format!("{}/{repository}", self.address);
        let source = format!("oci:{}:{name}", layout.display());
        skopeo(&["copy", "--quiet", "--dest-tls-verify=false", &source, &docker(&reference)]);
        reference
    }

    /// Copies an image that was built in memory here with `skopeo`; returns its reference.
    pub fn push_image(&self, image: &Image, repository: &str) -> String {
        let layout = tempfile::tempdir().unwrap();
        image.write_layout(layout.path(), "image");
        self.push(layout.path(), "image", repository)
    }

    /// Copies an image from here into a new OCI layout with `skopeo`.
    pub fn pull(&self, reference: &str, layout: &Path) -> Image {
        let target = format!("oci:{}:image", layout.display());
        skopeo(&["copy", "--quiet", "--src-tls-verify=false", &docker(reference), &target]);
        Image::read_layout(layout, "image")
    }
}

fn write_docker_config(root: &Path, change: impl FnOnce(&mut Value)) {
    fs::create_dir_all(root).unwrap();
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": { "accesslog": { "disabled": true } },
        "storage": { "filesystem": { "rootdirectory": root.join("data") } },
        "http": { "addr": "127.0.0.1:0", "secret": "of no use" },
    });
    change(&mut config);
    fs::write(docker_config(root), config.to_string()).unwrap();
}

/// The configuration file of Debian's `docker-registry` over `root`.
pub fn docker_config(root: &Path) -> PathBuf {
    root.join("config.yml")
}

/// What a URL answers: status and body.
pub fn get(url: &str) -> (u16, Bytes) {
    undermount::registry::client::install_crypto_provider();
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let answer = async {
        let response = client.get(url).header("Accept", "*/*").send().await?;
        Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(answer).unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn docker(reference: &str) -> String {
    format!("docker://{reference}")
}

/// Runs `skopeo` without the signature policy of the machine, which may not exist.
#[track_caller]
pub fn skopeo(arguments: &[&str]) -> String {
    run(program("skopeo").arg("--insecure-policy").args(arguments), SOON).success().stdout
}

/// All files below a directory with their sizes, to see what a server left behind.
pub fn files_below(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            // A server that runs may remove files meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Member;
    use crate::requirement::{Need, lacking};

    #[test]
    fn docker_registry_takes_and_gives_images() {
        if lacking(&[Need::Program("docker-registry"), Need::Program("skopeo")]) {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let registry = Registry::docker(root.path());
        let image = Image::of(&[&[Member::file("a", "1")]]);
        let reference = registry.push_image(&image, "some/name:tag");
        let pulled = registry.pull(&reference, &root.path().join("layout"));
        assert_eq!(pulled.digest(), image.digest());
    }
}
