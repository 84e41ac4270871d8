//! What keeps a member among the others.
//!
//! ```text
//! stay_joined    seeds, then members, until one knows others -> introduce
//! compare        a random member: 304, or its state -> merge -> ask members in doubt
//! greet_seeds    once a minute: still here; every 10th time also for the list
//! save           the members, if they have changed
//! ```
//!
//! Datagrams may be lost without anybody noticing; these loops make up for that. Each repeats for
//! as long as the agent lives, and none ends because of a failure.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tracing::Level;

use super::identity::Identity;
use super::inquiry::{Answered, Inquiry, InquiryError, JoinRequest, Place};
use super::node::Node;
use super::store::Store;
use super::swim::{Belief, Record, StateDigest, Swim};

/// The pause between attempts to join, at first and at most.
const JOIN_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The pause between comparisons, just after the start and later.
const COMPARE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The pause between two messages to the seeds, give or take a quarter. A member usually stays on
/// their list ([`super::seed::KEPT`]) even though two in a row are lost.
pub const SEED_REFRESH: Duration = Duration::from_secs(60);

/// Every so many messages the seeds are asked for their list as well: a partition may have hidden
/// everybody on it.
const SEED_LIST_EVERY: u32 = 10;

/// The pause between two looks whether the members have changed and must be written down.
const SAVE_PAUSE: Duration = Duration::from_secs(15);

/// How many members of an earlier life are tried in one attempt to join.
const TRIES: usize = 8;

/// How many members in doubt are asked after one comparison.
const DOUBTS: usize = 4;

/// How many members are told at once that this one has joined.
const GREETED: usize = 3;

/// What the loops work with.
pub(super) struct Upkeep {
    pub node: Arc<Node>,
    pub inquiry: Inquiry,
    pub seeds: Vec<Place>,
    /// Members by address: from the configuration, then from an earlier life.
    pub places: (Vec<Place>, Vec<Place>),
    pub store: Store,
    pub dice: Dice,
}

/// The random choices of the loops.
pub(super) struct Dice(Mutex<SmallRng>);

impl Dice {
    /// The same seed makes the same choices.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(SmallRng::seed_from_u64(seed)))
    }

    fn roll<T>(&self, with: impl FnOnce(&mut SmallRng) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Some of `all`, in random order.
    fn some<T>(&self, mut all: Vec<T>, count: usize) -> Vec<T> {
        self.roll(|rng| all.shuffle(rng));
        all.truncate(count);
        all
    }

    /// About `pause`, so that a thousand nodes that started at once do not act at once.
    fn about(&self, pause: Duration) -> Duration {
        pause.mul_f64(self.roll(|rng| rng.random_range(0.75..1.25)))
    }
}

impl Upkeep {
    /// Runs all loops, for as long as this is polled.
    pub async fn run(&self) {
        tokio::join!(self.stay_joined(), self.compare(), self.greet_seeds(), self.save());
    }

    async fn stay_joined(&self) {
        let mut pause = JOIN_PAUSE.0;
        let (mut known, mut told) = (false, false);
        loop {
            if known && !self.is_alone() {
                pause = JOIN_PAUSE.0;
                tokio::time::sleep(JOIN_PAUSE.0).await;
                continue;
            }
            // Told once; that it lasts, `undermount peers` and the metrics say.
            let answered = self.join(if known || told { Level::DEBUG } else { Level::WARN }).await;
            (known, told) = (answered || known, true);
            if known && !self.is_alone() {
                self.introduce().await;
            } else {
                tokio::time::sleep(self.dice.about(pause)).await;
                pause = (pause * 2).min(JOIN_PAUSE.1);
            }
        }
    }

    /// Whether no other member is known, and this one has not left.
    fn is_alone(&self) -> bool {
        self.node.look(|swim| swim.count_others() == 0 && !swim.has_left())
    }

    /// Asks the seeds, then members, until one of them knows others. Returns whether one answered; if
    /// none did, the reasons are logged at `level`.
    async fn join(&self, level: Level) -> bool {
        if self.node.look(Swim::has_left) {
            return false;
        }
        let (configured, earlier) = self.places.clone();
        let places = [&self.seeds[..], &configured, &self.dice.some(earlier, TRIES)].concat();
        let request = JoinRequest { member: self.node.own(), leaves: false, wants_state: true };
        let mut refusals = Vec::new();
        let mut answered = false;
        for place in places {
            match self.inquiry.join(&place, &request).await {
                Ok(state) => {
                    answered = true;
                    self.merge(state, Belief::Newcomer);
                    if !self.is_alone() {
                        break;
                    }
                }
                Err(error) => refusals.push((place, error)),
            }
        }
        for (place, error) in refusals.iter().filter(|_| !answered) {
            let error = error as &dyn std::error::Error;
            match level {
                Level::WARN => tracing::warn!(?place, error, "cannot join the cluster here"),
                _ => tracing::debug!(?place, error, "cannot join the cluster here"),
            }
        }
        answered
    }

