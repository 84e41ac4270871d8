//! What deployment tools read: the Heat environment of TripleO, and the same images in the words
//! of the tools that came after it.
//!
//! ```text
//! heat    parameter_defaults: {ContainerNovaApiImage: …}
//! kolla   nova_api_image_full: …                      Kolla-Ansible's globals.yml
//! edpm    OpenStackVersion {novaAPIImage: …}          OpenStack on OpenShift, control plane,
//!         OpenStackDataPlaneNodeSet {edpm_…_image: …} and external data plane
//! ```
//! The Heat parameter tells what an image is for, so one table of parameters ([`names`]) leads to
//! the other tools' words.

pub mod names;

use std::collections::BTreeMap;

use super::plan::Plan;
use super::yaml::{self, Map, Value};

use self::names::{Name, name_of};

/// Whose words the images are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// TripleO's Heat environment.
    #[default]
    Heat,
    /// Variables for Kolla-Ansible's `globals.yml`.
    Kolla,
    /// Resources of the OpenStack operator: `OpenStackVersion` and `OpenStackDataPlaneNodeSet`.
    Edpm,
}

/// A plan in the words of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct Formatted {
    /// One or more YAML documents.
    pub text: String,
    /// Parameters for which the tool has no word, with their images.
    pub unnamed: BTreeMap<String, String>,
}

impl OutputFormat {
    /// Writes `plan` down.
    pub fn write(self, plan: &Plan) -> Formatted {
        let documents = match self {
            Self::Heat => {
                let sections =
                    Map::from_iter([("parameter_defaults", Value::Map(plan.parameter_defaults()))]);
                return Formatted { text: yaml::write(&sections.into()), unnamed: BTreeMap::new() };
            }
            Self::Kolla => vec![kolla(plan)],
            Self::Edpm => edpm(plan),
        };
        let documents: Vec<_> =
            documents.into_iter().map(|document| yaml::write(&document.into())).collect();
        Formatted { text: documents.join("---\n"), unnamed: self.unnamed(plan) }
    }

    fn unnamed(self, plan: &Plan) -> BTreeMap<String, String> {
        let has_word = |param: &str| {
            name_of(param).is_some_and(|name| match self {
                Self::Heat => true,
                Self::Kolla => name.kolla.is_some(),
                Self::Edpm => name.operator.is_some() || name.edpm.is_some(),
            })
        };
        // One image may have many parameters; it is named if one of them is.
        let mut images: BTreeMap<String, (String, bool)> = BTreeMap::new();
        for (param, image) in plan.parameters() {
            let (_, named) = images.entry(image).or_insert_with(|| (param.to_owned(), false));
            *named |= has_word(param);
        }
        let unnamed = images.into_iter().filter(|(_, (_, named))| !named);
        unnamed.map(|(image, (param, _))| (param, image)).collect()
    }
}

/// The images of `plan` whose parameters are in the table.
fn named(plan: &Plan) -> impl Iterator<Item = (&'static Name, String)> {
    let parameters = plan.parameters();
    let named: Vec<_> = parameters
        .into_iter()
        .filter_map(|(param, image)| Some((name_of(param)?, image)))
        .collect();
    named.into_iter()
}

/// Kolla-Ansible names one registry, which it can be told to trust without a certificate.
fn kolla(plan: &Plan) -> Map {
    let mut variables = Map::default();
    for (name, image) in named(plan) {
        if let Some(kolla) = name.kolla {
            variables.insert(format!("{kolla}_image_full"), image);
        }
    }
    if let Some(registry) = plan.insecure.first() {
        variables.insert("docker_registry", registry.as_str());
        variables.insert("docker_registry_insecure", Value::Bool(true));
    }
    variables
}

fn edpm(plan: &Plan) -> Vec<Map> {
    let mut images = Map::default();
    let mut variables = Map::default();
    for (name, image) in named(plan) {
        match name.operator {
            // These two have an image for each back end.
            Some(key @ ("cinderVolumeImages" | "manilaShareImages")) => {
                images.insert(key, Map::from_iter([("default", image.clone())]));
            }
            Some(key) => {
                images.insert(format!("{key}Image"), image.clone());
            }
            None => {}
        }
        if let Some(variable) = name.edpm {
            variables.insert(format!("{variable}_image"), image);
        }
    }
    if !plan.insecure.is_empty() {
        variables.insert("edpm_podman_registries_conf", registries_conf(plan));
    }
    let version = resource(
        "core.openstack.org/v1beta1",
        "OpenStackVersion",
        nested(&["customContainerImages"], images),
    );
    let nodes = resource(
        "dataplane.openstack.org/v1beta1",
        "OpenStackDataPlaneNodeSet",
        nested(&["nodeTemplate", "ansible", "ansibleVars"], variables),
    );
    vec![version, nodes]
}

