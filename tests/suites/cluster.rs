//! Nodes on a network of their own that want the same image at once, and what that costs the
//! registry behind its slow link: with peers and without.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use undermount_tests::cluster::{
    self, Cluster, ClusterNode, Egress, await_members, in_some_try, wave,
};
use undermount_tests::wave::{Files, Wave};

/// The wave that the figures are about: 2,000 files, for which the registry's link takes 3.8 s.
fn files() -> Files {
    Files::new(2000, 24_000_000)
}

/// Nodes that start at once.
const NODES: usize = 8;

/// What a wave took and cost.
struct Figures {
    slowest: f64,
    egress: Egress,
}

/// Lets the nodes read, sees to it that all is right, and prints the figures.
fn measure(what: &str, cluster: &Cluster, nodes: &[ClusterNode], image: &str) -> Figures {
    let files = files();
    let before = cluster.egress();
    let waves = wave(nodes, image, &files);
    let egress = cluster.egress().since(before);
    for wave in &waves {
        assert_eq!((wave.right, &wave.failed[..]), (files.len(), &[][..]), "{what}");
    }
    let seconds = |wave: &Wave| wave.elapsed.as_secs_f64();
    let slowest = waves.iter().map(seconds).fold(0.0, f64::max);
    println!("{what}: slowest {slowest:.2} s, {egress:?}");
    Figures { slowest, egress }
}

/// By how much the registry sent more for `this` than for `one`.
fn times(this: &Figures, one: &Figures) -> f64 {
    this.egress.bodies as f64 / one.egress.bodies as f64
}

#[test]
fn eight_nodes_with_peers_cost_the_registry_as_much_as_one() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let mut cluster = Cluster::new();
        let image = cluster.push(&files().image(), "test/files");

        let alone = [cluster.lone_node()];
        let one = measure("one node alone", &cluster, &alone, &image);
        drop(alone);
        let nodes: Vec<_> = (0..NODES).map(|_| cluster.lone_node()).collect();
        let apart = measure("eight nodes without peers", &cluster, &nodes, &image);
        drop(nodes);
        let mut nodes = cluster.nodes(NODES);
        let together = measure("eight nodes with peers", &cluster, &nodes, &image);
        nodes.push(cluster.node());
        await_members(&nodes[NODES..], NODES + 1);
        let ninth = measure("a ninth node", &cluster, &nodes[NODES..], &image);

        let slower = together.slowest / one.slowest;
        println!(
            "without peers {:.2} x the bytes and {:.2} x the time of one, with peers {:.3} x and \
             {slower:.2} x; the ninth {:.4} x",
            times(&apart, &one),
            apart.slowest / one.slowest,
            times(&together, &one),
            times(&ninth, &one),
        );
        assert!(times(&apart, &one) > 7.0, "there is something to be saved");
        if times(&together, &one) > 1.1 {
            return Err(format!("with peers {:.3} x", times(&together, &one)));
        }
        // How much slower that is than one node alone is for a quiet machine to tell: nine agents share
        // its processors with the registry here.
        // What is attached to the image is asked for, and nothing that has a digest.
        match ninth.egress.bodies {
            ..1000 => Ok(()),
            bodies => Err(format!("{bodies} bytes for the ninth")),
        }
    });
}