    /// Announces this member to some others, and takes in what they know: a seed's list may be
    /// minutes old.
    async fn introduce(&self) {
        let others = self.others();
        for member in self.dice.some(others, GREETED) {
            if let Ok(Answered::State(state)) = self.pull(&member).await {
                self.merge(state, Belief::Newcomer);
            }
            self.node.act(|swim, now| swim.announce(now, member));
        }
        let members = self.node.look(Swim::count_others) + 1;
        tracing::info!(members, "joined the cluster");
    }

    async fn compare(&self) {
        let mut pause = COMPARE_PAUSE.0;
        loop {
            tokio::time::sleep(self.dice.about(pause)).await;
            pause = (pause * 2).min(COMPARE_PAUSE.1);
            self.compare_once().await;
        }
    }

    /// Takes in what a random member knows. A member that it believes to be down, and this one does
    /// not, is asked itself.
    async fn compare_once(&self) {
        if self.node.look(Swim::has_left) {
            return;
        }
        for member in self.dice.some(self.others(), 1) {
            let doubts = match self.pull(&member).await {
                Ok(Answered::State(state)) => self.merge(state, Belief::Doubting),
                Ok(Answered::Same) => continue,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(member = %member.id, error, "cannot compare members");
                    continue;
                }
            };
            for doubted in self.dice.some(doubts, DOUBTS) {
                self.settle_doubt(doubted).await;
            }
        }
    }

    async fn settle_doubt(&self, doubted: Identity) {
        match self.pull(&doubted).await {
            Ok(Answered::State(state)) => drop(self.merge(state, Belief::Doubting)),
            Ok(Answered::Same) => {}
            // Nobody answers there, or a node of another cluster.
            Err(
                InquiryError::Unreachable { .. }
                | InquiryError::Refused { status: StatusCode::UNAUTHORIZED, .. },
            ) => self.node.act(|swim, now| swim.give_up(now, doubted)),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(member = %doubted.id, error, "a member in doubt answers oddly");
            }
        }
    }

    async fn greet_seeds(&self) {
        let mut round = 0_u32;
        loop {
            tokio::time::sleep(self.dice.about(SEED_REFRESH)).await;
            round = round.wrapping_add(1);
            if !self.node.look(Swim::has_left) {
                self.tell_seeds(false, round.is_multiple_of(SEED_LIST_EVERY)).await;
            }
        }
    }

    /// Tells the seeds that this member is there, or goes.
    pub async fn tell_seeds(&self, leaves: bool, wants_state: bool) {
        let request = JoinRequest { member: self.node.own(), leaves, wants_state };
        for seed in &self.seeds {
            match self.inquiry.join(seed, &request).await {
                Ok(state) => drop(self.merge(state, Belief::Doubting)),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(?seed, error, "a seed does not hear");
                }
            }
        }
    }

    async fn save(&self) {
        let mut saved = StateDigest::default();
        loop {
            tokio::time::sleep(SAVE_PAUSE).await;
            saved = self.save_once(saved).await;
        }
    }

    /// Writes the members down unless that was done for the state `saved`. Returns the digest of
    /// the state that is on disk.
    async fn save_once(&self, saved: StateDigest) -> StateDigest {
        let (digest, members) = (self.node.digest(), self.others());
        // A member that is alone for a while must find the others again.
        if digest == saved || members.is_empty() {
            return saved;
        }
        let store = self.store.clone();
        let write = move || store.remember(&members, SystemTime::now());
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => digest,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot write the members down");
                saved
            }
            Err(_) => saved,
        }
    }

    fn others(&self) -> Vec<Identity> {
        self.node.look(|swim| swim.others().cloned().collect())
    }

    async fn pull(&self, member: &Identity) -> Result<Answered, InquiryError> {
        self.inquiry.pull(member, &self.node.digest()).await
    }

    /// Takes in a state. Returns the members in doubt by it, once each.
    fn merge(&self, state: Vec<Record>, belief: Belief) -> Vec<Identity> {
        let doubts = self.node.act(|swim, now| swim.merge(now, state, belief));
        let mut seen = HashSet::new();
        doubts.into_iter().filter(|member| seen.insert(member.id)).collect()
    }
}
