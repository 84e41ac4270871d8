//! Lists of images to upload: what `overcloud container image upload` reads and
//! `--output-images-file` writes.
//!
//! A file has the keys `uploads` and `container_images`, lists of records with an `imagename`.
//! Where two files name one image, the earlier record counts and the later adds what it lacks.

use std::path::{Path, PathBuf};

use super::document::{self, DocumentError};
use super::plan::{Modification, PlannedImage};
use super::yaml::{Map, Value};

/// The lists of a file, in the order in which they count.
const LISTS: [&str; 2] = ["uploads", "container_images"];

/// A list that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum UploadListError {
    /// The file cannot be read or is not YAML.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Something that is no list of images.
    #[error("{}: `{key}` must be a list of images", path.display())]
    NotAList {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A record without a name.
    #[error("{}: imagename is required", path.display())]
    NoName {
        /// The file.
        path: PathBuf,
    },
}

/// The records of `paths`.
///
/// # Errors
/// [`UploadListError`] at the first file that cannot be understood.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Map>, UploadListError> {
    let mut lists: [Vec<(String, Map)>; 2] = Default::default();
    for path in paths {
        let document = document::read("image list", path)?;
        for (key, records) in LISTS.into_iter().zip(&mut lists) {
            let list = document.as_map().and_then(|map| map.get(key));
            let Some(list) = list.filter(|list| list.is_truthy()) else { continue };
            let not_a_list = || UploadListError::NotAList { path: path.clone(), key };
            for record in list.as_list().ok_or_else(not_a_list)? {
                add(records, record.as_map().ok_or_else(not_a_list)?, path)?;
            }
        }
    }
    Ok(lists.into_iter().flatten().map(|(_, record)| record).collect())
}

fn add(records: &mut Vec<(String, Map)>, record: &Map, path: &Path) -> Result<(), UploadListError> {
    let name = record.get("imagename").filter(|name| name.is_truthy());
    let name = name.ok_or_else(|| UploadListError::NoName { path: path.to_owned() })?.to_string();
    match records.iter_mut().find(|(known, _)| *known == name) {
        None => records.push((name, record.clone())),
        Some((_, known)) => {
            for (key, value) in
                record.iter().filter(|(key, _)| !known.contains(key)).collect::<Vec<_>>()
            {
                known.insert(key, value.clone());
            }
        }
    }
    Ok(())
}

/// The image of a record; `undercloud` is where it goes when the record does not say.
pub fn planned(record: &Map, undercloud: &str) -> PlannedImage {
    let text = |key: &str| record.get(key).filter(|value| value.is_truthy()).map(Value::to_string);
    let destination = match record.get("push_destination") {
        Some(Value::Bool(_)) => None,
        _ => text("push_destination"),
    };
    let destination = destination.unwrap_or_else(|| undercloud.to_owned());
    PlannedImage {
        entry: 0,
        imagename: text("imagename").unwrap_or_default(),
        image_source: text("image_source"),
        params: Vec::new(),
        pull_source: text("pull_source").map(|host| host.trim_end_matches('/').to_owned()),
        push_destination: Some(destination.trim_end_matches('/').to_owned()),
        is_told: true,
        modify: text("modify_role").map(|role| Modification {
            role,
            append_tag: text("modify_append_tag").unwrap_or_default(),
            vars: record.get("modify_vars").filter(|vars| vars.is_truthy()).cloned(),
        }),
        multi_arch: record.get("multi_arch").is_some_and(Value::is_truthy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let write = |(position, text): (usize, &&str)| {
            let path = directory.path().join(format!("{position}.yaml"));
            std::fs::write(&path, text).unwrap();
            path
        };
        let paths = texts.iter().enumerate().map(write).collect();
        (directory, paths)
    }

    #[test]
    fn later_files_add_what_earlier_ones_lack() {
        let (_directory, paths) = files(&[
            "container_images: [{imagename: r/a:1, push_destination: d/}, \
             {imagename: r/b:1, push_destination: true}]",
            "uploads: [{imagename: r/c:1}]\n\
             container_images: [{imagename: r/a:1, push_destination: x, modify_role: m}]",
        ]);
        let images: Vec<_> =
            read(&paths).unwrap().iter().map(|record| planned(record, "u:8787")).collect();
        let targets: Vec<_> = images.iter().map(PlannedImage::deployed_name).collect();
        assert_eq!(targets, ["u:8787/c:1", "d/a:1", "u:8787/b:1"]);
        assert_eq!(images[1].modify.as_ref().unwrap().role, "m");
    }

    #[test]
    fn what_is_no_list_of_images_is_refused() {
        for (text, words) in [
            ("uploads: [{push_destination: d}]", "0.yaml: imagename is required"),
            ("container_images: {a: b}", "0.yaml: `container_images` must be a list of images"),
            ("a: b: c", "0.yaml:1:"),
        ] {
            let (_directory, paths) = files(&[text]);
            let error = read(&paths).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
