//! The tree of the undercloud's Apache: a registry made of files, for pulling only.
//!
//! ```text
//! v2/_catalog                                  {"repositories": [...]}
//! v2/<image>/blobs/sha256:<hex>.gz             a layer, whatever its compression
//! v2/<image>/blobs/sha256:<hex>                a configuration, a blob of an artifact
//! v2/<image>/manifests/sha256:<hex>/index.json the bytes of a manifest, .htaccess beside them
//! v2/<image>/manifests/<tag>.type-map          which manifest a tag means, by Accept
//! v2/<image>/referrers/sha256:<hex>/index.json what belongs to a manifest, .htaccess beside it
//! v2/<image>/tags/list                         {"name": "<image>", "tags": [...]}
//! ```
//! Every file appears whole, by rename, and a tag after everything that it names. What is there
//! already counts only if it has its digest: damage is repaired by writing the file again.
//! A layer of several images is one file with several names. Tags that are links to the directory
//! of a manifest, as the original made them before, become type maps. All of it but `referrers`, which
//! answers the referrers API, is as the original makes it.

mod delete;
mod lists;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use undermount_fs::digest::Digest;

use super::copy::blob_file;
use crate::image::{Descriptor, Document, Repository, Tag, media_type, referrers};
use crate::registry::client::RawManifest;

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
    /// The file system failed where something is to be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The tree below a directory.
#[derive(Debug)]
pub struct ImageServe {
    v2: PathBuf,
    /// Held while lists are rebuilt.
    lists: Mutex<()>,
}

impl ImageServe {
    /// The tree below `root`, made when the first file is written.
    pub fn new(root: &Path) -> Self {
        Self { v2: root.join("v2"), lists: Mutex::default() }
    }

    /// The directory that holds all of it.
    pub fn root(&self) -> &Path {
        &self.v2
    }

    fn directory(&self, repository: &Repository, kind: &str) -> PathBuf {
        self.v2.join(repository.path()).join(kind)
    }

    /// Where a blob of `repository` lies, which is a layer or not.
    pub fn blob_path(&self, repository: &Repository, digest: &Digest, is_layer: bool) -> PathBuf {
        let suffix = if is_layer { ".gz" } else { "" };
        self.directory(repository, "blobs").join(format!("{digest}{suffix}"))
    }

    /// Gives the blob at `known` a second name, in the place of whatever has it.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn link(&self, known: &Path, path: &Path) -> Result<(), ImageServeError> {
        blob_file::link(known, path).map_err(|source| write_error(path, source))
    }

    fn manifest_path(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.directory(repository, "manifests").join(digest.to_string())
    }

    /// Writes a manifest under its digest; whether it was not there.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn put_manifest(
        &self,
        to: &Repository,
        raw: &RawManifest,
    ) -> Result<bool, ImageServeError> {
        let directory = self.manifest_path(to, &raw.digest);
        write_headers(&directory, &raw.media_type, Some(&raw.digest))?;
        write_if_changed(&directory.join("index.json"), &raw.bytes)
    }

    /// The manifest `digest`, if it is there and whole.
    pub fn manifest(&self, from: &Repository, digest: &Digest) -> Option<RawManifest> {
        let bytes = fs::read(self.manifest_path(from, digest).join("index.json")).ok()?;
        if Digest::of(&bytes) != *digest {
            return None;
        }
        let media_type = Document::parse(&bytes, None).ok()?.media_type().to_owned();
        Some(RawManifest { bytes: bytes.into(), media_type, digest: *digest })
    }

    /// The manifest that `tag` means to clients that take all.
    pub fn tagged(&self, from: &Repository, tag: &Tag) -> Option<RawManifest> {
        let digest = match fs::read_to_string(self.type_map(from, tag.as_str())) {
            Ok(map) => lists::digests_of(&map).next()?,
            Err(_) => self.linked(from, tag.as_str()).ok()??,
        };
        self.manifest(from, &digest)
    }

    /// Lets `tag` mean the first of `variants`, and the others for clients that accept only
    /// them; then rebuilds the lists of tags and images. Whether it meant something else.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn put_tag(
        &self,
        to: &Repository,
        tag: &str,
        variants: &[&RawManifest],
    ) -> Result<bool, ImageServeError> {
        let changed = write_if_changed(&self.type_map(to, tag), type_map(tag, variants).as_bytes());
        self.rebuild_lists(to)?;
        changed
    }

    fn type_map(&self, to: &Repository, tag: &str) -> PathBuf {
        self.directory(to, "manifests").join(format!("{tag}.type-map"))
    }

    /// Lists `referrer`, whose manifest is there, as what belongs to `subject`; whether it was
    /// not listed.
    ///
    /// # Errors
    /// [`ImageServeError::Write`] where that fails.
    pub fn put_referrer(
        &self,
        to: &Repository,
        subject: &Digest,
        referrer: &Descriptor,
    ) -> Result<bool, ImageServeError> {
        let _listing = self.lists.lock().expect("no panic while it is held");
        let directory = self.directory(to, "referrers").join(subject.to_string());
        let path = directory.join("index.json");
        let existing = fs::read(&path).ok();
        let updated = referrers::list_in_fallback(existing.as_deref(), referrer)
            // A damaged list is written anew.
            .or_else(|_| referrers::list_in_fallback(None, referrer));
        let Ok(Some(updated)) = updated else { return Ok(false) };
        write_headers(&directory, media_type::OCI_INDEX, None)?;
        write(&path, &updated)?;
        Ok(true)
    }

    /// What belongs to the manifest `subject`; nothing where that cannot be read.
    pub fn referrers(&self, from: &Repository, subject: &Digest) -> Vec<Descriptor> {
        self.read_referrers(from, subject).unwrap_or_default()
    }

    /// What belongs to the manifest `subject`. A damaged list says nothing.
    fn read_referrers(
        &self,
        from: &Repository,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, ImageServeError> {
        let path = self.directory(from, "referrers").join(subject.to_string()).join("index.json");
        let bytes = if_there(&path, fs::read(&path))?.unwrap_or_default();
        let index = Document::parse(&bytes, Some(media_type::OCI_INDEX));
        Ok(index.and_then(Document::into_index).map(|index| index.manifests).unwrap_or_default())
    }
}

