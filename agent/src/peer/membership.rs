//! Membership: which nodes are there, without a server that would have to know.
//!
//! ```text
//! datagrams  wire -> peer::datagram -> swim (foca) -> peer::datagram -> wire
//! states     inquiry (asks) / routes (answers), where gossip is too slow or too lossy
//! loops      upkeep: joining, comparing, telling the seeds, writing down
//! outcome    peer::member::Roster
//! ```
//!
//! [`Membership`] owns all of it. It never fails for want of a network: where the address of the
//! peer network is not there yet, it waits for that, and the roster is empty until then.
//!
//! The seed ([`seed`]) is the part that `undermount registry` serves.

mod identity;
mod inquiry;
mod listen;
mod node;
mod routes;
pub mod seed;
mod store;
mod swim;
mod upkeep;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use inquiry::{HttpConfig, JOIN, MEMBERS, Place};
pub use listen::Listen;
pub use store::StoreError;
pub use upkeep::SEED_REFRESH;
pub use wire::{Udp, Wire};

use self::identity::Identity;
use self::inquiry::Inquiry;
use self::node::Node;
use self::routes::Ready;
use self::store::{Remembered, Store};
use self::upkeep::{Dice, Upkeep};
use super::datagram::Received;
use super::keys::ClusterKeys;
use super::member::{Member, MemberId, Members, Roster, Weight};
use super::placement;

/// The versions of the peer protocol that this program speaks, first and last.
pub const PROTOCOL: (u16, u16) = (*placement::PROTOCOL.start(), *placement::PROTOCOL.end());

/// The pause between attempts to listen.
const LISTEN_PAUSE: Duration = Duration::from_secs(2);

/// How long a draining member stays, so that others can fetch elsewhere what they have begun to
/// fetch from it.
const DRAIN_PAUSE: Duration = Duration::from_secs(5);

/// How long good-byes may take.
const GOOD_BYE: Duration = Duration::from_secs(2);

/// Binds a wire to addresses. Returns the wire and the addresses that it has got.
pub type Bind =
    Arc<dyn Fn(&[SocketAddr]) -> io::Result<(Arc<dyn Wire>, Vec<SocketAddr>)> + Send + Sync>;

/// How a node takes part.
#[derive(Clone)]
pub struct MembershipConfig {
    /// The keys of its cluster.
    pub keys: ClusterKeys,
    /// Where it listens.
    pub listen: Listen,
    /// The addresses that it tells others; `None` for those that it listens on.
    pub advertise: Option<Vec<SocketAddr>>,
    /// The seeds: URLs to which [`JOIN`] is added.
    pub seeds: Vec<String>,
    /// Members that are known without a seed.
    pub members: Vec<SocketAddr>,
    /// How HTTP reaches them.
    pub http: HttpConfig,
    /// The versions of the peer protocol that it speaks, first and last.
    pub protocol: (u16, u16),
    /// Whether it stays out of the cluster until [`Membership::drain`] says otherwise.
    pub drained: bool,
    /// Where its identity and the members are kept.
    pub directory: PathBuf,
    /// How datagrams are carried; [`udp`] but for tests.
    pub bind: Bind,
}

/// Carries datagrams by UDP.
pub fn udp() -> Bind {
    Arc::new(|addresses| {
        let udp = Udp::bind(addresses)?;
        let bound = udp.addresses()?;
        Ok((Arc::new(udp) as Arc<dyn Wire>, bound))
    })
}

/// A node's membership, for as long as it is not stopped.
pub struct Membership {
    roster: Roster,
    node: Ready,
    bound: watch::Receiver<Option<Vec<SocketAddr>>>,
    wanted: watch::Sender<Wanted>,
    stop: CancellationToken,
    /// Cancelled before [`Self::stop`] where the node says good-bye first.
    leave: CancellationToken,
    tasks: TaskTracker,
}

/// How the node is to take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    weight: Weight,
    drained: bool,
}

