//! What the demo has measured, as a table.

use std::fmt;
use std::time::Duration;

use indicatif::BinaryBytes;

/// What one way of starting an image took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Bytes fetched before the first output.
    pub fetched: u64,
    /// From the command that asks for the image to the first output.
    pub time: Duration,
}

/// Both ways for both images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The sizes of the images, compressed, in bytes.
    pub sizes: [u64; 2],
    /// Mounted at once, fetched on demand.
    pub lazy: [Start; 2],
    /// Pulled and unpacked first.
    pub eager: [Start; 2],
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, lazy: String, eager: String| {
            writeln!(f, "{name:38} {lazy:>21} {eager:>21}")
        };
        row(f, "", "undermount".to_owned(), "pull and unpack".to_owned())?;
        for (which, name) in ["first", "second"].into_iter().enumerate() {
            let (size, lazy, eager) = (self.sizes[which], self.lazy[which], self.eager[which]);
            writeln!(f, "{name} image, {} compressed", BinaryBytes(size))?;
            let label = if which == 0 {
                "fetched before the first output"
            } else {
                "still to be fetched before it"
            };
            row(f, &format!("  {label}"), share(lazy.fetched, size), share(eager.fetched, size))?;
            row(f, "  time to the first output", seconds(lazy.time), seconds(eager.time))?;
        }
        Ok(())
    }
}

fn share(bytes: u64, of: u64) -> String {
    // Precise enough for a table: sizes are far below 2^53.
    let percent = 100.0 * bytes as f64 / of.max(1) as f64;
    format!("{} ({percent:.1} %)", BinaryBytes(bytes))
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_every_figure_once() {
        let start = |fetched, millis| Start { fetched, time: Duration::from_millis(millis) };
        let report = Report {
            sizes: [100 << 20, 80 << 20],
            lazy: [start(5 << 20, 210), start(1 << 19, 40)],
            eager: [start(100 << 20, 2100), start(20 << 20, 900)],
        };
        let expected = "
                                                  undermount       pull and unpack
first image, 100.00 MiB compressed
  fetched before the first output           5.00 MiB (5.0 %)  100.00 MiB (100.0 %)
  time to the first output                           0.210 s               2.100 s
second image, 80.00 MiB compressed
  still to be fetched before it           512.00 KiB (0.6 %)    20.00 MiB (25.0 %)
  time to the first output                           0.040 s               0.900 s
";
        assert_eq!(format!("\n{report}"), expected);
    }
}
