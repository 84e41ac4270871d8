//! The demonstration: the main job from end to end, out of this host's own files.
//!
//! Two stand-ins for service images, which share a base, are made of the host's Python or Perl.
//! Then everything is as in a deployment: a registry elsewhere, the undercloud's registry,
//! `undermount prepare` between them, and a node that mounts both images and starts them at
//! once. The same images are then pulled and unpacked, to compare. Nothing stays behind.

mod host;
mod interpreter;
mod layers;
mod report;
mod stage;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::BinaryBytes;
use tokio_util::sync::CancellationToken;

use crate::control::Status;
use crate::eager::{self, EagerError, Pulled};
use crate::image::{ManifestError, Reference, ReferenceError};
use crate::registry::client::{Client, ClientConfig, RegistryError};
use crate::registry::server::ServerError;

use interpreter::Interpreter;
use layers::{DemoImage, Layer};
use report::{Report, Start};
use stage::{Stage, run_below};

/// The images of TripleO's template that the demo's images stand for.
const NAMES: [&str; 2] = ["cron", "memcached"];
/// The tag that they are released under, and the one that it means.
const TAG: &str = "current";
const VERSION: &str = "1.0-demo";
/// Where a service lies in its image.
const SERVICE: &str = "opt/service/start";

/// Why the demo ended early. Everything was taken down all the same.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// It was stopped from outside.
    #[error("interrupted")]
    Interrupted,
    /// Mounting and chroot are root's.
    #[error("the demo mounts images and starts programs in them, which takes root")]
    NotRoot,
    /// The host has nothing to make images of, or no room for them.
    #[error("cannot use this host's files")]
    Host(#[source] io::Error),
    /// One of the commands failed.
    #[error("`{words}` failed: {reason}")]
    Command {
        /// The command.
        words: String,
        /// What it said.
        reason: String,
    },
    /// A registry of the demo does not start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A registry of the demo does not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A registry of the demo delivers something else.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Pulling and unpacking fails.
    #[error(transparent)]
    Eager(#[from] EagerError),
    /// `prepare` wrote something else than was expected.
    #[error("the environment file does not name the image `{0}`")]
    Environment(&'static str),
    /// A reference is not one.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `status` prints something else than was expected.
    #[error("`undermount status` is not understood")]
    Status(#[source] serde_json::Error),
    /// The account of it all cannot be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
}

/// Plays the demo with the commands of `program`, tells about it in `out` and takes everything
/// down again, whether it was finished, failed or `cancelled`.
///
/// # Errors
/// [`DemoError`] where it did not come to its end.
pub async fn run(
    program: PathBuf,
    out: &mut (dyn Write + Send),
    cancelled: CancellationToken,
) -> Result<(), DemoError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DemoError::NotRoot);
    }
    let mut stage = Stage::new(program)?;
    let outcome = cancelled.run_until_cancelled(play(&mut stage, out)).await;
    stage.clear().await;
    outcome.unwrap_or(Err(DemoError::Interrupted))
}

async fn play(stage: &mut Stage, out: &mut (dyn Write + Send)) -> Result<(), DemoError> {
    tell(out, "Making two images of this host's files ...")?;
    let building = tokio::task::spawn_blocking(make_images);
    let made = building.await.map_err(|error| DemoError::Host(io::Error::other(error)))?;
    let (interpreter, images) = made.map_err(DemoError::Host)?;
    let [one, two] = &images;
    let shared = one.layers.iter().filter(|layer| {
        two.layers.iter().any(|other| other.descriptor.digest == layer.descriptor.digest)
    });
    let shared: u64 = shared.map(|layer| layer.descriptor.size).sum();
    tell(
        out,
        &format!(
            "  {} ({}) with its libraries and modules: {} and {} compressed, {} of it shared.",
            interpreter.name(),
            interpreter.path.display(),
            BinaryBytes(one.compressed_bytes()),
            BinaryBytes(two.compressed_bytes()),
            BinaryBytes(shared),
        ),
    )?;
    let references = prepare(stage, out, &images).await?;
    let lazy = start_lazily(stage, out, &interpreter, &references).await?;
    let eager = start_eagerly(stage, out, &interpreter, &references).await?;
    let sizes = [one.compressed_bytes(), two.compressed_bytes()];
    tell(out, &format!("\n{}", Report { sizes, lazy, eager }))
}

fn tell(out: &mut (dyn Write + Send), words: &str) -> Result<(), DemoError> {
    writeln!(out, "{words}").and_then(|()| out.flush()).map_err(DemoError::Write)
}

/// The interpreter as the shared base, and for each image half of the other modules and a
/// service.
fn make_images() -> io::Result<(Interpreter, [DemoImage; 2])> {
    let interpreter = Interpreter::find()?;
    let base = Layer::of_host(&interpreter.base)?;
    let modules = interpreter.modules.halves();
    let image = |which: usize| -> io::Result<DemoImage> {
        let service = interpreter.service(which, NAMES[which]);
        let layers = vec![
            base.clone(),
            Layer::of_host(&modules[which])?,
            Layer::of_text(SERVICE, &service)?,
        ];
        Ok(DemoImage::new(layers, ("version", VERSION)))
    };
    let images = [image(0)?, image(1)?];
    Ok((interpreter, images))
}

