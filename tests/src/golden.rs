//! The golden cases: what TripleO's own tool made of the same inputs, as data.
//!
//! One file of `goldens/cases` is one case: the files it starts from, the commands, and what the
//! original left behind. Where ours does better on purpose, the case also has a section `ours`
//! that says why and what we leave behind instead.
//!
//! ```text
//! case      a file of goldens/cases, and what is compared     golden/case
//! shelf     the images of goldens/images.yaml, read-only      golden/shelf
//! front     the same behind basic or bearer authentication    golden/front
//! apache    the undercloud's image-serve tree                 golden/apache
//! outside   every other host, so that no network is needed    golden/outside
//! view      a registry and a tree as the cases describe them  golden/view
//! ```

pub mod apache;
pub mod case;
pub mod front;
pub mod outside;
pub mod shelf;
pub mod view;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Server;
use crate::port;
use crate::process::{Outcome, SOON, run, undermount};
use crate::registry::Registry;

use case::{Case, StdoutForm};
use shelf::Shelf;

/// What all cases share: the source registry and the rest of the world.
pub struct World {
    shelf: std::sync::Arc<Shelf>,
    source: Server,
    outside: Server,
}

impl World {
    /// With the images of `goldens/images.yaml`.
    pub fn new() -> Self {
        let shelf = Shelf::of_goldens();
        let source = Server::start({
            let shelf = shelf.clone();
            move |request| shelf.answer(request)
        });
        Self { shelf, source, outside: outside::start() }
    }

    /// Runs `case` in a directory of its own; gives what it left behind, part by part under the
    /// names that `expect` has for them.
    pub fn run(&self, case: &Case) -> Left {
        let scene = Scene::set(self, case);
        let outcomes: Vec<_> = case.steps.iter().map(|step| scene.call(step)).collect();
        scene.left(case, &outcomes)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// What a case left behind.
#[derive(Debug)]
pub struct Left {
    /// Part by part.
    pub parts: BTreeMap<String, Value>,
    /// What was said.
    pub stderr: String,
}

/// The servers and files of one case.
struct Scene<'a> {
    world: &'a World,
    era: String,
    directory: TempDir,
    /// Placeholders and the addresses that they stand for.
    hosts: Vec<(&'static str, String)>,
    destination: Option<Registry>,
    _servers: Vec<Server>,
}

impl<'a> Scene<'a> {
    fn set(world: &'a World, case: &Case) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut hosts = vec![("{{REGISTRY}}", world.source.address())];
        let mut servers = Vec::new();
        let mut destination = None;
        for need in &case.needs {
            let server = match need.as_str() {
                "DEST" => {
                    let registry = Registry::docker(&directory.path().join("destination"));
                    hosts.push(("{{DEST}}", registry.address().to_owned()));
                    destination = Some(registry);
                    continue;
                }
                "CLOSED" => {
                    hosts.push(("{{CLOSED}}", closed_address()));
                    continue;
                }
                "AUTH" => ("{{AUTH}}", front::basic(world.shelf.clone())),
                "TOKEN" => ("{{TOKEN}}", front::bearer(world.shelf.clone())),
                "EXPORT" => ("{{EXPORT}}", apache::start(&directory.path().join("tree"))),
                other => panic!("no case needs {other}"),
            };
            hosts.push((server.0, server.1.address()));
            servers.push(server.1);
        }
        let era = case.era.clone();
        let scene = Self { world, era, directory, hosts, destination, _servers: servers };
        fs::create_dir(scene.work()).unwrap();
        for (name, text) in &case.input {
            let path = scene.work().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, scene.with_addresses(text)).unwrap();
        }
        scene
    }

    fn work(&self) -> std::path::PathBuf {
        self.directory.path().join("work")
    }

    fn tree(&self) -> std::path::PathBuf {
        self.directory.path().join("tree")
    }

    fn with_addresses(&self, text: &str) -> String {
        self.hosts.iter().fold(text.to_owned(), |text, (name, host)| text.replace(name, host))
    }

    fn with_placeholders(&self, text: &str) -> String {
        let text = self
            .hosts
            .iter()
            .fold(text.to_owned(), |text, (name, host)| text.replace(host.as_str(), name));
        without_time_stamps(&text)
    }

    fn call(&self, step: &str) -> Outcome {
        let mut command: Command = undermount();
        command
            .current_dir(self.work())
            .env("HOME", self.directory.path())
            .env("TRIPLEO_COMPAT", &self.era)
            .env("IMAGE_SERVE_DIR", self.tree())
            .env("XDG_RUNTIME_DIR", self.directory.path())
            .args(case::words(step).iter().map(|word| self.with_addresses(word)));
        outside::beyond(&mut command, &self.world.outside);
        run(&mut command, SOON)
    }

    fn left(&self, case: &Case, outcomes: &[Outcome]) -> Left {
        let exits: Vec<_> =
            outcomes.iter().map(|outcome| i32::from(!outcome.status.success())).collect();
        let mut parts = BTreeMap::from([("exit".to_owned(), json!(exits))]);
        for name in ["env.yaml", "images.yaml"] {
            if let Ok(text) = fs::read_to_string(self.work().join(name)) {
                parts.insert(
                    name.to_owned(),
                    case::comparable(&text, &|text| self.with_placeholders(text)),
                );
            }
        }
        let stdout: String = outcomes.iter().map(|outcome| outcome.stdout.as_str()).collect();
        if let Some(form) = case.stdout_is {
            parts.insert("stdout".to_owned(), self.stdout(form, &stdout));
        }
        if let Some(registry) = &self.destination {
            parts.insert("registry".to_owned(), view::registry(registry.address()));
        }
        if case.needs.iter().any(|need| need == "EXPORT") {
            parts.insert("export".to_owned(), view::tree(&self.tree()));
        }
        let stderr: String = outcomes.iter().map(|outcome| outcome.stderr.as_str()).collect();
        Left { parts, stderr: self.with_placeholders(&stderr) }
    }

    fn stdout(&self, form: StdoutForm, text: &str) -> Value {
        let change = |text: &str| self.with_placeholders(text);
        match form {
            StdoutForm::Lines => {
                let text = change(text);
                let mut lines: Vec<_> =
                    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                lines.sort_unstable();
                json!(lines)
            }
            StdoutForm::Yaml | StdoutForm::Json => case::comparable(text, &change),
        }
    }
}

/// An address where nothing listens.
fn closed_address() -> String {
    port::unused().to_string()
}

/// `-modified-20240131235958` as `-modified-{{TIMESTAMP}}`.
fn without_time_stamps(text: &str) -> String {
    const MARK: &str = "-modified-";
    let mut pieces = text.split(MARK);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        out.push_str(MARK);
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        match digits {
            14 => out.push_str(&format!("{{{{TIMESTAMP}}}}{}", &piece[14..])),
            _ => out.push_str(piece),
        }
    }
    out
}

/// The directory with the cases and their images.
pub fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/goldens"))
}
