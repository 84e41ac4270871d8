//! Carries out what a [`Fetch`] decides for one piece.
//!
//! ```text
//! Fetch::start -> Action -> Ask: a peer | Registry | Pause -> Event -> Fetch::on -> Action ...
//!                             ` all bytes here -> digest right: keep the piece
//!                                                   ` wrong: Event::Wrong
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::time::{sleep, timeout};
use undermount_fs::digest::{Verified, WrongDigest};
use undermount_fs::source::SourceError;

use super::Exchange;
use crate::blocking::blocking;
use crate::peer::arriving::Arriving;
use crate::peer::client::Reply;
use crate::peer::fetch::{Action, Ask, Event, Fetch, RANKS, TICK};
use crate::peer::member::MemberId;
use crate::peer::pieces::{Keeping, PieceKey};
use crate::peer::placement::{PROTOCOL, ranking};
use crate::peer::wanted::{PieceCall, Wanted};

/// How long a transfer may take in all, whoever waits for it.
const LONGEST: Duration = Duration::from_secs(300);
/// The most bytes that are hashed without moving to a thread that may block.
const INLINE: u64 = 256 << 10;

/// A piece on its way here, in the hands of its task.
pub(super) struct Transfer {
    exchange: Exchange,
    key: PieceKey,
    wanted: Wanted,
    /// How often the request was passed on.
    hop: u8,
    piece: Arc<Arriving>,
    fetch: Fetch,
    ranking: Vec<MemberId>,
    /// Why the last source did not deliver.
    failure: Option<SourceError>,
}

impl Transfer {
    /// A transfer of `wanted`, in the name of a request that was passed on `hop` times.
    pub fn new(
        exchange: Exchange,
        key: PieceKey,
        wanted: Wanted,
        piece: Arc<Arriving>,
        hop: u8,
    ) -> Self {
        let own = exchange.roster().own;
        let members = exchange.roster().members();
        let ranking = ranking(&wanted.piece.digest, &members, &PROTOCOL, RANKS);
        // Nodes that fetch the same piece choose differently.
        let seed = exchange.now().as_nanos() as u64 ^ u64::from(own.as_bytes()[0]) << 56;
        let fetch = Fetch::new(own, &ranking, hop, seed);
        Self { exchange, key, wanted, hop, piece, fetch, ranking, failure: None }
    }

    /// Fetches the piece, keeps it, and lets all know who wait for it.
    pub async fn carry_out(mut self) {
        let fetched = timeout(LONGEST, self.run()).await;
        match fetched.unwrap_or_else(|_| Err(self.late())) {
            Ok(piece) => self.keep(piece).await,
            Err(error) => {
                // Removed first: a request from now on begins another transfer.
                self.exchange.arriving().remove(&self.key);
                self.piece.fail(error);
            }
        }
    }

    async fn keep(self, piece: Verified) {
        self.piece.complete(piece.clone());
        let keeping = self.keeping();
        let Self { exchange, key, .. } = self;
        let keeper = exchange.clone();
        // Requests find it among the arriving pieces until it is on disk.
        let size = piece.bytes().len() as u64;
        let kept =
            tokio::task::spawn_blocking(move || keeper.pieces().put(&key, &piece, keeping)).await;
        if let Ok(true) = kept {
            exchange.arriving().remove(&key);
        } else {
            exchange.leave_in_memory(key, size);
        }
    }

    /// Whether this node owns the piece: it does unless a member ranks higher that is not left
    /// alone.
    fn keeping(&self) -> Keeping {
        let (own, now) = (self.exchange.roster().own, self.exchange.now());
        let standing = self.exchange.standing();
        let owner = self.ranking.iter().find(|member| !standing.shuns(member, now));
        if owner == Some(&own) { Keeping::Own } else { Keeping::Held }
    }

    async fn run(&mut self) -> Result<Verified, SourceError> {
        let mut action = self.fetch.start(self.exchange.now(), &mut self.exchange.standing());
        loop {
            self.piece.asked(self.fetch.asks());
            if self.fetch.received() == 0 {
                self.piece.begin_anew();
            }
            let event = match action {
                Action::Ask(ask) => self.ask(ask).await,
                Action::Registry { offset } => self.read_registry(offset).await,
                Action::Pause(until) => {
                    sleep(self.exchange.until(until)).await;
                    Ended::Next(self.tell(Event::Tick))
                }
                Action::GiveUp => {
                    return Err(self.failure.take().unwrap_or_else(|| self.missing()));
                }
            };
            action = match event {
                Ended::Whole(piece) => return Ok(piece),
                Ended::Next(Some(action)) => action,
                // The plan has nothing to add, though the source has ended.
                Ended::Next(None) => Action::GiveUp,
            };
        }
    }

    fn tell(&mut self, event: Event) -> Option<Action> {
        self.fetch.on(event, self.exchange.now(), &mut self.exchange.standing())
    }

    async fn ask(&mut self, ask: Ask) -> Ended {
        let member = ask.member;
        let members = self.exchange.roster().members();
        let Some(peer) = members.get(&member) else {
            let next = self.tell(Event::Unreachable);
            // A peer may have invented the id, and it could invent any number of them.
            let known = |member: &MemberId| members.get(member).is_some();
            self.exchange.standing().retain(known, self.exchange.now());
            return Ended::Next(next);
        };
        let now = std::time::SystemTime::now();
        let ticket = self.exchange.realms().ticket(&self.wanted.scope, member, now).await;
        let call = PieceCall::new(&self.wanted, &ask);
        match self.exchange.client().ask(peer, &call, ticket).await {
            Reply::Sends { arriving, body } => {
                self.tell(Event::Answered { arriving });
                self.receive(member, body).await
            }
            Reply::Says(event) => Ended::Next(self.tell(event)),
            Reply::Lies(words) => self.convict(member, words),
        }
    }

