//! The architecture, held by a test: who may name whom, which crates stay where, what lies at
//! the top level. A new module gets its place in the tables below.

use std::fs;
use std::path::{Path, PathBuf};

use undermount_tests::architecture::{
    Layers, Source, dependencies_outside_workspace, dependencies_without_reason, violations,
};

/// `fuse -> view -> fill -> { layer, tree } -> { index, pack } -> { codec, object, source } -> digest`
const FS: Layers = Layers(&[
    &["share"],
    &["digest", "disk", "line_log", "memory", "path", "session", "trail"],
    &["blob", "codec", "object", "source"],
    &["index", "pack"],
    &["layer", "tree"],
    &["fill"],
    &["view"],
    &["fuse"],
]);

/// `cli -> { prepare, node, demo } -> { supply, podman, peer, registry } -> image`; `supply`
/// joins `peer` and `registry`, which do not know each other.
const AGENT: Layers = Layers(&[
    &["blocking", "host", "image", "metrics"],
    &["profile"],
    &["peer", "registry"],
    &["eager", "podman", "start", "supply"],
    &["control"],
    &["mirror"],
    &["agent", "bugreport", "doctor", "prepare", "setup"],
    &["bench", "demo", "inventory", "simulate"],
    &["config"],
    &["cli"],
]);

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").into()
}

fn sources(package: &str) -> Vec<Source> {
    let sources = Source::read_all(&workspace().join(package).join("src"));
    assert!(!sources.is_empty(), "{package} has sources");
    sources
}

#[test]
fn modules_name_only_those_below_them() {
    let found: Vec<String> = [("fs", FS), ("agent", AGENT)]
        .iter()
        .flat_map(|(package, layers)| violations(&sources(package), layers))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_file_system_knows_no_network_command_line_or_environment() {
    let manifest = fs::read_to_string(workspace().join("fs/Cargo.toml")).unwrap();
    for word in ["reqwest", "axum", "http", "hyper", "clap", "std::env", "std::net", "tokio::net"] {
        assert!(!manifest.contains(&format!("\n{word}.")), "fs depends on {word}");
        for source in sources("fs") {
            assert!(!source.names(word), "fs/src/{} names {word}", source.path);
        }
    }
}

#[test]
fn only_the_command_line_sees_arguments_and_environment() {
    for source in sources("agent") {
        let may = matches!(source.module(), None | Some("cli" | "config"));
        for word in ["clap", "std::env"] {
            assert!(may || !source.names(word), "agent/src/{} names {word}", source.path);
        }
    }
}

#[test]
fn every_dependency_has_its_reason_and_one_place() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    assert_eq!(dependencies_without_reason(&manifest), [""; 0]);
    for package in ["agent", "fs", "tests", "benches"] {
        let manifest = fs::read_to_string(workspace().join(package).join("Cargo.toml")).unwrap();
        assert_eq!(dependencies_outside_workspace(&manifest), [""; 0], "{package}");
    }
}

#[test]
fn the_top_level_holds_what_is_allowed_and_no_more() {
    let allowed = [
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "agent",
        "benches",
        "fs",
        "packaging",
        "target",
        "tests",
    ];
    for entry in fs::read_dir(workspace()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || allowed.contains(&name.as_str()), "{name}");
    }
}
