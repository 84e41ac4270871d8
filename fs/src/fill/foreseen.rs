//! Fetches what a start is going to read, span by span, before it asks.
//!
//! ```text
//! profile -> Group::of: the next units that are missing here, as many as arrive in a moment
//!   -> group after group, one arriving while the other is decoded; for each layer in a group:
//!        runs of spans -> their turns -> whatever is still missing -> fetch, decode, keep
//! ```
//!
//! This is for images without a start-up pack. What a pack holds in the order of the start lies
//! scattered over the layers here, and neighbours in the tar come along, as with a miss. A group is
//! no larger than what is fetched ahead of somebody who reads in order, so that a read which nobody
//! foresaw waits no longer for it. A read that misses a span of a group on its way waits for that
//! span's turn; one that misses something further ahead fetches it and overtakes the groups.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::try_join_all;
use futures_util::stream::{StreamExt as _, iter, unfold};

use super::ahead::{UNASKED_MAX, along, group};
use super::plan::{SpanRun, plan};
use super::run::TakenRun;
use super::{Content, FillError, Filler, Layer, blocking};
use crate::digest::Digest;
use crate::index::SpanTable;
use crate::object::Store;
use crate::pack::{Profile, UnitName};
use crate::source::Priority;

/// Groups that are on their way at the same time: one arrives while one is decoded.
const GROUPS: usize = 2;
/// Span tables that are fetched side by side: each takes a round trip.
const TABLES: usize = 8;

/// What was fetched because a start was going to read it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// Units that were missing.
    pub units: u64,
    /// Bytes of layers that were fetched.
    pub fetched: u64,
}

/// A layer, and how its units are fetched.
#[derive(Clone)]
struct Course {
    layer: Arc<Layer>,
    /// Where its spans are; `None` where it comes whole, as a small layer does.
    table: Option<Arc<SpanTable>>,
}

/// The units of a group that are in one layer.
struct Part {
    course: Course,
    units: Vec<UnitName>,
    /// The spans that hold them.
    spans: BTreeSet<usize>,
}

/// Units that are fetched together.
#[derive(Default)]
struct Group {
    /// By the digest of the layer.
    parts: HashMap<Digest, Part>,
    /// Compressed bytes that it takes to fetch them.
    bytes: u64,
    /// Spans in all its parts.
    spans: usize,
    /// Units of the profile that were looked at, missing or not.
    seen: usize,
}

impl Filler {
    /// Fetches, in the order of `profile`, those of its units that are in `layers` and missing here,
    /// until that took about `most` compressed bytes.
    ///
    /// # Errors
    /// [`FillError`] where something cannot be had; what came before stays.
    pub async fn fetch_foreseen(
        self: &Arc<Self>,
        profile: &Profile,
        layers: &[Arc<Layer>],
        most: u64,
    ) -> Result<Foreseen, FillError> {
        let courses = Arc::new(self.courses(profile, layers).await);
        let path = Path { courses, units: profile.units().into(), next: 0, most };
        let groups = unfold((self.clone(), path), |(filler, mut path)| async move {
            let group = path.next_group(&filler).await?;
            Some((group, (filler, path)))
        });
        let fetches = groups.map(|group| self.fetch_parts(group));
        let mut fetches = std::pin::pin!(fetches.buffered(GROUPS));
        let mut outcome = Foreseen::default();
        while let Some(came) = fetches.next().await.transpose()? {
            outcome.units += came.units;
            outcome.fetched += came.fetched;
        }
        Ok(outcome)
    }

