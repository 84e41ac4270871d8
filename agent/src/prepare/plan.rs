//! The plan: what the Heat parameters will say and which images have to move, decided before
//! anything does.
//!
//! Entries are planned one by one ([`plan_entry`]) and joined in order: where the images of two
//! name one parameter, the later sets it.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::{Entry, Modify};
use super::naming;
use super::template::TemplateImage;
use super::yaml::{Map, Value};

/// An image of an entry after everything about it was asked from its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The image; its name has the tag that was discovered.
    pub image: TemplateImage,
    /// Whether it has the labels of `modify_only_with_labels` that the release asks for.
    pub has_labels: bool,
}

/// One image and what happens to it.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedImage {
    /// Which entry of its list asks for it, from 0.
    pub entry: usize,
    /// Its name as the template gave it, with the tag that was discovered.
    pub imagename: String,
    /// Which project makes it.
    pub image_source: Option<String>,
    /// The Heat parameters that name it.
    pub params: Vec<String>,
    /// The deprecated prefix of its source.
    pub pull_source: Option<String>,
    /// Where it goes; nowhere means that nodes pull it from its source.
    pub push_destination: Option<String>,
    /// Whether the parameters name it there.
    pub is_told: bool,
    /// How it is changed on the way.
    pub modify: Option<Modification>,
    /// Whether all of its architectures go along.
    pub multi_arch: bool,
}

/// How an image is changed on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Modification {
    /// The Ansible role.
    pub role: String,
    /// What is appended to the tag.
    pub append_tag: String,
    /// Variables for the role.
    pub vars: Option<Value>,
}

/// What holds for all images of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryContext {
    /// The place of the entry in its list, from 0.
    pub position: usize,
    /// Where the images go, the undercloud's registry by name.
    pub push_destination: Option<String>,
    /// Whether the parameters name them there.
    pub is_told: bool,
    /// What is appended to the tag of modified images where the entry does not say.
    pub default_append_tag: String,
    /// Whether all architectures are copied where the entry does not say.
    pub multi_arch: bool,
}

/// Which registries without a verified certificate deployment is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsecureList {
    /// All that the parameters name.
    All,
    /// Those of the last entry that has any, as in the original; nodes then refuse to pull from
    /// those of earlier entries.
    LastEntry,
}

/// What all entries come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The images, entry by entry.
    pub images: Vec<PlannedImage>,
    /// Registries that the parameters name and whose certificates cannot be verified.
    pub insecure: BTreeSet<String>,
    /// Plans of roles with a list of their own, with the role's name.
    pub roles: Vec<(String, Plan)>,
}

/// Plans one entry: its images in the order of the template.
pub fn plan_entry(
    entry: &Entry,
    images: Vec<ResolvedImage>,
    context: &EntryContext,
) -> Vec<PlannedImage> {
    let plan = |ResolvedImage { image, has_labels }| {
        let modify = entry.modify.as_ref().filter(|modify| is_modified(modify, &image, has_labels));
        PlannedImage {
            entry: context.position,
            imagename: image.imagename,
            image_source: image.source,
            params: image.params,
            pull_source: entry.pull_source.clone(),
            push_destination: context.push_destination.clone(),
            is_told: context.is_told,
            modify: modify.map(|modify| Modification {
                role: modify.role.clone(),
                append_tag: modify
                    .append_tag
                    .as_ref()
                    .unwrap_or(&context.default_append_tag)
                    .clone(),
                vars: modify.vars.clone(),
            }),
            multi_arch: entry.multi_arch.unwrap_or(context.multi_arch),
        }
    };
    images.into_iter().map(plan).collect()
}

/// Every image of an entry is modified unless the entry names labels or sources; then those that
/// have either.
fn is_modified(modify: &Modify, image: &TemplateImage, has_labels: bool) -> bool {
    let by_label = !modify.only_with_labels.is_empty();
    let by_source = !modify.only_with_source.is_empty();
    let source = image.source.as_deref().unwrap_or_default();
    (!by_label && !by_source)
        || (by_label && has_labels)
        || (by_source && modify.only_with_source.iter().any(|known| known == source))
}

impl PlannedImage {
    /// Where the image comes from.
    pub fn source(&self) -> String {
        naming::source(self.pull_source.as_deref(), &self.imagename)
    }

    /// Where the unmodified image goes, if anywhere.
    pub fn target(&self) -> Option<String> {
        let destination = self.push_destination.as_ref()?;
        let name = naming::pushed(self.pull_source.as_deref(), &self.imagename);
        Some(format!("{destination}/{name}"))
    }

    /// Where the image goes after it was changed, if it is changed.
    pub fn changed_target(&self) -> Option<String> {
        Some(self.target()? + &self.modify.as_ref()?.append_tag)
    }

    /// The name that nodes pull.
    pub fn deployed_name(&self) -> String {
        let told = self.target().filter(|_| self.is_told);
        let name = told.unwrap_or_else(|| self.imagename.clone());
        match &self.modify {
            Some(modification) => name + &modification.append_tag,
            None => name,
        }
    }

