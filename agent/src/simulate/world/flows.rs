//! How bytes get from one node to another, and what becomes of them when one goes away.

use super::{Happening, PATIENCE, Phase, State, World};
use crate::peer::fetch::Event;
use crate::simulate::arena::Key;

impl World<'_> {
    /// A server begins to send.
    pub(super) fn flow(&mut self, key: Key) {
        let now = self.now();
        let Some(request) = self.requests.get_mut(key) else {
            return;
        };
        (request.phase, request.begun) = (Phase::Flowing, now);
        let (server, offset) = (request.server, request.offset);
        let size = self.size(key);
        self.ports[server].uplink.begin(now, key.number(), size - offset);
        self.expect_flow(server);
    }

    fn size(&self, request: Key) -> u64 {
        let run = self.requests.get(request).and_then(|request| self.runs.get(request.run));
        run.map_or(0, |run| self.cast.parts[run.part].size)
    }

    /// Sees to it that somebody looks when the next flow will leave, as things are now. It may
    /// leave later, when others have come; then it is looked again.
    fn expect_flow(&mut self, server: usize) {
        let now = self.now();
        let port = &mut self.ports[server];
        let Some(end) = port.uplink.next_end(now) else {
            return;
        };
        if port.look.is_none_or(|look| end < look) {
            port.look = Some(end);
            self.agenda.enter(end, Happening::Flowed(server));
        }
    }

    pub(super) fn flowed(&mut self, server: usize) {
        let now = self.now();
        // It was arranged later that somebody looks earlier.
        if self.ports[server].look != Some(now) || self.is_dead(server) {
            return;
        }
        self.ports[server].look = None;
        while let Some(flow) = self.ports[server].uplink.ended(now) {
            self.left(server, Key::of(flow));
        }
        self.expect_flow(server);
    }

    /// All that the server had to send of its own has left.
    fn left(&mut self, server: usize, key: Key) {
        let Some(request) = self.requests.get_mut(key) else {
            return;
        };
        request.phase = Phase::Following;
        let Some(part) = self.runs.get(request.run).map(|run| run.part) else {
            return;
        };
        if let Some(State::Arriving(source)) = self.nodes.get(server).map(|n| n.states[part]) {
            let source = self.runs.get_mut(source).expect("what arrives has a run");
            return source.followers.push(key);
        }
        self.deliver(key);
    }

    /// The server has sent everything.
    pub(super) fn deliver(&mut self, key: Key) {
        let (now, one_way, size) = (self.now(), self.one_way(), self.size(key));
        let Some(request) = self.requests.get_mut(key) else {
            return;
        };
        let Some(run) = self.runs.get(request.run) else {
            return;
        };
        request.phase = Phase::Arriving;
        let downlink = &mut self.nodes[run.node].downlink;
        let here = downlink.deliver(request.begun, now, size - request.offset) + one_way;
        self.agenda.enter(here, Happening::Here(key));
    }

    pub(super) fn here(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else {
            return;
        };
        let (rest, run) = (self.size(key) - request.offset - request.reported, request.run);
        if self.runs.get(run).is_none_or(|run| self.nodes[run.node].dead) {
            return;
        }
        self.tell(run, Event::Bytes(rest));
        self.finish(run);
    }

    /// Bytes of a request that have come so far.
    pub(super) fn progress(&mut self, key: Key) -> u64 {
        let now = self.now();
        let Some(request) = self.requests.get(key) else {
            return 0;
        };
        let (server, offset, reported) = (request.server, request.offset, request.reported);
        if self.is_dead(server) {
            return reported;
        }
        let sent = match request.phase {
            Phase::Open => 0,
            Phase::Flowing => self.ports[server].uplink.sent(now, key.number()).unwrap_or(0),
            // The last byte is told of when it is here.
            Phase::Following | Phase::Arriving => (self.size(key) - offset).saturating_sub(1),
        };
        let Some(part) = self.runs.get(request.run).map(|run| run.part) else {
            return 0;
        };
        let source = match self.nodes.get(server).map(|node| node.states[part]) {
            Some(State::Arriving(source)) => self.runs.get(source),
            _ => None,
        };
        // Nobody passes on more than it has.
        let there = source.map_or(u64::MAX, |source| source.fetch.received());
        sent.min(there.saturating_sub(offset)).max(reported)
    }

    /// Ends the present request of a fetch, if it has one: the connection is closed.
    pub(super) fn drop_request(&mut self, run: Key) {
        let Some(request) = self.runs.get_mut(run).and_then(|run| run.request.take()) else {
            return;
        };
        let now = self.now();
        let Some(found) = self.requests.remove(request) else {
            return;
        };
        let Some(run) = self.runs.get(found.run) else {
            return;
        };
        let (place, part) = (run.node, run.part);
        if found.phase == Phase::Flowing && !self.is_dead(found.server) {
            self.ports[found.server].uplink.break_off(now, request.number());
            self.expect_flow(found.server);
        }
        if found.server == self.registry() {
            return self.leave_registry(place, request);
        }
        if found.phase != Phase::Open {
            let asker = self.cast.actors[place].member.id;
            self.nodes[found.server].uploads.ended(&asker);
        }
        if let State::Arriving(source) = self.nodes[found.server].states[part] {
            let source = self.runs.get_mut(source).expect("what arrives has a run");
            source.held.retain(|held| *held != request);
            source.followers.retain(|follower| *follower != request);
        }
    }

    fn leave_registry(&mut self, place: usize, request: Key) {
        let queue = &mut self.nodes[place].registry_queue;
        let before = queue.len();
        queue.retain(|queued| *queued != request);
        if queue.len() == before {
            self.registry_slot_free(place);
        }
    }

    /// The server closes the connection of a request before its end.
    pub(super) fn break_off(&mut self, key: Key) {
        self.answer(key, Event::Broken);
    }

    /// A node dies: who it serves hears nothing more, who serves it stops.
    pub(super) fn die(&mut self, place: usize) {
        self.nodes[place].dead = true;
        for part in 0..self.cast.parts.len() {
            let State::Arriving(key) = self.nodes[place].states[part] else {
                continue;
            };
            self.drop_request(key);
            let run = self.runs.get_mut(key).expect("what arrives has a run");
            for held in std::mem::take(&mut run.held) {
                let Some(request) = self.requests.get(held) else {
                    continue;
                };
                let at = request.sent + PATIENCE;
                self.agenda.enter(at, Happening::Reply(held, Event::NoAnswer));
            }
        }
    }
}
