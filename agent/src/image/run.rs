//! What an image says about the processes that run in it.

use serde::Deserialize;

use super::ImageConfig;
use super::manifest::or_default;

/// `config` of an image configuration (OCI image-spec, "config"), as far as starting its command
/// needs it. What is malformed counts as absent: the image can be read all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// The first words of the command.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The words after the entrypoint.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The working directory; empty for `/`.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
}

impl RunConfig {
    /// The part of `image` that says how it runs.
    pub fn of(image: &ImageConfig) -> Self {
        #[derive(Default, Deserialize)]
        struct File {
            #[serde(default, deserialize_with = "or_default")]
            config: RunConfig,
        }
        serde_json::from_slice::<File>(&image.raw).unwrap_or_default().config
    }

    /// The words of the command.
    pub fn command(&self) -> impl Iterator<Item = &str> {
        self.entrypoint.iter().chain(&self.cmd).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(config: serde_json::Value) -> RunConfig {
        let raw = json!({"os": "linux", "architecture": "amd64", "config": config}).to_string();
        RunConfig::of(&ImageConfig::parse(raw.into()).unwrap())
    }

    #[test]
    fn entrypoint_and_command_are_one_line() {
        let run = run(json!({
            "Entrypoint": ["kolla_start"], "Cmd": ["nova-api", "-v"], "Env": ["A=b"],
            "WorkingDir": "/srv", "User": "nova",
        }));
        assert_eq!(run.command().collect::<Vec<_>>(), ["kolla_start", "nova-api", "-v"]);
        assert_eq!((run.env, run.working_dir), (vec!["A=b".to_owned()], "/srv".to_owned()));
    }

    #[test]
    fn what_is_absent_or_malformed_is_empty() {
        for config in [json!(null), json!({}), json!({"Cmd": null}), json!({"Cmd": "text"})] {
            assert_eq!(run(config), RunConfig::default());
        }
    }
}
