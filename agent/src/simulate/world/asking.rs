//! What a node wants and whom it asks: its fetches, driven by [`Fetch`].

use super::{AGAIN, Happening, Node, Phase, Request, Run, State, World};
use crate::peer::fetch::{Action, Event, Fetch, Mode, TICK};
use crate::simulate::arena::Key;

impl World<'_> {
    /// Begins with as many pieces as the node's window has room for.
    pub(super) fn want(&mut self, place: usize) {
        while !self.nodes[place].dead {
            let node = &mut self.nodes[place];
            let working = node.working_left > 0;
            let window = if working { self.scenario.window } else { self.scenario.background };
            let end = if working { self.cast.working } else { node.order.len() };
            if node.running >= window || node.begun >= end {
                return;
            }
            let part = node.order[node.begun] as usize;
            node.begun += 1;
            match node.states[part] {
                State::Whole => {}
                State::Nothing => {
                    node.running += 1;
                    self.begin(place, part, 0, true);
                }
                // It is fetched for somebody else already.
                State::Arriving(run) => {
                    let run = self.runs.get_mut(run).expect("what arrives has a run");
                    node.running += usize::from(!run.own);
                    run.own = true;
                }
            }
        }
    }

    pub(super) fn want_again(&mut self, place: usize, part: usize) {
        match self.nodes[place].states[part] {
            State::Nothing if !self.nodes[place].dead => {
                self.begin(place, part, 0, true);
            }
            State::Arriving(run) => {
                let run = self.runs.get_mut(run).expect("what arrives has a run");
                self.nodes[place].running -= usize::from(run.own);
                run.own = true;
            }
            _ => self.nodes[place].running -= 1,
        }
    }

    /// Begins to fetch a piece, in the name of a request that was passed on `hop` times.
    pub(super) fn begin(&mut self, place: usize, part: usize, hop: u8, own: bool) -> Key {
        let now = self.now();
        let ranking = match self.uses_peers() {
            true => self.views.ranking(&self.cast, place, part, now),
            false => Vec::new(),
        };
        let id = self.cast.actors[place].member.id;
        let mut fetch = Fetch::new(id, &ranking, hop, self.random.number());
        let action = fetch.start(now, &mut self.nodes[place].standing);
        let key = self.runs.insert(Run {
            fetch,
            node: place,
            part,
            hop,
            own,
            request: None,
            begun: false,
            pauses: 0,
            paused: false,
            held: Vec::new(),
            followers: Vec::new(),
        });
        self.nodes[place].states[part] = State::Arriving(key);
        self.agenda.enter_in(TICK, Happening::Tick(key));
        self.carry_out(key, action);
        key
    }

    fn carry_out(&mut self, key: Key, action: Action) {
        self.drop_request(key);
        let Some(run) = self.runs.get_mut(key) else { return };
        run.paused = false;
        let (server, mode, hop, tried, offset) = match action {
            Action::Ask(ask) => {
                self.counts.asked += 1;
                let server = self.views.place(&ask.member);
                (server, ask.mode, ask.hop, ask.tried, ask.offset)
            }
            Action::Registry { offset } => {
                (self.nodes.len(), Mode::Owner, run.hop, Vec::new(), offset)
            }
            Action::Pause(until) => {
                (run.paused, run.pauses) = (true, run.pauses + 1);
                let pause = run.pauses;
                return self.agenda.enter(until, Happening::Resume(key, pause));
            }
            Action::GiveUp => return self.give_up(key),
        };
        let (sent, place) = (self.agenda.now(), run.node);
        let request = Request {
            run: key,
            server,
            mode,
            hop,
            tried,
            offset,
            sent,
            begun: sent,
            reported: 0,
            phase: Phase::Open,
        };
        let request = self.requests.insert(request);
        run.request = Some(request);
        if server == self.registry() {
            return self.ask_registry(place, request);
        }
        let one_way = self.one_way();
        self.agenda.enter_in(one_way, Happening::Arrive(request));
    }

    /// Asks the registry once there is a slot.
    fn ask_registry(&mut self, place: usize, request: Key) {
        let one_way = self.one_way();
        let node = &mut self.nodes[place];
        if node.registry_running >= super::REGISTRY_SLOTS {
            return node.registry_queue.push_back(request);
        }
        node.registry_running += 1;
        self.agenda.enter_in(one_way, Happening::Arrive(request));
    }

    /// A slot to the registry is free.
    pub(super) fn registry_slot_free(&mut self, place: usize) {
        let one_way = self.one_way();
        let node = &mut self.nodes[place];
        node.registry_running -= 1;
        while let Some(next) = node.registry_queue.pop_front() {
            if self.requests.get(next).is_some() {
                node.registry_running += 1;
                return self.agenda.enter_in(one_way, Happening::Arrive(next));
            }
        }
    }

    /// Something reaches the node that asked.
    pub(super) fn reply(&mut self, request: Key, event: Event) {
        let Some(found) = self.requests.get(request) else { return };
        let key = found.run;
        if matches!(event, Event::Answered { .. }) {
            self.tell(key, event);
            return self.first_bytes(key);
        }
        match event {
            Event::Redirect(_) => self.counts.redirected += 1,
            Event::NoAnswer | Event::Unreachable => self.counts.unanswered += 1,
            _ => {}
        }
        self.tell(key, event);
    }

    /// Tells a fetch what happened, and does what it says.
    pub(super) fn tell(&mut self, key: Key, event: Event) {
        let now = self.now();
        let Some(run) = self.runs.get_mut(key) else { return };
        let Node { standing, dead, .. } = &mut self.nodes[run.node];
        if *dead {
            return;
        }
        if let Some(action) = run.fetch.on(event, now, standing) {
            self.carry_out(key, action);
        }
    }

    pub(super) fn resume(&mut self, key: Key, pause: u32) {
        if self.runs.get(key).is_some_and(|run| run.paused && run.pauses == pause) {
            self.tell(key, Event::Tick);
        }
    }

    /// Tells a fetch what has come since the last time, and that time went by.
    pub(super) fn tick(&mut self, key: Key) {
        let Some(run) = self.runs.get(key) else { return };
        if self.nodes[run.node].dead {
            return;
        }
        if !run.paused {
            if let Some(request) = run.request {
                self.report(request);
            }
            self.tell(key, Event::Tick);
        }
        if self.runs.get(key).is_some() {
            self.agenda.enter_in(TICK, Happening::Tick(key));
        }
    }

    /// Tells a fetch how much of its present request has come.
    fn report(&mut self, request: Key) {
        let come = self.progress(request);
        let Some(found) = self.requests.get_mut(request) else { return };
        let (more, run) = (come.saturating_sub(found.reported), found.run);
        if more > 0 {
            found.reported = come;
            self.tell(run, Event::Bytes(more));
        }
    }

    /// The piece is here.
    pub(super) fn finish(&mut self, key: Key) {
        self.drop_request(key);
        let Some(run) = self.runs.remove(key) else { return };
        let now = self.now();
        let started = self.cast.actors[run.node].starts;
        let node = &mut self.nodes[run.node];
        run.fetch.finished(&mut node.standing);
        node.states[run.part] = State::Whole;
        node.running -= usize::from(run.own);
        node.left -= 1;
        if run.part < self.cast.working {
            node.working_left -= 1;
            if node.working_left == 0 {
                node.result.working = Some(now.saturating_sub(started));
            }
        }
        if node.left == 0 {
            node.result.all = Some(now.saturating_sub(started));
        }
        for follower in run.followers {
            self.deliver(follower);
        }
        for held in run.held {
            self.consider(held);
        }
        self.want_if_started(run.node);
    }

    fn want_if_started(&mut self, place: usize) {
        if self.cast.actors[place].starts <= self.now() {
            self.want(place);
        }
    }

    /// Nobody has the piece.
    fn give_up(&mut self, key: Key) {
        let Some(run) = self.runs.remove(key) else { return };
        self.counts.failed += 1;
        self.nodes[run.node].states[run.part] = State::Nothing;
        for request in run.held {
            self.answer(request, Event::Missing);
        }
        for follower in run.followers {
            self.break_off(follower);
        }
        if run.own {
            self.agenda.enter_in(AGAIN, Happening::Again(run.node, run.part));
        }
    }
}
