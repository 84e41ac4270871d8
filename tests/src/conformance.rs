//! The content that the conformance suite of the distribution-spec pushes: images, indexes and
//! artifacts of every shape that the image-spec allows, under either digest.

use serde_json::{Value, json};

use crate::archive::{Archive, Member, noise};
use crate::compression::Compression;
use crate::distribution::{sha256, sha512};

/// The media types of the image-spec that the suite uses.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// See [`MANIFEST`].
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const NOT_DISTRIBUTED: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// Two types of artifacts.
const KINDS: [&str; 2] =
    ["application/vnd.example.conformance.v1", "application/vnd.example.conformance.v2"];

/// Content that belongs together, in the order in which it has to be pushed.
pub struct Content {
    /// What it shows.
    pub name: &'static str,
    /// The blobs, each by its digest.
    pub blobs: Vec<(String, Vec<u8>)>,
    /// The manifests.
    pub manifests: Vec<Manifest>,
    /// Tags, and the manifests they are for, by their place in the list.
    pub tags: Vec<(String, usize)>,
    hash: fn(&[u8]) -> String,
}

/// A manifest to push.
pub struct Manifest {
    /// The digest by which it is pushed.
    pub digest: String,
    /// What it is.
    pub media_type: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The digest of its subject, and how the referrers API lists it.
    pub referrer: Option<(String, Value)>,
}

impl Content {
    fn new(name: &'static str, hash: fn(&[u8]) -> String) -> Self {
        Self { name, blobs: Vec::new(), manifests: Vec::new(), tags: Vec::new(), hash }
    }

    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = (self.hash)(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        if self.blobs.iter().all(|(known, _)| *known != digest) {
            self.blobs.push((digest, bytes));
        }
        descriptor
    }

    /// A layer of one file that no other content has.
    fn layer(&mut self, compression: Compression) -> Value {
        let seed = self.blobs.len() as u64 + self.name.bytes().map(u64::from).sum::<u64>();
        let tar = Archive::of(&[Member::file(format!("{}-{seed}", self.name), noise(seed, 300))]);
        let kind = match compression {
            Compression::Plain => LAYER.to_owned(),
            _ => format!("{LAYER}+gzip"),
        };
        self.blob(&kind, compression.apply(&tar))
    }

    fn config(&mut self, architecture: &str) -> Value {
        let config = json!({
            "architecture": architecture, "os": "linux", "author": self.name,
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        self.blob(CONFIG, config.to_string().into_bytes())
    }

    /// An image manifest, not yet added.
    fn image(&mut self, architecture: &str, layers: usize) -> Value {
        let layers: Vec<Value> = (0..layers).map(|_| self.layer(Compression::Gzip)).collect();
        let config = self.config(architecture);
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers })
    }

    /// The manifest of an artifact of type `kind`, not yet added.
    fn artifact(&mut self, kind: &str) -> Value {
        let config = self.blob(EMPTY, b"{}".to_vec());
        let seed = self.blobs.len() as u64;
        let layer = self.blob(kind, noise(seed, 2048));
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
            "config": config, "layers": [layer],
            "annotations": { "org.example.kind": kind },
        })
    }

    /// Adds a manifest; gives its descriptor.
    fn add(&mut self, manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let digest = (self.hash)(&bytes);
        let media_type = if manifest["mediaType"] == INDEX { INDEX } else { MANIFEST };
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        let referrer = manifest.get("subject").map(|subject| {
            let listed = listed(manifest, &descriptor);
            (subject["digest"].as_str().unwrap().to_owned(), listed)
        });
        self.manifests.push(Manifest { digest, media_type, bytes, referrer });
        descriptor
    }

    /// Adds an index of `children`.
    fn add_index(&mut self, children: &[Value], more: &[(&str, Value)]) -> Value {
        let mut index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children });
        for (name, value) in more {
            index[*name] = value.clone();
        }
        self.add(&index)
    }

    /// Adds images for two architectures.
    fn add_images(&mut self) -> [Value; 2] {
        ["amd64", "arm64"].map(|architecture| {
            let image = self.image(architecture, 2);
            let mut descriptor = self.add(&image);
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            descriptor
        })
    }

    /// Tags the manifest that was added last.
    fn tagged(mut self, tag: &str) -> Self {
        self.tags.push((tag.to_owned(), self.manifests.len() - 1));
        self
    }

    fn with(mut self, fill: impl FnOnce(&mut Self)) -> Self {
        fill(&mut self);
        self
    }
}

/// How the referrers API lists a manifest.
fn listed(manifest: &Value, descriptor: &Value) -> Value {
    let mut listed = descriptor.clone();
    let own = manifest.get("artifactType").cloned();
    let kind = own.or_else(|| manifest.get("config").map(|config| config["mediaType"].clone()));
    for (name, value) in
        [("artifactType", kind), ("annotations", manifest.get("annotations").cloned())]
    {
        if let Some(value) = value {
            listed[name] = value;
        }
    }
    listed
}

