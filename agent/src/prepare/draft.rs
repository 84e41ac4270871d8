//! The draft: the images that a request is about, before any registry was asked.

use std::collections::BTreeSet;

use super::PrepareError;
use super::copy::Location;
use super::entry::{Entry, PushDestination};
use super::filter;
use super::naming;
use super::request::{EntryList, Request};
use super::template::{ImageTemplate, TemplateImage, substitutions};
use super::undercloud;
use super::yaml::Value;

/// An entry and the images that it is about.
#[derive(Debug, Clone)]
pub struct DraftEntry {
    /// The entry.
    pub entry: Entry,
    /// Its images, in the order of the template.
    pub images: Vec<TemplateImage>,
    /// Where they go, by name.
    pub push_destination: Option<String>,
    /// Whether the parameters name them there.
    pub is_told: bool,
    /// The label that tells their tags, where it counts.
    pub tag_from_label: Option<String>,
    /// Whether their tag is the default one, because the entry names none.
    pub has_default_tag: bool,
}

/// The images of a request: those of the deployment, and those of roles with their own list.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// The entries of the deployment's list.
    pub main: Vec<DraftEntry>,
    /// The entries of roles' lists, with the role's name.
    pub roles: Vec<(String, Vec<DraftEntry>)>,
}

impl Draft {
    /// Renders the template for each entry of `request` and keeps the images that it asks for.
    ///
    /// # Errors
    /// [`PrepareError`] where the template cannot be used.
    pub async fn of(request: &Request) -> Result<Self, PrepareError> {
        let template = ImageTemplate::load(&request.template)?;
        let undercloud = match &request.undercloud {
            Some(host) => Some(host.clone()),
            None if needs_undercloud(request) => Some(undercloud::registry().await),
            None => None,
        };
        let draft = |list: &EntryList| -> Result<Vec<DraftEntry>, PrepareError> {
            let entries = list.entries.iter();
            entries
                .map(|entry| draft(entry, list, request, &template, undercloud.as_deref()))
                .collect()
        };
        let roles = request.roles.iter().map(|(role, list)| Ok((role.clone(), draft(list)?)));
        Ok(Self { main: draft(&request.main)?, roles: roles.collect::<Result<_, PrepareError>>()? })
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &DraftEntry> {
        self.main.iter().chain(self.roles.iter().flat_map(|(_, entries)| entries))
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.entries().all(|entry| entry.images.is_empty())
    }

    /// The registries that the images come from or go to.
    pub fn registries(&self) -> BTreeSet<String> {
        self.entries().flat_map(DraftEntry::registries).collect()
    }
}

impl DraftEntry {
    fn registries(&self) -> impl Iterator<Item = String> {
        let host = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        let pull_source = self.entry.pull_source.as_deref();
        let sources = self.images.iter().filter_map(move |image| {
            naming::registry(pull_source, &image.imagename).map(str::to_owned)
        });
        // What parameters name in place of the destination.
        let untold = self.images.iter().filter(|_| !self.is_told);
        let untold = untold.map(move |image| host(&image.imagename));
        sources.chain(self.push_destination.as_deref().map(host)).chain(untold)
    }
}

/// Whether `entry` sends its images to the undercloud: because it says so, or because they have
/// to go somewhere (they are modified, or come from a deprecated pull source) and it names nothing.
fn goes_to_undercloud(entry: &Entry) -> bool {
    match entry.push_destination {
        PushDestination::Undercloud => true,
        PushDestination::Registry(_) => false,
        PushDestination::None => entry.modify.is_some() || entry.pull_source.is_some(),
    }
}

/// Whether an entry's images go to the undercloud, as all do that come from files and have no
/// other place to go.
fn needs_undercloud(request: &Request) -> bool {
    let goes = |entry: &Entry| {
        let stays = entry.push_destination == PushDestination::None;
        goes_to_undercloud(entry) || (request.from.is_some() && stays)
    };
    request.lists().any(|(_, list)| list.entries.iter().any(goes))
}

fn destination(entry: &Entry, undercloud: Option<&str>) -> Option<String> {
    match &entry.push_destination {
        PushDestination::Registry(host) => Some(host.clone()),
        _ if goes_to_undercloud(entry) => undercloud.map(str::to_owned),
        _ => None,
    }
}

/// Whether the parameters name images at their destination. The original names them where they
/// came from when the destination is not the entry's own; from files no node could pull them.
fn is_told(entry: &Entry, request: &Request) -> bool {
    let is_from_files = entry.pull_source.as_deref().is_some_and(Location::has_transport);
    request.tells_undercloud || is_from_files || entry.push_destination != PushDestination::None
}

/// Refuses images that would stay in files of this host.
fn refuse_files(entry: &Entry, images: &[TemplateImage]) -> Result<(), PrepareError> {
    let pull_source = entry.pull_source.as_deref();
    let stays = |image: &&TemplateImage| naming::is_on_this_host(pull_source, &image.imagename);
    match images.iter().find(stays) {
        Some(image) => Err(PrepareError::NoDestination(image.imagename.clone())),
        None => Ok(()),
    }
}

fn draft(
    entry: &Entry,
    list: &EntryList,
    request: &Request,
    template: &ImageTemplate,
    undercloud: Option<&str>,
) -> Result<DraftEntry, PrepareError> {
    let release = request.release;
    let mut entry = entry.clone();
    entry.pull_source = request.from.clone().or(entry.pull_source);
    let mut set = entry.set.clone();
    if !release.entry_sets_neutron_driver() && request.neutron_driver.is_some() {
        set.insert("neutron_driver", Value::Null);
    }
    let values = substitutions(&set, release.default_set(), request.neutron_driver.as_deref());
    let images = filter::select(template.render(&values)?, &entry, list.services.as_ref())?;
    let push_destination = destination(&entry, undercloud);
    if push_destination.is_none() {
        refuse_files(&entry, &images)?;
    }
    let tag = entry.set.get("tag");
    let label_counts = release.label_beats_tag() || !tag.is_some_and(|tag| tag.is_truthy());
    Ok(DraftEntry {
        images,
        push_destination,
        is_told: is_told(&entry, request),
        tag_from_label: entry.tag_from_label.clone().filter(|_| label_counts),
        has_default_tag: tag.is_none(),
        entry,
    })
}