/// What podman reads in `registries.conf` to accept registries without a certificate.
fn registries_conf(plan: &Plan) -> String {
    let entry = |host: &String| format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
    plan.insecure.iter().map(entry).collect()
}

fn resource(api_version: &str, kind: &str, spec: Map) -> Map {
    let metadata = Map::from_iter([("name", "openstack")]);
    let mut resource = Map::from_iter([("apiVersion", api_version), ("kind", kind)]);
    resource.insert("metadata", metadata);
    resource.insert("spec", spec);
    resource
}

/// `innermost` below `keys`, the outermost first.
fn nested(keys: &[&str], innermost: Map) -> Map {
    keys.iter().rev().fold(innermost, |inner, key| {
        let mut outer = Map::default();
        outer.insert(*key, inner);
        outer
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlannedImage;
    use super::*;

    fn image(name: &str, params: &[&str]) -> PlannedImage {
        PlannedImage {
            entry: 0,
            imagename: name.to_owned(),
            image_source: None,
            params: params.iter().map(|&param| param.to_owned()).collect(),
            pull_source: None,
            push_destination: None,
            is_told: true,
            modify: None,
            multi_arch: false,
        }
    }

    fn plan() -> Plan {
        Plan {
            images: vec![
                image("r:1/n/nova-api:t", &["ContainerNovaApiImage", "ContainerNovaConfigImage"]),
                image("r:1/n/cinder-volume:t", &["DockerCinderVolumeImage"]),
                image("r:1/n/ovn-controller:t", &["ContainerOvnControllerImage"]),
                image("q/prometheus:v2", &["PrometheusContainerImage"]),
                image("r:1/n/qdrouterd:t", &["ContainerQdrouterdImage"]),
            ],
            insecure: ["r:1".to_owned()].into(),
            ..Plan::default()
        }
    }

    #[test]
    fn kolla_ansible_gets_the_full_names_of_its_images() {
        let formatted = OutputFormat::Kolla.write(&plan());
        assert_eq!(
            formatted.text,
            "cinder_volume_image_full: r:1/n/cinder-volume:t\ndocker_registry: r:1\n\
             docker_registry_insecure: true\nnova_api_image_full: r:1/n/nova-api:t\n\
             ovn_controller_image_full: r:1/n/ovn-controller:t\n\
             prometheus_server_image_full: q/prometheus:v2\n"
        );
        let unnamed: Vec<_> = formatted.unnamed.keys().collect();
        assert_eq!(unnamed, ["ContainerQdrouterdImage"]);
    }

    #[test]
    fn the_openstack_operator_gets_its_resources() {
        let formatted = OutputFormat::Edpm.write(&plan());
        let (version, nodes) = formatted.text.split_once("---\n").unwrap();
        assert_eq!(
            version,
            "apiVersion: core.openstack.org/v1beta1\nkind: OpenStackVersion\nmetadata:\n  name: openstack\n\
             spec:\n  customContainerImages:\n    cinderVolumeImages:\n      default: r:1/n/cinder-volume:t\n    \
             novaAPIImage: r:1/n/nova-api:t\n    ovnControllerImage: r:1/n/ovn-controller:t\n"
        );
        assert!(
            nodes.contains("        edpm_ovn_controller_agent_image: r:1/n/ovn-controller:t\n")
        );
        assert!(nodes.contains(r#"location = \"r:1\"\ninsecure = true"#), "{nodes}");
        let unnamed: Vec<_> = formatted.unnamed.keys().collect();
        assert_eq!(unnamed, ["ContainerQdrouterdImage", "PrometheusContainerImage"]);
    }

    #[test]
    fn heat_gets_parameters() {
        let text = OutputFormat::Heat.write(&plan()).text;
        assert!(text.starts_with("parameter_defaults:\n"), "{text}");
        assert!(text.contains("\n  ContainerNovaConfigImage: r:1/n/nova-api:t\n"), "{text}");
    }
}
