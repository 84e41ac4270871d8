//! What came of a scenario, in numbers.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Scenario;
use super::cast::Cast;

/// How one node fared.
#[derive(Debug, Clone, Default)]
pub struct NodeResult {
    /// From its start until it had the working set.
    pub working: Option<Duration>,
    /// From its start until it had everything.
    pub all: Option<Duration>,
}

/// What is counted over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Bytes that left the registry.
    pub egress: f64,
    /// Requests to members.
    pub asked: u64,
    /// Redirects.
    pub redirected: u64,
    /// Requests that nobody answered.
    pub unanswered: u64,
    /// Transfers that were given up for being slow.
    pub hedged: u64,
    /// Fetches that found the piece nowhere.
    pub failed: u64,
}

/// Seconds within which so many of the nodes were through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half of them.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All.
    pub max: f64,
}

/// What came of a scenario.
///
/// Times are those of nodes that are neither slow nor died, in seconds from the start of each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Bytes that left the registry, as a multiple of all pieces.
    pub egress: f64,
    /// The least time for the working set: it has to pass the registry's link once and the
    /// node's own.
    pub working_bound: f64,
    /// Until nodes had the working set.
    pub working: Quantiles,
    /// The least time for everything.
    pub all_bound: f64,
    /// Until nodes had everything.
    pub all: Quantiles,
    /// The most that one node uploaded, as a multiple of all pieces.
    pub worst_upload: f64,
    /// What nodes uploaded in the mean, likewise.
    pub mean_upload: f64,
    /// Nodes that should have got everything and did not.
    pub unfinished: usize,
    /// Requests to members.
    pub asked: u64,
    /// Redirects among the answers.
    pub redirected: u64,
    /// Requests that nobody answered.
    pub unanswered: u64,
    /// Transfers that were given up for being slow.
    pub hedged: u64,
    /// Fetches that found the piece nowhere, and were begun again a second later.
    pub failed: u64,
}

impl Outcome {
    /// Draws it up.
    pub(super) fn of(
        scenario: &Scenario,
        cast: &Cast,
        results: &[NodeResult],
        uploads: &[f64],
        counts: Counts,
    ) -> Self {
        let bytes = cast.all_bytes() as f64;
        let rate = scenario.registry_link.min(scenario.node_link);
        let well = cast.actors.iter().zip(results);
        let well = well.filter(|(actor, _)| !actor.slow && actor.dies.is_none());
        let well: Vec<&NodeResult> = well.map(|(_, result)| result).collect();
        let living = cast.actors.iter().zip(results).filter(|(actor, _)| actor.dies.is_none());
        Self {
            egress: counts.egress / bytes,
            working_bound: cast.working_bytes() as f64 / rate,
            working: Quantiles::of(well.iter().filter_map(|result| result.working)),
            all_bound: bytes / rate,
            all: Quantiles::of(well.iter().filter_map(|result| result.all)),
            worst_upload: uploads.iter().copied().fold(0.0, f64::max) / bytes,
            mean_upload: uploads.iter().sum::<f64>() / bytes / uploads.len() as f64,
            unfinished: living.filter(|(_, result)| result.all.is_none()).count(),
            asked: counts.asked,
            redirected: counts.redirected,
            unanswered: counts.unanswered,
            hedged: counts.hedged,
            failed: counts.failed,
        }
    }
}

/// A table, for people.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:20}{:>9}{:>9}{:>9}{:>9}", "seconds", "bound", "p50", "p99", "max")?;
        for (name, bound, Quantiles { p50, p99, max }) in [
            ("working set", self.working_bound, self.working),
            ("everything", self.all_bound, self.all),
        ] {
            writeln!(f, "{name:20}{bound:>9.2}{p50:>9.2}{p99:>9.2}{max:>9.2}")?;
        }
        writeln!(f)?;
        for (name, times) in [
            ("registry sent", self.egress),
            ("a node sent", self.mean_upload),
            ("at most", self.worst_upload),
        ] {
            writeln!(f, "{name:20}{times:>8.3}x of the set")?;
        }
        writeln!(f)?;
        let unfinished = self.unfinished as u64;
        for (name, count) in [
            ("requests to peers", self.asked),
            ("redirected", self.redirected),
            ("unanswered", self.unanswered),
            ("given up as slow", self.hedged),
            ("found nowhere", self.failed),
            ("nodes not through", unfinished),
        ] {
            writeln!(f, "{name:20}{count:>9}")?;
        }
        Ok(())
    }
}

impl Quantiles {
    /// Those of `times`; zeros of none.
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<f64> = times.map(|time| time.as_secs_f64()).collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = (times.len().saturating_sub(1) as f64 * part).round() as usize;
            times.get(place).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_of_nodes() {
        let quantiles = Quantiles::of((0..=200).rev().map(Duration::from_secs));
        assert_eq!(quantiles, Quantiles { p50: 100.0, p99: 198.0, max: 200.0 });
        assert_eq!(Quantiles::of([].into_iter()), Quantiles::default());
    }
}
