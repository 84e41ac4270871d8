//! The packages, units and roles of `packaging/`, used as an administrator uses them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use undermount_tests::debian;
use undermount_tests::node::PATIENCE;
use undermount_tests::process::{Running, SOON, binary, program, run, undermount};
use undermount_tests::requirement::{Need, lacking, skipped};
use undermount_tests::root::{self, in_root};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("packaging")
}

/// Builds a package of the binary under test into `out`.
#[track_caller]
fn build(kind: &str, out: &Path) {
    let mut build = std::process::Command::new(packaging().join("build"));
    build.arg("--binary").arg(binary()).arg("--out").arg(out).arg(kind);
    run(&mut build, PATIENCE).success();
}

/// A list of files in `agent/Cargo.toml`, as `destination -> (source, mode)`.
fn assets(
    package: &Value,
    kind: &str,
    field: impl Fn(&Value, usize) -> String,
) -> BTreeMap<String, (String, String)> {
    let assets = package["metadata"][kind]["assets"].as_array().unwrap();
    assets.iter().map(|asset| (field(asset, 1), (field(asset, 0), field(asset, 2)))).collect()
}

#[test]
fn both_packages_hold_the_same_files() {
    let manifest = packaging().with_file_name("agent").join("Cargo.toml");
    let mut cargo = std::process::Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"]).arg(manifest);
    let metadata: Value = serde_json::from_str(&run(&mut cargo, SOON).success().stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "undermount").unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let deb = assets(package, "deb", |asset, field| text(&asset[field]));
    let rpm = assets(package, "generate-rpm", |asset, field| {
        // Where the two worlds differ.
        text(&asset[["source", "dest", "mode"][field]])
            .replace("zsh/site-functions", "zsh/vendor-completions")
            .replace(
                "/usr/share/licenses/undermount/LICENSE",
                "/usr/share/doc/undermount/copyright",
            )
    });
    assert_eq!(deb, rpm);
}