/// The state of a membership, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipStatus {
    /// The id of this node.
    pub own: MemberId,
    /// Where this node listens; empty until its network is there.
    pub listen: Vec<SocketAddr>,
    /// Whether it has left the cluster.
    pub left: bool,
    /// The names of the keys that are accepted, the one that is used first.
    pub keys: Vec<String>,
    /// The members that are believed to be alive.
    pub members: Vec<Member>,
    /// Datagrams that were taken and dropped.
    pub datagrams: Received,
}

impl Membership {
    /// Begins to be a member, on the runtime of `handle`.
    ///
    /// # Errors
    /// [`StoreError`] where the identity of the node cannot be kept.
    pub fn start(config: MembershipConfig, handle: &Handle) -> Result<Self, StoreError> {
        let store = Store::open(&config.directory)?;
        let (id, epoch) = store.begin_life(SystemTime::now())?;
        let (shown, roster) = Roster::new(id, Members::default());
        let (bound_to, bound) = watch::channel(None);
        let wanted = Wanted { weight: Weight::FULL, drained: config.drained };
        let (wanted, _) = watch::channel(wanted);
        let membership = Self {
            roster,
            node: Arc::new(OnceLock::new()),
            bound,
            wanted,
            stop: CancellationToken::new(),
            leave: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let life = Life {
            config,
            store,
            name: (id, epoch),
            shown,
            bound: bound_to,
            node: membership.node.clone(),
            wanted: membership.wanted.subscribe(),
            leave: membership.leave.clone(),
        };
        let stopped = membership.stop.clone().cancelled_owned();
        membership.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = life.run() => {}
                    () = stopped => {}
                }
            },
            handle,
        );
        membership.tasks.close();
        Ok(membership)
    }

    /// The members as they are known, from now on.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// What other nodes may ask over HTTP: [`MEMBERS`] and [`JOIN`].
    pub fn router(&self) -> axum::Router {
        routes::router(self.node.clone())
    }

    /// Where this node listens, once it does. Whoever serves other things to its peers listens
    /// on the same addresses.
    pub async fn bound(&self) -> Vec<SocketAddr> {
        let mut bound = self.bound.clone();
        let found = bound.wait_for(Option::is_some).await;
        found.ok().and_then(|bound| bound.clone()).unwrap_or_default()
    }

    /// Changes the weight of this node; while it drains, the weight is none in any case.
    pub fn set_weight(&self, weight: Weight) {
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(&mut wanted.weight, weight) != weight);
    }

    /// With `drained`, owns nothing from now on and leaves the cluster 5 s later; without it, comes
    /// back.
    pub fn drain(&self, drained: bool) {
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(&mut wanted.drained, drained) != drained);
    }

    /// The state of the membership.
    pub fn status(&self) -> MembershipStatus {
        let node = self.node.get();
        let keys = |node: &Arc<Node>| node.keys.ids().iter().map(ToString::to_string).collect();
        MembershipStatus {
            own: self.roster.own,
            listen: self.bound.borrow().clone().unwrap_or_default(),
            left: node.is_some_and(|node| node.look(swim::Swim::has_left)),
            keys: node.map(keys).unwrap_or_default(),
            members: self.roster.members().iter().cloned().collect(),
            datagrams: node.map(|node| node.received()).unwrap_or_default(),
        }
    }

    /// Ends the membership without a word: another process takes over at once, under the same name.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    /// Says good-bye to the other members and the seeds, and ends the membership.
    pub async fn leave(&self) {
        self.leave.cancel();
        if tokio::time::timeout(GOOD_BYE, self.tasks.wait()).await.is_err() {
            tracing::debug!("not everybody heard this node's good-bye");
        }
        self.stop().await;
    }
}

/// One life of a node as a member, from the first attempt to listen.
struct Life {
    config: MembershipConfig,
    store: Store,
    name: (MemberId, u64),
    shown: watch::Sender<Arc<Members>>,
    bound: watch::Sender<Option<Vec<SocketAddr>>>,
    node: Ready,
    wanted: watch::Receiver<Wanted>,
    leave: CancellationToken,
}

