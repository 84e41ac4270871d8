//! The tree of files that TripleO's Apache serves, served read-only in its place. The tree is
//! written by `prepare`, which draws its layout, or by the original.
//!
//! Lists are made from the files that there are, not read from the files `_catalog` and
//! `tags/list`, which the original writes neither whole nor in step with the rest. Manifests
//! are served only if they hash right, whatever a file beside them says.

use std::fs;
use std::path::{Path, PathBuf};

use super::digest::ContentDigest;
use super::library::Library;
use super::manifest::Submitted;
use super::name::Repository;
use super::storage::{Blob, StorageError, StoredManifest, list, open_blob, read};
use super::target::Reference;
use crate::image::reference::Tag;

/// The directories of a repository, and no names of repositories inside it.
const KINDS: [&str; 3] = ["blobs", "manifests", "tags"];

/// The tree below a directory.
#[derive(Debug)]
pub struct ImageServeTree {
    v2: PathBuf,
}

impl ImageServeTree {
    /// The tree below `root`.
    ///
    /// # Errors
    /// [`StorageError::NoTree`] where there is none.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let v2 = root.join("v2");
        if !v2.is_dir() {
            return Err(StorageError::NoTree { root: root.to_owned() });
        }
        Ok(Self { v2 })
    }

    fn directory(&self, repository: &Repository, kind: &str) -> PathBuf {
        self.v2.join(repository.as_str()).join(kind)
    }

    fn exists(&self, repository: &Repository) -> bool {
        KINDS.iter().all(|kind| self.directory(repository, kind).is_dir())
    }

    /// The digest of the manifest that a tag stands for.
    fn resolve(
        &self,
        repository: &Repository,
        tag: &Tag,
        accept: &str,
    ) -> Result<Option<ContentDigest>, StorageError> {
        let manifests = self.directory(repository, "manifests");
        if let Some(map) = read(&manifests.join(format!("{tag}.type-map")))? {
            return Ok(choose(&String::from_utf8_lossy(&map), accept));
        }
        // Older trees have symbolic links to the directories of manifests.
        let target = fs::read_link(manifests.join(tag.as_str())).ok();
        let name = target.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        Ok(name.and_then(|name| name.parse().ok()))
    }

    fn by_digest(
        &self,
        repository: &Repository,
        digest: ContentDigest,
    ) -> Result<Option<StoredManifest>, StorageError> {
        let directory = self.directory(repository, "manifests").join(digest.to_string());
        let path = directory.join("index.json");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let actual = ContentDigest::of(digest.algorithm(), &bytes);
        if actual != digest {
            let reason = format!("it hashes to {actual}");
            return Err(StorageError::Damaged { path, reason });
        }
        let headers = read(&directory.join(".htaccess"))?.unwrap_or_default();
        let media_type = match content_type(&String::from_utf8_lossy(&headers)) {
            Some(media_type) => media_type,
            None => match Submitted::parse(&bytes, None) {
                Ok(submitted) => submitted.media_type,
                Err(error) => {
                    return Err(StorageError::Damaged { path, reason: error.to_string() });
                }
            },
        };
        Ok(Some(StoredManifest { digest, media_type, bytes }))
    }
}

impl Library for ImageServeTree {
    fn repositories(&self) -> Result<Vec<Repository>, StorageError> {
        let mut found = Vec::new();
        let mut waiting = vec![(self.v2.clone(), String::new())];
        while let Some((path, name)) = waiting.pop() {
            if let Some(repository) = Repository::parse(&name)
                && self.exists(&repository)
            {
                found.push(repository);
            }
            for component in list(&path)? {
                let child = path.join(&component);
                if KINDS.contains(&component.as_str()) || !child.is_dir() {
                    continue;
                }
                let name = if name.is_empty() { component } else { format!("{name}/{component}") };
                waiting.push((child, name));
            }
        }
        Ok(found)
    }

