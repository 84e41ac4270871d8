//! What an operator does with an installed node: configure, check and connect it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use undermount_tests::process::{Outcome, SOON, run, undermount};

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
        ("[cache]\nqouta = 1\n", "agent.toml:2: unknown key `qouta`, expected `directory`"),
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
