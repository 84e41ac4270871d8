//! The tree of the undercloud's Apache: a registry made of files, for pulling only.
//!
//! ```text
//! v2/_catalog                                  {"repositories": [...]}
//! v2/<image>/blobs/sha256:<hex>.gz             a layer, whatever its compression
//! v2/<image>/blobs/sha256:<hex>                a configuration
//! v2/<image>/manifests/sha256:<hex>/index.json the bytes of a manifest, .htaccess beside them
//! v2/<image>/manifests/<tag>.type-map          which manifest a tag means, by Accept
//! v2/<image>/tags/list                         {"name": "<image>", "tags": [...]}
//! ```
//! Every file appears whole, by rename, and a tag after everything that it names. What is there
//! already counts only if it has its digest: damage is repaired by writing the file again.
//! A layer of several images is one file with several names.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tempfile::NamedTempFile;
use undermount_fs::digest::{Digest, Hasher, WrongDigest};

use crate::image::{Descriptor, Document, Repository, Tag};
use crate::registry::client::{Client, Fault, RawManifest, RegistryError, Subject};

/// A file of the tree that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageServeError {
    /// The file system failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The source failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
}

impl From<RegistryError> for ImageServeError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// The tree below a directory.
#[derive(Debug)]
pub struct ImageServe {
    v2: PathBuf,
    /// Blobs that this run has seen whole, and where.
    whole: Mutex<HashMap<Digest, PathBuf>>,
    /// Held while a blob comes in, so that whoever wants it too links it then.
    arriving: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while lists are rebuilt.
    lists: Mutex<()>,
}

impl ImageServe {
    /// The tree below `root`, made when the first file is written.
    pub fn new(root: &Path) -> Self {
        Self {
            v2: root.join("v2"),
            whole: Mutex::default(),
            arriving: Mutex::default(),
            lists: Mutex::default(),
        }
    }

    fn directory(&self, repository: &Repository, kind: &str) -> PathBuf {
        self.v2.join(repository.path()).join(kind)
    }

    /// Sees to it that `to` has the blob, which `from` has: linked from another image of the
    /// tree, or streamed and hashed. Gives the bytes that moved.
    ///
    /// # Errors
    /// [`ImageServeError`] where it cannot be read, has other bytes or cannot be written.
    pub async fn bring(
        &self,
        client: &Client,
        blob: &Descriptor,
        from: &Repository,
        to: &Repository,
        is_layer: bool,
    ) -> Result<u64, ImageServeError> {
        let suffix = if is_layer { ".gz" } else { "" };
        let path = self.directory(to, "blobs").join(format!("{}{suffix}", blob.digest));
        let (file, digest, size) = (path.clone(), blob.digest, blob.size);
        // Hashing a large layer would keep the thread from everything else.
        let whole = tokio::task::spawn_blocking(move || is_whole(&file, &digest, size));
        if whole.await.unwrap_or(false) {
            self.note(blob, path);
            return Ok(0);
        }
        let turn = self.turn(&blob.digest);
        let _turn = turn.lock().await;
        if is_layer && self.link(blob, &path).map_err(|source| write_error(&path, source))? {
            return Ok(0);
        }
        let mut file = temporary(&path).map_err(|source| write_error(&path, source))?;
        let mut hasher = Hasher::default();
        let mut reader = client.read_blob(from, &blob.digest, blob.size, 0);
        while let Some(chunk) = reader.next().await? {
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(|source| write_error(&path, source))?;
        }
        let (expected, actual) = (blob.digest, hasher.finish());
        if expected != actual {
            let subject = Subject::Blob(from.clone(), expected);
            return Err(Fault::WrongDigest(WrongDigest { expected, actual }).of(&subject).into());
        }
        file.persist(&path).map_err(|error| write_error(&path, error.error))?;
        self.note(blob, path);
        Ok(blob.size)
    }

    fn turn(&self, blob: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut arriving = self.arriving.lock().expect("no panic while it is held");
        arriving.entry(*blob).or_default().clone()
    }

    fn note(&self, blob: &Descriptor, path: PathBuf) {
        self.whole.lock().expect("no panic while it is held").insert(blob.digest, path);
    }

