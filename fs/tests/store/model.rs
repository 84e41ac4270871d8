//! Random operations on a store with a tiny quota beside a model of it: whatever is read is
//! right, what nobody took away is there, the quota holds, and nothing is left over at the end.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use undermount_fs::object::{Store, StoreLimits};

use super::Content;
use super::damage::DAMAGES;

const OPERATIONS: usize = 200_000;
const QUOTA: u64 = 6 << 20;

/// Numbers that look random and are the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// Three small contents for each large one would leave no time: large ones are rare.
fn contents() -> Vec<Content> {
    let small = (0..400).map(|seed| Content::of(seed + 1, (seed * 37 % 6000) as usize));
    let large =
        (0..4).map(|seed| Content::of(seed + 1000, (1 << 20) + 1 + seed as usize * 700_000));
    small.chain(large).collect()
}

struct World {
    root: tempfile::TempDir,
    store: Store,
    contents: Vec<Content>,
    /// Units (content, chunk) that were kept and that neither damage nor eviction took away.
    here: HashSet<(usize, usize)>,
    evicted: u64,
    hits: usize,
}

impl World {
    fn open(root: &Path) -> Store {
        let limits = StoreLimits { quota: Some(QUOTA), ..StoreLimits::default() };
        Store::open(root, limits).unwrap()
    }

    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Self::open(root.path());
        let (here, contents) = (HashSet::new(), contents());
        Self { root, store, contents, here, evicted: 0, hits: 0 }
    }

    fn keep(&mut self, content: usize, chunk: usize) {
        let kept = self.contents[content].keep(&self.store, chunk);
        assert!(kept.is_ok(), "{kept:?} {:?}", self.store.usage());
        if self.store.usage().evicted > self.evicted {
            self.evicted = self.store.usage().evicted;
            // What went is the store's choice: whatever is gone from the disk.
            let root = self.root.path();
            let contents = &self.contents;
            self.here.retain(|(content, _)| {
                contents[*content].places(root).iter().any(|path| path.is_file())
            });
        }
        self.here.insert((content, chunk));
    }

    fn read(&mut self, content: usize, chunk: usize) {
        let found = self.contents[content].is_read(&self.store, chunk);
        let expected = self.here.contains(&(content, chunk));
        assert_eq!(found, expected, "content {content}, chunk {chunk}");
        self.hits += usize::from(found);
    }

    fn damage(&mut self, content: usize, how: usize) {
        let places = self.contents[content].places(self.root.path());
        let Some(path) = places.iter().find(|path| path.is_file()) else { return };
        let (what, damage) = DAMAGES[how];
        if path.metadata().unwrap().len() == 0 {
            return;
        }
        damage(path);
        // Which chunks of a large object survive depends on the damage: the store tells, and
        // `is_read` holds the bytes against what they should be.
        let store = Self::open(self.root.path());
        let damaged = &self.contents[content];
        self.here.retain(|&(other, chunk)| other != content || damaged.is_read(&store, chunk));
        let is_small = damaged.chunks.is_empty();
        assert!(!is_small || !self.here.contains(&(content, 0)), "{what} was not noticed");
    }

    fn reopen(&mut self) {
        self.store = Self::open(self.root.path());
        self.evicted = 0;
    }

    fn step(&mut self, chance: &mut Chance) {
        let content = match chance.below(100) {
            0 => 400 + chance.below(4),
            _ => chance.below(400),
        };
        let chunk = chance.below(self.contents[content].chunks.len().max(1));
        match chance.below(1000) {
            0 => self.reopen(),
            1..=9 => self.damage(content, chance.below(DAMAGES.len())),
            10..=449 => self.keep(content, chunk),
            _ => self.read(content, chunk),
        }
    }
}

#[test]
fn two_hundred_thousand_random_operations_never_give_a_wrong_byte() {
    let (mut world, mut chance) = (World::new(), Chance(0x5eed));
    for operation in 0..OPERATIONS {
        world.step(&mut chance);
        if operation % 1000 == 0 {
            assert!(world.store.usage().bytes <= QUOTA, "{:?}", world.store.usage());
        }
    }
    assert!(world.hits > OPERATIONS / 10, "{} hits", world.hits);
    world.reopen();
    world.store.make_room(u64::MAX).unwrap();
    assert_eq!(world.store.usage().bytes, 0);
    for directory in ["partial", "tmp"] {
        let left = fs::read_dir(world.root.path().join(directory)).unwrap().count();
        assert_eq!(left, 0, "{directory} is not empty");
    }
}
