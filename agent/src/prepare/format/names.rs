//! What each image is called in the tools that are not Heat.
//!
//! Kolla-Ansible's words are the defaults of its roles (`<word>_image_full`), the operator's the
//! keys of `OpenStackVersion.spec.customContainerImages`, and edpm's the variables that the
//! operator passes to the nodes (`<word>_image`).

/// The words for the image of one Heat parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// The parameter without `Container` or `Docker` and `Image`.
    pub param: &'static str,
    /// `<word>_image_full` of Kolla-Ansible.
    pub kolla: Option<&'static str>,
    /// The key in `customContainerImages`, without `Image` unless it holds one for each back end.
    pub operator: Option<&'static str>,
    /// `<word>_image` of the data plane's Ansible.
    pub edpm: Option<&'static str>,
}

/// The words for the image that the Heat parameter `param` names.
pub fn name_of(param: &str) -> Option<&'static Name> {
    let stem = param.strip_suffix("Image")?;
    let stem = ["Container", "Docker"]
        .into_iter()
        .find_map(|prefix| stem.strip_prefix(prefix))
        .or_else(|| stem.strip_suffix("Container"))?;
    let found = NAMES.binary_search_by(|name| name.param.cmp(stem)).ok()?;
    NAMES.get(found)
}

/// A row of the table, `-` for what a tool does not have.
const fn row(words: [&'static str; 4]) -> Name {
    const fn word(word: &'static str) -> Option<&'static str> {
        match word.as_bytes() {
            b"-" => None,
            _ => Some(word),
        }
    }
    let [param, kolla, operator, edpm] = words;
    Name { param, kolla: word(kolla), operator: word(operator), edpm: word(edpm) }
}

/// Sorted by parameter.
#[rustfmt::skip]
const NAMES: &[Name] = &[
    row(["AlertManager", "prometheus_alertmanager", "-", "-"]),
    row(["AodhApi", "aodh_api", "aodhAPI", "-"]),
    row(["AodhEvaluator", "aodh_evaluator", "aodhEvaluator", "-"]),
    row(["AodhListener", "aodh_listener", "aodhListener", "-"]),
    row(["AodhNotifier", "aodh_notifier", "aodhNotifier", "-"]),
    row(["BarbicanApi", "barbican_api", "barbicanAPI", "-"]),
    row(["BarbicanKeystoneListener", "barbican_keystone_listener", "barbicanKeystoneListener", "-"]),
    row(["BarbicanWorker", "barbican_worker", "barbicanWorker", "-"]),
    row(["CeilometerCentral", "ceilometer_central", "ceilometerCentral", "-"]),
    row(["CeilometerCompute", "ceilometer_compute", "ceilometerCompute", "edpm_telemetry_ceilometer_compute"]),
    row(["CeilometerIpmi", "ceilometer_ipmi", "ceilometerIpmi", "edpm_telemetry_ceilometer_ipmi"]),
    row(["CeilometerNotification", "ceilometer_notification", "ceilometerNotification", "-"]),
    row(["CinderApi", "cinder_api", "cinderAPI", "-"]),
    row(["CinderBackup", "cinder_backup", "cinderBackup", "-"]),
    row(["CinderScheduler", "cinder_scheduler", "cinderScheduler", "-"]),
    row(["CinderVolume", "cinder_volume", "cinderVolumeImages", "-"]),
    row(["Collectd", "collectd", "-", "-"]),
    row(["Crond", "cron", "edpmLogrotateCrond", "edpm_logrotate_crond"]),
    row(["DesignateApi", "designate_api", "designateAPI", "-"]),
    row(["DesignateBackendBIND9", "designate_backend_bind9", "designateBackendbind9", "-"]),
    row(["DesignateCentral", "designate_central", "designateCentral", "-"]),
    row(["DesignateMDNS", "designate_mdns", "designateMdns", "-"]),
    row(["DesignateProducer", "designate_producer", "designateProducer", "-"]),
    row(["DesignateSink", "designate_sink", "-", "-"]),
    row(["DesignateWorker", "designate_worker", "designateWorker", "-"]),
    row(["Etcd", "etcd", "-", "-"]),
    row(["Frr", "-", "edpmFrr", "edpm_frr"]),
    row(["GlanceApi", "glance_api", "glanceAPI", "-"]),
    row(["GnocchiApi", "gnocchi_api", "-", "-"]),
    row(["GnocchiMetricd", "gnocchi_metricd", "-", "-"]),
    row(["GnocchiStatsd", "gnocchi_statsd", "-", "-"]),
    row(["Grafana", "grafana", "-", "-"]),
    row(["HAProxy", "haproxy", "-", "-"]),
    row(["HeatApi", "heat_api", "heatAPI", "-"]),
    row(["HeatApiCfn", "heat_api_cfn", "heatCfnapi", "-"]),
    row(["HeatEngine", "heat_engine", "heatEngine", "-"]),
    row(["Horizon", "horizon", "horizon", "-"]),
    row(["IronicApi", "ironic_api", "ironicAPI", "-"]),
    row(["IronicConductor", "ironic_conductor", "ironicConductor", "-"]),
    row(["IronicInspector", "ironic_inspector", "ironicInspector", "-"]),
    row(["IronicNeutronAgent", "ironic_neutron_agent", "ironicNeutronAgent", "-"]),
    row(["IronicPxe", "ironic_pxe", "ironicPxe", "-"]),
    row(["Iscsid", "iscsid", "edpmIscsid", "edpm_iscsid"]),
    row(["Keepalived", "keepalived", "-", "-"]),
    row(["Keystone", "keystone", "keystoneAPI", "-"]),
    row(["ManilaApi", "manila_api", "manilaAPI", "-"]),
    row(["ManilaScheduler", "manila_scheduler", "manilaScheduler", "-"]),
    row(["ManilaShare", "manila_share", "manilaShareImages", "-"]),
    row(["Memcached", "memcached", "infraMemcached", "-"]),
    row(["Multipathd", "multipathd", "edpmMultipathd", "edpm_multipathd"]),
    row(["Mysql", "mariadb", "mariadb", "-"]),
    row(["NeutronApi", "neutron_server", "neutronAPI", "-"]),
    row(["NeutronDHCP", "neutron_dhcp_agent", "edpmNeutronDhcpAgent", "edpm_neutron_dhcp"]),
    row(["NeutronL3Agent", "neutron_l3_agent", "-", "-"]),
    row(["NeutronMetadata", "neutron_metadata_agent", "-", "-"]),
    row(["NeutronMlnx", "neutron_mlnx_agent", "-", "-"]),
    row(["NeutronSriov", "neutron_sriov_agent", "edpmNeutronSriovAgent", "edpm_neutron_sriov"]),
    row(["NodeExporter", "prometheus_node_exporter", "edpmNodeExporter", "edpm_telemetry_node_exporter"]),
    row(["NovaApi", "nova_api", "novaAPI", "-"]),
    row(["NovaCompute", "nova_compute", "novaCompute", "edpm_nova_compute"]),
    row(["NovaComputeIronic", "nova_compute_ironic", "-", "-"]),
    row(["NovaConductor", "nova_conductor", "novaConductor", "-"]),
    row(["NovaLibvirt", "nova_libvirt", "-", "-"]),
    row(["NovaScheduler", "nova_scheduler", "novaScheduler", "-"]),
    row(["NovaVncProxy", "nova_novncproxy", "novaNovnc", "-"]),
    row(["OctaviaApi", "octavia_api", "octaviaAPI", "-"]),
    row(["OctaviaHealthManager", "octavia_health_manager", "octaviaHealthmanager", "-"]),
    row(["OctaviaHousekeeping", "octavia_housekeeping", "octaviaHousekeeping", "-"]),
    row(["OctaviaRsyslog", "-", "octaviaRsyslog", "-"]),
    row(["OctaviaWorker", "octavia_worker", "octaviaWorker", "-"]),
    row(["Openvswitch", "neutron_openvswitch_agent", "-", "-"]),
    row(["OvnBgpAgent", "-", "edpmOvnBgpAgent", "edpm_ovn_bgp_agent"]),
    row(["OvnController", "ovn_controller", "ovnController", "edpm_ovn_controller_agent"]),
    row(["OvnMetadata", "neutron_ovn_metadata_agent", "edpmNeutronMetadataAgent", "edpm_neutron_metadata_agent"]),
    row(["OvnNbDb", "ovn_nb_db", "ovnNbDbcluster", "-"]),
    row(["OvnNorthd", "ovn_northd", "ovnNorthd", "-"]),
    row(["OvnSbDb", "ovn_sb_db", "ovnSbDbcluster", "-"]),
    row(["Placement", "placement_api", "placementAPI", "-"]),
    row(["Prometheus", "prometheus_server", "-", "-"]),
    row(["Rabbitmq", "rabbitmq", "rabbitmq", "-"]),
    row(["Redis", "redis", "infraRedis", "-"]),
    row(["SwiftAccount", "swift_account", "swiftAccount", "-"]),
    row(["SwiftContainer", "swift_container", "swiftContainer", "-"]),
    row(["SwiftObject", "swift_object", "swiftObject", "-"]),
    row(["SwiftProxy", "swift_proxy_server", "swiftProxy", "-"]),
    row(["Tempest", "tempest", "testTempest", "-"]),
    row(["Unbound", "-", "designateUnbound", "-"]),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::super::release::Release;
    use super::super::super::template::{ImageTemplate, TemplateSource};
    use super::*;

    #[test]
    fn the_table_is_sorted_and_no_word_stands_twice() {
        assert!(NAMES.is_sorted_by(|one, other| one.param < other.param));
        for words in
            [|name: &Name| name.kolla, |name: &Name| name.operator, |name: &Name| name.edpm]
        {
            let all: Vec<_> = NAMES.iter().filter_map(words).collect();
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
    }

    #[test]
    fn every_name_is_a_parameter_of_the_last_release() {
        let template = ImageTemplate::load(&TemplateSource::BuiltIn(Release::Zed)).unwrap();
        let images = template.render(&Release::Zed.default_set()).unwrap();
        let params: Vec<_> = images.iter().flat_map(|image| &image.params).collect();
        let known: BTreeSet<_> =
            params.iter().filter_map(|param| name_of(param)).map(|name| name.param).collect();
        let unknown: Vec<_> =
            NAMES.iter().map(|name| name.param).filter(|param| !known.contains(param)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
