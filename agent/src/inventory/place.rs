//! Where images are, in words, and how they are reached.
//!
//! ```text
//! [docker://]HOST[:PORT][/PATH[:TAG|@DIGEST]]   a registry, or an image there
//! image-serve:DIR[:PATH[:TAG|@DIGEST]]          an image-serve tree, or an image there
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::image::{Reference, ReferenceError, Repository};
use crate::registry::server::{IndexPolicy, Server, ServerConfig, ServerError, Source};

/// Where images are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A registry, `host[:port]`.
    Registry(String),
    /// The tree of an Apache below a directory.
    Tree(PathBuf),
}

/// A place, and what is wanted there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The place.
    pub place: Place,
    /// `path[:tag|@digest]`; `None` for everything.
    pub image: Option<String>,
}

/// Words that name no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No registry and no directory.
    #[error("`{0}` names no registry (HOST[:PORT]) and no tree (image-serve:DIR)")]
    Nothing(String),
    /// A place where an image is wanted.
    #[error("`{0}` names no image: add its path and tag")]
    NoImage(String),
    /// A name that no registry could know.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// A tree that cannot be read.
    #[error("cannot read the tree")]
    Tree(#[from] ServerError),
}

const TREE: &str = "image-serve:";
const REGISTRY: &str = "docker://";

impl FromStr for Wanted {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let nothing = || PlaceError::Nothing(text.to_owned());
        let (place, rest) = match text.strip_prefix(TREE) {
            Some(rest) => {
                let (directory, image) = rest.split_once(':').unwrap_or((rest, ""));
                (Place::Tree(directory.into()), image)
            }
            None => {
                let bare = text.strip_prefix(REGISTRY).unwrap_or(text);
                let (host, image) = bare.split_once('/').unwrap_or((bare, ""));
                (Place::Registry(host.to_owned()), image)
            }
        };
        let is_empty = match &place {
            Place::Registry(host) => host.is_empty(),
            Place::Tree(directory) => directory.as_os_str().is_empty(),
        };
        let image = Some(rest.trim_end_matches('/')).filter(|image| !image.is_empty());
        if is_empty { Err(nothing()) } else { Ok(Self { place, image: image.map(str::to_owned) }) }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.image {
            None => self.place.fmt(f),
            Some(image) => f.write_str(&self.place.name(image)),
        }
    }
}

impl Place {
    /// The name of the image `path[:tag|@digest]` of this place.
    pub fn name(&self, image: &str) -> String {
        match self {
            Self::Registry(host) => format!("{host}/{image}"),
            Self::Tree(directory) => format!("{TREE}{}:{image}", directory.display()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(host) => f.write_str(host),
            Self::Tree(directory) => write!(f, "{TREE}{}", directory.display()),
        }
    }
}

/// A place that can be asked.
#[derive(Debug)]
pub struct Holder {
    /// Which it is.
    pub place: Place,
    /// The registry that answers for it, `host[:port]`.
    pub host: String,
    /// Ends the registry that serves a tree to us.
    _serving: Option<DropGuard>,
}

impl Holder {
    /// Makes `place` one that can be asked.
    ///
    /// # Errors
    /// [`PlaceError::Tree`] where it is a tree that cannot be read.
    pub async fn open(place: Place) -> Result<Self, PlaceError> {
        let directory = match &place {
            Place::Registry(host) => {
                return Ok(Self { host: host.clone(), place, _serving: None });
            }
            Place::Tree(directory) => directory,
        };
        let config = ServerConfig {
            source: Source::ImageServe(directory.clone()),
            index: IndexPolicy::Off,
            ..ServerConfig::new(directory, "127.0.0.1:0")
        };
        let server = Server::bind(config).await?;
        let host = server.local_addr().to_string();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Ok(Self { place, host, _serving: Some(stop.drop_guard()) })
    }

    /// The tree, where it is one.
    pub fn tree(&self) -> Option<&Path> {
        match &self.place {
            Place::Tree(directory) => Some(directory),
            Place::Registry(_) => None,
        }
    }

    /// The image `path[:tag|@digest]` as a client asks for it.
    ///
    /// # Errors
    /// [`PlaceError::Name`] where it is no name.
    pub fn reference(&self, image: &str) -> Result<Reference, PlaceError> {
        Ok(format!("{}/{image}", self.host).parse()?)
    }

    /// The repository `path` as a client asks for it.
    ///
    /// # Errors
    /// [`PlaceError::Name`] where it is no name.
    pub fn repository(&self, path: &str) -> Result<Repository, PlaceError> {
        Ok(Repository::new(&self.host, path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_images_are_read_and_written_alike() {
        for (text, image) in [
            ("quay.io", None),
            ("localhost:8787", None),
            ("localhost:8787/ns/nova:t1", Some("ns/nova:t1")),
            ("image-serve:/srv/tree", None),
            ("image-serve:/srv/tree:ns/nova:t1", Some("ns/nova:t1")),
        ] {
            let wanted: Wanted = text.parse().unwrap();
            assert_eq!((wanted.image.as_deref(), wanted.to_string().as_str()), (image, text));
        }
        let explicit: Wanted = "docker://quay.io/a/b:t".parse().unwrap();
        assert_eq!(explicit.to_string(), "quay.io/a/b:t");
    }

    #[test]
    fn words_without_a_place_are_refused() {
        for text in ["", "docker://", "image-serve:", "/ns/nova"] {
            let words = text.parse::<Wanted>().unwrap_err().to_string();
            assert!(words.starts_with(&format!("`{text}` names no registry")), "{words}");
        }
    }
}
