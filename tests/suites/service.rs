//! What an operator does with an installed node: configure, check and connect it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use undermount_tests::archive::Member;
use undermount_tests::http::Fault;
use undermount_tests::image::Image;
use undermount_tests::node::PATIENCE;
use undermount_tests::origin::Origin;
use undermount_tests::port;
use undermount_tests::process::{Outcome, SOON, binary, call, program, run, undermount};
use undermount_tests::requirement::{Need, lacking};

/// Writes a configuration file below `dir`.
fn config(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("agent.toml");
    fs::write(&path, text).unwrap();
    path
}

fn with_config(file: &Path, words: &[&str]) -> Outcome {
    run(undermount().args(words).env("UNDERMOUNT_CONFIG", file), SOON)
}

#[test]
fn a_valid_configuration_is_confirmed_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "[cache]\nquota = \"3 GiB\"\n");
    let said = with_config(&file, &["config", "check"]).success().stdout;
    assert_eq!(said, format!("{} is valid\n", file.display()));
    let shown = with_config(&file, &["config", "show", "--json"]).success().stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["cache"]["quota"], 3_u64 << 30);
    assert_eq!(shown["reads"]["timeout"], 60);
    // What is shown is a configuration file itself.
    let shown = with_config(&file, &["config", "show"]).success().stdout;
    with_config(&config(dir.path(), &shown), &["config", "check"]).success();
}

#[test]
fn mistakes_in_the_configuration_are_refused_with_file_line_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("[cache]\nqouta = 1\n", "agent.toml:2: unknown key `qouta`, expected one of `directory`"),
        (
            "\n[reads]\ntimeout = \"soon\"\n",
            "agent.toml:3: invalid value: string \"soon\", expected a whole number of seconds from 1 to 3600",
        ),
        (
            "[completion]\nwithin = 604801\n",
            "agent.toml:2: invalid value: integer `604801`, expected a whole number of seconds from 0 to 604800",
        ),
        (
            "[mirror]\nlisten = \"10.0.0.1:5055\"\n",
            "agent.toml:2: invalid value: string \"10.0.0.1:5055\", expected a loopback address",
        ),
        ("[cache\n", "agent.toml:1: "),
    ] {
        let file = config(dir.path(), text);
        // Each command that reads the file refuses it.
        for command in [&["config", "check"][..], &["config", "show"], &["status"]] {
            let outcome = with_config(&file, command);
            let said = outcome.refusal();
            assert!(said.starts_with("error: ") && said.contains(words), "{words}: {said}");
        }
    }
    let missing = dir.path().join("missing.toml");
    let outcome = with_config(&missing, &["status"]);
    assert!(outcome.refusal().contains("missing.toml"), "{}", outcome.stderr);
}

#[test]
fn a_ca_file_without_a_certificate_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    fs::write(&ca, "no certificate").unwrap();
    let file = config(dir.path(), &format!("[registries]\nca_files = ['{}']\n", ca.display()));
    let cache = dir.path().join("cache");
    for command in
        [&["config", "check"][..], &["pull", "127.0.0.1:1/a:b", "--cache", cache.to_str().unwrap()]]
    {
        let outcome = with_config(&file, command);
        assert!(outcome.refusal().contains("ca.pem: it holds no certificate"), "{outcome:?}");
    }
    assert!(!cache.exists());
}

#[test]
fn flags_that_are_out_of_range_are_refused_with_what_is_allowed() {
    for (flag, value, words) in [
        ("--quota", "1 GB", "expected a number of bytes, or a number with KiB, MiB, GiB or TiB"),
        ("--read-timeout", "0", "expected a whole number of seconds from 1 to 3600"),
        ("--complete-within", "1h", "expected a whole number of seconds from 0 to 604800"),
    ] {
        let outcome = run(undermount().args(["status", flag, value]), SOON);
        assert!(outcome.refusal().contains(words), "{flag}: {}", outcome.stderr);
    }
}

