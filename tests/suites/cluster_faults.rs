//! What can happen to a cluster while its nodes read: every read ends right, in time, with no
//! wrong byte, and the registry sends less than one and a half times what one node takes, or what
//! only the dead had beside that.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::thread;
use std::time::Duration;

use undermount_tests::cluster::{
    self, Cluster, ClusterNode, READ_TIMEOUT, await_members, in_some_try, kill_all, wave,
    wave_while,
};
use undermount_tests::hostile::{Hostile, Misdeed};
use undermount_tests::image::Image;
use undermount_tests::network::{Host, heal, part};
use undermount_tests::wave::{Files, Wave};

/// The registry sends no more than this, in multiples of what one node takes.
const MOST: f64 = 1.5;

/// The registry's link takes 1.3 s for these.
const SIZE: usize = 8_000_000;

/// A cluster with one image, and what one node takes of it.
struct Stage {
    cluster: Cluster,
    files: Files,
    image: Image,
    reference: String,
    one: u64,
}

impl Stage {
    fn new() -> Self {
        let files = Files::new(400, SIZE);
        let image = files.image();
        let mut cluster = Cluster::new();
        let reference = cluster.push(&image, "test/files");
        let alone = [cluster.lone_node()];
        let before = cluster.egress().bodies;
        wave(&alone, &reference, &files);
        let one = cluster.egress().bodies - before;
        assert!(one as usize > SIZE, "{one}");
        Self { cluster, files, image, reference, one }
    }

    /// What the registry has sent so far, in multiples of what one node takes.
    fn sent(&self) -> f64 {
        self.cluster.egress().bodies as f64 / self.one as f64
    }

    /// Reads with all of `nodes`, and holds what comes of it to what is promised. A complaint where
    /// the registry has sent too much.
    fn hold(&self, what: &str, nodes: &[ClusterNode]) -> Result<(), String> {
        self.hold_while(what, nodes, || MOST)
    }

    /// The same, while something happens, after which the registry may send so much.
    fn hold_while(
        &self,
        what: &str,
        nodes: &[ClusterNode],
        meanwhile: impl FnOnce() -> f64,
    ) -> Result<(), String> {
        let (before, mut most) = (self.sent(), MOST);
        let waves = wave_while(nodes, &self.reference, &self.files, || most = meanwhile());
        self.judge(what, &waves, self.sent() - before, most)
    }

    fn judge(&self, what: &str, waves: &[Wave], sent: f64, limit: f64) -> Result<(), String> {
        let most = |of: fn(&Wave) -> Duration| waves.iter().map(of).max().unwrap_or_default();
        let (all, file) = (most(|wave| wave.elapsed), most(|wave| wave.slowest));
        println!("{what}: egress {sent:.3} x, slowest node {all:.2?}, slowest file {file:.2?}");
        for wave in waves {
            assert_eq!((wave.right, &wave.failed[..]), (self.files.len(), &[][..]), "{what}");
        }
        assert!(file.as_secs() <= READ_TIMEOUT, "{what}");
        match sent < limit {
            true => Ok(()),
            false => Err(format!("{what}: {sent:.3} x, and {limit:.3} x at most")),
        }
    }

    /// A third of the image has left the registry.
    fn in_the_middle(&self, before: f64) {
        while self.sent() - before < 0.3 {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets some nodes read, and kills others, which read as well, in the middle of it.
    fn hold_while_dying(
        &self,
        what: &str,
        living: &[ClusterNode],
        dying: &[ClusterNode],
    ) -> Result<(), String> {
        let before = self.sent();
        thread::scope(|scope| {
            for node in dying {
                scope.spawn(|| node.mount_and_read_in_vain(&self.reference, &self.files));
            }
            self.hold_while(what, living, || {
                self.in_the_middle(before);
                kill_all(dying);
                let gone = self.sent() - before;
                println!("{what} when {gone:.3} x had left the registry");
                // What only the dead had has to be sent again, however late they died.
                let part = dying.len() as f64 / (dying.len() + living.len()) as f64;
                MOST.max(1.1 + gone * part)
            })
        })
    }
}

#[test]
fn an_owner_that_died_in_silence_delays_but_does_not_fail_anybody() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let stage = Stage::new();
        let mut nodes = stage.cluster.nodes(5);
        // All still take it for alive.
        nodes.remove(0).kill();
        stage.hold("owner dead", &nodes)
    });
}

