use super::*;

/// 100 MB for each of so many nodes, 20 MB of it first, over links of 1 Gbit/s.
fn small(nodes: usize) -> Scenario {
    Scenario {
        nodes,
        set: 100_000_000,
        working_set: 20_000_000,
        piece: 1 << 20,
        registry_link: 1.25e8,
        node_link: 1.25e8,
        spread: Duration::from_millis(500),
        ..Scenario::default()
    }
}

fn all_is_well(nodes: usize) -> Scenario {
    Scenario { slow: 0.0, dead: 0.0, ..small(nodes) }
}

#[test]
fn a_node_alone_needs_what_its_link_needs() {
    let outcome = simulate(&all_is_well(1));
    assert!((outcome.egress - 1.0).abs() < 1e-6, "{outcome:?}");
    assert!((1.0..1.1).contains(&(outcome.all.max / outcome.all_bound)), "{outcome:?}");
    assert_eq!((outcome.unfinished, outcome.asked, outcome.worst_upload), (0, 0, 0.0));
}

#[test]
fn without_peers_everything_leaves_the_registry_once_for_each_node() {
    let outcome = simulate(&Scenario { strategy: Strategy::NoPeers, ..all_is_well(20) });
    assert!((outcome.egress - 20.0).abs() < 1e-3, "{outcome:?}");
    assert!((outcome.all.max / outcome.all_bound) > 19.0, "{outcome:?}");
}

#[test]
fn with_peers_everything_leaves_the_registry_once() {
    let outcome = simulate(&all_is_well(50));
    assert!(outcome.egress < 1.001, "{outcome:?}");
    assert!(outcome.working.p99 < 3.0 * outcome.working_bound, "{outcome:?}");
    assert_eq!((outcome.unfinished, outcome.failed), (0, 0));
    // What 50 nodes got and the registry did not send, the nodes have sent.
    assert!((outcome.mean_upload - 49.0 / 50.0).abs() < 0.05, "{outcome:?}");
}

#[test]
fn slow_and_dying_nodes_and_late_news_cost_little() {
    let join = Join::WithTheWave { delay: Duration::from_secs(1) };
    for join in [Join::Before, join] {
        let outcome = simulate(&Scenario { dead: 0.1, slow: 0.05, join, ..small(60) });
        assert!(outcome.egress < 1.5, "{outcome:?}");
        assert_eq!(outcome.unfinished, 0, "{outcome:?}");
        assert!(outcome.unanswered > 0, "{outcome:?}");
    }
}

#[test]
fn the_seed_decides_everything() {
    let scenario = small(40);
    assert_eq!(simulate(&scenario), simulate(&scenario));
    assert_ne!(simulate(&scenario), simulate(&Scenario { seed: 2, ..small(40) }));
}