/// Everything that the suite pushes, pulls, lists and deletes.
pub fn contents() -> Vec<Content> {
    let mut all = images();
    all.extend(indexes());
    all.extend(artifacts());
    all
}

fn images() -> Vec<Content> {
    let image = |name, change: fn(&mut Value)| {
        Content::new(name, sha256).with(|content| {
            let mut manifest = content.image("amd64", 2);
            change(&mut manifest);
            content.add(&manifest);
        })
    };
    vec![
        image("image", |_| ()).tagged("image"),
        Content::new("uncompressed image", sha256)
            .with(|content| {
                let layers = [content.layer(Compression::Plain)];
                let mut manifest = content.image("amd64", 0);
                manifest["layers"] = json!(layers);
                content.add(&manifest);
            })
            .tagged("image-uncompressed"),
        image("large manifest", |manifest| {
            for number in 0..390 {
                manifest["annotations"][format!("large-{number}")] = json!("A".repeat(10_000));
            }
        })
        .tagged("large-manifest"),
        Content::new("data field", sha256)
            .with(|content| {
                let mut manifest = content.image("amd64", 1);
                manifest["config"]["data"] = json!("e30=");
                content.add(&manifest);
            })
            .tagged("data-field"),
        image("layers that are not distributed", |manifest| {
            for (place, suffix) in ["+gzip", ""].into_iter().enumerate() {
                let digest = sha256(format!("elsewhere {place}").as_bytes());
                let layer = json!({
                    "mediaType": format!("{NOT_DISTRIBUTED}{suffix}"), "digest": digest,
                    "size": 123_456, "urls": [format!("https://store.example.com/{digest}")],
                });
                manifest["layers"].as_array_mut().unwrap().insert(0, layer);
            }
        })
        .tagged("non-distributable"),
        Content::new("no layers", sha256)
            .with(|content| {
                let manifest = content.image("amd64", 0);
                content.add(&manifest);
            })
            .tagged("no-layers"),
    ]
}

fn indexes() -> Vec<Content> {
    let index = |name, hash| {
        Content::new(name, hash).with(|content| {
            let children = content.add_images();
            content.add_index(&children, &[]);
        })
    };
    vec![
        index("index", sha256).tagged("index"),
        Content::new("nested index", sha256)
            .with(|content| {
                let nested = [content.add_images(), content.add_images()]
                    .map(|children| content.add_index(&children, &[]));
                content.add_index(&nested, &[]);
            })
            .tagged("index-of-index"),
        Content::new("empty index", sha256)
            .with(|content| drop(content.add_index(&[], &[])))
            .tagged("index"),
        Content::new("custom fields", sha256)
            .with(|content| {
                let mut image = content.image("amd64", 1);
                image["org.example.custom"] = json!({ "kept": [1, 2.5, null] });
                let child = content.add(&image);
                content.add_index(&[child], &[("org.example.custom", json!("kept"))]);
            })
            .tagged("custom-fields"),
        // A tag in the path is for the canonical digest only, so nothing is tagged here.
        index("sha512", sha512),
    ]
}

fn artifacts() -> Vec<Content> {
    let artifact = |name, fill: fn(&mut Content)| Content::new(name, sha256).with(fill);
    vec![
        artifact("artifact", |content| {
            let manifest = content.artifact(KINDS[0]);
            content.add(&manifest);
        })
        .tagged("artifact"),
        artifact("artifact without layers", |content| {
            let empty = content.blob(EMPTY, b"{}".to_vec());
            content.add(&json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": KINDS[0],
                "config": empty, "layers": [empty],
            }));
        })
        .tagged("artifact-without-layers"),
        artifact("index of artifacts", |content| {
            let children = [content.artifact(KINDS[0]), content.artifact(KINDS[0])];
            let children = children.map(|child| content.add(&child));
            content.add_index(&children, &[("artifactType", json!(KINDS[0]))]);
        })
        .tagged("artifact-index"),
        artifact("artifacts with a subject", |content| {
            let image = content.image("amd64", 2);
            let subject = content.add(&image);
            let mut plain = content.image("arm64", 1);
            plain["subject"] = subject.clone();
            content.add(&plain);
            for kind in KINDS {
                let mut manifest = content.artifact(kind);
                manifest["subject"] = subject.clone();
                content.add(&manifest);
            }
        })
        .tagged("tagged-artifact"),
        artifact("index with a subject", |content| {
            let children = content.add_images();
            let subject = content.add_index(&children, &[]);
            let child = content.artifact(KINDS[0]);
            let child = content.add(&child);
            let about = [
                ("subject", subject),
                ("artifactType", json!(KINDS[0])),
                ("annotations", json!({ "org.example.key": "value" })),
            ];
            content.add_index(&[child], &about);
        })
        .tagged("tagged-index"),
        artifact("missing subject", |content| {
            let mut manifest = content.artifact(KINDS[0]);
            let missing = sha256(b"missing content");
            manifest["subject"] = json!({ "mediaType": MANIFEST, "digest": missing, "size": 123 });
            content.add(&manifest);
        })
        .tagged("tagged-artifact"),
    ]
}