    /// The record of the upload list (`--output-images-file`).
    fn record(&self) -> Value {
        let mut record = Map::default();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                record.insert(key, value);
            }
        };
        let text = |text: &Option<String>| text.as_deref().map(Value::from);
        put("imagename", Some(self.imagename.as_str().into()));
        put("image_source", text(&self.image_source));
        put("pull_source", text(&self.pull_source));
        put("push_destination", text(&self.push_destination).filter(|_| self.is_told));
        if let Some(modification) = &self.modify {
            put("modify_role", Some(modification.role.as_str().into()));
            let append_tag = Some(modification.append_tag.as_str());
            put("modify_append_tag", append_tag.filter(|tag| !tag.is_empty()).map(Value::from));
            put("modify_vars", modification.vars.clone());
        }
        Value::Map(record)
    }
}

impl Plan {
    /// Heat parameters and the image that each names.
    pub fn parameters(&self) -> BTreeMap<&str, String> {
        let pairs = self.images.iter().flat_map(|image| {
            let name = image.deployed_name();
            image.params.iter().map(move |param| (param.as_str(), name.clone()))
        });
        pairs.collect()
    }

    /// The registries that the parameters name, those of roles left out.
    pub fn registries(&self) -> BTreeSet<String> {
        let host = |image: &String| Some(image.split_once('/')?.0.to_owned());
        self.parameters().values().filter_map(host).collect()
    }

    /// All images, those of roles with a list of their own last.
    pub fn all_images(&self) -> impl Iterator<Item = &PlannedImage> {
        self.images.iter().chain(self.roles.iter().flat_map(|(_, plan)| &plan.images))
    }

    /// Leaves the images out that `keep` refuses, and so the parameters that name them.
    pub fn retain(&mut self, keep: impl Fn(&PlannedImage) -> bool) {
        let plans = std::iter::once(&mut self.images);
        for images in plans.chain(self.roles.iter_mut().map(|(_, plan)| &mut plan.images)) {
            images.retain(&keep);
        }
    }

    /// Notes which of `insecure` deployment is told of.
    pub fn mark_insecure(&mut self, insecure: &BTreeSet<String>, list: InsecureList) {
        self.insecure = match list {
            InsecureList::All => self.registries().intersection(insecure).cloned().collect(),
            InsecureList::LastEntry => self.last_insecure(insecure),
        };
        for (_, plan) in &mut self.roles {
            plan.mark_insecure(insecure, list);
        }
    }

    /// Those of `insecure` that the last entry with any names.
    fn last_insecure(&self, insecure: &BTreeSet<String>) -> BTreeSet<String> {
        let mut by_entry: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for image in self.images.iter().filter(|image| !image.params.is_empty()) {
            let name = image.deployed_name();
            if let Some((host, _)) =
                name.split_once('/').filter(|(host, _)| insecure.contains(*host))
            {
                by_entry.entry(image.entry).or_default().insert(host.to_owned());
            }
        }
        by_entry.pop_last().map(|(_, hosts)| hosts).unwrap_or_default()
    }

    /// Those of `insecure` that the parameters name and deployment is not told of.
    pub fn untold(&self, insecure: &BTreeSet<String>) -> BTreeSet<String> {
        let named = self.registries();
        let mut untold: BTreeSet<_> = named
            .intersection(insecure)
            .filter(|host| !self.insecure.contains(*host))
            .cloned()
            .collect();
        untold.extend(self.roles.iter().flat_map(|(_, plan)| plan.untold(insecure)));
        untold
    }

    /// The content of `parameter_defaults`.
    pub fn parameter_defaults(&self) -> Map {
        let mut defaults: Map = self.parameters().into_iter().collect();
        if !self.insecure.is_empty() {
            let insecure: Value = self.insecure.iter().map(String::as_str).collect();
            defaults.insert("DockerInsecureRegistryAddress", insecure);
        }
        for (role, plan) in &self.roles {
            defaults.insert(format!("{role}Parameters"), plan.parameter_defaults());
        }
        defaults
    }

