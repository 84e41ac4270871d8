//! Measured figures beside what they should reach.

use std::time::{Duration, Instant};

/// Rows of a table that is printed at the end; a missed goal makes the bench fail.
#[derive(Default)]
pub struct Figures {
    rows: Vec<(String, String, String, bool)>,
}

impl Figures {
    /// A figure that should be at least `goal`.
    pub fn at_least(&mut self, name: &str, value: f64, goal: f64, unit: &str) {
        let goal_text = format!(">= {goal}{unit}");
        self.rows.push((name.to_owned(), format!("{value:.3}{unit}"), goal_text, value >= goal));
    }

    /// A figure that should be at most `goal`.
    pub fn at_most(&mut self, name: &str, value: f64, goal: f64, unit: &str) {
        let goal_text = format!("<= {goal}{unit}");
        self.rows.push((name.to_owned(), format!("{value:.3}{unit}"), goal_text, value <= goal));
    }

    /// A figure without a goal.
    pub fn tell(&mut self, name: &str, value: String) {
        self.rows.push((name.to_owned(), value, String::new(), true));
    }

    /// The table as Markdown, for the README.
    pub fn markdown(&self) -> String {
        let row = |(name, value, goal, _): &(String, String, String, bool)| {
            format!("| {name} | {value} | {goal} |\n")
        };
        let rows: String = self.rows.iter().map(row).collect();
        format!("| figure | measured | goal |\n|---|---|---|\n{rows}")
    }

    /// Prints the table; whether every goal was reached.
    pub fn print(&self) -> bool {
        let width = self.rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        println!();
        for (name, value, goal, holds) in &self.rows {
            let verdict = if *holds { "" } else { "  MISSED" };
            println!("{name:width$}  {value:>14}  {goal}{verdict}");
        }
        self.rows.iter().all(|(.., holds)| *holds)
    }
}

/// Runs `one` and `two` in turns and returns their times, in the order of the runs.
pub fn in_turns(
    rounds: usize,
    mut one: impl FnMut(),
    mut two: impl FnMut(),
) -> (Vec<Duration>, Vec<Duration>) {
    let timed = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        work();
        begin.elapsed()
    };
    (0..rounds).map(|_| (timed(&mut one), timed(&mut two))).unzip()
}

/// The middle one of some times.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}
