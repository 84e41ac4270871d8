//! Who may fetch next.
//!
//! A number of slots, and one queue per priority. A free slot goes to the most urgent who
//! waits. Some slots are kept free of what is less urgent, so that a demand read finds one at
//! once: packs leave an eighth of them, background fetches get along with a quarter, and only
//! while others leave as many again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use undermount_fs::source::Priority;

/// The slots.
pub struct Gate {
    slots: usize,
    state: Mutex<State>,
    demand_ended: Notify,
}

#[derive(Default)]
struct State {
    running: PerPriority<usize>,
    waiting: PerPriority<VecDeque<oneshot::Sender<Slot>>>,
}

#[derive(Default)]
struct PerPriority<T> {
    background: T,
    pack: T,
    demand: T,
}

impl<T> PerPriority<T> {
    fn of(&mut self, priority: Priority) -> &mut T {
        match priority {
            Priority::Background => &mut self.background,
            Priority::Pack => &mut self.pack,
            Priority::Demand => &mut self.demand,
        }
    }
}

/// A look at the queues, for those who measure.
#[derive(Clone)]
pub struct Queue(Arc<Gate>);

/// The transfers of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// `background`, `pack` or `demand`.
    pub priority: &'static str,
    /// How many are under way.
    pub running: usize,
    /// How many wait.
    pub waiting: usize,
}

impl Queue {
    pub(super) fn of(gate: &Arc<Gate>) -> Self {
        Self(gate.clone())
    }

    /// How many transfers there are of each priority.
    pub fn lengths(&self) -> [Length; 3] {
        let State { running, waiting } = &*self.0.lock();
        let length = |priority, running: &usize, waiting: &VecDeque<oneshot::Sender<Slot>>| {
            // Who stopped waiting is found when its turn comes.
            let waiting = waiting.iter().filter(|turn| !turn.is_closed()).count();
            Length { priority, running: *running, waiting }
        };
        [
            length("background", &running.background, &waiting.background),
            length("pack", &running.pack, &waiting.pack),
            length("demand", &running.demand, &waiting.demand),
        ]
    }
}

/// The right to fetch, until it is dropped.
pub struct Slot {
    gate: Arc<Gate>,
    priority: Priority,
}

impl Gate {
    /// A gate with `slots` of them, at least four.
    pub fn new(slots: usize) -> Arc<Self> {
        let (state, demand_ended) = (Mutex::default(), Notify::new());
        Arc::new(Self { slots: slots.max(4), state, demand_ended })
    }

    /// Waits for a slot. Who stops waiting loses nothing for the others.
    pub async fn enter(self: &Arc<Self>, priority: Priority) -> Slot {
        let turn = {
            let mut state = self.lock();
            if self.admits(&state, priority) {
                return self.slot(&mut state, priority);
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.of(priority).push_back(sender);
            turn
        };
        turn.await.expect("the gate outlives those who wait at it")
    }

    /// Waits until no demand fetch runs.
    pub async fn without_demand(&self) {
        loop {
            let ended = self.demand_ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.lock().running.demand == 0 {
                return;
            }
            ended.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits(&self, state: &State, priority: Priority) -> bool {
        let PerPriority { background, pack, demand } = &state.running;
        let all = background + pack + demand;
        match priority {
            Priority::Demand => all < self.slots,
            Priority::Pack => all < self.slots - self.slots.div_ceil(8),
            Priority::Background => *background < self.slots / 4 && all < self.slots * 3 / 4,
        }
    }

    fn slot(self: &Arc<Self>, state: &mut State, priority: Priority) -> Slot {
        *state.running.of(priority) += 1;
        Slot { gate: Arc::clone(self), priority }
    }

    /// Gives free slots to those who wait, the most urgent first.
    fn hand_out(self: &Arc<Self>) {
        for priority in [Priority::Demand, Priority::Pack, Priority::Background] {
            loop {
                let mut state = self.lock();
                if !self.admits(&state, priority) {
                    break;
                }
                let Some(next) = state.waiting.of(priority).pop_front() else { break };
                if next.is_closed() {
                    continue;
                }
                let slot = self.slot(&mut state, priority);
                // One who stopped waiting just now drops the slot, which comes back here.
                drop(state);
                drop(next.send(slot));
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.gate.lock().running.of(self.priority) -= 1;
        if self.priority == Priority::Demand {
            self.gate.demand_ended.notify_waiters();
        }
        self.gate.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const ALL: [Priority; 3] = [Priority::Background, Priority::Pack, Priority::Demand];

    fn fill(gate: &Arc<Gate>, priority: Priority) -> Vec<Slot> {
        std::iter::from_fn(|| gate.enter(priority).now_or_never()).collect()
    }

    #[test]
    fn the_less_urgent_leave_slots_to_the_more_urgent() {
        let gate = Gate::new(8);
        let background = fill(&gate, Priority::Background);
        assert_eq!(background.len(), 2);
        let pack = fill(&gate, Priority::Pack);
        assert_eq!(pack.len(), 5);
        let demand = fill(&gate, Priority::Demand);
        assert_eq!(demand.len(), 1);
        drop((background, pack, demand));
        let demand = fill(&gate, Priority::Demand);
        assert_eq!(demand.len(), 8);
        for priority in ALL {
            assert!(gate.enter(priority).now_or_never().is_none(), "{priority:?}");
        }
    }

    #[tokio::test]
    async fn demand_overtakes_those_who_wait_longer() {
        let gate = Gate::new(4);
        let slots = fill(&gate, Priority::Demand);
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for priority in ALL {
            let (gate, sender) = (Arc::clone(&gate), sender.clone());
            tokio::spawn(async move {
                let slot = gate.enter(priority).await;
                sender.send(priority).unwrap();
                drop(slot);
            });
            // They queue in this order.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for slot in slots {
            drop(slot);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut came = Vec::new();
        while let Ok(priority) = order.try_recv() {
            came.push(priority);
        }
        assert_eq!(came, [Priority::Demand, Priority::Pack, Priority::Background]);
    }

    #[tokio::test]
    async fn the_queues_tell_their_lengths() {
        let gate = Gate::new(4);
        let _slots = fill(&gate, Priority::Demand);
        let mut waiting = std::pin::pin!(gate.enter(Priority::Pack));
        assert!(waiting.as_mut().now_or_never().is_none());
        let lengths = Queue::of(&gate).lengths();
        let numbers = lengths.map(|length| (length.priority, length.running, length.waiting));
        assert_eq!(numbers, [("background", 0, 0), ("pack", 0, 1), ("demand", 4, 0)]);
    }

    #[tokio::test]
    async fn one_who_stops_waiting_blocks_nobody() {
        let gate = Gate::new(4);
        let mut slots = fill(&gate, Priority::Demand);
        let mut gone = Box::pin(gate.enter(Priority::Demand));
        assert!((&mut gone).now_or_never().is_none());
        let waiting = gate.enter(Priority::Demand);
        tokio::pin!(waiting);
        assert!((&mut waiting).now_or_never().is_none());
        // The first one has its turn and goes without having seen it.
        slots.pop();
        drop(gone);
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
    }

    #[tokio::test]
    async fn background_sees_when_demand_has_ended() {
        let gate = Gate::new(4);
        gate.without_demand().now_or_never().unwrap();
        let slot = gate.enter(Priority::Demand).await;
        let mut ended = Box::pin(gate.without_demand());
        assert!((&mut ended).now_or_never().is_none());
        drop(slot);
        tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    }
}
