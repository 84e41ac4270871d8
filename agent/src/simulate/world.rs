//! The world: nodes, their links and what happens to them, event by event.
//!
//! `asking` drives the fetches of a node, `serving` what it answers to others, `flows` carries
//! the bytes.

mod asking;
mod flows;
mod serving;

use std::collections::VecDeque;
use std::time::Duration;

use super::agenda::Agenda;
use super::arena::{Arena, Key};
use super::cast::Cast;
use super::link::{Downlink, Uplink};
use super::outcome::{Counts, NodeResult, Outcome};
use super::random::Random;
use super::views::Views;
use super::{Scenario, Strategy};
use crate::peer::fetch::{Event, Fetch, Mode};
use crate::peer::member::MemberId;
use crate::peer::server::HOLD;
use crate::peer::standing::Standing;
use crate::peer::uploads::{UploadLimits, Uploads};

/// Range requests to the registry that a node has under way at a time, as its supply does.
const REGISTRY_SLOTS: usize = 8;
/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a node waits before it wants a piece again that it could not get.
const AGAIN: Duration = Duration::from_secs(1);

/// Something that happens.
enum Happening {
    /// A node begins to want pieces.
    Start(usize),
    /// A node dies.
    Die(usize),
    /// A node wants a piece again that it could not get.
    Again(usize, usize),
    /// A request reaches its server.
    Arrive(Key),
    /// A request was kept for as long as it may.
    Lapse(Key),
    /// An answer, or the lack of one, reaches the node that asked.
    Reply(Key, Event),
    /// A flow may have left an uplink.
    Flowed(usize),
    /// All that a request was for is here.
    Here(Key),
    /// Time goes by for a fetch.
    Tick(Key),
    /// The pause of a fetch ends that began as its pause of this number.
    Resume(Key, u32),
}

/// How much of a piece a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Nothing,
    Arriving(Key),
    Whole,
}

struct Node {
    downlink: Downlink,
    uploads: Uploads,
    standing: Standing,
    dead: bool,
    states: Vec<State>,
    /// Pieces in the order in which it wants them, and how many it has begun with.
    order: Vec<u32>,
    begun: usize,
    /// Fetches of its own that are under way.
    running: usize,
    registry_running: usize,
    registry_queue: VecDeque<Key>,
    working_left: usize,
    left: usize,
    result: NodeResult,
}

/// A fetch on its way.
struct Run {
    fetch: Fetch,
    node: usize,
    part: usize,
    hop: u8,
    /// Whether it takes a place in the node's own window.
    own: bool,
    request: Option<Key>,
    /// Some of the piece has come.
    begun: bool,
    pauses: u32,
    paused: bool,
    /// Requests for the piece that wait until something of it has come.
    held: Vec<Key>,
    /// Flows of the piece that have caught up with what is here.
    followers: Vec<Key>,
}

/// A request to a node or to the registry.
struct Request {
    run: Key,
    server: usize,
    mode: Mode,
    hop: u8,
    tried: Vec<MemberId>,
    offset: u64,
    sent: Duration,
    /// When its first byte left the server.
    begun: Duration,
    /// Bytes that the fetch was told of.
    reported: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// On its way, waiting at the server, or waiting for a slot of one's own to the registry.
    Open,
    /// Bytes leave the server.
    Flowing,
    /// All bytes have left it, except those that it has not got itself.
    Following,
    /// They are on the way.
    Arriving,
}

/// One side of a node or of the registry.
struct Port {
    uplink: Uplink,
    /// The earliest time at which it will be looked whether a flow has left it.
    look: Option<Duration>,
}

/// Everything.
pub struct World<'a> {
    scenario: &'a Scenario,
    cast: Cast,
    views: Views,
    agenda: Agenda<Happening>,
    nodes: Vec<Node>,
    /// Those of the nodes and, last, that of the registry.
    ports: Vec<Port>,
    runs: Arena<Run>,
    requests: Arena<Request>,
    random: Random,
    counts: Counts,
}

impl<'a> World<'a> {
    /// The world before anything has happened.
    pub fn new(scenario: &'a Scenario) -> Self {
        let cast = Cast::new(scenario);
        let mut random = Random::new(scenario.seed.wrapping_add(1));
        let nodes = cast.actors.iter().map(|actor| node(&cast, actor.rate, &mut random)).collect();
        let rates = cast.actors.iter().map(|actor| actor.rate).chain([scenario.registry_link]);
        let ports = rates.map(|rate| Port { uplink: Uplink::new(rate), look: None }).collect();
        let mut agenda = Agenda::new();
        for (place, actor) in cast.actors.iter().enumerate() {
            agenda.enter(actor.starts, Happening::Start(place));
            if let Some(dies) = actor.dies {
                agenda.enter(dies, Happening::Die(place));
            }
        }
        let views = Views::new(&cast);
        let (runs, requests, counts) = (Arena::new(), Arena::new(), Counts::default());
        Self { scenario, cast, views, agenda, nodes, ports, runs, requests, random, counts }
    }

    /// Lets everything happen.
    pub fn run(mut self) -> Outcome {
        while let Some(happening) = self.agenda.proceed() {
            self.happen(happening);
        }
        let registry = self.registry();
        let uploads = self.ports[..registry].iter().map(|port| port.uplink.carried());
        let uploads: Vec<f64> = uploads.collect();
        let results = self.nodes.iter().map(|node| node.result.clone()).collect::<Vec<_>>();
        self.counts.egress = self.ports[registry].uplink.carried();
        self.counts.hedged = self.nodes.iter().map(|node| node.standing.hedged()).sum();
        Outcome::of(self.scenario, &self.cast, &results, &uploads, self.counts)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start(node) => self.want(node),
            Happening::Die(node) => self.die(node),
            Happening::Again(node, part) => self.want_again(node, part),
            Happening::Arrive(request) => self.arrive(request),
            Happening::Lapse(request) => self.lapse(request),
            Happening::Reply(request, event) => self.reply(request, event),
            Happening::Flowed(server) => self.flowed(server),
            Happening::Here(request) => self.here(request),
            Happening::Tick(run) => self.tick(run),
            Happening::Resume(run, pause) => self.resume(run, pause),
        }
    }

    fn now(&self) -> Duration {
        self.agenda.now()
    }

    /// The number of the registry among the servers.
    fn registry(&self) -> usize {
        self.nodes.len()
    }

    fn uses_peers(&self) -> bool {
        self.scenario.strategy == Strategy::Peers
    }

    fn one_way(&self) -> Duration {
        self.scenario.round_trip / 2
    }

    fn is_dead(&self, server: usize) -> bool {
        self.nodes.get(server).is_some_and(|node| node.dead)
    }
}

fn node(cast: &Cast, rate: f64, random: &mut Random) -> Node {
    let parts = u32::try_from(cast.parts.len()).expect("fewer than 4 G pieces");
    let mut order: Vec<u32> = (0..parts).collect();
    random.shuffle(&mut order[cast.working..]);
    Node {
        downlink: Downlink::new(rate),
        uploads: Uploads::new(UploadLimits::default(), random.number()),
        standing: Standing::default(),
        dead: false,
        states: vec![State::Nothing; cast.parts.len()],
        order,
        begun: 0,
        running: 0,
        registry_running: 0,
        registry_queue: VecDeque::new(),
        working_left: cast.working,
        left: cast.parts.len(),
        result: NodeResult::default(),
    }
}