impl Life {
    async fn run(self) {
        let (wire, addresses) = tokio::select! {
            listening = listen(&self.config) => listening,
            () = self.leave.cancelled() => return,
        };
        tracing::info!(?addresses, member = %self.name.0, "peers are listened to");
        let remembered = self.store.remembered(SystemTime::now());
        let upkeep = self.begin(&wire, addresses, remembered);
        let node = upkeep.node.clone();
        let follow = follow(&upkeep, self.wanted.clone());
        let receive = node.receive(&*wire);
        let work = async { tokio::join!(receive, node.keep_time(), upkeep.run(), follow) };
        tokio::select! {
            _ = work => {}
            () = self.leave.cancelled() => {
                node.act(|swim, now| swim.leave(now));
                upkeep.tell_seeds(true, false).await;
            }
        }
    }

    fn begin(
        &self,
        wire: &Arc<dyn Wire>,
        addresses: Vec<SocketAddr>,
        remembered: Remembered,
    ) -> Upkeep {
        let config = &self.config;
        let (id, epoch) = self.name;
        // Two lives never have the same epoch, two nodes never the same id.
        let seed = epoch ^ u64::from_be_bytes(*id.as_bytes().first_chunk().expect("16 bytes"));
        let own = Identity {
            id,
            epoch,
            revision: 0,
            addresses: config.advertise.clone().unwrap_or_else(|| addresses.clone()),
            protocol: config.protocol,
            weight: self.wanted.borrow().weight,
        };
        let node =
            Node::new(own, seed, config.keys.clone(), Arc::downgrade(wire), self.shown.clone());
        let node = Arc::new(node);
        let earlier = remembered.members.iter().flat_map(|member| member.addresses.iter().copied());
        let earlier = earlier.map(Place::Node).collect();
        if remembered.fresh {
            node.act(|swim, now| swim.remember(now, remembered.members));
        }
        if self.wanted.borrow().drained {
            node.act(|swim, now| swim.leave(now));
        }
        let _ = self.node.set(node.clone());
        self.bound.send_replace(Some(addresses));
        Upkeep {
            inquiry: Inquiry { own: id, keys: config.keys.clone(), http: config.http.clone() },
            seeds: config.seeds.iter().cloned().map(Place::Seed).collect(),
            places: (config.members.iter().copied().map(Place::Node).collect(), earlier),
            store: self.store.clone(),
            dice: Dice::new(seed),
            node,
        }
    }
}

/// Listens as soon as that is possible; each reason why it is not is logged once.
async fn listen(config: &MembershipConfig) -> (Arc<dyn Wire>, Vec<SocketAddr>) {
    let mut reported = String::new();
    loop {
        match config.listen.resolve().and_then(|addresses| (config.bind)(&addresses)) {
            Ok(listening) => return listening,
            Err(error) => {
                let words = error.to_string();
                if words != reported {
                    tracing::warn!(%error, "cannot listen to peers yet");
                    reported = words;
                }
            }
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

/// Changes how the node takes part whenever `wanted` changes.
async fn follow(upkeep: &Upkeep, mut wanted: watch::Receiver<Wanted>) {
    let node = &upkeep.node;
    loop {
        let Wanted { weight, drained } = *wanted.borrow_and_update();
        if drained {
            node.act(|swim, now| swim.set_weight(now, Weight::NONE));
            tokio::select! {
                () = tokio::time::sleep(DRAIN_PAUSE) => {
                    node.act(|swim, now| swim.leave(now));
                    upkeep.tell_seeds(true, false).await;
                }
                changed = wanted.changed() => {
                    if changed.is_err() { return }
                    continue;
                }
            }
        } else {
            node.act(|swim, now| {
                swim.rejoin(now);
                swim.set_weight(now, weight);
            });
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