/// The headers that Apache sends with a manifest.
fn write_headers(
    directory: &Path,
    media_type: &str,
    digest: Option<&Digest>,
) -> Result<(), ImageServeError> {
    let mut headers = format!("Header set Content-Type \"{media_type}\"\n");
    if let Some(digest) = digest {
        headers += &format!(
            "Header set Docker-Content-Digest \"{digest}\"\nHeader set ETag \"{digest}\"\n"
        );
    }
    write_if_changed(&directory.join(".htaccess"), headers.as_bytes()).map(drop)
}

/// Apache's type map (mod_negotiation) of a tag.
fn type_map(tag: &str, variants: &[&RawManifest]) -> String {
    let variant = |raw: &&RawManifest| {
        format!("Content-Type: {}\nURI: {}/index.json\n\n", raw.media_type, raw.digest)
    };
    format!("URI: {tag}\n\n") + &variants.iter().map(variant).collect::<String>()
}

/// Writes the file unless it has these bytes; whether it had not.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool, ImageServeError> {
    if fs::read(path).is_ok_and(|existing| existing == bytes) {
        return Ok(false);
    }
    write(path, bytes).map(|()| true)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageServeError> {
    blob_file::write(path, bytes).map_err(|source| write_error(path, source))
}

/// What was read at `path`; nothing where nothing is there.
fn if_there<T>(path: &Path, read: io::Result<T>) -> Result<Option<T>, ImageServeError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ImageServeError::Read { path: path.to_owned(), source }),
    }
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
        assert!(!tree.put_tag(&image, "t1", &[&one]).unwrap(), "nothing changed");

        assert!(tree.delete(&image, &"t1".parse().unwrap()).unwrap());
        assert!(!tree.delete(&image, &"t1".parse().unwrap()).unwrap());
        assert_eq!(read("ns/nova/tags/list"), r#"{"name":"ns/nova","tags":["t2"]}"#);
        assert!(!tree.directory(&image, "manifests").join(one.digest.to_string()).exists());
        tree.delete(&image, &"t2".parse().unwrap()).unwrap();
        assert_eq!(read("_catalog"), r#"{"repositories":[]}"#);
    }

    #[test]
    fn a_damaged_manifest_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let raw = manifest("{\"schemaVersion\":2,\"manifests\":[]}");
        assert!(tree.put_manifest(&image, &raw).unwrap());
        assert!(!tree.put_manifest(&image, &raw).unwrap());
        let path = tree.manifest_path(&image, &raw.digest).join("index.json");
        fs::write(path, "{!").unwrap();
        assert!(tree.manifest(&image, &raw.digest).is_none());
        assert!(tree.put_manifest(&image, &raw).unwrap());
        assert_eq!(tree.manifest(&image, &raw.digest).unwrap().bytes, raw.bytes);
    }

    #[test]
    fn the_blobs_of_a_manifest_that_nobody_understands_stay() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let old = manifest("{\"schemaVersion\":1,\"fsLayers\":[{\"blobSum\":\"sha256:1\"}]}");
        let list = manifest("{\"schemaVersion\":2,\"manifests\":[]}");
        for (tag, raw) in [("a-old", &old), ("b-list", &list), ("c-list", &list)] {
            tree.put_manifest(&image, raw).unwrap();
            tree.put_tag(&image, tag, &[raw]).unwrap();
        }
        let blob = tree.directory(&image, "blobs").join("sha256:1.gz");
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, "layer").unwrap();
        for (tag, stays) in [("b-list", true), ("a-old", false)] {
            assert!(tree.delete(&image, &tag.parse().unwrap()).unwrap());
            assert_eq!(blob.exists(), stays, "{tag}");
        }
    }

    #[test]
    fn tags_that_are_links_become_type_maps_and_keep_what_they_need() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let texts = ["old", "new", "other"]
            .map(|name| format!("{{\"schemaVersion\":2,\"manifests\":[],\"a\":\"{name}\"}}"));
        let [old, new, other] = texts.map(|text| manifest(&text));
        for raw in [&old, &new, &other] {
            tree.put_manifest(&image, raw).unwrap();
        }
        let link = |tag: &str, raw: &RawManifest| {
            let path = tree.directory(&image, "manifests").join(tag);
            std::os::unix::fs::symlink(raw.digest.to_string(), path).unwrap();
        };
        link("kept", &old);
        link("renewed", &old);
        assert_eq!(tree.tags(&image), ["kept", "renewed"]);
        let tagged = |tag: &str| Some(tree.tagged(&image, &tag.parse().unwrap())?.digest);
        assert_eq!(tagged("kept"), Some(old.digest));

        tree.put_tag(&image, "renewed", &[&new]).unwrap();
        let path = root.path().join("v2/ns/nova/manifests");
        assert!(!path.join("kept").is_symlink() && path.join("kept.type-map").is_file());
        assert_eq!((tagged("kept"), tagged("renewed")), (Some(old.digest), Some(new.digest)));
        let list = fs::read_to_string(root.path().join("v2/ns/nova/tags/list")).unwrap();
        assert_eq!(list, r#"{"name":"ns/nova","tags":["kept","renewed"]}"#);

        link("gone", &other);
        link("linked", &old);
        assert!(tree.delete(&image, &"gone".parse().unwrap()).unwrap());
        assert!(!tree.manifest_path(&image, &other.digest).exists());
        assert_eq!(tree.tags(&image), ["kept", "linked", "renewed"]);
        assert!(tree.delete(&image, &"kept".parse().unwrap()).unwrap());
        assert_eq!(tagged("linked"), Some(old.digest));
    }

    #[test]
    fn referrers_are_listed_once_and_go_with_their_subject() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let (subject, artifact) = (manifest("{\"a\":1}"), manifest("{\"a\":2}"));
        tree.put_manifest(&image, &subject).unwrap();
        tree.put_tag(&image, "t", &[&subject]).unwrap();
        tree.put_manifest(&image, &artifact).unwrap();
        let descriptor = artifact.descriptor();
        assert!(tree.put_referrer(&image, &subject.digest, &descriptor).unwrap());
        assert!(!tree.put_referrer(&image, &subject.digest, &descriptor).unwrap());
        assert_eq!(tree.referrers(&image, &subject.digest)[0].digest, artifact.digest);
        tree.put_tag(&image, "other", &[&manifest("{}")]).unwrap();
        tree.delete(&image, &"other".parse().unwrap()).unwrap();
        assert!(tree.manifest_path(&image, &artifact.digest).exists(), "it belongs to an image");
        tree.delete(&image, &"t".parse().unwrap()).unwrap();
        assert!(!root.path().join("v2/ns/nova").exists());
    }

    #[test]
    fn regression_an_image_below_the_name_of_a_deleted_one_stays() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let [outer, inner]: [Repository; 2] =
            ["h:1/ns/nova", "h:1/ns/nova/api"].map(|name| name.parse().unwrap());
        let raw = manifest("{\"a\":1}");
        for image in [&outer, &inner] {
            tree.put_manifest(image, &raw).unwrap();
            tree.put_tag(image, "t", &[&raw]).unwrap();
        }
        assert!(tree.delete(&outer, &"t".parse().unwrap()).unwrap());
        assert!(!tree.directory(&outer, "manifests").exists());
        assert!(!tree.directory(&outer, "tags").exists());
        assert!(tree.manifest_path(&inner, &raw.digest).join("index.json").exists());
    }

    #[test]
    fn regression_what_cannot_be_read_is_not_taken_for_gone() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let layer = |raw: &RawManifest| {
            let path = tree.blob_path(&image, &raw.digest, true);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "layer").unwrap();
            path
        };
        let (kept, gone) = (manifest("{\"a\":1}"), manifest("{\"a\":2}"));
        for (tag, raw) in [("kept", &kept), ("gone", &gone)] {
            tree.put_manifest(&image, raw).unwrap();
            tree.put_tag(&image, tag, &[raw]).unwrap();
        }
        let layers = [layer(&kept), layer(&gone)];
        let manifests = tree.directory(&image, "manifests");
        let referrers = tree.directory(&image, "referrers").join(kept.digest.to_string());
        fs::create_dir_all(&referrers).unwrap();
        for unreadable in [
            tree.type_map(&image, "kept"),
            tree.manifest_path(&image, &kept.digest).join("index.json"),
            referrers.join("index.json"),
            manifests,
        ] {
            // Reading a loop of links fails, for root too.
            let aside = root.path().join("aside");
            let was_there = fs::rename(&unreadable, &aside).is_ok();
            std::os::unix::fs::symlink(&unreadable, &unreadable).unwrap();
            let error = tree.delete(&image, &"gone".parse().unwrap()).unwrap_err().to_string();
            assert!(error.starts_with("cannot read"), "{error}");
            assert!(layers.iter().all(|layer| layer.exists()), "{error}");
            fs::remove_file(&unreadable).unwrap();
            if was_there {
                fs::rename(&aside, &unreadable).unwrap();
            }
            assert_eq!(tree.tags(&image), ["gone", "kept"], "{error}");
        }
        assert!(tree.delete(&image, &"gone".parse().unwrap()).unwrap());
    }

    #[test]
    fn regression_a_link_to_a_damaged_manifest_keeps_its_layers() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let image: Repository = "h:1/ns/nova".parse().unwrap();
        let (old, new) = (manifest("{\"a\":1}"), manifest("{\"a\":2}"));
        for raw in [&old, &new] {
            tree.put_manifest(&image, raw).unwrap();
        }
        tree.put_tag(&image, "new", &[&new]).unwrap();
        let link = tree.directory(&image, "manifests").join("old");
        std::os::unix::fs::symlink(old.digest.to_string(), &link).unwrap();
        let directory = tree.manifest_path(&image, &old.digest);
        fs::write(directory.join("index.json"), "{!").unwrap();
        let layer = tree.blob_path(&image, &old.digest, true);
        fs::create_dir_all(layer.parent().unwrap()).unwrap();
        fs::write(&layer, "layer").unwrap();
        assert!(tree.delete(&image, &"new".parse().unwrap()).unwrap());
        assert!(layer.exists() && directory.exists());
        assert!(tree.delete(&image, &"old".parse().unwrap()).unwrap());
        assert!(!layer.exists() && !link.is_symlink());
    }

    #[test]
    fn a_link_takes_the_place_of_whatever_has_its_name() {
        let root = tempfile::tempdir().unwrap();
        let tree = ImageServe::new(root.path());
        let (known, path) = (root.path().join("known"), root.path().join("a/b"));
        fs::write(&known, "right").unwrap();
        fs::create_dir_all(root.path().join("a")).unwrap();
        fs::write(&path, "wrong").unwrap();
        for _ in 0..2 {
            tree.link(&known, &path).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"right");
        }
        assert_eq!(fs::read_dir(root.path().join("a")).unwrap().count(), 1);
    }
}