    /// The upload list: what `--output-images-file` holds.
    pub fn upload_list(&self) -> Value {
        let mut list = Map::default();
        let records = self.all_images().map(PlannedImage::record);
        list.insert("container_images", records.collect::<Value>());
        Value::Map(list)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{entry, yaml};
    use super::*;

    fn image(name: &str, params: &[&str], source: &str) -> ResolvedImage {
        let image = TemplateImage {
            imagename: name.to_owned(),
            source: Some(source.to_owned()),
            params: params.iter().map(|&param| param.to_owned()).collect(),
            services: Vec::new(),
        };
        ResolvedImage { image, has_labels: name.contains("labelled") }
    }

    fn context(push_destination: Option<&str>) -> EntryContext {
        EntryContext {
            position: 0,
            push_destination: push_destination.map(str::to_owned),
            is_told: true,
            default_append_tag: "-modified-1".to_owned(),
            multi_arch: false,
        }
    }

    fn planned(entry: &str, images: &[ResolvedImage], push: Option<&str>) -> Plan {
        let entries = entry::entries("P", &yaml::read(&format!("[{entry}]")).unwrap()).unwrap();
        let images = plan_entry(&entries[0], images.to_vec(), &context(push));
        Plan { images, ..Plan::default() }
    }

    #[test]
    fn the_destination_takes_the_place_of_the_registry() {
        let images = [image("src:5000/ns/nova:t", &["Api", "Conf"], "kolla")];
        for (push, name) in [
            (None, "src:5000/ns/nova:t"),
            (Some("d:8787"), "d:8787/ns/nova:t"),
            (Some("d:8787/mirror"), "d:8787/mirror/ns/nova:t"),
        ] {
            let plan = planned("{}", &images, push);
            assert_eq!(plan.parameters()["Api"], name);
            assert_eq!(plan.parameters()["Conf"], name);
            assert_eq!(plan.images[0].source(), "src:5000/ns/nova:t");
        }
    }

    #[test]
    fn a_pull_source_stands_before_the_name_and_the_parameter_is_what_was_pushed() {
        let images = [image("ns/nova:t", &["Api"], "kolla")];
        let plan = planned("{pull_source: 'src:5000'}", &images, Some("d:8787"));
        assert_eq!(plan.images[0].source(), "src:5000/ns/nova:t");
        assert_eq!(plan.images[0].target().unwrap(), "d:8787/ns/nova:t");
        assert_eq!(plan.parameters()["Api"], "d:8787/ns/nova:t");
    }

    #[test]
    fn modified_images_have_another_tag() {
        let images = [image("r/labelled:t", &["A"], "kolla"), image("r/ceph:t", &["B"], "ceph")];
        for (entry, a, b) in [
            ("{modify_role: m}", "r/labelled:t-modified-1", "r/ceph:t-modified-1"),
            ("{modify_role: m, modify_append_tag: -x}", "r/labelled:t-x", "r/ceph:t-x"),
            ("{modify_append_tag: -x}", "r/labelled:t", "r/ceph:t"),
            ("{modify_role: m, modify_append_tag: null}", "r/labelled:t", "r/ceph:t"),
            ("{modify_role: '', modify_append_tag: -x}", "r/labelled:t", "r/ceph:t"),
            (
                "{modify_role: m, modify_only_with_labels: [l]}",
                "r/labelled:t-modified-1",
                "r/ceph:t",
            ),
            (
                "{modify_role: m, modify_only_with_source: [ceph]}",
                "r/labelled:t",
                "r/ceph:t-modified-1",
            ),
        ] {
            let plan = planned(entry, &images, None);
            assert_eq!((plan.parameters()["A"].as_str(), plan.parameters()["B"].as_str()), (a, b));
        }
    }

    #[test]
    fn parameters_may_say_nothing_of_where_changed_images_go() {
        let mut plan = planned(
            "{modify_role: m, modify_append_tag: -x}",
            &[image("r/a:t", &["A"], "")],
            Some("d"),
        );
        plan.images[0].is_told = false;
        assert_eq!(plan.parameters()["A"], "r/a:t-x");
        assert_eq!(plan.images[0].changed_target().unwrap(), "d/a:t-x");
        assert!(!yaml::write(&plan.upload_list()).contains("push_destination"));
    }

    #[test]
    fn later_entries_set_what_earlier_ones_set() {
        let mut plan = planned("{}", &[image("r:1/a:1", &["A", "B"], "")], None);
        plan.images.extend(planned("{}", &[image("r:2/a:2", &["B"], "")], None).images);
        assert_eq!(plan.parameters()["A"], "r:1/a:1");
        assert_eq!(plan.parameters()["B"], "r:2/a:2");
        plan.retain(|image| image.imagename != "r:2/a:2");
        assert_eq!(plan.parameters()["B"], "r:1/a:1");
    }

    #[test]
    fn insecure_registries_add_up_or_are_those_of_the_last_entry() {
        let hosts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let insecure: BTreeSet<String> = hosts(&["r:1", "r:2", "r:4"]);
        let mut plan = Plan::default();
        for (position, host) in ["r:1", "r:2", "r:3"].into_iter().enumerate() {
            let name = format!("{host}/a:{position}");
            let mut images = planned("{}", &[image(&name, &[host], "")], None).images;
            images[0].entry = position;
            plan.images.extend(images);
        }
        plan.mark_insecure(&insecure, InsecureList::All);
        assert_eq!((&plan.insecure, plan.untold(&insecure)), (&hosts(&["r:1", "r:2"]), hosts(&[])));
        plan.mark_insecure(&insecure, InsecureList::LastEntry);
        assert_eq!((&plan.insecure, plan.untold(&insecure)), (&hosts(&["r:2"]), hosts(&["r:1"])));
    }

    #[test]
    fn the_upload_list_has_the_originals_keys() {
        let entry = "{modify_role: m, modify_append_tag: -x, modify_vars: {a: 1}}";
        let plan = planned(entry, &[image("r/a:1", &["A"], "kolla")], Some("d"));
        assert_eq!(
            yaml::write(&plan.upload_list()),
            "container_images:\n- image_source: kolla\n  imagename: r/a:1\n  modify_append_tag: -x\n  \
             modify_role: m\n  modify_vars:\n    a: 1\n  push_destination: d\n"
        );
    }
}
