//! Clusters on a simulated network and clock: the same seed makes the same run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt as _;

use super::super::identity::testing::identity;
use super::*;

/// A delivery: when, in which order, to whom, and the bytes.
type Event = Reverse<(Duration, u64, usize, Option<Vec<u8>>)>;

struct Simulation {
    now: Duration,
    nodes: Vec<Swim>,
    alive: Vec<bool>,
    side: Vec<bool>,
    cut: bool,
    loss: f64,
    events: BinaryHeap<Event>,
    sent: u64,
    longest: usize,
    order: u64,
    dice: SmallRng,
}

fn numbered(number: usize) -> Identity {
    let id = MemberId::from_bytes((number as u128).to_be_bytes());
    Identity { id, ..identity(1) }
}

fn number(identity: &Identity) -> usize {
    u128::from_be_bytes(*identity.id.as_bytes()) as usize
}

impl Simulation {
    fn new(count: usize, loss: f64) -> Self {
        Self {
            now: Duration::ZERO,
            nodes: (0..count).map(|it| Swim::new(numbered(it), it as u64)).collect(),
            alive: vec![true; count],
            side: (0..count).map(|it| it < count / 2).collect(),
            cut: false,
            loss,
            events: BinaryHeap::new(),
            sent: 0,
            longest: 0,
            order: 0,
            dice: SmallRng::seed_from_u64(3),
        }
    }

    /// All know all from the beginning.
    fn acquainted(count: usize, loss: f64) -> Self {
        let mut simulation = Self::new(count, loss);
        for at in 0..count {
            simulation.act(at, |node, now| node.remember(now, (0..count).map(numbered)));
        }
        simulation
    }

    fn act<T>(&mut self, at: usize, step: impl FnOnce(&mut Swim, Duration) -> T) -> T {
        let outcome = step(&mut self.nodes[at], self.now);
        for (to, payload) in self.nodes[at].take_sends() {
            self.sent += 1;
            self.longest = self.longest.max(payload.len());
            let lost = self.dice.random_bool(self.loss);
            let to = number(&to);
            let cut = self.cut && self.side[at] != self.side[to];
            if !lost && !cut {
                let delay = Duration::from_micros(self.dice.random_range(150..350));
                self.push(delay, to, Some(payload.to_vec()));
            }
        }
        if let Some(due) = self.nodes[at].next_due() {
            let wait = due.saturating_sub(self.now);
            self.push(wait, at, None);
        }
        outcome
    }

    fn push(&mut self, after: Duration, to: usize, payload: Option<Vec<u8>>) {
        self.order += 1;
        self.events.push(Reverse((self.now + after, self.order, to, payload)));
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, to, payload))) = self.events.pop() else { break };
            self.now = at;
            if !self.alive[to] {
                continue;
            }
            match payload {
                Some(payload) => {
                    self.act(to, |node, now| node.receive(now, &payload)).unwrap();
                }
                None if self.nodes[to].next_due().is_some_and(|due| due <= at) => {
                    self.act(to, |node, now| node.advance(now));
                }
                None => {}
            }
        }
        self.now = end;
    }

    /// One member takes over what the other knows, as in a comparison over HTTP.
    fn compare(&mut self, one: usize, other: usize) -> Vec<Identity> {
        let state = self.nodes[other].state();
        self.act(one, |node, now| node.merge(now, state, Belief::Doubting))
    }

    fn counts(&self) -> Vec<usize> {
        let alive = (0..self.nodes.len()).filter(|at| self.alive[*at]);
        alive.map(|at| self.nodes[at].members().len()).collect()
    }
}

#[test]
fn a_member_that_dies_is_found_out_and_nobody_else_is_missed() {
    let mut simulation = Simulation::acquainted(50, 0.02);
    simulation.run(Duration::from_secs(5));
    simulation.alive[7] = false;
    simulation.run(Duration::from_secs(30));
    assert_eq!(simulation.counts(), [49; 49]);
    assert!(simulation.longest <= MAX_PAYLOAD, "{}", simulation.longest);
}

#[test]
fn a_member_that_leaves_is_gone_before_it_could_be_suspected() {
    let mut simulation = Simulation::acquainted(30, 0.0);
    simulation.run(Duration::from_secs(5));
    simulation.act(3, |node, now| node.leave(now));
    simulation.alive[3] = false;
    simulation.run(Duration::from_secs(2));
    assert_eq!(simulation.counts(), [29; 29]);
}

