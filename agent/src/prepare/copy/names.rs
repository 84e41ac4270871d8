//! The `index.json` of an OCI image layout while it is written: which names mean which images,
//! and which manifests belong to others.

use std::path::Path;

use serde_json::{Value, json};

use crate::image::{Descriptor, ManifestError, media_type};
use crate::registry::client::RawManifest;

use super::layout::{LayoutError, REF_NAME};
use super::store::Attachment;

/// The content of the file `oci-layout`.
pub const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// What `index.json` lists. What is not understood of it stays as it is.
#[derive(Debug, Clone)]
pub struct Names {
    index: Value,
    entries: Vec<Value>,
}

impl Default for Names {
    fn default() -> Self {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX});
        Self { index, entries: Vec::new() }
    }
}

impl Names {
    /// What the file at `path` lists.
    ///
    /// # Errors
    /// [`LayoutError::Manifest`] where it is malformed.
    pub fn read(bytes: &[u8], path: &Path) -> Result<Self, LayoutError> {
        let mut index: Value = serde_json::from_slice(bytes).map_err(|source| {
            let source = ManifestError::Json { what: "index", source };
            LayoutError::Manifest { path: path.to_owned(), source }
        })?;
        let entries = match index.get_mut("manifests").map(Value::take) {
            Some(Value::Array(entries)) => entries,
            _ => Vec::new(),
        };
        Ok(Self { index, entries })
    }

    /// Lets `name` mean the manifest; whether it meant something else.
    pub fn set(&mut self, name: &str, raw: &RawManifest) -> bool {
        self.put(Some(name), raw.descriptor())
    }

    /// Lists what belongs to a manifest, under a name where it has one; whether it was not
    /// listed.
    pub fn attach(&mut self, name: Option<&str>, attachment: &Attachment) -> bool {
        self.put(name, attachment.descriptor.clone())
    }

    fn put(&mut self, name: Option<&str>, mut descriptor: Descriptor) -> bool {
        if let Some(name) = name {
            descriptor.annotations.insert(REF_NAME.to_owned(), name.to_owned());
        }
        let wanted = serde_json::to_value(&descriptor).expect("strings and numbers become JSON");
        if self.entries.contains(&wanted) {
            return false;
        }
        let named = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(str::to_owned);
        self.entries.retain(|entry| match name {
            Some(name) => named(entry).as_deref() != Some(name),
            None => named(entry).is_some() || entry["digest"] != wanted["digest"],
        });
        self.entries.push(wanted);
        true
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut index = self.index.clone();
        index["manifests"] = Value::Array(self.entries.clone());
        index.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use undermount_fs::digest::Digest;

    use super::*;

    fn manifest(text: &'static str) -> RawManifest {
        let bytes = Bytes::from_static(text.as_bytes());
        let digest = Digest::of(&bytes);
        RawManifest { bytes, media_type: media_type::OCI_MANIFEST.to_owned(), digest }
    }

    #[test]
    fn a_name_means_one_manifest_and_the_rest_stays() {
        let existing = r#"{"schemaVersion":2,"x":1,"manifests":[{"unknown":true}]}"#;
        let mut names = Names::read(existing.as_bytes(), Path::new("index.json")).unwrap();
        assert!(names.set("a:1", &manifest("one")));
        assert!(!names.set("a:1", &manifest("one")));
        assert!(names.set("a:1", &manifest("two")));
        assert!(names.set("a:2", &manifest("two")));
        let written: Value = serde_json::from_slice(&names.to_bytes()).unwrap();
        assert_eq!(written["x"], 1);
        let entries = written["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0]["unknown"], true);
        assert_eq!(entries[1]["digest"], manifest("two").digest.to_string());
    }
}
