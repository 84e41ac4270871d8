//! Which image goes where, when several go to one place: a registry, or files.
//!
//! An image keeps its name below the place, without the registry that it came from:
//! `quay.io/ns/nova:t` goes to `undercloud:8787/ns/nova:t`. Files keep the whole name, so that
//! images from several registries do not get into each other's way.

use std::fmt;
use std::str::FromStr;

use super::location::{FileForm, FileLocation, Location, LocationError};
use super::origin::{Origins, reference_of};
use super::{CopyError, CopyJob};
use crate::image::{Reference, Repository, referrers};
use crate::prepare::image_serve::ImageServe;
use crate::prepare::sources::Sources;

/// Where images go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// One image, to exactly this.
    Image(Location),
    /// Any number, below this.
    Place(Place),
}

/// Where several images find room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A registry, `host[:port]`, and perhaps the beginning of the names there.
    Registry {
        /// `host[:port]`.
        host: String,
        /// The beginning of the names, without slashes at its ends.
        prefix: Option<String>,
    },
    /// Files.
    Files(FileLocation),
}

impl Destination {
    /// Reads a destination for `images` images: `host[:port]` and `host[:port]/prefix/` are
    /// places, and so is whatever several images go to.
    ///
    /// # Errors
    /// [`LocationError`] where it is neither place nor image.
    pub fn parse(text: &str, images: usize) -> Result<Self, LocationError> {
        if Location::has_transport(text) {
            return Ok(match text.parse()? {
                Location::File(file) if file.name.is_none() => Self::Place(Place::Files(file)),
                location => Self::Image(location),
            });
        }
        let bare = text.strip_prefix("docker://").unwrap_or(text);
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        if images > 1 || path.is_empty() || path.ends_with('/') {
            let prefix = path.trim_matches('/');
            let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
            // Anything below it shows whether it can be one.
            Repository::new(host, &in_prefix(prefix.as_deref(), "x"))?;
            return Ok(Self::Place(Place::Registry { host: host.to_owned(), prefix }));
        }
        Ok(Self::Image(text.parse()?))
    }
}

fn in_prefix(prefix: Option<&str>, path: &str) -> String {
    prefix.map_or(path.to_owned(), |prefix| format!("{prefix}/{path}"))
}

impl Place {
    /// Where the image at `source` goes.
    ///
    /// # Errors
    /// [`CopyError`] where its name does not do there.
    pub fn of(&self, source: &Location) -> Result<Location, CopyError> {
        let name = name_of(source)?;
        match self {
            Self::Files(files) => Ok(Location::File(files.named(name))),
            Self::Registry { host, prefix } => {
                let reference = reference_of(&name)?;
                let path = in_prefix(prefix.as_deref(), reference.repository().path());
                let wrong = |source| LocationError::Name { name: name.clone(), source };
                let repository = Repository::new(host, &path).map_err(wrong)?;
                Ok(Location::Registry(match (reference.tag(), reference.digest()) {
                    (Some(tag), _) => repository.tagged(tag.clone()),
                    (None, Some(digest)) => repository.at(*digest),
                    (None, None) => unreachable!("a reference has a tag or a digest"),
                }))
            }
        }
    }
}

/// The name that an image has where it is.
fn name_of(source: &Location) -> Result<String, CopyError> {
    match source {
        Location::Registry(reference) => Ok(tagged_name(reference)),
        Location::Storage(name) => {
            let name = name.rsplit_once(']').map_or(name.as_str(), |(_, name)| name);
            Ok(name.to_owned())
        }
        Location::File(FileLocation { name: Some(name), .. }) => Ok(name.clone()),
        Location::File(_) => Err(CopyError::Unnamed(source.clone())),
    }
}

/// The name by tag where there is one, even if the digest decides.
fn tagged_name(reference: &Reference) -> String {
    match reference.tag() {
        Some(tag) => reference.with_tag(tag.clone()).to_string(),
        None => reference.to_string(),
    }
}

