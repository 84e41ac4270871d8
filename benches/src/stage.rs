//! What the benches of the file system run on: an image, a node that mounts it, and what native
//! file systems make of the same layers.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use tempfile::TempDir;
use undermount_fs::digest::Digest;
use undermount_tests::archive::{Archive, Member, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::process::{SOON, program, run};

use crate::workload;

/// Bytes of the large file of [`large_image`].
pub const LARGE: usize = 256 << 20;
/// Its name.
pub const LARGE_FILE: &str = "large";

/// Layers of the image that is made where none is given.
const LAYERS: usize = 19;
/// Bytes of its archives.
const SIZE: usize = 900 << 20;

/// The image that `UNDERMOUNT_BENCH_IMAGE` names (`DIRECTORY:NAME` of an OCI layout), or one of 19
/// layers that is made of the host's own files.
pub fn real_image() -> Image {
    if let Ok(name) = std::env::var("UNDERMOUNT_BENCH_IMAGE") {
        let (layout, name) = name.rsplit_once(':').expect("UNDERMOUNT_BENCH_IMAGE: LAYOUT:NAME");
        return Image::read_layout(Path::new(layout), name);
    }
    let layers = workload::host_archives(LAYERS, SIZE);
    let layer = |tar: &Vec<u8>| Layer::compressed(tar, Compression::Gzip);
    Image::from_layers(layers.iter().map(layer).collect())
}

/// An image with one file of [`LARGE`] bytes.
pub fn large_image() -> Image {
    let tar = Archive::of(&[Member::file(LARGE_FILE, noise(1, LARGE))]);
    Image::from_layers(vec![Layer::compressed(&tar, Compression::GzipStored)])
}

/// An overlay mount that goes away when it is dropped.
pub struct Overlay {
    /// Where it is mounted.
    pub dir: PathBuf,
}

impl Overlay {
    /// `lower` directories, the topmost first, under an empty writable one, as podman mounts them
    /// for a container. Its own directories are made in `scratch`.
    pub fn mount(scratch: &Path, lower: &[PathBuf]) -> Self {
        let [upper, work, dir] = ["upper", "work", "merged"].map(|name| scratch.join(name));
        for dir in [&upper, &work, &dir] {
            fs::create_dir_all(dir).unwrap();
        }
        let lower: Vec<_> = lower.iter().map(|dir| dir.to_str().unwrap()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let kind = Some("overlay");
        mount(kind, &dir, kind, MsFlags::MS_NODEV, Some(options.as_str())).unwrap();
        Self { dir }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // What is left mounted would keep the scratch directory from going.
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// The layers of an image on the native file system, as podman keeps them.
pub struct Native {
    /// podman's overlay of the layers.
    pub overlay: Overlay,
    /// A plain copy of what it shows.
    pub copy: PathBuf,
    _scratch: TempDir,
}

impl Native {
    /// Unpacks `image`.
    pub fn unpack(image: &Image) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = image
            .layers()
            .iter()
            .enumerate()
            .map(|(n, (digest, _))| {
                let dir = scratch.path().join(format!("l{n}"));
                unpack_layer(image, digest, &dir);
                dir
            })
            .rev()
            .collect();
        let overlay = Overlay::mount(&scratch.path().join("overlay"), &layers);
        let copy = scratch.path().join("copy");
        fs::create_dir(&copy).unwrap();
        let all = format!("{}/.", overlay.dir.display());
        run(program("cp").arg("-a").arg(all).arg(&copy), SOON * 10).success();
        Self { overlay, copy, _scratch: scratch }
    }
}

/// Unpacks one layer as an overlay wants it: whiteouts become devices and attributes.
fn unpack_layer(image: &Image, digest: &Digest, dir: &Path) {
    fs::create_dir(dir).unwrap();
    let blob = dir.with_extension("tar");
    fs::write(&blob, plain(&image.blobs[digest])).unwrap();
    let mut tar = program("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"]);
    run(tar.arg(&blob).arg("-C").arg(dir), SOON * 10).success();
    fs::remove_file(&blob).unwrap();
    convert_whiteouts(dir);
}

fn plain(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    match blob {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).unwrap();
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => tar = zstd::decode_all(blob).unwrap(),
        _ => tar = blob.to_vec(),
    }
    tar
}

fn convert_whiteouts(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap_or_default());
        if name == ".wh..wh..opq" {
            fs::remove_file(&path).unwrap();
            xattr::set(dir, "trusted.overlay.opaque", b"y").unwrap();
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            fs::remove_file(&path).unwrap();
            mknod(&dir.join(hidden), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
        } else if entry.file_type().unwrap().is_dir() {
            convert_whiteouts(&path);
        }
    }
}

/// All regular files below `dir`, in the order of a walk, as paths relative to it.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(inner) = directories.pop() {
        for entry in fs::read_dir(dir.join(&inner)).unwrap().map(Result::unwrap) {
            let (path, kind) = (inner.join(entry.file_name()), entry.file_type().unwrap());
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() && !kind.is_char_device() {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Lists everything below `dir` with its attributes.
pub fn walk(dir: &Path) {
    let status =
        Command::new("find").arg(dir).arg("-ls").stdout(std::process::Stdio::null()).status();
    assert!(status.unwrap().success());
}

/// Makes the kernel forget names and attributes of all file systems.
pub fn forget_names() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Makes the kernel forget also what it has read of them, as after a start of the machine.
pub fn forget_all() {
    // What is not written yet cannot be forgotten.
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
