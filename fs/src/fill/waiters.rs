//! Those who wait while a run of spans is decoded.
//!
//! ```text
//! run of spans  |---- span 5 ----|---- span 6 ----|---- span 7 ----|
//! decoded so far ----------------------->|
//!                                ^       ^ the wanted units are here: the read is answered
//!                                `- span 5 is through: its turn goes to whoever waits for it
//! ```
//!
//! The read that asked for the run waits for its own units only. Other reads that miss one of its
//! spans wait for the span's turn, and find in the store what the span held.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{Content, FillError};
use crate::index::SpanTable;
use crate::object::ObjectKey;

/// The turns of spans, by their numbers and in order: nobody else fetches a span meanwhile.
#[derive(Default)]
pub struct Turns(pub VecDeque<(usize, OwnedMutexGuard<()>)>);

/// The units of a content that a read waits for.
pub struct WantedUnits {
    /// The content.
    pub key: ObjectKey,
    /// Its units.
    pub units: Vec<usize>,
}

/// The wanted units by number, as far as the run held them.
pub type Answer = Result<HashMap<usize, Bytes>, FillError>;

/// Those who wait for a run.
pub struct Waiters {
    /// What the read wants; `None` where it waits for the end of the run.
    wanted: Option<WantedUnits>,
    found: HashMap<usize, Bytes>,
    /// `None` once the read was answered.
    answer: Option<oneshot::Sender<Answer>>,
    /// The turns that are held, each with the position in the tar where its span ends.
    turns: VecDeque<(u64, OwnedMutexGuard<()>)>,
}

impl Waiters {
    /// Those who wait for a run whose spans have these `turns`: a read that wants what is `wanted`, or
    /// the end of the run, and whoever waits for one of the turns. Also where the read is answered.
    pub fn new(
        table: &SpanTable,
        wanted: Option<WantedUnits>,
        turns: Turns,
    ) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        // Numbers that are no span's stand for the layer: they are held until the run is decoded.
        let end = |span| if span < table.count() { table.output(span).end } else { u64::MAX };
        let turns = turns.0.into_iter().map(|(span, turn)| (end(span), turn)).collect();
        (Self { wanted, found: HashMap::new(), answer: Some(answer), turns }, answered)
    }

    /// Whether the read waits for `unit` of `content`.
    pub fn wants(&self, content: &Content, unit: usize) -> bool {
        let is_it =
            |wanted: &WantedUnits| wanted.key == content.key && wanted.units.contains(&unit);
        self.answer.is_some() && self.wanted.as_ref().is_some_and(is_it)
    }

    /// Notes that a wanted unit is here. Returns whether all of them are.
    pub fn found(&mut self, unit: usize, bytes: Bytes) -> bool {
        self.found.insert(unit, bytes);
        self.wanted.as_ref().is_some_and(|wanted| self.found.len() == wanted.units.len())
    }

    /// Answers the read, unless that was done.
    pub fn answer(&mut self) {
        if let Some(answer) = self.answer.take() {
            // The read may have been given up.
            let _ = answer.send(Ok(std::mem::take(&mut self.found)));
        }
    }

    /// Whether the turn of a span is held that ends in the tar at `position` or before.
    pub fn is_awaited(&self, position: u64) -> bool {
        self.turns.front().is_some_and(|(end, _)| *end <= position)
    }

    /// Gives up the turns of all spans that end at `position` or before: whatever they held can be read.
    pub fn passed(&mut self, position: u64) {
        while self.is_awaited(position) {
            self.turns.pop_front();
        }
    }

    /// Answers the read, unless that was done, and gives up all turns.
    ///
    /// # Errors
    /// That of `outcome`, where the read was answered before it happened.
    pub fn finish(mut self, outcome: Result<(), FillError>) -> Result<(), FillError> {
        match (self.answer.take(), outcome) {
            (Some(answer), outcome) => {
                // The read may have been given up.
                let _ = answer.send(outcome.map(|()| self.found));
                Ok(())
            }
            (None, outcome) => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write as _};
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Duration;

    use super::super::Layer;
    use super::super::extract::extract;
    use super::super::write_behind::WriteBehind;
    use super::*;
    use crate::index::{Backing, LayerTree, SpanTable};
    use crate::layer::Indexer;
    use crate::object::{Store, StoreLimits};
    use crate::source::Scope;

    /// A file's size: three of them fill a span.
    const SIZE: usize = 400_000;

    /// Bytes that arrive up to a place, and the others when somebody lets them.
    struct Stalling {
        bytes: io::Cursor<Vec<u8>>,
        stall: u64,
        go_on: Receiver<()>,
    }

    impl Read for Stalling {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.bytes.position() >= self.stall {
                self.stall = u64::MAX;
                self.go_on.recv_timeout(Duration::from_secs(60)).map_err(io::Error::other)?;
            }
            let left = usize::try_from(self.stall - self.bytes.position()).unwrap_or(usize::MAX);
            let length = buffer.len().min(left);
            self.bytes.read(&mut buffer[..length])
        }
    }

    fn tar(files: u8) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..files {
            let mut header = tar::Header::new_gnu();
            header.set_size(SIZE as u64);
            builder.append_data(&mut header, format!("{number}"), &vec![number; SIZE][..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn key(number: u8) -> ObjectKey {
        ObjectKey::small(&vec![number; SIZE])
    }

    #[tokio::test]
    async fn who_waits_is_served_while_the_rest_is_still_on_its_way() {
        let bytes = tar(9);
        let mut indexer = Indexer::new();
        indexer.write_all(&bytes).unwrap();
        let index = indexer.finish().unwrap();
        let tree = Arc::new(LayerTree::new(Backing::sealed(&index.tree).unwrap()).unwrap());
        let table = SpanTable::new(Backing::sealed(&index.spans).unwrap()).unwrap();
        assert!(table.count() > 2, "{} spans", table.count());
        let layer = Layer::new(tree.clone(), Scope::new("registry/image"));
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(root.path(), StoreLimits::default()).unwrap());
        let behind = WriteBehind::new(store.clone());

        let turns = layer.turns(0..table.count()).await;
        let wanted = WantedUnits { key: key(1), units: vec![0] };
        let (mut waiters, answer) = Waiters::new(&table, Some(wanted), turns);
        let (let_go, go_on) = channel();
        let range = 0..bytes.len() as u64;
        // In the middle of the file behind the first span.
        let stall = table.output(1).start + SIZE as u64;
        let mut reader = Stalling { bytes: io::Cursor::new(bytes), stall, go_on };
        let decoding = thread::spawn(move || {
            let outcome = extract(&tree, &behind, range, &mut reader, &mut waiters);
            waiters.finish(Ok(())).unwrap();
            outcome
        });

        assert_eq!(answer.await.unwrap().unwrap()[&0], vec![1; SIZE]);
        drop(layer.turns([0]).await);
        assert!(store.holds(&key(0)) && store.holds(&key(2)), "what the first span holds");
        let second = layer.turns([1]);
        let early = tokio::time::timeout(Duration::from_millis(50), second).await;
        assert!(early.is_err(), "the second span is not through");
        let_go.send(()).unwrap();
        drop(layer.turns(0..table.count()).await);
        decoding.join().unwrap().unwrap();
        assert!((0..9).all(|number| store.holds(&key(number))));
    }
}
