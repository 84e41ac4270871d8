//! Progress on stderr: bars on a terminal, one line per image elsewhere.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use undermount::prepare::copy::CopyError;
use undermount::prepare::progress::{Done, Progress};

/// How often a bar is drawn while nothing happens.
const TICK: Duration = Duration::from_millis(200);

/// What suits where stderr goes.
pub fn for_stderr() -> Arc<dyn Progress> {
    if std::io::stderr().is_terminal() { Arc::new(Bars::new()) } else { Arc::new(Lines::default()) }
}

/// One bar for all bytes, and a line for each image that is under way.
struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    images: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(
            ProgressBar::new(0)
                .with_style(style("{prefix} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}")),
        );
        total.enable_steady_tick(TICK);
        Self { all, total, images: Mutex::default() }
    }

    fn count(&self, images: u64) {
        self.total.set_prefix(format!("{images} images to go"));
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the template is a literal");
    style.progress_chars("=> ")
}

impl Progress for Bars {
    fn images(&self, count: usize) {
        self.count(count as u64);
    }

    fn begun(&self, image: &str) {
        let line = self.all.insert_before(&self.total, ProgressBar::new_spinner());
        line.set_style(style("{spinner} {wide_msg}"));
        line.set_message(image.to_owned());
        line.enable_steady_tick(TICK);
        self.images.lock().expect("no panic while it is held").insert(image.to_owned(), line);
    }

    fn expected(&self, bytes: u64) {
        self.total.inc_length(bytes);
    }

    fn moved(&self, bytes: u64) {
        self.total.inc(bytes);
    }

    fn ended(&self, image: &str, outcome: Result<&Done, &CopyError>) {
        let line = self.images.lock().expect("no panic while it is held").remove(image);
        if let Some(line) = line {
            line.finish_and_clear();
            self.all.remove(&line);
        }
        if outcome.is_err() {
            // What went wrong is told in the end; a terminal that is gone needs no telling.
            let _ = self.all.println(words(image, outcome));
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.total.finish_and_clear();
    }
}

/// A line for each image when it is done.
#[derive(Default)]
struct Lines {
    images: AtomicUsize,
    done: AtomicUsize,
}

impl Progress for Lines {
    fn images(&self, count: usize) {
        self.images.store(count, Ordering::Relaxed);
    }

    fn ended(&self, image: &str, outcome: Result<&Done, &CopyError>) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let images = self.images.load(Ordering::Relaxed);
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "[{done}/{images}] {}", words(image, outcome));
    }
}

fn words(image: &str, outcome: Result<&Done, &CopyError>) -> String {
    match outcome {
        Ok(Done::Unchanged) => format!("{image}: unchanged"),
        Ok(Done::Copied { bytes, shared, blobs }) => {
            let bytes = HumanBytes(*bytes);
            format!("{image}: copied {bytes}, {shared} of {blobs} blobs were there already")
        }
        Err(_) => format!("{image}: failed"),
    }
}