    /// Gives the blob a second name, if this run has seen it whole.
    fn link(&self, blob: &Descriptor, path: &Path) -> io::Result<bool> {
        let known =
            self.whole.lock().expect("no panic while it is held").get(&blob.digest).cloned();
        let Some(known) = known else { return Ok(false) };
        make_parent(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::hard_link(known, path)?;
        Ok(true)
    }

    /// Writes a manifest under its digest.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn put_manifest(&self, to: &Repository, raw: &RawManifest) -> Result<(), ImageServeError> {
        let directory = self.directory(to, "manifests").join(raw.digest.to_string());
        let (kind, digest) = (&raw.media_type, raw.digest);
        let headers = format!(
            "Header set Content-Type \"{kind}\"\nHeader set Docker-Content-Digest \"{digest}\"\n\
             Header set ETag \"{digest}\"\n"
        );
        write(&directory.join(".htaccess"), headers.as_bytes())?;
        write(&directory.join("index.json"), &raw.bytes)
    }

    /// Lets `tag` mean the first of `variants`, and the others for clients that accept only
    /// them; then rebuilds the lists of tags and images.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn put_tag(
        &self,
        to: &Repository,
        tag: &str,
        variants: &[&RawManifest],
    ) -> Result<(), ImageServeError> {
        write(&self.type_map(to, tag), type_map(tag, variants).as_bytes())?;
        self.rebuild_lists(to)
    }

    fn type_map(&self, to: &Repository, tag: &str) -> PathBuf {
        self.directory(to, "manifests").join(format!("{tag}.type-map"))
    }

    /// Whether `tag` means exactly `variants`, whose manifests are whole.
    pub fn has_tag(&self, to: &Repository, tag: &str, variants: &[&RawManifest]) -> bool {
        let map = fs::read_to_string(self.type_map(to, tag)).unwrap_or_default();
        let whole = |raw: &&RawManifest| {
            let directory = self.directory(to, "manifests").join(raw.digest.to_string());
            fs::read(directory.join("index.json")).is_ok_and(|bytes| bytes == raw.bytes)
        };
        map == type_map(tag, variants) && variants.iter().all(whole)
    }

    /// Deletes `tag`, and the manifests and blobs that no other tag of the image needs; with the
    /// last tag the image. False where there is no such tag.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn delete(&self, image: &Repository, tag: &Tag) -> Result<bool, ImageServeError> {
        let map = self.type_map(image, tag.as_str());
        match fs::remove_file(&map) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            removed => removed.map_err(|source| write_error(&map, source))?,
        }
        self.sweep(image)?;
        self.rebuild_lists(image)?;
        Ok(true)
    }

    /// Removes what no tag of the image needs.
    fn sweep(&self, image: &Repository) -> Result<(), ImageServeError> {
        let manifests = self.directory(image, "manifests");
        let mut needed = BTreeSet::new();
        for name in names(&manifests) {
            if name.ends_with(".type-map") {
                let map = fs::read_to_string(manifests.join(name)).unwrap_or_default();
                needed.extend(map.lines().filter_map(|line| {
                    Some(line.strip_prefix("URI: ")?.strip_suffix("/index.json")?.to_owned())
                }));
            }
        }
        let mut blobs = BTreeSet::new();
        for digest in needed.clone() {
            let bytes = fs::read(manifests.join(&digest).join("index.json")).unwrap_or_default();
            match Document::parse(&bytes, None) {
                Ok(Document::Manifest(manifest)) => {
                    let all = std::iter::once(&manifest.config).chain(&manifest.layers);
                    blobs.extend(all.map(|blob| blob.digest.to_string()));
                }
                Ok(Document::Index(index)) => {
                    needed.extend(index.manifests.iter().map(|child| child.digest.to_string()));
                }
                Err(_) => {}
            }
        }
        for name in names(&manifests) {
            if name.starts_with("sha256:") && !needed.contains(&name) {
                let path = manifests.join(name);
                fs::remove_dir_all(&path).map_err(|source| write_error(&path, source))?;
            }
        }
        let directory = self.directory(image, "blobs");
        for name in names(&directory) {
            if !blobs.contains(name.trim_end_matches(".gz")) {
                let path = directory.join(name);
                fs::remove_file(&path).map_err(|source| write_error(&path, source))?;
            }
        }
        if names(&manifests).is_empty() {
            let path = self.v2.join(image.path());
            fs::remove_dir_all(&path).map_err(|source| write_error(&path, source))?;
        }
        Ok(())
    }

    fn rebuild_lists(&self, image: &Repository) -> Result<(), ImageServeError> {
        let _rebuilding = self.lists.lock().expect("no panic while it is held");
        if self.v2.join(image.path()).is_dir() {
            let manifests = names(&self.directory(image, "manifests"));
            let tags: Vec<Value> = manifests
                .iter()
                .filter_map(|name| Some(name.strip_suffix(".type-map")?.into()))
                .collect();
            let list = serde_json::json!({"name": image.path(), "tags": tags});
            write(&self.directory(image, "tags").join("list"), list.to_string().as_bytes())?;
        }
        let mut repositories = Vec::new();
        find_images(&self.v2, "", &mut repositories);
        let catalog = serde_json::json!({"repositories": repositories});
        write(&self.v2.join("_catalog"), catalog.to_string().as_bytes())
    }
}

