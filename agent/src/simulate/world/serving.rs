//! What a node answers to others, as its [`Uploads`](crate::peer::uploads::Uploads) decide.

use super::{HOLD, Happening, PATIENCE, Phase, State, World};
use crate::peer::fetch::Event;
use crate::peer::uploads::{Answer, Have, Request};
use crate::simulate::Join;
use crate::simulate::arena::Key;

impl World<'_> {
    /// A request reaches its server.
    pub(super) fn arrive(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        let (server, sent) = (request.server, request.sent);
        if server == self.registry() {
            self.answer(key, Event::Answered { arriving: false });
            return self.flow(key);
        }
        if self.is_dead(server) {
            return self.agenda.enter(sent + PATIENCE, Happening::Reply(key, Event::Unreachable));
        }
        let joins_late = self.scenario.join != Join::Before;
        if joins_late && self.cast.actors[server].starts > self.now() {
            return self.answer(key, Event::Unreachable);
        }
        if self.consider(key) {
            self.agenda.enter_in(HOLD, Happening::Lapse(key));
        }
    }

    /// Answers a request, or keeps it until something of the piece has come; whether it is kept.
    pub(super) fn consider(&mut self, key: Key) -> bool {
        let now = self.now();
        let Some(request) = self.requests.get(key) else { return false };
        let Some(asker) = self.runs.get(request.run) else { return false };
        let (server, part, hop) = (request.server, asker.part, request.hop);
        let asked = Request {
            piece: self.cast.parts[part].digest,
            asker: self.cast.actors[asker.node].member.id,
            mode: request.mode,
            hop,
            tried: request.tried.clone(),
        };
        let have = self.have(server, part);
        match self.nodes[server].uploads.answer(&asked, have, now) {
            Answer::Serve => {
                self.answer(key, Event::Answered { arriving: have != Have::Whole });
                self.flow(key);
                return false;
            }
            Answer::Redirect(others) => self.answer(key, Event::Redirect(others)),
            Answer::Missing => self.answer(key, Event::Missing),
            Answer::Busy(pause) => self.answer(key, Event::Busy(pause)),
            Answer::Wait => return self.hold(key, server, part),
            Answer::Begin => {
                self.begin(server, part, hop + 1, false);
                return self.hold(key, server, part);
            }
        }
        false
    }

    fn have(&self, server: usize, part: usize) -> Have {
        match self.nodes[server].states[part] {
            State::Nothing => Have::Nothing,
            State::Whole => Have::Whole,
            State::Arriving(run) => {
                let run = self.runs.get(run).expect("what arrives has a run");
                Have::Arriving { begun: run.begun, from: run.fetch.asks() }
            }
        }
    }

    fn hold(&mut self, key: Key, server: usize, part: usize) -> bool {
        let State::Arriving(run) = self.nodes[server].states[part] else { return false };
        let run = self.runs.get_mut(run).expect("what arrives has a run");
        run.held.push(key);
        true
    }

    /// A request was kept long enough.
    pub(super) fn lapse(&mut self, key: Key) {
        let Some(request) = self.requests.get(key) else { return };
        if request.phase != Phase::Open || self.is_dead(request.server) {
            return;
        }
        let server = request.server;
        let Some(asker) = self.runs.get(request.run) else { return };
        if let State::Arriving(run) = self.nodes[server].states[asker.part] {
            let run = self.runs.get_mut(run).expect("what arrives has a run");
            run.held.retain(|held| *held != key);
        }
        self.answer(key, Event::Waiting);
    }

    /// Something of a piece has come: those who wait for it can be served.
    pub(super) fn first_bytes(&mut self, key: Key) {
        let Some(run) = self.runs.get_mut(key) else { return };
        run.begun = true;
        for held in std::mem::take(&mut run.held) {
            self.consider(held);
        }
    }

    /// Sends an answer on its way.
    pub(super) fn answer(&mut self, key: Key, event: Event) {
        let one_way = self.one_way();
        self.agenda.enter_in(one_way, Happening::Reply(key, event));
    }
}
