//! Where an image is or goes, in the words that skopeo and podman use.
//!
//! ```text
//! [docker://]host[:port]/path[:tag][@digest]   a registry
//! oci:DIR[:NAME]                               an OCI image layout
//! oci-archive:FILE[:NAME]                      the same in one tar file
//! docker-archive:FILE[:NAME]                   what `docker save` writes; a source only
//! image-serve:DIR[:NAME]                       the tree of the undercloud's Apache
//! containers-storage:NAME                      podman's images on this host; a source only
//! ```
//! NAME is the name of an image among others, `host/path:tag` or what the layout's author chose.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::image::{Reference, ReferenceError};

/// Where an image is or goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// In a registry.
    Registry(Reference),
    /// In files of this host.
    File(FileLocation),
    /// In podman's storage, by the name that podman knows it by.
    Storage(String),
}

/// An image in files of this host, or all images there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileLocation {
    /// What the files are.
    pub form: FileForm,
    /// The directory or file.
    pub path: PathBuf,
    /// The image's name among others.
    pub name: Option<String>,
}

/// Kinds of files that hold images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileForm {
    /// A directory in the form of the OCI image layout.
    Oci,
    /// Such a directory as a tar file.
    OciArchive,
    /// A tar file by `docker save`.
    DockerArchive,
    /// The tree of the undercloud's Apache.
    ImageServe,
}

/// Text that names no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// No image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A form of files without a path.
    #[error("`{0}` names no file or directory")]
    NoPath(String),
    /// A name that no registry could know, where one has to become of it.
    #[error("`{name}` is no image name (path:tag)")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
}

const STORAGE: &str = "containers-storage:";
const DOCKER: &str = "docker://";

impl FileForm {
    const ALL: [Self; 4] = [Self::Oci, Self::OciArchive, Self::DockerArchive, Self::ImageServe];

    /// The word before the colon.
    pub fn word(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
            Self::ImageServe => "image-serve",
        }
    }
}

/// The registry that an image's name begins with, if it names one, and the rest.
pub fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
            (Some(host), rest)
        }
        _ => (None, name),
    }
}

impl FileLocation {
    /// All images below `path`.
    pub fn all(form: FileForm, path: &Path) -> Self {
        Self { form, path: path.to_owned(), name: None }
    }

    /// The image `name` of the same files.
    pub fn named(&self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self.clone() }
    }
}

impl Location {
    /// Whether `text` begins with the name of a form other than a registry's.
    pub fn has_transport(text: &str) -> bool {
        let is_form = |form: FileForm| text.split(':').next() == Some(form.word());
        text.starts_with(STORAGE) || FileForm::ALL.into_iter().any(is_form)
    }

    /// The registry's reference, where this is in one.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Registry(reference) => Some(reference),
            _ => None,
        }
    }
}

impl From<Reference> for Location {
    fn from(reference: Reference) -> Self {
        Self::Registry(reference)
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if let Some(name) = text.strip_prefix(STORAGE) {
            return match name {
                "" => Err(LocationError::NoPath(text.to_owned())),
                name => Ok(Self::Storage(name.to_owned())),
            };
        }
        for form in FileForm::ALL {
            let rest = text.strip_prefix(form.word()).and_then(|rest| rest.strip_prefix(':'));
            let Some(rest) = rest else { continue };
            let (path, name) =
                rest.split_once(':').map_or((rest, None), |(path, name)| (path, Some(name)));
            if path.is_empty() {
                return Err(LocationError::NoPath(text.to_owned()));
            }
            let name = name.filter(|name| !name.is_empty()).map(str::to_owned);
            return Ok(Self::File(FileLocation { form, path: path.into(), name }));
        }
        Ok(Self::Registry(text.strip_prefix(DOCKER).unwrap_or(text).parse()?))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::File(location) => location.fmt(f),
            Self::Storage(name) => write!(f, "{STORAGE}{name}"),
        }
    }
}

impl fmt::Display for FileLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.form.word(), self.path.display())?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_and_written_alike() {
        for text in [
            "quay.io/a/b:t",
            "oci:/srv/set",
            "oci:/srv/set:quay.io/a/b:t",
            "oci-archive:set.tar",
            "docker-archive:x.tar:a/b:t",
            "image-serve:/var/lib/image-serve:a/b:t",
            "containers-storage:[overlay@/a+/b]localhost/x:t",
        ] {
            let location: Location = text.parse().unwrap();
            assert_eq!(location.to_string(), text);
            assert_eq!(Location::has_transport(text), location.reference().is_none());
        }
        let explicit: Location = "docker://quay.io/a/b:t".parse().unwrap();
        assert_eq!(explicit.to_string(), "quay.io/a/b:t");
        assert!(!Location::has_transport("oci/image:tag"));
    }

    #[test]
    fn a_form_without_a_path_is_refused() {
        for text in ["oci:", "oci-archive::name", "containers-storage:"] {
            let words = text.parse::<Location>().unwrap_err().to_string();
            assert_eq!(words, format!("`{text}` names no file or directory"));
        }
    }
}
