//! `undermount simulate`: the same words give the same numbers, and those keep what peers promise.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use undermount_tests::node::PATIENCE;
use undermount_tests::process::{run, undermount};

/// A small cluster in which a node or two die.
const SCENARIO: &str = "--nodes 60 --set 400000000 --working-set 100000000 --piece 1MiB \
     --slow 0 --dead 3 --spread 1";

fn simulate(more: &[&str]) -> String {
    let mut command = undermount();
    command.arg("simulate").args(SCENARIO.split_whitespace()).args(more);
    run(&mut command, PATIENCE).success().stdout
}

fn outcome(more: &[&str]) -> Value {
    let text = simulate(&[&["--json"], more].concat());
    let value: Value = serde_json::from_str(&text).unwrap();
    value["outcome"].clone()
}

#[test]
fn a_simulation_is_decided_by_its_words_and_its_seed() {
    assert_eq!(simulate(&[]), simulate(&[]));
    assert_ne!(simulate(&["--seed", "2"]), simulate(&["--seed", "3"]));
}

#[test]
fn simulated_peers_take_everything_from_the_registry_about_once() {
    let without = outcome(&["--strategy", "no-peers"]);
    let peers = outcome(&[]);
    let late = outcome(&["--late-join", "1000"]);
    assert!(without["egress"].as_f64().unwrap() > 50.0, "{without}");
    // Nodes that hear of each other only while they fetch read some pieces twice.
    for (outcome, most) in [(&peers, 1.1), (&late, 1.5)] {
        assert!(outcome["egress"].as_f64().unwrap() < most, "{outcome}");
        assert_eq!(outcome["unfinished"], 0, "{outcome}");
    }
    let (bound, half) = (&peers["working_bound"], &peers["working"]["p50"]);
    assert!(half.as_f64().unwrap() < 3.0 * bound.as_f64().unwrap(), "{peers}");
}