#[test]
fn parents_that_die_in_the_middle_of_a_piece_are_replaced() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let stage = Stage::new();
        let nodes = stage.cluster.nodes(5);
        let (dying, living) = nodes.split_at(1);
        stage.hold_while_dying("parent killed", living, dying)
    });
}

#[test]
fn five_of_eight_nodes_can_go_at_once() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let stage = Stage::new();
        let nodes = stage.cluster.nodes(8);
        let (dying, living) = nodes.split_at(5);
        stage.hold_while_dying("five of eight killed", living, dying)
    });
}

#[test]
fn a_member_that_breaks_the_rules_spoils_nothing() {
    if cluster::is_impossible() {
        return;
    }
    for misdeed in [
        Misdeed::Lies,
        Misdeed::IsSilent,
        Misdeed::Stalls,
        Misdeed::Trickles,
        Misdeed::SendsWithoutEnd,
        Misdeed::AgreesToEverything,
        Misdeed::ClaimsAnotherVersion,
    ] {
        in_some_try(|| beside(misdeed));
    }
}

/// Nodes that read beside a member with this `misdeed`.
fn beside(misdeed: Misdeed) -> Result<(), String> {
    let stage = Stage::new();
    let hostile = Hostile::join(&stage.cluster, &stage.image, misdeed);
    let nodes: Vec<_> = (0..4).map(|_| stage.cluster.node()).collect();
    await_members(&nodes, 5);
    stage.hold(&format!("a peer {misdeed:?}"), &nodes)?;
    let asked = hostile.asked();
    let foreign = misdeed == Misdeed::ClaimsAnotherVersion;
    assert_eq!(asked == 0, foreign, "{misdeed:?}: asked {asked} times");
    Ok(())
}

#[test]
fn nodes_that_know_each_other_need_no_seed() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let mut stage = Stage::new();
        let nodes = stage.cluster.nodes(4);
        stage.cluster.end_seed();
        // It comes back with what it has written down.
        nodes[0].kill();
        nodes[0].start();
        await_members(&nodes, 4);
        stage.hold("seed down", &nodes)
    });
}

#[test]
fn without_the_registry_nodes_have_what_the_others_have() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let mut stage = Stage::new();
        let nodes = stage.cluster.nodes(4);
        nodes[3].mount(&stage.reference);
        stage.hold("before the registry goes down", &nodes[..3])?;
        stage.cluster.kill_registry();
        let Wave { right, failed, slowest, .. } = nodes[3].read(&stage.files);
        println!("registry down: {right} files right, without: {failed:?}, slowest {slowest:.2?}");
        // The others have every part of every layer, though not every window that this node needs
        // where it begins in the middle of one.
        assert_eq!((right, &failed[..]), (stage.files.len(), &[][..]));
        assert!(slowest.as_secs() <= READ_TIMEOUT, "{slowest:?}");
        Ok(())
    });
}

#[test]
fn sides_that_lose_each_other_go_on_and_come_together_again() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let mut stage = Stage::new();
        let nodes = stage.cluster.nodes(6);
        let hosts: Vec<&Host> = nodes.iter().map(ClusterNode::host).collect();
        let (one, other) = hosts.split_at(3);
        let before = stage.sent();
        stage.hold_while("parted for a second and a half", &nodes, || {
            stage.in_the_middle(before);
            part(one, other);
            thread::sleep(Duration::from_millis(1500));
            heal(one, other);
            MOST
        })?;
        await_members(&nodes, 6);
        nodes.iter().for_each(ClusterNode::unmount);
        // Other files, of which nobody has anything.
        let files = Files::new(399, SIZE);
        stage.reference = stage.cluster.push(&files.image(), "test/others");
        stage.files = files;
        stage.hold("healed", &nodes)
    });
}

#[test]
fn a_node_that_joins_in_the_middle_takes_from_the_others() {
    if cluster::is_impossible() {
        return;
    }
    in_some_try(|| {
        let stage = Stage::new();
        let nodes = stage.cluster.nodes(4);
        let before = stage.sent();
        let mut late = None;
        stage.hold_while("others while one joins", &nodes, || {
            stage.in_the_middle(before);
            let node = stage.cluster.node();
            let wave = node.mount_and_read(&stage.reference, &stage.files);
            late = Some((node, wave));
            MOST
        })?;
        let (_, wave) = late.unwrap();
        stage.judge("joined in the middle, with all others", &[wave], stage.sent() - before, MOST)
    });
}