#[test]
fn a_change_of_weight_reaches_all_and_hides_nobody_meanwhile() {
    let mut simulation = Simulation::acquainted(40, 0.02);
    simulation.run(Duration::from_secs(5));
    simulation.act(0, |node, now| node.set_weight(now, Weight(30)));
    for _ in 0..50 {
        simulation.run(Duration::from_millis(100));
        assert_eq!(simulation.counts(), [40; 40]);
    }
    let id = numbered(0).id;
    let weights = |node: &Swim| node.members().get(&id).map(|member| member.weight);
    assert!(simulation.nodes.iter().all(|node| weights(node) == Some(Weight(30))));
}

#[test]
fn a_new_life_of_a_member_replaces_the_old_one_without_a_gap() {
    let mut simulation = Simulation::acquainted(20, 0.0);
    simulation.run(Duration::from_secs(5));
    let reborn = Identity { epoch: numbered(4).epoch + 1000, ..numbered(4) };
    simulation.nodes[4] = Swim::new(reborn.clone(), 99);
    simulation.act(4, |node, now| node.remember(now, (0..20).map(numbered)));
    simulation.act(4, |node, now| node.announce(now, numbered(5)));
    for _ in 0..100 {
        simulation.run(Duration::from_millis(100));
        assert_eq!(simulation.counts(), [20; 20]);
    }
    let knows = |node: &Swim| node.members().get(&reborn.id).unwrap().epoch == reborn.epoch;
    assert!(simulation.nodes.iter().all(knows));
}

#[test]
fn both_sides_of_a_partition_go_on_and_are_one_again_after_it() {
    let mut simulation = Simulation::acquainted(40, 0.01);
    simulation.run(Duration::from_secs(5));
    simulation.cut = true;
    simulation.run(Duration::from_secs(60));
    assert_eq!(simulation.counts(), [20; 40]);
    simulation.cut = false;
    simulation.run(Duration::from_secs(60));
    assert_eq!(simulation.counts(), [40; 40]);
    let digests: Vec<StateDigest> = simulation.nodes.iter().map(Swim::digest).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[test]
fn who_is_down_for_another_is_doubted_and_not_dropped() {
    let mut simulation = Simulation::acquainted(6, 0.0);
    simulation.run(Duration::from_secs(5));
    simulation.cut = true;
    simulation.run(Duration::from_secs(30));
    let doubts = simulation.compare(0, 5);
    let mut numbers: Vec<usize> = doubts.iter().map(number).collect();
    numbers.sort_unstable();
    // Node 0 itself learns that it is down there, and renews; 1 and 2 are doubted.
    assert_eq!(numbers, [1, 2]);
    assert!(simulation.nodes[0].own().revision > 0);
    assert!(simulation.nodes[0].others().any(|member| number(member) == 1));
    simulation.act(0, |node, now| node.give_up(now, numbered(1)));
    assert!(!simulation.nodes[0].others().any(|member| number(member) == 1));
}

#[test]
fn a_newcomer_believes_that_members_of_an_old_list_are_down() {
    let mut simulation = Simulation::acquainted(5, 0.0);
    simulation.alive[4] = false;
    simulation.run(Duration::from_secs(30));
    let state = simulation.nodes[0].state();
    let mut newcomer = Swim::new(numbered(9), 9);
    newcomer.remember(Duration::ZERO, (0..5).map(numbered));
    assert_eq!(newcomer.count_others(), 5);
    newcomer.merge(Duration::ZERO, state, Belief::Newcomer);
    assert_eq!(newcomer.count_others(), 4);
}

#[test]
fn comparing_makes_stragglers_know_all() {
    // Everybody has told node 0 and nobody else, and gossip is lost altogether.
    let mut simulation = Simulation::new(300, 1.0);
    for at in 1..300 {
        simulation.act(0, |node, now| node.welcome(now, numbered(at)));
    }
    for at in 1..300 {
        simulation.compare(at, 0);
    }
    assert_eq!(simulation.counts(), [300; 300]);
}

#[test]
fn ten_thousand_members_are_compared_in_one_answer() {
    let mut node = Swim::new(numbered(0), 0);
    node.remember(Duration::ZERO, (1..10_000).map(numbered));
    let bytes = super::super::inquiry::encode(&node.state());
    assert!(bytes.len() < super::super::inquiry::MAX_STATE / 4, "{}", bytes.len());
    let mut other = Swim::new(numbered(20_000), 1);
    let state: Vec<Record> = postcard::from_bytes(&bytes).unwrap();
    other.merge(Duration::ZERO, state, Belief::Newcomer);
    assert_eq!(other.members().len(), 10_001);
    node.welcome(Duration::ZERO, numbered(20_000));
    assert_eq!(node.digest(), other.digest());
}