/// The copies by which the images at `sources` come to `destination`; a layout, archive or tree
/// without a name stands for all of its images.
///
/// # Errors
/// [`CopyError`] where a source cannot be listed, or a name does not do.
pub async fn jobs(
    sources: &[Location],
    destination: &Destination,
    registries: &Sources,
) -> Result<Vec<CopyJob>, CopyError> {
    let origins = Origins::new(registries);
    let mut images = Vec::new();
    for source in sources {
        images.extend(expand(source, &origins).await?);
    }
    let job = |source: Location| {
        let target = match destination {
            Destination::Image(target) => target.clone(),
            Destination::Place(place) => place.of(&source)?,
        };
        Ok(CopyJob { source, target, multi_arch: true })
    };
    match (destination, images.as_slice()) {
        (Destination::Image(target), [_, _, ..]) => {
            Err(CopyError::OneName { target: target.clone(), images: images.len() })
        }
        _ => images.into_iter().map(job).collect(),
    }
}

/// The images that `source` stands for.
async fn expand(source: &Location, origins: &Origins<'_>) -> Result<Vec<Location>, CopyError> {
    let Location::File(file @ FileLocation { name: None, form, path }) = source else {
        return Ok(vec![source.clone()]);
    };
    let names = match form {
        FileForm::ImageServe => names_in_tree(&ImageServe::new(path)),
        _ => {
            let layout = origins.layout(file).await?;
            let names = layout.names().into_iter();
            names.filter(|name| !belongs_to_manifest(name)).map(str::to_owned).collect()
        }
    };
    match names.is_empty() {
        // A layout with one image need not name it.
        true => Ok(vec![source.clone()]),
        false => Ok(names.into_iter().map(|name| Location::File(file.named(name))).collect()),
    }
}

fn names_in_tree(tree: &ImageServe) -> Vec<String> {
    let mut names = Vec::new();
    for path in tree.repositories() {
        let Ok(repository) = Repository::new("localhost", &path) else { continue };
        let tags = tree.tags(&repository).into_iter();
        let versions = tags.filter(|tag| !referrers::is_reserved_tag(tag));
        names.extend(versions.map(|tag| format!("{path}:{tag}")));
    }
    names
}

/// Whether the name of an image in a layout is one of what belongs to images.
fn belongs_to_manifest(name: &str) -> bool {
    name.rsplit_once(':').is_some_and(|(_, tag)| referrers::is_reserved_tag(tag))
}

impl FromStr for Destination {
    type Err = LocationError;

    /// Reads a destination for one image.
    fn from_str(text: &str) -> Result<Self, LocationError> {
        Self::parse(text, 1)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, prefix } => f.write_str(&match prefix {
                Some(prefix) => format!("{host}/{prefix}"),
                None => host.clone(),
            }),
            Self::Files(files) => files.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes(source: &str, destination: &str, images: usize) -> String {
        let source: Location = source.parse().unwrap();
        match Destination::parse(destination, images).unwrap() {
            Destination::Image(target) => target.to_string(),
            Destination::Place(place) => place.of(&source).unwrap().to_string(),
        }
    }

    #[test]
    fn images_keep_their_names_below_a_place() {
        for (source, destination, images, target) in [
            ("quay.io/ns/a:t", "u:8787", 1, "u:8787/ns/a:t"),
            ("quay.io/ns/a:t", "docker://u:8787/m/", 1, "u:8787/m/ns/a:t"),
            ("quay.io/ns/a:t", "u:8787/m", 2, "u:8787/m/ns/a:t"),
            ("quay.io/ns/a:t", "u:8787/m", 1, "u:8787/m:latest"),
            ("quay.io/ns/a:t", "oci-archive:s.tar", 9, "oci-archive:s.tar:quay.io/ns/a:t"),
            ("oci-archive:s.tar:quay.io/ns/a:t", "u:8787", 1, "u:8787/ns/a:t"),
            ("oci:d:latest", "u:8787", 1, "u:8787/latest:latest"),
            ("containers-storage:[o@/a+/b]localhost/ns/a:t", "u:8787", 1, "u:8787/ns/a:t"),
            ("quay.io/ns/a:t", "oci:d:x", 1, "oci:d:x"),
        ] {
            assert_eq!(goes(source, destination, images), target, "{source} to {destination}");
        }
    }

    #[test]
    fn a_place_has_to_be_a_registry_or_files() {
        let words = Destination::parse("no_host", 2).unwrap_err().to_string();
        assert!(words.contains("is not a registry host"), "{words}");
    }
}