    /// How the units of each layer in `profile` are fetched. A layer whose span table cannot be had is
    /// left out: it would have to be fetched whole.
    async fn courses(&self, profile: &Profile, layers: &[Arc<Layer>]) -> HashMap<Digest, Course> {
        let mut wanted: HashSet<Digest> = profile.units().iter().map(|unit| unit.layer).collect();
        let layers = layers.iter().filter(|layer| wanted.remove(&layer.digest())).cloned();
        let layers: Vec<Arc<Layer>> = layers.collect();
        let courses = iter(layers).map(|layer| async move {
            if layer.is_small() && !layer.is_checked() {
                return Some(Course { layer, table: None });
            }
            match self.known_table(&layer).await {
                Ok(table) => Some(Course { layer, table: Some(table) }),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(layer = %layer.digest(), error, "a layer without a span table is not foreseen");
                    None
                }
            }
        });
        let courses = courses.buffer_unordered(TABLES).filter_map(std::future::ready);
        courses.map(|course| (course.layer.digest(), course)).collect().await
    }

    async fn fetch_parts(&self, group: Group) -> Result<Foreseen, FillError> {
        let parts = group.parts.into_values().map(|part| self.fetch_part(part));
        let came = try_join_all(parts).await?;
        let sum = |value: fn(&Foreseen) -> u64| came.iter().map(value).sum();
        Ok(Foreseen { units: sum(|came| came.units), fetched: sum(|came| came.fetched) })
    }

    async fn fetch_part(&self, part: Part) -> Result<Foreseen, FillError> {
        let Part { course: Course { layer, table }, units, spans } = part;
        let count = units.len() as u64;
        let Some(table) = table else {
            self.fetch_whole(&layer, Priority::Pack).await?;
            let fetched = layer.tree.header().layer_size.get();
            return Ok(Foreseen { units: count, fetched });
        };
        let mut runs = Vec::new();
        for run in runs_of(&table, &spans, along(self.gauge.link())) {
            let turns = layer.turns(run.spans.clone()).await;
            runs.push(TakenRun { run, turns });
        }
        // Whoever had a turn before may have brought what was missing.
        let (looked, known, store) = (layer.clone(), table.clone(), self.store.clone());
        let look = move || {
            let spans = units.iter().filter_map(|unit| missing(&looked, &known, &store, unit));
            spans.flatten().collect::<BTreeSet<usize>>()
        };
        let missing = blocking(look).await?;
        runs.retain(|taken| missing.range(taken.run.spans.clone()).next().is_some());
        let fetched = runs.iter().map(|taken| table.compressed(taken.run.spans.clone())).sum();
        let fetches = runs.into_iter().map(|run| {
            // Two runs of a layer are apart: they are fetched and decoded side by side.
            self.fetch_run(&layer, &table, run, Priority::Pack, None)
        });
        try_join_all(fetches).await?;
        Ok(Foreseen { units: count, fetched })
    }
}

/// The way through a profile.
struct Path {
    courses: Arc<HashMap<Digest, Course>>,
    units: Arc<[UnitName]>,
    /// The first unit that was not looked at.
    next: usize,
    /// Compressed bytes that may still be fetched.
    most: u64,
}

impl Path {
    /// The next group; `None` where nothing is missing any more, or no more may be fetched.
    async fn next_group(&mut self, filler: &Filler) -> Option<Group> {
        let limit = group(filler.gauge.link()).min(self.most);
        if limit == 0 {
            return None;
        }
        let (courses, store) = (self.courses.clone(), filler.store.clone());
        let (units, next) = (self.units.clone(), self.next);
        let work = move || Group::of(&units[next..], &courses, &store, limit);
        let group = blocking(work).await.ok()?;
        self.next += group.seen;
        self.most = self.most.saturating_sub(group.bytes);
        (!group.parts.is_empty()).then_some(group)
    }
}

impl Group {
    /// The first of `units` that are missing in `store`, as many as take `limit` bytes or, in layers
    /// that compress to almost nothing, [`UNASKED_MAX`] spans.
    fn of(
        units: &[UnitName],
        courses: &HashMap<Digest, Course>,
        store: &Store,
        limit: u64,
    ) -> Self {
        let mut group = Self::default();
        for unit in units {
            if group.bytes >= limit || group.spans >= UNASKED_MAX {
                break;
            }
            group.seen += 1;
            if let Some(course) = courses.get(&unit.layer) {
                group.add(unit, course, store);
            }
        }
        group
    }

