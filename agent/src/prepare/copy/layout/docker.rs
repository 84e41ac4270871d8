//! What `docker save` writes, shown as an OCI layout.
//!
//! ```text
//! manifest.json   [{"Config": <member>, "RepoTags": [...], "Layers": [<member>, ...]}, ...]
//! ```
//! Its layers are archives without compression. They are compressed here, always in the same
//! way, and a manifest of docker's schema 2 is made for each image: the archive has none.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;
use undermount_fs::digest::{Digest, WrongDigest};

use super::archive::members;
use super::{Blobs, Layout, LayoutError, REF_NAME, Region};
use crate::image::manifest::MAX_CONFIG;
use crate::image::{Descriptor, ImageConfig, media_type};

const EXPECTED: &str = "an archive by `docker save`";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Largest `manifest.json`.
const MAX_LIST: u64 = 16 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The images of the archive at `path`; compressed layers go to a directory below `scratch`.
pub fn open(path: &Path, scratch: &Path) -> Result<Layout, LayoutError> {
    let unreadable = |source| LayoutError::Read { path: path.to_owned(), source };
    let scratch = tempfile::Builder::new().prefix("undermount-archive-").tempdir_in(scratch);
    let members = members(path)?;
    let mut maker = Maker {
        path,
        members: &members,
        scratch: scratch.map_err(unreadable)?,
        blobs: HashMap::new(),
        layers: HashMap::new(),
        manifests: Vec::new(),
    };
    let list = maker.member("manifest.json")?.read(MAX_LIST).map_err(unreadable)?;
    let saved: Vec<Saved> =
        serde_json::from_slice(&list).map_err(|error| maker.wrong(&error.to_string()))?;
    for image in &saved {
        maker.add(image)?;
    }
    let Maker { blobs, manifests, scratch, .. } = maker;
    let blobs = Blobs::Known(blobs);
    Ok(Layout { path: path.to_owned(), blobs, manifests, _scratch: Some(scratch) })
}

struct Maker<'a> {
    path: &'a Path,
    members: &'a HashMap<String, Region>,
    scratch: TempDir,
    blobs: HashMap<Digest, Region>,
    /// Layers that are done, by member.
    layers: HashMap<String, Descriptor>,
    manifests: Vec<Descriptor>,
}

impl Maker<'_> {
    fn wrong(&self, reason: &str) -> LayoutError {
        let (path, reason) = (self.path.to_owned(), reason.to_owned());
        LayoutError::Form { path, expected: EXPECTED, reason }
    }

    fn unreadable(&self, source: io::Error) -> LayoutError {
        LayoutError::Read { path: self.path.to_owned(), source }
    }

    fn member(&self, name: &str) -> Result<&Region, LayoutError> {
        self.members.get(name).ok_or_else(|| self.wrong(&format!("it has no {name}")))
    }

    /// Adds an image under all of its names.
    fn add(&mut self, image: &Saved) -> Result<(), LayoutError> {
        let region = self.member(&image.config)?.clone();
        let config = region.read(MAX_CONFIG as u64).map_err(|error| self.unreadable(error))?;
        let parsed = ImageConfig::parse(config.clone().into());
        let diff_ids = parsed.map_err(|error| self.wrong(&error.to_string()))?.diff_ids;
        if diff_ids.len() != image.layers.len() {
            return Err(self.wrong("manifest.json and the configuration disagree on layers"));
        }
        let config = Descriptor::of(DOCKER_CONFIG, &config);
        self.blobs.insert(config.digest, region);
        let layers: Vec<Descriptor> = std::iter::zip(&image.layers, &diff_ids)
            .map(|(layer, diff_id)| self.layer(layer, diff_id))
            .collect::<Result<_, _>>()?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::DOCKER_MANIFEST,
            "config": config,
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let descriptor = Descriptor::of(media_type::DOCKER_MANIFEST, &manifest);
        let region = self.write(&descriptor.digest, &manifest);
        let region = region.map_err(|error| self.unreadable(error))?;
        self.blobs.insert(descriptor.digest, region);
        let names = image.repo_tags.iter().flatten();
        let named = names.map(|name| {
            let mut named = descriptor.clone();
            named.annotations.insert(REF_NAME.to_owned(), name.clone());
            named
        });
        let before = self.manifests.len();
        self.manifests.extend(named);
        if self.manifests.len() == before {
            self.manifests.push(descriptor);
        }
        Ok(())
    }

    fn write(&self, digest: &Digest, bytes: &[u8]) -> io::Result<Region> {
        let path = self.scratch.path().join(digest.hex());
        std::fs::write(&path, bytes)?;
        Ok(Region { path, start: 0, length: bytes.len() as u64 })
    }

    /// A layer as it will be pushed. One that was compressed already is checked by whoever
    /// unpacks it.
    fn layer(&mut self, member: &str, diff_id: &Digest) -> Result<Descriptor, LayoutError> {
        if let Some(done) = self.layers.get(member) {
            return Ok(done.clone());
        }
        let region = self.member(member)?.clone();
        let unreadable = |error| self.unreadable(error);
        let (digest, region) = if is_gzip(&region).map_err(unreadable)? {
            (region.hash().map_err(unreadable)?, region)
        } else {
            let actual = region.hash().map_err(unreadable)?;
            if actual != *diff_id {
                let (path, expected) = (self.path.to_owned(), *diff_id);
                return Err(LayoutError::Damaged {
                    path,
                    source: WrongDigest { expected, actual },
                });
            }
            self.compress(&region).map_err(unreadable)?
        };
        let layer = Descriptor::new(DOCKER_LAYER, digest, region.length);
        self.blobs.insert(digest, region);
        self.layers.insert(member.to_owned(), layer.clone());
        Ok(layer)
    }

    fn compress(&self, region: &Region) -> io::Result<(Digest, Region)> {
        let path = self.scratch.path().join(format!("layer{}", self.layers.len()));
        let mut encoder = GzEncoder::new(File::create(&path)?, Compression::default());
        io::copy(&mut region.open(0)?, &mut encoder)?;
        encoder.finish()?.flush()?;
        let length = std::fs::metadata(&path)?.len();
        let compressed = Region { path, start: 0, length };
        Ok((compressed.hash()?, compressed))
    }
}

fn is_gzip(region: &Region) -> io::Result<bool> {
    let mut magic = Vec::new();
    region.open(0)?.take(GZIP.len() as u64).read_to_end(&mut magic)?;
    Ok(magic == GZIP)
}
