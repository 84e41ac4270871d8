//! Two ways of doing the same, run in turns.
//!
//! A shared machine disturbs both alike, but not evenly. Where the times of a way are spread too
//! far, its processor time decides: that of the client and of the processes that serve it.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// Wall times further apart than this, of the median, are not trusted, in per cent.
const SPREAD: f64 = 15.0;

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// On the clock.
    pub wall: Duration,
    /// Of processors, by this process, its children and the servers.
    pub cpu: Duration,
}

impl Cost {
    /// Runs `work`, which `servers` take part in.
    pub fn of(servers: &[i32], work: impl FnOnce()) -> Self {
        let (begin, before) = (Instant::now(), cpu_time(servers));
        work();
        Self { wall: begin.elapsed(), cpu: cpu_time(servers).saturating_sub(before) }
    }
}

/// The runs of both ways, in their order.
#[derive(Debug, Default)]
pub struct Race {
    ours: Vec<Cost>,
    theirs: Vec<Cost>,
}

impl Race {
    /// Runs both ways `rounds` times in turns; each gives its cost.
    pub fn run(
        rounds: usize,
        mut ours: impl FnMut() -> Cost,
        mut theirs: impl FnMut() -> Cost,
    ) -> Self {
        let mut race = Self::default();
        for _ in 0..rounds {
            race.add(ours(), theirs());
        }
        race
    }

    /// Adds a round that was run elsewhere.
    pub fn add(&mut self, ours: Cost, theirs: Cost) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// How many times as fast we are, and the words that say how it was measured.
    pub fn speed(&self) -> (f64, String) {
        let wall = |cost: &Cost| cost.wall.as_secs_f64();
        let cpu = |cost: &Cost| cost.cpu.as_secs_f64();
        let ratio = |of: &dyn Fn(&Cost) -> f64| median(&self.theirs, of) / median(&self.ours, of);
        let spread = spread(&self.ours, wall).max(spread(&self.theirs, wall));
        let (by_wall, by_cpu) = (ratio(&wall), ratio(&cpu));
        let trusted = spread <= SPREAD;
        let words = format!(
            "{} ms against {} ms; by wall {by_wall:.2} (spread {spread:.0} %), by cpu {by_cpu:.2}",
            milliseconds(&self.ours, if trusted { &wall } else { &cpu }),
            milliseconds(&self.theirs, if trusted { &wall } else { &cpu }),
        );
        (if trusted { by_wall } else { by_cpu }, words)
    }
}

fn milliseconds(costs: &[Cost], of: &dyn Fn(&Cost) -> f64) -> String {
    format!("{:.1}", median(costs, of) * 1e3)
}

fn sorted(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    sorted(costs, of)[costs.len() / 2]
}

/// How far the middle half of the values reaches, of the median, in per cent.
fn spread(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let values = sorted(costs, of);
    let quarter = values.len() / 4;
    let reach = values[values.len() - 1 - quarter] - values[quarter];
    100.0 * reach / values[values.len() / 2]
}

/// Processor time of this process, of children that have ended, and of `servers`.
fn cpu_time(servers: &[i32]) -> Duration {
    let own = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        let usage = getrusage(who).unwrap();
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros.unsigned_abs())
    });
    own.into_iter().sum::<Duration>() + servers.iter().map(|&pid| time_of(pid)).sum::<Duration>()
}

/// Processor time of all threads of a process.
fn time_of(pid: i32) -> Duration {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let nanos = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
