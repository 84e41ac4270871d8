//! Axes of charts: where a value lies, and ticks at round numbers.

use serde::Serialize;

/// Ticks that an axis has about.
const TICKS: f64 = 7.0;

/// An axis from zero on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    end: f64,
    step: f64,
    length: f64,
}

/// A mark on an axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tick {
    /// Where.
    pub place: f64,
    /// What it says.
    pub label: String,
}

impl Axis {
    /// An axis of `length` that shows values up to `most`.
    pub fn new(most: f64, length: f64) -> Self {
        let most = most.max(0.001);
        let rough = most / TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|round| round * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        // The last value must not lie on the border of the chart.
        Self { end: (most / step).ceil() * step, step, length }
    }

    /// Where `value` lies.
    pub fn place(&self, value: f64) -> f64 {
        value / self.end * self.length
    }

    /// Its ticks, from zero to its end.
    pub fn ticks(&self) -> Vec<Tick> {
        let count = (self.end / self.step).round() as usize;
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        let tick = |number: usize| {
            let value = number as f64 * self.step;
            Tick { place: self.place(value), label: format!("{value:.digits$}") }
        };
        (0..=count).map(tick).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_every_value() {
        for (most, labels) in [
            (9.3, vec!["0", "2", "4", "6", "8", "10"]),
            (0.61, vec!["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]),
            (286.0, vec!["0", "50", "100", "150", "200", "250", "300"]),
        ] {
            let axis = Axis::new(most, 100.0);
            let ticks = axis.ticks();
            assert_eq!(ticks.iter().map(|tick| tick.label.as_str()).collect::<Vec<_>>(), labels);
            assert!(axis.place(most) <= 100.0);
            assert_eq!(ticks.last().map(|tick| tick.place.round()), Some(100.0));
        }
        assert!(Axis::new(0.0, 100.0).place(0.0).abs() < 1e-9);
    }
}