const PODMAN: [Need; 3] = [Need::Root, Need::Program("podman"), Need::Program("unshare")];

/// Storage of one's own, and a comment that has to stay.
const STORAGE_CONF: &str = "# mine\n[storage]\ndriver = \"overlay\" # the best\n\
    runroot = \"/run/storage\"\ngraphroot = \"/var/lib/storage\"\n";

/// Runs a shell script in a mount namespace of its own, with its own /etc/containers, /run and
/// /var/lib; `$1` is the binary, `$2` a directory.
fn in_own_system(script: &str, directory: &Path) -> Outcome {
    const BEGIN: &str = "mount -t tmpfs none /var/lib && mount -t tmpfs none /run \
        && mkdir /run/etc && cp -a /etc/containers/. /run/etc \
        && mount --bind /run/etc /etc/containers || exit 99\n";
    let mut command = program("unshare");
    command.args(["--mount", "sh", "-uc", &(BEGIN.to_owned() + script), "sh"]);
    run(command.arg(binary()).arg(directory), PATIENCE)
}

#[test]
fn podman_is_connected_with_the_store_and_disconnected_without_a_trace() {
    if lacking(&PODMAN) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("before"), STORAGE_CONF).unwrap();
    let script = "set -e; conf=/etc/containers/storage.conf; cp $2/before $conf
        [ \"$($1 setup podman)\" = \"changed $conf\" ]
        podman info | grep 'additionallayerstore: /var/lib/undermount-store:ref'
        grep 'the best' $conf
        [ \"$($1 setup podman)\" = unchanged ]
        [ \"$($1 setup podman --undo)\" = \"changed $conf\" ]
        cmp $conf $2/before
        [ \"$($1 setup podman --undo)\" = unchanged ]
        podman info >/dev/null
        [ -d /var/lib/undermount-store ]";
    in_own_system(script, dir.path()).success();
}

#[test]
fn a_system_without_storage_conf_gets_one_and_loses_it_again() {
    if lacking(&PODMAN) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "set -e; conf=/etc/containers/storage.conf; rm -f $conf
        $1 setup podman && podman info | grep 'additionallayerstore: /var/lib/undermount-store:ref'
        $1 setup podman --undo && [ ! -e $conf ]";
    in_own_system(script, dir.path()).success();
}

#[test]
fn the_mirror_is_named_to_podman_for_the_registries_that_it_mirrors() {
    if lacking(&PODMAN) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "[mirror]\nlisten = '127.0.0.1:5055'\nregistries = ['uc.example:8787']\n");
    let script = "set -e; drop=/etc/containers/registries.conf.d/50-undermount.conf
        $1 setup podman --config $2/agent.toml | grep $drop
        conf=/etc/containers/registries.conf
        printf '\n[[registry]]\nlocation = \"uc.example:8787\"\ninsecure = true\n' >>$conf
        $1 setup podman --config $2/agent.toml
        said() { podman info --format json | jq -e \".registries[\\\"uc.example:8787\\\"].$1\"; }
        said 'Mirrors[0].Location == \"127.0.0.1:5055/uc.example_8787\"'
        said Insecure
        $1 setup podman --undo && [ ! -e $drop ]";
    in_own_system(script, dir.path()).success();
}

#[test]
fn a_podman_that_passes_credentials_on_is_told_how() {
    if lacking(&PODMAN) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // The installed one, which calls itself newer than it is.
    let script = "set -e; drop=/etc/containers/registries.conf.d/50-undermount.conf
        real=$(command -v podman); mkdir /run/bin; export PATH=/run/bin:$PATH
        printf '#!/bin/sh\n%s \"$@\" | sed s/4\\\\.3\\\\.1/5.2.0/' $real >/run/bin/podman
        chmod +x /run/bin/podman; podman info | grep 5.2.0
        $1 setup podman && grep '^additional-layer-store-auth-helper = \"/usr/libexec/' $drop
        echo '{\"uc:8787/a/b:1\": {\"username\": \"joe\", \"password\": \"x\"}}' | $1 auth-helper
        grep -q 'uc:8787/a/b' /run/undermount/store-auth.json
        [ $(stat -c %a /run/undermount/store-auth.json) = 600 ]
        $1 setup podman --undo && [ ! -e $drop ]";
    in_own_system(script, dir.path()).success();
}

#[test]
fn what_podman_refuses_is_taken_back() {
    if lacking(&[&PODMAN[..], &[Need::Fuse]].concat()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("before"), STORAGE_CONF).unwrap();
    // A FUSE mount whose server is gone: podman cannot look into it.
    let script = "cp $2/before /etc/containers/storage.conf; mkdir /var/lib/undermount-store
        exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none /var/lib/undermount-store
        exec 3>&-
        $1 setup podman; status=$?
        cmp /etc/containers/storage.conf $2/before || exit 98
        exit $status";
    let outcome = in_own_system(script, dir.path());
    let said = outcome.refusal();
    for words in [
        "error: podman refuses the layer store /var/lib/undermount-store; its configuration is back",
        "can't stat additionallayerstore dir",
    ] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_podman_that_cannot_be_set_up_is_left_alone_with_the_reason() {
    if lacking(&PODMAN) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (storage, words) in [
        (
            "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/s\"\ngraphroot = \"/var/lib/s\"\n",
            "podman's storage driver is `vfs`; only `overlay` knows layer stores",
        ),
        ("[storage\n", "podman does not work as it is; nothing was changed"),
    ] {
        fs::write(dir.path().join("before"), storage).unwrap();
        let script = "cp $2/before /etc/containers/storage.conf; $1 setup podman; status=$?
            cmp /etc/containers/storage.conf $2/before || exit 98
            exit $status";
        let outcome = in_own_system(script, dir.path());
        assert!(outcome.refusal().contains(words), "{}", outcome.stderr);
    }
    let outcome = run(undermount().args(["setup", "podman", "--root-dir"]).arg(dir.path()), SOON);
    assert!(outcome.refusal().contains("podman does not work as it is"), "{}", outcome.stderr);
    let outcome = run(undermount().args(["setup", "podman", "--root-dir", "/no/root"]), SOON);
    assert!(outcome.refusal().contains("cannot set up a system in /no/root"), "{}", outcome.stderr);
}

/// What `doctor --json` says, by the names of its checks.
fn checks(outcome: &Outcome) -> Vec<Value> {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

#[track_caller]
fn check<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks
        .iter()
        .find(|finding| finding["check"] == name)
        .unwrap_or_else(|| panic!("no {name} in {checks:?}"))
}

#[test]
fn the_doctor_is_content_with_a_registry_that_serves_parts() {
    let (origin, reference) = Origin::with(Image::of(&[&[Member::file("a", "content")]]));
    let mut doctor = undermount();
    doctor.args(["doctor", "--json", "--registry", &origin.address(), &reference]);
    let outcome = run(&mut doctor, PATIENCE);
    let found = checks(&outcome);
    for name in ["configuration", "kernel", "limits", "registry", "range"] {
        assert_eq!(check(&found, name)["state"], "ok", "{outcome:?}");
    }
    // Where the cache would lie is for this machine to say.
    assert_ne!(check(&found, "file system")["state"], "broken", "{outcome:?}");
    // Each trouble comes with advice, and only what is broken fails the command.
    for finding in &found {
        assert_eq!(finding["state"] == "ok", finding["advice"].is_null(), "{finding}");
    }
    let broken = found.iter().any(|finding| finding["state"] == "broken");
    assert_eq!(outcome.status.code(), Some(i32::from(broken)));
}

#[test]
fn the_doctor_names_what_is_broken_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "[cache]\nquota = 7\n");
    let (origin, reference) = Origin::with(Image::of(&[&[Member::file("a", "content")]]));
    origin.misbehave(|_| Some(Fault::WholeForRange));
    let free = port::unused().to_string();
    let mut doctor = undermount();
    doctor.args(["doctor", "--json", "--registry", &free, &reference]);
    let outcome = run(doctor.env("UNDERMOUNT_CONFIG", &file), PATIENCE);
    assert_eq!(outcome.status.code(), Some(1));
    let found = checks(&outcome);
    for (name, state, words, advice) in [
        ("configuration", "broken", "agent.toml:2: ", "correct it"),
        ("registry", "broken", "connection refused", "see whether it runs"),
        ("range", "warning", "the whole one came", "ignores Range requests"),
    ] {
        let finding = check(&found, name);
        assert_eq!(finding["state"], state, "{finding}");
        assert!(finding["found"].as_str().unwrap().contains(words), "{finding}");
        assert!(finding["advice"].as_str().unwrap().contains(advice), "{finding}");
    }
}

#[test]
fn the_doctor_sees_what_podman_looks_into() {
    if lacking(&PODMAN) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "rm -f /etc/containers/storage.conf
        $1 setup podman >&2 || exit 99
        $1 doctor --json; [ $? = 1 ]";
    let outcome = in_own_system(script, dir.path()).success();
    let found = checks(&outcome);
    assert_eq!(check(&found, "podman")["state"], "ok");
    let store = check(&found, "layer store");
    assert_eq!(store["state"], "broken");
    assert!(store["advice"].as_str().unwrap().contains("systemctl start undermount-agent"));
}

#[test]
fn a_bug_report_is_made_while_the_store_hangs_and_holds_no_secrets() {
    if lacking(&[&PODMAN[..], &[Need::Fuse, Need::Program("tar")]].concat()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "[store]\nmount = '/var/lib/hung'\n");
    fs::write(dir.path().join("registries.conf"), "# proxy https://joe:s3cret@proxy/\n").unwrap();
    // A FUSE mount whose server never answers, named to podman as well.
    let script = "set -e; mkdir /var/lib/hung; cp $2/registries.conf /etc/containers/
        $1 setup podman --config $2/agent.toml
        exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung /var/lib/hung
        $1 bugreport --config $2/agent.toml --out $2/report.tar.gz
        umount -l /var/lib/hung";
    in_own_system(script, dir.path()).success();
    let report = dir.path().join("report.tar.gz");
    let unpacked = dir.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    call("tar", &[Path::new("-xzf"), &report, Path::new("-C"), &unpacked]);
    let text =
        |name: &str| fs::read_to_string(unpacked.join("undermount-bugreport").join(name)).unwrap();
    assert!(text("proc/self/mountinfo").contains("/var/lib/hung"));
    assert!(text("configuration").contains("/var/lib/hung"));
    assert!(text("doctor.json").contains("`podman info` took longer"), "{}", text("doctor.json"));
    assert_eq!(text("etc/containers/registries.conf"), "# proxy https://REDACTED@proxy/\n");
}

#[test]
fn regression_a_bug_report_is_made_while_the_disk_of_the_cache_hangs() {
    if lacking(&[Need::Root, Need::Fuse, Need::Program("unshare"), Need::Program("tar")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "[cache]\ndirectory = '/var/lib/hung/cache'\n");
    let script = "set -e; mkdir /var/lib/hung; exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung /var/lib/hung
        $1 bugreport --config $2/agent.toml --out $2/report.tar.gz
        umount -l /var/lib/hung
        cd $2; tar -xzf report.tar.gz
        grep 'hung/cache does not answer' undermount-bugreport/status.json
        grep 'cannot be looked for: /var/lib/hung/cache' undermount-bugreport/doctor.json
        grep 'does not come back' undermount-bugreport/doctor.json";
    in_own_system(script, dir.path()).success();
}

#[test]
fn a_bug_report_that_cannot_be_written_is_refused() {
    let out = "/does/not/exist/report.tar.gz";
    let outcome = run(undermount().args(["bugreport", "--out", out]), PATIENCE);
    assert!(
        outcome.refusal().contains("cannot write /does/not/exist/report.tar.gz"),
        "{outcome:?}"
    );
}