/// The undercloud's part: both images from the registry where they are released to its own.
async fn prepare(
    stage: &mut Stage,
    out: &mut (dyn Write + Send),
    images: &[DemoImage; 2],
) -> Result<[Reference; 2], DemoError> {
    let released = stage.registry("released").await?;
    let undercloud = stage.registry("undercloud").await?;
    let client = client();
    for (image, name) in images.iter().zip(NAMES) {
        push(&client, image, &format!("{released}/demo/service-{name}")).await?;
    }
    let file = environment(&released, &undercloud);
    std::fs::write(stage.path("images.yaml"), &file).map_err(DemoError::Host)?;
    let words = ["prepare", "-e", "images.yaml", "--output-env-file", "images-env.yaml"];
    tell(out, &format!("\n$ cat images.yaml\n{file}\n$ undermount {}", words.join(" ")))?;
    stage.undermount(&words).await?;
    let written =
        std::fs::read_to_string(stage.path("images-env.yaml")).map_err(DemoError::Host)?;
    tell(out, &format!("\n$ cat images-env.yaml\n{written}"))?;
    let find = |name: &'static str| reference_in(&written, &undercloud, name);
    Ok([find(NAMES[0])?, find(NAMES[1])?])
}

/// The `ContainerImagePrepare` file of the demo.
fn environment(released: &str, undercloud: &str) -> String {
    let [one, two] = NAMES;
    format!(
        "parameter_defaults:\n  ContainerImagePrepare:\n  - push_destination: {undercloud}\n    \
         set:\n      namespace: {released}/demo\n      name_prefix: service-\n      tag: {TAG}\n    \
         tag_from_label: version\n    includes:\n    - service-{one}\n    - service-{two}\n"
    )
}

/// The image `name` of `registry` that an environment file names.
fn reference_in(text: &str, registry: &str, name: &'static str) -> Result<Reference, DemoError> {
    let begin = format!("{registry}/");
    let found = text
        .split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"'))
        .find(|word| word.starts_with(&begin) && word.contains(&format!("/service-{name}:")));
    Ok(found.ok_or(DemoError::Environment(name))?.parse()?)
}

fn client() -> Client {
    Client::new(ClientConfig::default())
}

async fn push(client: &Client, image: &DemoImage, name: &str) -> Result<(), DemoError> {
    for tag in [TAG, VERSION] {
        let reference: Reference = format!("{name}:{tag}").parse()?;
        for blob in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
            client.push_blob(reference.repository(), blob).await?;
        }
        client.put_manifest(&reference, DemoImage::media_type(), &image.manifest).await?;
    }
    Ok(())
}

/// The node's part: both images mounted and started, one after the other.
async fn start_lazily(
    stage: &mut Stage,
    out: &mut (dyn Write + Send),
    interpreter: &Interpreter,
    references: &[Reference; 2],
) -> Result<[Start; 2], DemoError> {
    let mut starts = [Start { fetched: 0, time: Duration::ZERO }; 2];
    for (which, reference) in references.iter().enumerate() {
        let name = format!("{}-root", NAMES[which]);
        tell(out, &format!("\n$ undermount mount --cache cache {reference} {name}"))?;
        let begin = Instant::now();
        let root = stage.mount(&reference.to_string(), &name).await?;
        let argument = format!("/{SERVICE}");
        let (first, text) = run_below(&root, &interpreter.path, &argument).await?;
        let program = interpreter.path.display();
        tell(out, &format!("$ chroot {name} {program} {argument}\n{text}"))?;
        starts[which] = Start { fetched: fetched(stage, &root).await?, time: first - begin };
    }
    Ok(starts)
}

/// What `undermount status` says was fetched for the image mounted on `root`, in bytes.
async fn fetched(stage: &Stage, root: &std::path::Path) -> Result<u64, DemoError> {
    let text = stage.undermount(&["status", "--cache", "cache", "--json"]).await?;
    let status: Status = serde_json::from_str(&text).map_err(DemoError::Status)?;
    let mount = status.mounts.iter().find(|mount| mount.dir.file_name() == root.file_name());
    Ok(mount.map_or(0, |mount| mount.fetched.iter().map(|from| from.bytes).sum()))
}

/// The same two starts after pulling and unpacking.
async fn start_eagerly(
    stage: &Stage,
    out: &mut (dyn Write + Send),
    interpreter: &Interpreter,
    references: &[Reference; 2],
) -> Result<[Start; 2], DemoError> {
    tell(out, "\nThe same with every layer pulled and unpacked first ...")?;
    let client = client();
    let mut pulled = Pulled::default();
    let mut starts = [Start { fetched: 0, time: Duration::ZERO }; 2];
    for (which, reference) in references.iter().enumerate() {
        let root = stage.path(&format!("{}-unpacked", NAMES[which]));
        let begin = Instant::now();
        let fetched = eager::pull_and_unpack(&client, reference, &mut pulled, &root).await?;
        let (first, text) = run_below(&root, &interpreter.path, &format!("/{SERVICE}")).await?;
        tell(out, &text)?;
        starts[which] = Start { fetched, time: first - begin };
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_are_found_in_an_environment_file() {
        let text = "parameter_defaults:\n  DockerCrondImage: 127.0.0.1:5/demo/service-cron:1.0\n  \
                    DockerMemcachedImage: '127.0.0.1:5/demo/service-memcached:2'\n";
        let find = |name| reference_in(text, "127.0.0.1:5", name).map(|found| found.to_string());
        assert_eq!(find("cron").unwrap(), "127.0.0.1:5/demo/service-cron:1.0");
        assert_eq!(find("memcached").unwrap(), "127.0.0.1:5/demo/service-memcached:2");
        assert!(matches!(find("nova"), Err(DemoError::Environment("nova"))));
    }
}
