//! The images that a file names: an environment file as `prepare` writes it, or a plain list.
//!
//! ```text
//! parameter_defaults:                     # comment
//!   ContainerNovaApiImage: r/nova-api:1   r/nova-api:1
//!   DockerInsecureRegistryAddress: [r]    r/other:2
//! ```

use super::yaml::{self, Map, Value, YamlError};
use crate::image::{Reference, ReferenceError};

/// Parameters with registries without a certificate that can be verified.
const INSECURE: [&str; 2] = ["DockerInsecureRegistryAddress", "ContainerInsecureRegistryAddress"];

/// What a file names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedImages {
    /// The images, each once, in the order of a list.
    pub images: Vec<Reference>,
    /// Registries, `host[:port]`, that are spoken to without TLS if they do not speak it.
    pub insecure: Vec<String>,
}

/// A file that names no images in a way that is understood.
#[derive(Debug, thiserror::Error)]
pub enum NamedError {
    /// It is not YAML, although it has the key of an environment file.
    #[error("not an environment file")]
    Yaml(#[from] YamlError),
    /// A name is none.
    #[error("{place}")]
    Reference {
        /// The line or the parameter.
        place: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
}

impl NamedImages {
    /// What `text` names. A text with a line `parameter_defaults:` is an environment file, of
    /// which all parameters that end in `Image` count; any other is a list with one name a line.
    ///
    /// # Errors
    /// [`NamedError`] with the line or the parameter.
    pub fn parse(text: &str) -> Result<Self, NamedError> {
        if text.lines().any(|line| line.trim_end() == "parameter_defaults:") {
            Self::of_environment(text)
        } else {
            Self::of_list(text)
        }
    }

    fn of_environment(text: &str) -> Result<Self, NamedError> {
        let Value::Map(file) = yaml::read(text)? else { return Ok(Self::default()) };
        let Some(Value::Map(parameters)) = file.get("parameter_defaults") else {
            return Ok(Self::default());
        };
        let mut named = Self { insecure: insecure(parameters), ..Self::default() };
        for (parameter, value) in parameters.iter().filter(|(name, _)| name.ends_with("Image")) {
            if let Some(text) = value.as_text().filter(|text| !text.is_empty()) {
                named.add(text, || format!("parameter {parameter}"))?;
            }
        }
        Ok(named)
    }

    fn of_list(text: &str) -> Result<Self, NamedError> {
        let mut named = Self::default();
        for (line, number) in text.lines().zip(1..) {
            let name = line.split('#').next().unwrap_or_default().trim();
            if !name.is_empty() {
                named.add(name, || format!("line {number}"))?;
            }
        }
        Ok(named)
    }

    fn add(&mut self, text: &str, place: impl FnOnce() -> String) -> Result<(), NamedError> {
        let image: Reference =
            text.parse().map_err(|source| NamedError::Reference { place: place(), source })?;
        if !self.images.contains(&image) {
            self.images.push(image);
        }
        Ok(())
    }
}

/// The insecure registries: a list, or a text with commas as deployment also takes it.
fn insecure(parameters: &Map) -> Vec<String> {
    let texts =
        INSECURE.iter().filter_map(|name| parameters.get(name)).flat_map(|value| match value {
            Value::List(items) => items.iter().filter_map(Value::as_text).collect(),
            Value::Text(text) => text.split(',').collect(),
            _ => Vec::new(),
        });
    texts.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        NamedImages::parse(text).unwrap().images.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_environment_file_names_the_images_of_its_parameters() {
        let text = "# Generated\nparameter_defaults:\n  ContainerNovaApiImage: r:5000/nova-api:2.10\n  \
                    ContainerNovaMetadataImage: r:5000/nova-api:2.10\n  DockerCephDaemonImage: r:5000/ceph:v4\n  \
                    DockerInsecureRegistryAddress:\n  - r:5000\n  NtpServer: x\n  EmptyImage: ''\n";
        assert_eq!(names(text), ["r:5000/nova-api:2.10", "r:5000/ceph:v4"]);
        assert_eq!(NamedImages::parse(text).unwrap().insecure, ["r:5000"]);
    }

    #[test]
    fn a_list_keeps_its_order_and_may_have_comments() {
        let text = "r:5000/b:1\n\n# later\n  r:5000/a:1  # because\nr:5000/b:1\n";
        assert_eq!(names(text), ["r:5000/b:1", "r:5000/a:1"]);
    }

    #[test]
    fn a_wrong_name_is_told_with_its_place() {
        for (text, place) in [
            ("r/a:1\nr/A B\n", "line 2"),
            ("parameter_defaults:\n  XImage: 'r//x'\n", "parameter XImage"),
        ] {
            assert_eq!(NamedImages::parse(text).unwrap_err().to_string(), place);
        }
    }
}
