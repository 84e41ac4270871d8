//! Who takes part: nodes and pieces, as the scenario and its seed have it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use undermount_fs::digest::Digest;

use super::random::{Random, part_of, spread};
use super::{Join, Scenario};
use crate::peer::member::{Member, MemberId, Weight};
use crate::peer::placement::PROTOCOL;

/// Nodes die within so long after they began.
const LIVES: f64 = 8.0;
/// A dead member has been told dead to everybody after so long.
const DETECTION: Duration = Duration::from_secs(5);
/// And after so much more to the last.
const DETECTION_SPREAD: Duration = Duration::from_secs(2);

/// A node.
#[derive(Debug, Clone)]
pub struct Actor {
    /// As the others know it.
    pub member: Member,
    /// When it begins to want pieces.
    pub starts: Duration,
    /// When it dies, without a word.
    pub dies: Option<Duration>,
    /// Its link in either direction, in bytes per second.
    pub rate: f64,
    /// Whether its link is one of the slow ones.
    pub slow: bool,
}

/// A piece.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// By which it is known.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// Everybody and everything.
#[derive(Debug)]
pub struct Cast {
    /// The nodes.
    pub actors: Vec<Actor>,
    /// The pieces; the first ones are the working set.
    pub parts: Vec<Part>,
    /// How many pieces are the working set.
    pub working: usize,
    join: Join,
}

impl Cast {
    /// The cast of `scenario`.
    pub fn new(scenario: &Scenario) -> Self {
        let mut random = Random::new(scenario.seed);
        let parts = parts(scenario, &mut random);
        let mut sum = 0;
        let working = parts.iter().take_while(|part| {
            let before = sum;
            sum += part.size;
            before < scenario.working_set
        });
        let working = working.count();
        Self { actors: actors(scenario, &mut random), parts, working, join: scenario.join }
    }

    /// Bytes of the working set.
    pub fn working_bytes(&self) -> u64 {
        self.parts[..self.working].iter().map(|part| part.size).sum()
    }

    /// Bytes of all pieces.
    pub fn all_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }

    /// Whether `viewer` takes `other` for a member at `now`: it has heard that it came, and not
    /// that it is gone.
    pub fn knows(&self, viewer: usize, other: usize, now: Duration) -> bool {
        if viewer == other {
            return true;
        }
        let chance = part_of(spread((viewer as u64) << 32 | other as u64));
        let (own, actor) = (&self.actors[viewer], &self.actors[other]);
        let told = DETECTION + DETECTION_SPREAD.mul_f64(chance);
        if actor.dies.is_some_and(|dies| dies + told <= now) {
            return false;
        }
        match self.join {
            Join::Before => true,
            // Who came earlier is in the list that one gets when one joins.
            Join::WithTheWave { .. } if actor.starts < own.starts => true,
            Join::WithTheWave { delay } => actor.starts + delay.mul_f64(0.2 + 0.8 * chance) <= now,
        }
    }
}

/// Pieces of half to one and a half times the mean size, enough for the set.
fn parts(scenario: &Scenario, random: &mut Random) -> Vec<Part> {
    let (mut parts, mut sum) = (Vec::new(), 0);
    while sum < scenario.set {
        let size = (scenario.piece as f64 * (0.5 + random.part())) as u64;
        let size = size.clamp(1, scenario.set - sum);
        let digest = Digest::of(format!("piece {} {}", scenario.seed, parts.len()).as_bytes());
        parts.push(Part { digest, size });
        sum += size;
    }
    parts
}

fn actors(scenario: &Scenario, random: &mut Random) -> Vec<Actor> {
    let mut actors: Vec<Actor> = (0..scenario.nodes)
        .map(|number| Actor {
            member: member(scenario, number),
            starts: scenario.spread.mul_f64(random.part()),
            dies: None,
            rate: scenario.node_link,
            slow: false,
        })
        .collect();
    let mut order: Vec<usize> = (0..scenario.nodes).collect();
    random.shuffle(&mut order);
    let count = |part: f64| (scenario.nodes as f64 * part).round() as usize;
    let (slow, dead) = (count(scenario.slow), count(scenario.dead));
    for place in order.iter().take(slow) {
        let actor = &mut actors[*place];
        (actor.slow, actor.rate) = (true, scenario.node_link / scenario.slow_factor);
    }
    for place in order.iter().skip(slow).take(dead) {
        let actor = &mut actors[*place];
        let after = Duration::from_secs_f64(LIVES * random.part());
        actor.dies = Some(actor.starts.max(Duration::from_millis(500)) + after);
    }
    actors
}

fn member(scenario: &Scenario, number: usize) -> Member {
    let name = Digest::of(format!("node {} {number}", scenario.seed).as_bytes());
    let id = name.as_bytes().first_chunk::<16>().expect("a digest has 32 bytes");
    Member {
        id: MemberId::from_bytes(*id),
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 1))],
        epoch: 1,
        protocol: PROTOCOL,
        weight: Weight::FULL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cast_is_what_the_scenario_says() {
        let scenario = Scenario {
            nodes: 200,
            set: 1 << 30,
            working_set: 1 << 28,
            slow: 0.1,
            dead: 0.05,
            ..Scenario::default()
        };
        let cast = Cast::new(&scenario);
        assert_eq!(cast.all_bytes(), 1 << 30);
        let over = cast.working_bytes() - (1 << 28);
        assert!(over < scenario.piece * 2, "{over}");
        let count = |what: fn(&Actor) -> bool| cast.actors.iter().filter(|a| what(a)).count();
        assert_eq!((count(|actor| actor.slow), count(|actor| actor.dies.is_some())), (20, 10));
        assert_eq!(count(|actor| actor.slow && actor.dies.is_some()), 0);
    }

    #[test]
    fn who_joins_with_the_wave_is_known_after_a_while_and_who_dies_is_forgotten() {
        let delay = Duration::from_secs(1);
        let join = Join::WithTheWave { delay };
        let scenario = Scenario { nodes: 50, dead: 0.5, join, ..Scenario::default() };
        let cast = Cast::new(&scenario);
        let actors = &cast.actors;
        let first = (0..50).min_by_key(|place| actors[*place].starts).unwrap();
        let last = (0..50).max_by_key(|place| actors[*place].starts).unwrap();
        assert!(cast.knows(last, first, actors[last].starts), "from the list at joining");
        assert!(!cast.knows(first, last, actors[last].starts));
        let later = actors[last].starts + delay;
        assert!(
            actors[last].dies.is_some_and(|dies| dies < later) || cast.knows(first, last, later)
        );
        let dead = (0..50).find(|place| actors[*place].dies.is_some()).unwrap();
        let end = actors[dead].dies.unwrap() + DETECTION + DETECTION_SPREAD;
        assert!((0..50).all(|viewer| viewer == dead || !cast.knows(viewer, dead, end)));
    }
}
