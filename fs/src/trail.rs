//! The trail of one read: what it waits for on its way from the kernel's question to the bytes.
//!
//! Everything that such a read waits for is awaited in one task, so the trail goes along with the
//! task, as the spans of `tracing` do, instead of through every signature on the way. What notes
//! something outside of a trail (a pack that is unpacked, a background stream) notes nothing.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use tracing::Instrument as _;

tokio::task_local! {
    static CURRENT: RefCell<Trail>;
}

/// What a read can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// A start-up pack that is to bring the bytes soon.
    Pack,
    /// Another read that fetches the same spans.
    Turn,
    /// A source.
    Fetch,
    /// Decoding, hashing and storing what came.
    Decode,
}

impl Wait {
    /// All of them, in the order of a read.
    pub const ALL: [Self; 4] = [Self::Pack, Self::Turn, Self::Fetch, Self::Decode];

    /// Its name in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Turn => "turn",
            Self::Fetch => "fetch",
            Self::Decode => "decode",
        }
    }
}

/// Where the bytes of a read came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// They were here.
    Cache,
    /// A start-up pack brought them, and this read is the first to use them.
    Pack,
    /// Something else brought them while the read waited.
    Shared,
    /// A registry.
    Registry,
    /// A peer.
    Peer,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cache, Self::Pack, Self::Shared, Self::Registry, Self::Peer];

    /// Its name in reports and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Pack => "pack",
            Self::Shared => "shared",
            Self::Registry => "registry",
            Self::Peer => "peer",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a read has waited for, and what was delivered to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail {
    waits: [Duration; Wait::ALL.len()],
    /// Who delivered last: a registry's `host[:port]`, a peer.
    pub supplier: Option<String>,
    registry_bytes: u64,
    peer_bytes: u64,
}

impl Trail {
    /// How long it waited for one thing.
    pub fn waited(&self, what: Wait) -> Duration {
        self.waits[what as usize]
    }

    /// Bytes that were fetched for it.
    pub fn fetched(&self) -> u64 {
        self.registry_bytes + self.peer_bytes
    }

    /// Where the bytes came from, for a read that had found them missing. One that both delivered
    /// to counts for the registry.
    pub fn origin(&self) -> Origin {
        match (self.registry_bytes, self.peer_bytes) {
            (0, 0) => Origin::Shared,
            (0, _) => Origin::Peer,
            _ => Origin::Registry,
        }
    }
}

/// Runs `work` and tells what it waited for.
pub async fn follow<T>(work: impl Future<Output = T>) -> (T, Trail) {
    let traced = async {
        let outcome = work.await;
        (outcome, CURRENT.with(RefCell::take))
    };
    CURRENT.scope(RefCell::default(), traced).await
}

/// Waits for `work`, on the account of `what`.
pub async fn waiting<T>(what: Wait, work: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let span = tracing::debug_span!("wait", what = what.name());
    let outcome = work.instrument(span).await;
    note(|trail| trail.waits[what as usize] += begin.elapsed());
    outcome
}

/// Notes that `supplier`, a registry or peer as `origin` says, has delivered `bytes`.
pub fn delivered(origin: Origin, supplier: &str, bytes: u64) {
    note(|trail| {
        match origin {
            Origin::Peer => trail.peer_bytes += bytes,
            _ => trail.registry_bytes += bytes,
        }
        trail.supplier = Some(supplier.to_owned());
    });
}

/// Adds a part of the work that was followed in a task of its own.
pub fn join(part: &Trail) {
    note(|trail| {
        for (wait, more) in trail.waits.iter_mut().zip(part.waits) {
            *wait += more;
        }
        trail.registry_bytes += part.registry_bytes;
        trail.peer_bytes += part.peer_bytes;
        if part.supplier.is_some() {
            trail.supplier.clone_from(&part.supplier);
        }
    });
}

fn note(change: impl FnOnce(&mut Trail)) {
    // Nobody follows what happens outside of a read.
    let _ = CURRENT.try_with(|trail| change(&mut trail.borrow_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trail_holds_what_the_work_waited_for_and_who_delivered() {
        let work = async {
            waiting(Wait::Fetch, tokio::time::sleep(Duration::from_millis(5))).await;
            delivered(Origin::Registry, "registry:5000", 7);
            waiting(Wait::Fetch, tokio::time::sleep(Duration::from_millis(5))).await;
            "done"
        };
        let (outcome, trail) = follow(work).await;
        assert_eq!((outcome, trail.fetched()), ("done", 7));
        assert!(trail.waited(Wait::Fetch) >= Duration::from_millis(10));
        assert_eq!(trail.waited(Wait::Pack), Duration::ZERO);
        assert_eq!(trail.supplier.as_deref(), Some("registry:5000"));
        assert_eq!(trail.origin(), Origin::Registry);
    }

    #[tokio::test]
    async fn a_part_in_a_task_of_its_own_is_joined() {
        let part = || async {
            waiting(Wait::Fetch, tokio::time::sleep(Duration::from_millis(5))).await;
            delivered(Origin::Peer, "peer", 3);
        };
        let work = async {
            delivered(Origin::Registry, "registry", 7);
            let ((), trail) = tokio::spawn(follow(part())).await.unwrap();
            join(&trail);
        };
        let ((), trail) = follow(work).await;
        assert_eq!((trail.fetched(), trail.supplier.as_deref()), (10, Some("peer")));
        assert!(trail.waited(Wait::Fetch) >= Duration::from_millis(5));
    }

    #[tokio::test]
    async fn trails_do_not_mix_and_end_with_their_read() {
        let read = |bytes| {
            follow(async move {
                tokio::task::yield_now().await;
                delivered(Origin::Peer, "peer", bytes);
                tokio::task::yield_now().await;
            })
        };
        let (((), one), ((), two)) = tokio::join!(read(1), read(2));
        assert_eq!((one.fetched(), two.fetched()), (1, 2));
        assert_eq!(one.origin(), Origin::Peer);
        delivered(Origin::Peer, "peer", 3);
        let ((), none) = follow(async {}).await;
        assert_eq!((none.fetched(), none.origin()), (0, Origin::Shared));
    }
}
