//! One member at work: its state, its keys and its wire, behind one lock.
//!
//! ```text
//! datagram -> Opener -> Swim::receive \
//! timer    -> Swim::advance            > act -> Sealer -> wire
//! a loop   -> join, compare, weight   /    `-> roster, shown by keep_time
//! ```

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::identity::Identity;
use super::swim::{Record, StateDigest, Swim};
use super::wire::Wire;
use crate::peer::datagram::{MAX_DATAGRAM, Opener, Received, Sealer};
use crate::peer::keys::ClusterKeys;
use crate::peer::member::Members;

/// How long a changed roster waits before it is shown, so that a thousand members that join at once
/// do not make a thousand lists.
const GATHER: Duration = Duration::from_millis(20);

/// A process that was asleep for longer, such as with its host, listens for [`LISTEN`] before it
/// judges which members have not answered.
const ASLEEP: Duration = Duration::from_millis(500);
const LISTEN: Duration = Duration::from_millis(50);

/// How long receiving pauses where it fails.
const RECEIVE_PAUSE: Duration = Duration::from_millis(200);

/// A member, shared by the tasks that work for it.
pub(super) struct Node {
    core: Mutex<Core>,
    /// It ends with the life of the member, even if this is still looked at.
    wire: Weak<dyn Wire>,
    pub keys: ClusterKeys,
    /// Woken where there is something to do earlier, or something to show.
    wake: Notify,
    started: Instant,
    roster: watch::Sender<Arc<Members>>,
}

struct Core {
    swim: Swim,
    sealer: Sealer,
    opener: Opener,
    shown: bool,
}

impl Node {
    /// The member `own`, alone; its random choices follow from `seed`.
    pub fn new(
        own: Identity,
        seed: u64,
        keys: ClusterKeys,
        wire: Weak<dyn Wire>,
        roster: watch::Sender<Arc<Members>>,
    ) -> Self {
        let core = Core {
            sealer: Sealer::new(keys.clone(), own.id, own.epoch),
            opener: Opener::new(keys.clone(), own.id),
            swim: Swim::new(own, seed),
            shown: false,
        };
        let (wake, started) = (Notify::new(), Instant::now());
        Self { core: Mutex::new(core), wire, keys, wake, started, roster }
    }

    /// Takes a step, and sends what follows from it.
    pub fn act<T>(&self, step: impl FnOnce(&mut Swim, Duration) -> T) -> T {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let due = core.swim.next_due();
        let outcome = step(&mut core.swim, self.started.elapsed());
        let sends = core.take_sends();
        if core.swim.take_changed() {
            core.shown = false;
        }
        let earlier = core.swim.next_due().is_some_and(|new| due.is_none_or(|due| new < due));
        let wake = earlier || !core.shown;
        drop(core);
        if let Some(wire) = self.wire.upgrade() {
            sends.iter().for_each(|(to, datagram)| wire.send(&to.addresses, datagram));
        }
        if wake {
            self.wake.notify_one();
        }
        outcome
    }

    /// Looks without changing anything.
    pub fn look<T>(&self, at: impl FnOnce(&Swim) -> T) -> T {
        at(&self.core.lock().unwrap_or_else(PoisonError::into_inner).swim)
    }

    /// Oneself, as of now.
    pub fn own(&self) -> Identity {
        self.look(|swim| swim.own().clone())
    }

    /// All that is known.
    pub fn state(&self) -> Vec<Record> {
        self.look(Swim::state)
    }

    /// The digest by which states are compared.
    pub fn digest(&self) -> StateDigest {
        self.look(Swim::digest)
    }

    /// How many datagrams were taken and dropped.
    pub fn received(&self) -> Received {
        self.core.lock().unwrap_or_else(PoisonError::into_inner).opener.received()
    }

    /// Takes datagrams from `wire` for as long as this is polled.
    pub async fn receive(&self, wire: &dyn Wire) {
        // One byte more than a datagram may have shows that it is too long.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        loop {
            match wire.receive(&mut buffer).await {
                Ok(length) => self.take(&buffer[..length]),
                Err(error) => {
                    report_receive_failure(&error);
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, datagram: &[u8]) {
        let opened = {
            let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            core.opener.open(datagram)
        };
        let taken = match opened {
            Ok(opened) => self.act(|swim, now| swim.receive(now, &opened.payload)),
            Err(reason) => return tracing::debug!(?reason, "a datagram was dropped"),
        };
        if let Err(error) = taken {
            tracing::debug!(%error, "a member says something odd");
        }
    }

    /// Does what is due when it is due, and shows the roster, for as long as this is polled.
    pub async fn keep_time(&self) {
        let mut expected = self.started.elapsed();
        loop {
            if self.started.elapsed().saturating_sub(expected) > ASLEEP {
                tokio::time::sleep(LISTEN).await;
            }
            let due = self.act(|swim, now| {
                swim.advance(now);
                swim.next_due()
            });
            self.show();
            let rest = due.map(|due| due.saturating_sub(self.started.elapsed()));
            let rest = rest.unwrap_or(Duration::from_secs(1));
            expected = self.started.elapsed() + rest;
            let timer = tokio::time::sleep(rest);
            tokio::select! {
                () = timer => {}
                () = self.wake.notified() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    /// Replaces the roster by what is known now, where it shows something else.
    fn show(&self) {
        let members = {
            let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            let shown = std::mem::replace(&mut core.shown, true);
            (!shown).then(|| core.swim.members())
        };
        if let Some(members) = members {
            self.roster.send_replace(Arc::new(members));
        }
    }
}

impl Core {
    /// What is to be sent, sealed.
    fn take_sends(&mut self) -> Vec<(Identity, Vec<u8>)> {
        let (swim, sealer) = (&mut self.swim, &mut self.sealer);
        let sends = swim.take_sends().into_iter();
        sends
            .filter_map(|(to, payload)| Some((sealer.seal(to.id, &payload)?, to)))
            .map(|(datagram, to)| (to, datagram))
            .collect()
    }
}

fn report_receive_failure(error: &io::Error) {
    // The kernel reports the refused port of another host at the sending socket.
    if error.kind() != io::ErrorKind::ConnectionRefused {
        tracing::warn!(%error, "cannot receive datagrams");
    }
}