    fn tags(&self, repository: &Repository) -> Result<Option<Vec<String>>, StorageError> {
        if !self.exists(repository) {
            return Ok(None);
        }
        let directory = self.directory(repository, "manifests");
        let tag_of = |name: String| match name.strip_suffix(".type-map") {
            Some(tag) => Some(tag.to_owned()),
            None => directory.join(&name).is_symlink().then_some(name),
        };
        let mut tags: Vec<String> = list(&directory)?.into_iter().filter_map(tag_of).collect();
        tags.retain(|tag| tag.parse::<Tag>().is_ok());
        tags.sort_unstable();
        tags.dedup();
        Ok(Some(tags))
    }

    fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &str,
    ) -> Result<Option<StoredManifest>, StorageError> {
        let digest = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(tag) => self.resolve(repository, tag, accept)?,
        };
        digest.map_or(Ok(None), |digest| self.by_digest(repository, digest))
    }

    fn blob(
        &self,
        repository: &Repository,
        digest: &ContentDigest,
    ) -> Result<Option<Blob>, StorageError> {
        let blobs = self.directory(repository, "blobs");
        for name in [format!("{digest}.gz"), digest.to_string()] {
            if let Some(blob) = open_blob(&blobs.join(name))? {
                return Ok(Some(blob));
            }
        }
        Ok(None)
    }

    fn referrers(
        &self,
        repository: &Repository,
        subject: &ContentDigest,
    ) -> Result<Vec<Vec<u8>>, StorageError> {
        let mut names = list(&self.directory(repository, "manifests"))?;
        names.sort_unstable();
        let mut descriptors = Vec::new();
        for digest in names.iter().filter_map(|name| name.parse::<ContentDigest>().ok()) {
            // One that is damaged or no manifest refers to nothing.
            let Ok(Some(manifest)) = self.by_digest(repository, digest) else { continue };
            let parsed = Submitted::parse(&manifest.bytes, Some(&manifest.media_type));
            if let Ok(submitted) = parsed
                && submitted.subject.as_ref() == Some(subject)
            {
                let size = manifest.bytes.len() as u64;
                descriptors.push(submitted.descriptor(&manifest.digest, size));
            }
        }
        Ok(descriptors)
    }
}

/// The first variant of a type map that `accept` names, else the first.
fn choose(map: &str, accept: &str) -> Option<ContentDigest> {
    let accepted: Vec<&str> =
        accept.split(',').map(|item| item.split(';').next().unwrap_or(item).trim()).collect();
    let mut first = None;
    let mut media_type = "";
    for line in map.lines() {
        if let Some(value) = line.strip_prefix("Content-Type:") {
            media_type = value.trim();
        }
        let uri = line.strip_prefix("URI:").map(str::trim);
        let Some(Ok(digest)) =
            uri.and_then(|uri| uri.strip_suffix("/index.json")).map(str::parse::<ContentDigest>)
        else {
            continue;
        };
        if accepted.contains(&media_type) {
            return Some(digest);
        }
        first.get_or_insert(digest);
    }
    first
}