    /// Receives what a peer sends until its end, or until the plan says otherwise.
    async fn receive(
        &mut self,
        member: MemberId,
        mut body: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    ) -> Ended {
        loop {
            let event = match timeout(TICK, body.next()).await {
                Ok(Some(Ok(bytes))) => match self.take(bytes) {
                    Ok(event) => event,
                    Err(words) => return self.convict(member, words),
                },
                Ok(None) if self.is_whole() => return self.finish(Some(member)).await,
                Ok(None | Some(Err(_))) => Event::Broken,
                Err(_) => Event::Tick,
            };
            let ends = event == Event::Broken;
            let mut next = self.tell(event);
            if !ends && self.is_whole() {
                return self.finish(Some(member)).await;
            }
            if next.is_none() && !ends {
                next = self.tell(Event::Tick);
            }
            if next.is_some() || ends {
                return Ended::Next(next);
            }
        }
    }

    /// Adds bytes; an error in words where the piece does not have so many.
    fn take(&mut self, bytes: Bytes) -> Result<Event, String> {
        let length = bytes.len() as u64;
        if self.fetch.received() + length > self.wanted.size() {
            return Err(format!("sent more than {} bytes", self.wanted.size()));
        }
        self.piece.append(bytes);
        Ok(Event::Bytes(length))
    }

    fn is_whole(&self) -> bool {
        self.fetch.received() == self.wanted.size()
    }

    async fn read_registry(&mut self, offset: u64) -> Ended {
        let (now, scope) = (self.exchange.now(), self.wanted.scope.clone());
        if let Some(error) = self.exchange.0.outages.present(&scope, now).filter(|_| self.hop > 0) {
            return self.registry_failed(error);
        }
        let origin = self.exchange.origin().clone();
        let mut stream = match origin.read(&self.wanted, offset).await {
            Ok(stream) => stream,
            Err(error) => {
                self.exchange.0.outages.note(&scope, &error, self.exchange.now());
                return self.registry_failed(error);
            }
        };
        self.exchange.0.outages.end(&scope);
        while let Some(chunk) = stream.next().await {
            let taken = match chunk {
                Ok(bytes) => self.take(bytes),
                Err(error) => return self.registry_failed(error),
            };
            match taken {
                Ok(event) => {
                    if let Event::Bytes(count) = event {
                        self.exchange.counters().registry.add(count);
                    }
                    self.tell(event);
                }
                Err(words) => return Ended::Next(self.wrong(words)),
            }
        }
        if self.is_whole() {
            return self.finish(None).await;
        }
        let reason = format!("{} of {} bytes came", self.fetch.received(), self.wanted.size());
        let error =
            SourceError::Wrong { origin: self.scope(), blob: self.wanted.piece.blob, reason };
        self.registry_failed(error)
    }

    fn registry_failed(&mut self, error: SourceError) -> Ended {
        self.failure = Some(error);
        Ended::Next(self.tell(Event::RegistryFailed))
    }

    /// Checks the digest, once all bytes are here.
    async fn finish(&mut self, from: Option<MemberId>) -> Ended {
        match check(self.piece.joined(), &self.wanted).await {
            Ok(piece) => {
                self.fetch.finished(&mut self.exchange.standing());
                let counters = self.exchange.counters();
                match from {
                    Some(_) => {
                        counters.peer.count(self.wanted.size());
                        self.exchange.origin().brought(&self.wanted.scope, self.wanted.size());
                    }
                    // Its bytes were counted as they arrived.
                    None => counters.registry.count(0),
                }
                Ended::Whole(piece)
            }
            Err(error) => Ended::Next(self.wrong(error.to_string())),
        }
    }

    /// Starts over after wrong bytes, whoever is to blame.
    fn wrong(&mut self, words: String) -> Option<Action> {
        tracing::warn!(piece = %self.wanted.piece.digest, scope = %self.wanted.scope, words,
            "wrong bytes");
        let (origin, blob) = (self.scope(), self.wanted.piece.blob);
        self.failure = Some(SourceError::Wrong { origin, blob, reason: words.clone() });
        self.tell(Event::Wrong(words))
    }

    /// Bans `member`, which did what no honest node does. What it sent before stays: the digest
    /// will tell.
    fn convict(&mut self, member: MemberId, words: String) -> Ended {
        tracing::warn!(%member, words, "a peer lies");
        self.exchange.standing().lied(member, words, self.exchange.now());
        Ended::Next(self.tell(Event::Missing))
    }

    fn scope(&self) -> String {
        self.wanted.scope.to_string()
    }

    fn late(&self) -> SourceError {
        SourceError::Deadline { origin: self.scope(), blob: self.wanted.piece.blob }
    }

    fn missing(&self) -> SourceError {
        SourceError::NotFound { origin: self.scope(), blob: self.wanted.piece.blob }
    }
}

/// How the asking of one source ended.
enum Ended {
    /// With the whole piece.
    Whole(Verified),
    /// With something else to do.
    Next(Option<Action>),
}

async fn check(bytes: Bytes, wanted: &Wanted) -> Result<Verified, WrongDigest> {
    let digest = wanted.piece.digest;
    if wanted.size() <= INLINE {
        return Verified::check(bytes, &digest);
    }
    blocking(move || Verified::check(bytes, &digest)).await
}
