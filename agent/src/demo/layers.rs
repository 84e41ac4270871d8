//! Layers and images out of files of this host.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write};
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use undermount_fs::digest::{Digest, Hasher};

use super::host::HostFiles;
use crate::image::Descriptor;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A gzip layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The compressed bytes.
    pub blob: Bytes,
    /// What the manifest says about them.
    pub descriptor: Descriptor,
    /// The digest of the archive.
    diff_id: Digest,
}

impl Layer {
    /// A layer of host files.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn of_host(files: &HostFiles) -> io::Result<Self> {
        Self::build(|archive| {
            files.entries().try_for_each(|(path, metadata)| append(archive, path, metadata))
        })
    }

    /// A layer of one file.
    ///
    /// # Errors
    /// Where the archive cannot be written: never, in memory.
    pub fn of_text(path: &str, text: &str) -> io::Result<Self> {
        Self::build(|archive| {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_entry_type(tar::EntryType::Regular);
            archive.append_data(&mut header, path, text.as_bytes())
        })
    }

    fn build(
        fill: impl FnOnce(&mut tar::Builder<&mut Compressor>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut compressor = Compressor::new();
        let mut archive = tar::Builder::new(&mut compressor);
        fill(&mut archive)?;
        archive.finish()?;
        drop(archive);
        let diff_id = compressor.hasher.finish();
        let blob = Bytes::from(compressor.gzip.finish()?);
        Ok(Self { descriptor: Descriptor::of(LAYER, &blob), blob, diff_id })
    }
}

/// An image: layers, and the two documents that make an image of them.
#[derive(Debug, Clone)]
pub struct DemoImage {
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// The configuration.
    pub config: Bytes,
    /// The manifest.
    pub manifest: Bytes,
}

impl DemoImage {
    /// The image of `layers` whose label `label.0` says `label.1`.
    pub fn new(layers: Vec<Layer>, label: (&str, &str)) -> Self {
        let config = json!({
            "architecture": crate::image::Platform::host().architecture,
            "os": "linux",
            "config": { "Labels": { label.0: label.1 } },
            "rootfs": {
                "type": "layers",
                "diff_ids": layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(),
            },
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": Descriptor::of(CONFIG, &config),
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        });
        Self { layers, config, manifest: manifest.to_string().into() }
    }

    /// The media type of the manifest.
    pub fn media_type() -> &'static str {
        MANIFEST
    }

    /// The sum of the sizes of its layers as they are transferred, in bytes.
    pub fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.descriptor.size).sum()
    }
}

/// Compresses an archive and hashes it on the way.
struct Compressor {
    hasher: Hasher,
    gzip: GzEncoder<Vec<u8>>,
}

impl Compressor {
    fn new() -> Self {
        Self { hasher: Hasher::default(), gzip: GzEncoder::new(Vec::new(), Compression::new(6)) }
    }
}

impl Write for Compressor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.gzip.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn append(
    archive: &mut tar::Builder<&mut Compressor>,
    path: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let about =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let name = path.strip_prefix("/").unwrap_or(path);
    let mut header = tar::Header::new_gnu();
    header.set_metadata(metadata);
    if metadata.is_symlink() {
        header.set_size(0);
        let target = std::fs::read_link(path).map_err(about)?;
        archive.append_link(&mut header, name, target).map_err(about)
    } else if metadata.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, name, io::empty()).map_err(about)
    } else {
        // The file may grow or shrink meanwhile: it is as long as it was when it was found.
        let content = File::open(path).map_err(about)?.chain(io::repeat(0)).take(metadata.len());
        archive.append_data(&mut header, name, content).map_err(about)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_layer_unpacks_to_what_the_host_has() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::write(root.join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", root.join("link")).unwrap();
        let mut files = HostFiles::default();
        files.add_tree(&root, 1 << 20).unwrap();
        let layer = Layer::of_host(&files).unwrap();
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&layer.blob[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(layer.diff_id, Digest::of(&tar));
        let copy = tempfile::tempdir().unwrap();
        tar::Archive::new(&tar[..]).unpack(copy.path()).unwrap();
        let link = copy.path().join(root.strip_prefix("/").unwrap()).join("link");
        assert_eq!(std::fs::read_to_string(link).unwrap(), "content");
    }
}