/// Apache's type map (mod_negotiation) of a tag.
fn type_map(tag: &str, variants: &[&RawManifest]) -> String {
    let variant = |raw: &&RawManifest| {
        format!("Content-Type: {}\nURI: {}/index.json\n\n", raw.media_type, raw.digest)
    };
    format!("URI: {tag}\n\n") + &variants.iter().map(variant).collect::<String>()
}

/// Whether the file holds the blob, byte by byte.
fn is_whole(path: &Path, digest: &Digest, size: u64) -> bool {
    let Ok(mut file) = fs::File::open(path) else { return false };
    if !file.metadata().is_ok_and(|metadata| metadata.len() == size) {
        return false;
    }
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return hasher.finish() == *digest,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// The names in a directory, sorted; none where it does not exist.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with(TEMPORARY));
    names.sort();
    names
}

/// Images are directories with blobs, manifests and tags.
fn find_images(directory: &Path, name: &str, found: &mut Vec<String>) {
    let children = names(directory);
    let has = |kind: &str| children.iter().any(|child| child == kind);
    if has("blobs") && has("manifests") && has("tags") {
        found.push(name.to_owned());
    }
    for child in
        children.iter().filter(|child| !matches!(child.as_str(), "blobs" | "manifests" | "tags"))
    {
        let path = directory.join(child);
        if path.is_dir() {
            let name = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
            find_images(&path, &name, found);
        }
    }
}

/// What the names of unfinished files begin with.
const TEMPORARY: &str = ".undermount-";

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageServeError> {
    let replace = || {
        let mut file = temporary(path)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    };
    replace().map_err(|source| write_error(path, source))
}

/// A file that will be renamed to `path`, readable by the web server.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    make_parent(path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    tempfile::Builder::new().prefix(TEMPORARY).permissions(readable).tempfile_in(parent)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

fn write_error(path: &Path, source: io::Error) -> ImageServeError {
    ImageServeError::Write { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn manifest(text: &str) -> RawManifest {
        let bytes = Bytes::from(text.to_owned());
        let digest = Digest::of(&bytes);
        RawManifest { bytes, media_type: "type/x".to_owned(), digest }
    }

    #[test]
    fn tags_appear_in_the_lists_and_vanish_with_what_only_they_need() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let (one, two) = (manifest("{\"a\":1}"), manifest("{\"a\":2}"));
        for (tag, raw) in [("t1", &one), ("t2", &two)] {
            tree.put_manifest(&image, raw).unwrap();
            tree.put_tag(&image, tag, &[raw]).unwrap();
        }
        let blobs = tree.directory(&image, "blobs");
        fs::create_dir_all(&blobs).unwrap();
        tree.put_tag(&image, "t2", &[&two]).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("v2").join(name)).unwrap();
        assert_eq!(read("_catalog"), r#"{"repositories":["ns/nova"]}"#);
        assert_eq!(read("ns/nova/tags/list"), r#"{"name":"ns/nova","tags":["t1","t2"]}"#);
        let map = format!("URI: t1\n\nContent-Type: type/x\nURI: {}/index.json\n\n", one.digest);
        assert_eq!(read("ns/nova/manifests/t1.type-map"), map);
        assert!(tree.has_tag(&image, "t1", &[&one]) && !tree.has_tag(&image, "t1", &[&two]));

        assert!(tree.delete(&image, &"t1".parse().unwrap()).unwrap());
        assert!(!tree.delete(&image, &"t1".parse().unwrap()).unwrap());
        assert_eq!(read("ns/nova/tags/list"), r#"{"name":"ns/nova","tags":["t2"]}"#);
        assert!(!tree.directory(&image, "manifests").join(one.digest.to_string()).exists());
        tree.delete(&image, &"t2".parse().unwrap()).unwrap();
        assert_eq!(read("_catalog"), r#"{"repositories":[]}"#);
    }

    #[test]
    fn a_damaged_manifest_is_not_taken_for_whole() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let raw = manifest("{}");
        tree.put_manifest(&image, &raw).unwrap();
        tree.put_tag(&image, "t", &[&raw]).unwrap();
        let path = tree.directory(&image, "manifests").join(raw.digest.to_string());
        fs::write(path.join("index.json"), "{!").unwrap();
        assert!(!tree.has_tag(&image, "t", &[&raw]));
    }
}
