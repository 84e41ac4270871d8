//! Who waits while a run of spans is decoded: the read that asked for it, which is answered as soon
//! as its own bytes are here, and others, whose turn comes span by span.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::{Content, FillError};
use crate::index::SpanTable;
use crate::object::ObjectKey;

/// The turns of spans, in order: nobody else fetches them.
#[derive(Default)]
pub struct Turns(pub VecDeque<(usize, OwnedMutexGuard<()>)>);

/// Units of a content that a read waits for.
pub struct WantedUnits {
    /// The content.
    pub key: ObjectKey,
    /// Its units.
    pub units: Vec<usize>,
}

/// The units that a read gets; those that the run does not hold are not among them.
pub type Answer = Result<HashMap<usize, Bytes>, FillError>;

/// Who waits for a run.
pub struct Waiters {
    wanted: Option<WantedUnits>,
    found: HashMap<usize, Bytes>,
    answer: Option<oneshot::Sender<Answer>>,
    /// Where in the tar the spans end whose turns are held.
    turns: VecDeque<(u64, OwnedMutexGuard<()>)>,
}

impl Waiters {
    /// A read that has the `turns` of the run's spans and waits for what is `wanted`, or for the
    /// end of the run; and where it gets its answer.
    pub fn new(
        table: &SpanTable,
        wanted: Option<WantedUnits>,
        turns: Turns,
    ) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        // What is no span is held until all are decoded.
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

    /// Notes that a wanted unit is here; whether all of them are.
    pub fn found(&mut self, unit: usize, bytes: Bytes) -> bool {
        self.found.insert(unit, bytes);
        self.wanted.as_ref().is_some_and(|wanted| self.found.len() == wanted.units.len())
    }

    /// Answers the read.
    pub fn answer(&mut self) {
        if let Some(answer) = self.answer.take() {
            // Nobody may wait any more.
            let _ = answer.send(Ok(std::mem::take(&mut self.found)));
        }
    }

    /// Whether somebody else may wait for what ends in the tar at `position` or before.
    pub fn is_awaited(&self, position: u64) -> bool {
        self.turns.front().is_some_and(|(end, _)| *end <= position)
    }

    /// Gives the turns back of spans that end at `position` or before: what they hold is here.
    pub fn passed(&mut self, position: u64) {
        while self.is_awaited(position) {
            self.turns.pop_front();
        }
    }

    /// Answers the read if it still waits, and gives all turns back. An error that comes too late
    /// is returned.
    pub fn finish(mut self, outcome: Result<(), FillError>) -> Result<(), FillError> {
        match (self.answer.take(), outcome) {
            (Some(answer), outcome) => {
                // Nobody may wait any more.
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
    use super::super::behind::Behind;
    use super::super::extract::extract;
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
        let behind = Behind::new(store.clone());

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