/// The type that `.htaccess` gives a manifest.
fn content_type(headers: &str) -> Option<String> {
    let line = headers.lines().find_map(|line| line.strip_prefix("Header set Content-Type "))?;
    let value = line.trim().trim_matches('"');
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::super::digest::Algorithm;
    use super::*;
    use crate::image::manifest::media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_MANIFEST};

    struct Fixture {
        root: tempfile::TempDir,
        tree: ImageServeTree,
        repository: Repository,
    }

    fn digest(text: &str) -> ContentDigest {
        ContentDigest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn fixture() -> Fixture {
        let root = tempfile::tempdir().unwrap();
        for kind in KINDS {
            fs::create_dir_all(root.path().join("v2/ns/nova").join(kind)).unwrap();
        }
        let tree = ImageServeTree::open(root.path()).unwrap();
        Fixture { root, tree, repository: Repository::parse("ns/nova").unwrap() }
    }

    impl Fixture {
        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join("v2/ns/nova").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn manifest(&self, text: &str) -> ContentDigest {
            let digest = digest(text);
            self.write(&format!("manifests/{digest}/index.json"), text);
            digest
        }

        fn get(&self, reference: &str, accept: &str) -> Option<StoredManifest> {
            let reference = Reference::parse(reference).unwrap();
            self.tree.manifest(&self.repository, &reference, accept).unwrap()
        }
    }

    fn image(text: &str) -> String {
        let config = json!({ "mediaType": "x", "digest": digest(text), "size": 1 });
        json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config }).to_string()
    }

    #[test]
    fn a_tag_stands_for_the_variant_that_the_client_accepts() {
        let f = fixture();
        let list = json!({ "schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [] });
        let (list, image) = (f.manifest(&list.to_string()), f.manifest(&image("a")));
        let map = format!(
            "URI: t\n\nContent-Type: {DOCKER_LIST}\nURI: {list}/index.json\n\n\
             Content-Type: {DOCKER_MANIFEST}\nURI: {image}/index.json\n\n"
        );
        f.write("manifests/t.type-map", &map);
        let accept = format!("text/html, {DOCKER_MANIFEST};q=0.5");
        assert_eq!(f.get("t", &accept).unwrap().digest, image);
        let first = f.get("t", "*/*").unwrap();
        assert_eq!((first.digest, first.media_type.as_str()), (list, DOCKER_LIST));
        assert_eq!(f.tree.tags(&f.repository).unwrap().unwrap(), ["t"]);
        assert_eq!(f.tree.repositories().unwrap(), [f.repository]);
    }

    #[test]
    fn tags_of_older_trees_are_symbolic_links() {
        let f = fixture();
        let digest = f.manifest(&image("a"));
        let link = f.root.path().join("v2/ns/nova/manifests/old");
        symlink(digest.to_string(), link).unwrap();
        assert_eq!(f.get("old", "").unwrap().digest, digest);
        assert_eq!(f.tree.tags(&f.repository).unwrap().unwrap(), ["old"]);
    }

    #[test]
    fn the_type_of_a_manifest_is_what_the_tree_says() {
        let f = fixture();
        let digest = f.manifest(&image("a"));
        assert_eq!(f.get(&digest.to_string(), "").unwrap().media_type, DOCKER_MANIFEST);
        let headers = format!("Header set Content-Type \"{OCI_MANIFEST}\"\n");
        f.write(&format!("manifests/{digest}/.htaccess"), &headers);
        assert_eq!(f.get(&digest.to_string(), "").unwrap().media_type, OCI_MANIFEST);
    }

    #[test]
    fn damage_is_never_served() {
        let f = fixture();
        let digest = f.manifest(&image("a"));
        f.write(&format!("manifests/{digest}/index.json"), "{}");
        let error = f.tree.manifest(&f.repository, &Reference::Digest(digest), "").unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    }

    #[test]
    fn layers_and_configurations_are_blobs() {
        let f = fixture();
        for (text, suffix) in [("layer", ".gz"), ("config", "")] {
            f.write(&format!("blobs/{}{suffix}", digest(text)), text);
            let blob = f.tree.blob(&f.repository, &digest(text)).unwrap().unwrap();
            assert_eq!(blob.size, text.len() as u64);
        }
        assert!(f.tree.blob(&f.repository, &digest("none")).unwrap().is_none());
    }

    #[test]
    fn referrers_are_found_by_their_subject() {
        let f = fixture();
        let subject = json!({ "mediaType": OCI_MANIFEST, "digest": digest("image"), "size": 1 });
        let mut artifact: serde_json::Value = serde_json::from_str(&image("a")).unwrap();
        artifact["subject"] = subject;
        f.manifest(&artifact.to_string());
        f.manifest(&image("b"));
        assert_eq!(f.tree.referrers(&f.repository, &digest("image")).unwrap().len(), 1);
        assert!(f.tree.referrers(&f.repository, &digest("other")).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let error = ImageServeTree::open(root.path()).unwrap_err();
        assert!(error.to_string().contains("no image-serve tree"), "{error}");
    }
}