    fn add(&mut self, unit: &UnitName, course: &Course, store: &Store) {
        let Course { layer, table } = course;
        let spans = match table {
            Some(table) => match missing(layer, table, store, unit) {
                Some(spans) => spans,
                None => return,
            },
            None if is_missing(layer, store, unit) => 0..0,
            None => return,
        };
        let part = self.parts.entry(unit.layer).or_insert_with(|| {
            let whole = if table.is_none() { layer.tree.header().layer_size.get() } else { 0 };
            self.bytes += whole;
            Part { course: course.clone(), units: Vec::new(), spans: BTreeSet::new() }
        });
        part.units.push(*unit);
        for span in spans.filter(|span| part.spans.insert(*span)) {
            self.spans += 1;
            self.bytes += table.as_ref().map_or(0, |table| table.compressed(span..span + 1));
        }
    }
}

/// Whether the store lacks a unit that the layer has. Nothing is foreseen by a damaged index.
fn is_missing(layer: &Layer, store: &Store, unit: &UnitName) -> bool {
    let content = Content::named(&layer.tree, unit).ok().flatten();
    content.is_some_and(|content| !content.is_unit_stored(store, unit.number as usize))
}

/// The spans that hold a unit which the store lacks; `None` where it has the unit. A unit in spans
/// that are too large to be decoded in memory is left to whoever reads it.
fn missing(
    layer: &Layer,
    table: &SpanTable,
    store: &Store,
    unit: &UnitName,
) -> Option<Range<usize>> {
    let content = Content::named(&layer.tree, unit).ok()??;
    let number = unit.number as usize;
    if content.is_unit_stored(store, number) {
        return None;
    }
    let run = plan(table, content.unit(number).tar_range().into_iter()).pop()?;
    (!run.is_oversized(table)).then_some(run.spans)
}

/// `spans` as runs; two with no more than `gap` compressed bytes between them are in one run, unless
/// that would have more than [`UNASKED_MAX`] spans.
fn runs_of(table: &SpanTable, spans: &BTreeSet<usize>, gap: u64) -> Vec<SpanRun> {
    let is_near = |run: &SpanRun, span: usize| {
        let between = run.spans.end..span;
        span - run.spans.start < UNASKED_MAX && table.compressed(between) <= gap
    };
    let mut runs: Vec<SpanRun> = Vec::new();
    for &span in spans {
        match runs.last_mut() {
            Some(run) if is_near(run, span) => run.spans.end = span + 1,
            _ => runs.push(SpanRun { spans: span..span + 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::index::Backing;
    use crate::layer::Indexer;

    #[test]
    fn runs_have_small_gaps_and_few_spans() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        let content = vec![7; 70 << 20];
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, "file", &content[..]).unwrap();
        let mut indexer = Indexer::new();
        indexer.write_all(&builder.into_inner().unwrap()).unwrap();
        let spans = indexer.finish().unwrap().spans;
        let table = SpanTable::new(Backing::sealed(&spans).unwrap()).unwrap();
        assert!(table.count() > UNASKED_MAX, "{} spans", table.count());

        let runs = |spans: &[usize], gap| -> Vec<(usize, usize)> {
            let spans = spans.iter().copied().collect();
            let runs = runs_of(&table, &spans, gap).into_iter();
            runs.map(|run| (run.spans.start, run.spans.end)).collect()
        };
        let between = table.compressed(1..5);
        assert_eq!(runs(&[0, 5, 6], between), [(0, 7)]);
        assert_eq!(runs(&[0, 5, 6], between - 1), [(0, 1), (5, 7)]);
        let all: Vec<usize> = (0..table.count()).collect();
        assert_eq!(runs(&all, u64::MAX), [(0, UNASKED_MAX), (UNASKED_MAX, table.count())]);
    }
}