#[test]
fn the_deb_installs_into_a_clean_debian_and_leaves_without_a_trace() {
    if lacking(
        &[root::NEEDS, debian::NEEDS, &[Need::Program("dpkg-deb"), Need::Program("jq")]].concat(),
    ) {
        return;
    }
    let debian = match debian::debian() {
        Ok(debian) => debian,
        Err(reason) => return skipped(&reason),
    };
    let dir = tempfile::tempdir().unwrap();
    build("deb", dir.path());
    let script = "
        # What package managers note down for themselves does not count.
        tree() { (cd $root && find . -xdev -not -path './var/lib/dpkg*' -not -path './var/lib/apt*' \\
            -not -path './var/cache/*' -not -path './var/log/*' | sort); }
        tree >$scratch/before
        chroot $root sh -c 'apt-get install -y --no-install-recommends /in/undermount_*.deb'
        [ \"$(chroot $root undermount --version)\" = \"$(cat $root/in/version)\" ]
        chroot $root undermount config check
        chroot $root undermount registry --help >$scratch/help
        chroot $root dpkg --verify undermount
        for file in etc/undermount/agent.toml etc/undermount/registry.env \\
            usr/lib/systemd/system/undermount-agent.service \\
            usr/lib/systemd/system/undermount-registry.service \\
            usr/share/bash-completion/completions/undermount \\
            usr/share/man/man1/undermount-mount.1.gz usr/share/doc/undermount/CHANGELOG.md \\
            usr/share/ansible/roles/undermount_agent/tasks/main.yml; do
            [ \"$(stat -c '%a %u %g' $root/$file)\" = '644 0 0' ] || { echo wrong: $file; exit 1; }
        done
        [ \"$(stat -c %a $root/usr/libexec/undermount/store-auth-helper)\" = 755 ]
        # An upgrade keeps what the administrator wrote.
        echo '# mine' >>$root/etc/undermount/agent.toml
        chroot $root sh -c 'dpkg --force-confold -i /in/undermount_*.deb'
        grep -q mine $root/etc/undermount/agent.toml
        # What setup did goes before the package does.
        mkdir -p $root/etc/containers
        printf '[storage.options]\\n# undermount: \"/s:ref\" (x)\\nadditionallayerstores = [\"/s:ref\"]\\n' \\
            >$root/etc/containers/storage.conf
        mkdir -p $root/var/lib/undermount
        chroot $root apt-get remove -y undermount
        if grep undermount $root/etc/containers/storage.conf; then exit 98; fi
        [ -e $root/etc/undermount/agent.toml ] && [ -e $root/var/lib/undermount ]
        rm -r $root/etc/containers
        mkdir $root/var/lib/undermount-store
        chroot $root apt-get purge -y undermount
        rmdir $root/var/lib/undermount-store
        tree >$scratch/after; diff $scratch/before $scratch/after";
    fs::write(dir.path().join("version"), run(undermount().arg("--version"), SOON).stdout).unwrap();
    run(&mut in_root(&debian.unpacked(), dir.path(), script), PATIENCE).success();
}

#[test]
fn regression_removal_goes_on_where_something_fails_and_leaves_the_mount_point() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    for (name, code) in [("undermount", 1), ("systemctl", 1), ("rm", 0)] {
        let path = dir.path().join(name);
        let script = format!("#!/bin/sh\necho \"{name} $*\" >>{}\nexit {code}\n", said.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (script, argument, word) in [
        ("deb/prerm", "remove", "undermount setup podman --undo\n"),
        ("rpm/preun", "0", "undermount setup podman --undo\n"),
        ("deb/postrm", "purge", "rm -rf --one-file-system /var/lib/undermount "),
    ] {
        let mut command = program("sh");
        command.arg(packaging().join(script)).arg(argument);
        command.env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()));
        run(&mut command, SOON).success();
        let called = fs::read_to_string(&said).unwrap();
        assert!(called.contains(word), "{script}: {called}");
        assert!(!called.contains("undermount-store"), "{script}: {called}");
        fs::remove_file(&said).unwrap();
    }
}

#[test]
fn the_rpm_installs_and_leaves_without_a_trace() {
    if lacking(
        &[root::NEEDS, debian::NEEDS, &[Need::Program("rpmbuild"), Need::Program("jq")]].concat(),
    ) {
        return;
    }
    let debian = match debian::debian() {
        Ok(debian) => debian,
        Err(reason) => return skipped(&reason),
    };
    let dir = tempfile::tempdir().unwrap();
    build("rpm", dir.path());
    // The scripts of the package run in a root with a shell; what it requires has other names
    // there than in the world of rpm.
    let script = "
        tree() { (cd $root && find . -xdev -not -path './var/lib/rpm*' | sort); }
        rpm --root $root --initdb
        tree >$scratch/before
        rpm --root $root --nodeps -i $in/undermount-*.rpm
        [ \"$(chroot $root undermount --version)\" = \"$(cat $root/in/version)\" ]
        chroot $root undermount config check
        rpm --root $root --nodeps -V undermount
        rpm --root $root -qc undermount | grep -q /etc/undermount/agent.toml
        rpm --root $root --nodeps -e undermount
        tree >$scratch/after; diff $scratch/before $scratch/after";
    fs::write(dir.path().join("version"), run(undermount().arg("--version"), SOON).stdout).unwrap();
    run(&mut in_root(&debian.unpacked(), dir.path(), script), PATIENCE).success();
}

/// Units as TripleO and podman have them, beside ours.
const NEIGHBOURS: [(&str, &str); 3] = [
    (
        "tripleo_nova_compute.service",
        "[Unit]\nAfter=tripleo-container-shutdown.service\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
    ),
    (
        "tripleo-container-shutdown.service",
        "[Unit]\nAfter=podman.service\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
    ),
    ("podman.service", "[Unit]\n[Service]\nExecStart=/bin/true\n"),
];

#[test]
fn the_units_are_accepted_by_systemd_and_fit_between_their_neighbours() {
    if lacking(&[Need::Program("systemd-analyze")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for name in ["undermount-agent.service", "undermount-registry.service"] {
        let text = fs::read_to_string(packaging().join("systemd").join(name)).unwrap();
        // The program is not installed here.
        let text = text.replace("/usr/bin/undermount", binary().to_str().unwrap());
        units.push((name, text));
    }
    units.extend(NEIGHBOURS.map(|(name, text)| (name, text.to_owned())));
    let mut analyze = program("systemd-analyze");
    analyze.args(["--man=no", "verify"]);
    for (name, text) in units {
        fs::write(dir.path().join(name), text).unwrap();
        analyze.arg(dir.path().join(name));
    }
    let outcome = run(&mut analyze, SOON).success();
    // It says what it dislikes, such as a cycle in the order of units.
    assert_eq!(outcome.stdout + &outcome.stderr, "");
}

#[test]
fn the_agent_stays_in_the_mount_namespace_of_the_host() {
    let unit = fs::read_to_string(packaging().join("systemd/undermount-agent.service")).unwrap();
    let keys: Vec<&str> = unit.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    // From systemd.exec(5): each of these gives the service a mount namespace of its own, in
    // which podman would not see its mounts.
    for key in [
        "BindPaths",
        "InaccessiblePaths",
        "MountFlags",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateTmp",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "TemporaryFileSystem",
    ] {
        assert!(!keys.contains(&key), "{key}");
    }
}

#[test]
fn the_registry_tells_its_service_manager_when_it_serves_and_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut registry = undermount();
    registry.args(["registry", "--listen", "127.0.0.1:0", "--root"]).arg(dir.path().join("root"));
    registry.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let mut registry = Running::start(&mut registry);
    let mut buffer = [0; 256];
    let mut hear = || {
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let said = hear();
    assert!(said.starts_with("READY=1\nSTATUS=listening on http://127.0.0.1:"), "{said}");
    registry.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(hear(), "STOPPING=1");
    assert!(registry.wait(SOON).is_some_and(|status| status.success()));
}

/// Lets `script` play `roles` with `vars` in a root of its own, with `play FLAG...`: this machine's
/// own system, so that Ansible is there, with the package; podman gets a fresh one.
fn play(roles: [&str; 2], mut vars: Value, script: &str) {
    let dir = tempfile::tempdir().unwrap();
    build("deb", dir.path());
    let deb = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().file_name();
    vars["undermount_package_file"] = format!("/in/{}", deb.to_str().unwrap()).into();
    let play = json!([
        { "hosts": "localhost", "connection": "local", "vars": vars, "roles": roles },
    ]);
    fs::write(dir.path().join("play.yml"), play.to_string()).unwrap();
    let begin = "
        mount -t tmpfs none $root/var/lib/containers
        mkdir -p $root/usr/share/ansible; cp -r $3 $root/usr/share/ansible/roles
        play() { chroot $root ansible-playbook -i localhost, /in/play.yml \"$@\"; }";
    let mut command = in_root(Path::new("/"), dir.path(), &format!("{begin}{script}"));
    run(command.arg(packaging().join("ansible/roles")), 3 * PATIENCE).success();
}

fn lacking_for_roles() -> bool {
    let programs = ["ansible-playbook", "podman", "dpkg-deb", "jq"].map(Need::Program);
    lacking(&[root::NEEDS, &programs].concat())
}

#[test]
fn the_roles_set_up_a_node_and_an_undercloud() {
    if lacking_for_roles() {
        return;
    }
    let vars = json!({
        "undermount_agent_config": { "cache": { "quota": "100 GiB" } },
        "undermount_registry_listen": "192.0.2.1:8787",
        "undermount_openstack_wrapper": true,
        "undermount_tripleo_release": "train",
    });
    let script = "
        rm -rf $root/etc/undermount $root/etc/containers/storage.conf
        play --check
        [ ! -e $root/etc/undermount ] && [ ! -e $root/etc/containers/storage.conf ]
        play
        chroot $root undermount config show | grep -q 'quota = 107374182400'
        grep -q 'listen 192.0.2.1:8787$' $root/etc/undermount/registry.env
        chroot $root podman info | grep 'additionallayerstore: /var/lib/undermount-store:ref'
        for unit in basic.target.wants/undermount-agent multi-user.target.wants/undermount-registry; do
            [ -L $root/etc/systemd/system/$unit.service ]
        done
        chroot $root openstack tripleo container image prepare --help | grep -q Usage:
        chroot $root openstack tripleo container image prepare default | grep -q tripleomaster
        play | tee $scratch/second; grep -q 'changed=0 ' $scratch/second
        play -e undermount_agent_podman=false
        [ ! -e $root/etc/containers/storage.conf ]";
    play(["undermount_agent", "undermount_undercloud"], vars, script);
}

#[test]
fn the_roles_hand_the_cluster_key_to_registry_and_nodes() {
    if lacking_for_roles() {
        return;
    }
    let vars = json!({
        "undermount_registry_peers": true,
        "undermount_registry_flags": ["--profiles", "off"],
        "undermount_registry_tls_cert": "/etc/pki/registry.crt",
        "undermount_registry_tls_key": "/etc/pki/registry.key",
        "undermount_registry_htpasswd": "/etc/undermount/users",
        "undermount_cluster_key_host": "localhost",
        "undermount_agent_podman": false,
        "undermount_agent_config": {
            "peers": { "enabled": true, "network": ["192.0.2.0/24"], "seeds": ["uc:8787"] },
        },
    });
    let script = "
        rm -rf $root/etc/undermount
        play --check
        [ ! -e $root/etc/undermount ]
        play | tee $scratch/first
        key=$root/etc/undermount/cluster.key
        [ $(stat -c '%a %u' $key | tr ' ' -) = 400-0 ]
        if grep -F \"$(tail -1 $key)\" $scratch/first; then exit 98; fi
        given=/run/credentials/undermount-registry.service
        flags=\"--peers-key $given/cluster.key --tls-cert $given/tls.crt --tls-key $given/tls.key\"
        flags=\"$flags --htpasswd $given/htpasswd --profiles off\"
        grep -qF -- \"$flags\" $root/etc/undermount/registry.env
        given=$root/etc/systemd/system/undermount-registry.service.d/credentials.conf
        [ \"$(grep ^L $given | tr '\\n' ' ')\" = 'LoadCredential=tls.crt:/etc/pki/registry.crt \
            LoadCredential=tls.key:/etc/pki/registry.key \
            LoadCredential=htpasswd:/etc/undermount/users ' ]
        drop=$root/etc/systemd/system/undermount-registry.service.d/peers.conf
        grep -qx 'LoadCredential=cluster.key:/etc/undermount/cluster.key' $drop
        chroot $root undermount config show | grep -q 'enabled = true'
        sha256sum $key >$scratch/key
        play | tee $scratch/second; grep -q 'changed=0 ' $scratch/second
        sha256sum -c $scratch/key";
    // The key is made on the undercloud.
    play(["undermount_undercloud", "undermount_agent"], vars, script);
}

#[test]
fn the_examples_are_plays_that_ansible_understands() {
    if lacking(&[Need::Program("ansible-playbook")]) {
        return;
    }
    let examples = packaging().join("ansible/examples");
    let mut check = program("ansible-playbook");
    check.args(["--syntax-check", "-i", "localhost,"]).arg(examples.join("tripleo.yml"));
    check.env("ANSIBLE_ROLES_PATH", packaging().join("ansible/roles"));
    run(&mut check, Duration::from_secs(120)).success();
    let service = fs::read_to_string(examples.join("edpm-service.yaml")).unwrap();
    let service: Value = serde_saphyr::from_str(&service).unwrap();
    let play: Value =
        serde_saphyr::from_str(service["spec"]["playbookContents"].as_str().unwrap()).unwrap();
    assert_eq!(play[0]["roles"][0]["role"], "undermount_agent");
}
