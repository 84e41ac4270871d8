//! `undermount status`: what is mounted, what podman uses, and how much of it is here.

mod slow;

use clap::Args;
use undermount::control::{MountStatus, PinStatus, Status, StoreImage, StoreStatus};

use super::answer::{AskArgs, mebibytes};
use super::exit::CliResult;
use super::owner;

/// Show what is mounted and what podman uses, and how much of it is here
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    ask: AskArgs,
}

impl StatusArgs {
    /// Prints the status.
    pub async fn run(self) -> CliResult {
        let status = match owner::running(&self.ask.cache).await? {
            Some(control) => control.status().await?,
            None => Status::default(),
        };
        self.ask.tell(&status, in_words)
    }
}

fn in_words(status: &Status) -> String {
    let mounts = status.mounts.iter().map(mount_in_words);
    let store = status.store.iter().flat_map(store_in_words);
    let pins = status.pins.iter().map(pin_in_words);
    let slow = slow::in_words(&status.slowest_reads);
    let parts = mounts.chain(store).chain(pins).chain(slow).chain(restarts_in_words(status));
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "nothing is mounted".to_owned() } else { parts.join("\n") }
}

/// What podman makes of the layer store.
fn store_in_words(store: &StoreStatus) -> impl Iterator<Item = String> {
    let drained = if store.drained { " (drained: nothing new is offered)" } else { "" };
    let used = store.images.iter().any(|image| image.layers_in_use > 0);
    let idle = if used { "" } else { ": podman uses no image of it" };
    let head = format!("layer store {}{drained}{idle}", store.dir.display());
    let refused = store.refused.iter().map(|(reason, count)| {
        format!("podman pulled {count} layers itself: {reason} (see `undermount explain`)")
    });
    std::iter::once(head).chain(store.images.iter().map(image_in_words)).chain(refused)
}

fn image_in_words(image: &StoreImage) -> String {
    let StoreImage { reference, manifest, layers, lazy_layers, layers_in_use, .. } = image;
    let mut words = format!(
        "{reference}\n  image    {manifest}\n  layers   {layers}, {lazy_layers} of them lazy, \
         {layers_in_use} in use\n{}",
        extent(image.image_bytes, image.content_bytes, image.local_bytes),
    );
    words += &trouble(image.trouble.as_deref());
    words
}

fn pin_in_words(pin: &PinStatus) -> String {
    let local = local(pin.content_bytes, pin.local_bytes);
    format!("{} is pinned\n  local    {local}{}", pin.reference, trouble(pin.trouble.as_deref()))
}

fn mount_in_words(mount: &MountStatus) -> String {
    let mut words = format!(
        "{}\n  image    {} ({})\n{}",
        mount.dir.display(),
        mount.reference,
        mount.manifest,
        extent(mount.image_bytes, mount.content_bytes, mount.local_bytes),
    );
    words += &trouble(mount.trouble.as_deref());
    for fetched in &mount.fetched {
        words += &format!("\n  fetched  {} from {}", mebibytes(fetched.bytes), fetched.origin);
    }
    words
}

/// How often and why the process that serves the mounts was replaced, if it was.
fn restarts_in_words(status: &Status) -> Option<String> {
    let reason = status.last_exit.as_deref().unwrap_or("for an unknown reason");
    let Status { worker, restarts, .. } = status;
    (*restarts > 0).then(|| format!("worker {worker} is number {}: {reason}", restarts + 1))
}

fn extent(image: u64, content: u64, here: u64) -> String {
    let (image, files) = (mebibytes(image), mebibytes(content));
    format!("  size     {image} compressed, {files} of files\n  local    {}", local(content, here))
}

fn local(content: u64, here: u64) -> String {
    let percent = (here * 100).checked_div(content).unwrap_or(100);
    format!("{} ({percent} %)", mebibytes(here))
}

fn trouble(trouble: Option<&str>) -> String {
    trouble.map(|trouble| format!("\n  trouble  {trouble}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use undermount_fs::digest::Digest;

    use super::*;

    #[test]
    fn an_agent_tells_of_the_images_that_podman_uses() {
        let image = StoreImage {
            reference: "registry/image:1".to_owned(),
            manifest: Digest::of(b"manifest"),
            layers_in_use: 2,
            layers: 3,
            lazy_layers: 2,
            image_bytes: 1 << 20,
            content_bytes: 4 << 20,
            local_bytes: 1 << 20,
            trouble: None,
        };
        let store = StoreStatus {
            dir: "/store".into(),
            images: vec![image],
            refused: [("repeated-layer".to_owned(), 1)].into(),
            ..StoreStatus::default()
        };
        let words = in_words(&Status { store: Some(store), ..Status::default() });
        for part in [
            "layer store /store\nregistry/image:1\n",
            "  layers   3, 2 of them lazy, 2 in use\n",
            "  local    1.0 MiB (25 %)\n",
            "podman pulled 1 layers itself: repeated-layer",
        ] {
            assert!(words.contains(part), "no `{part}` in {words}");
        }
        let idle = StoreStatus { dir: "/store".into(), ..StoreStatus::default() };
        let words = in_words(&Status { store: Some(idle), ..Status::default() });
        assert_eq!(words, "layer store /store: podman uses no image of it");
        assert_eq!(in_words(&Status::default()), "nothing is mounted");
    }
}
