//! Reports as one HTML page: charts drawn as SVG, nothing fetched from anywhere.

use minijinja::Environment;
use minijinja::value::Serde;
use serde::Serialize;

use super::axis::{Axis, Tick};
use super::link;
use super::report::{Report, Summary};
use super::{Run, Variant};

const TEMPLATE: &str = include_str!("report.html");

/// Width of the charts, in the units of their view boxes.
const WIDTH: f64 = 720.0;
/// Height of the chart of bytes.
const HEIGHT: f64 = 220.0;
/// More requests than can be told apart in a waterfall.
const WATERFALL_MAX: usize = 120;
/// More points than a line shows.
const POINTS_MAX: usize = 400;

/// One colour per variant, told apart also by those who do not see red and green.
const COLOURS: [&str; 5] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#555555"];

/// The runs of a variant on the axis of time.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    colour: &'static str,
    /// One per run: its place, and what it says when it is pointed at.
    dots: Vec<(f64, String)>,
    /// From the lower to the upper quartile, with the median between.
    quartiles: [f64; 3],
    median: String,
}

/// How bytes arrived in the run of a variant that is its median.
#[derive(Serialize)]
struct Line {
    name: &'static str,
    colour: &'static str,
    points: String,
}

/// A request of the waterfall.
#[derive(Serialize)]
struct Bar {
    x: f64,
    width: f64,
    words: String,
}

#[derive(Serialize)]
struct Waterfall {
    name: &'static str,
    colour: &'static str,
    bars: Vec<Bar>,
    left_out: usize,
    brought: f64,
    ready: f64,
    end: String,
    ticks: Vec<Tick>,
}

/// One image: everything that the template names.
#[derive(Serialize)]
struct Section<'a> {
    reference: &'a str,
    command: &'a str,
    machine: &'a str,
    image: String,
    link: String,
    rounds: usize,
    has_peers: bool,
    table: Vec<Vec<String>>,
    rows: Vec<Row>,
    lines: Vec<Line>,
    waterfall: Option<Waterfall>,
    times: Vec<Tick>,
    amounts: Vec<Tick>,
}

#[derive(Serialize)]
struct Page<'a> {
    sections: Vec<Section<'a>>,
    link_model: &'static str,
}

/// The page of `reports`, one for each image.
pub fn render(reports: &[Report]) -> String {
    let sections = reports.iter().map(section).collect();
    let page = Page { sections, link_model: link::MODEL };
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).expect("the template is valid");
    let template = environment.get_template("report.html").expect("it was just added");
    template.render(Serde(&page)).expect("the page has all that it names")
}

fn section(report: &Report) -> Section<'_> {
    let end_ms = report.runs.iter().map(|run| run.ready_ms).max().unwrap_or(0);
    let end_bytes = report.runs.iter().map(|run| run.traffic.bytes).max().unwrap_or(0);
    let time = Axis::new(end_ms as f64 / 1000.0, WIDTH);
    let amount = Axis::new(mebibytes(end_bytes), HEIGHT);
    let line = |summary: &Summary, runs: &[&Run], colour| {
        let points = median_run(runs).map(|run| points(run, &time, &amount));
        Line { name: summary.variant.name(), colour, points: points.unwrap_or_default() }
    };
    Section {
        reference: &report.reference,
        command: &report.command,
        machine: &report.machine,
        image: in_mebibytes(report.image_bytes),
        link: report.link.to_string(),
        rounds: report.rounds(),
        has_peers: report.has_peers(),
        table: report.summaries.iter().map(|summary| cells(summary, report.has_peers())).collect(),
        rows: each(report, |summary, runs, colour| row(summary, runs, colour, &time)),
        lines: each(report, line),
        waterfall: each(report, |_, runs, colour| waterfall(median_run(runs)?, colour).into())
            .pop()
            .flatten(),
        times: time.ticks(),
        amounts: amount.ticks(),
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{:.2} s", milliseconds as f64 / 1000.0)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn in_mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", mebibytes(bytes))
}

/// The line of a variant in the table.
fn cells(summary: &Summary, with_peers: bool) -> Vec<String> {
    let (least, most) = summary.ready_spread_ms;
    let mut cells = vec![
        summary.variant.name().to_owned(),
        seconds(summary.brought_ms),
        seconds(summary.first_output_ms),
        seconds(summary.ready_ms),
        format!("{} - {}", seconds(least), seconds(most)),
        format!("{:.2}", summary.ready_ratio),
        seconds(summary.warm_ms),
        in_mebibytes(summary.bytes),
        summary.requests.to_string(),
    ];
    if with_peers {
        cells.push(in_mebibytes(summary.peer_bytes));
    }
    cells
}

fn each<T>(report: &Report, draw: impl Fn(&Summary, &[&Run], &'static str) -> T) -> Vec<T> {
    let colours = COLOURS.into_iter().cycle();
    let variants = report.summaries.iter().zip(colours);
    let drawn =
        variants.map(|(summary, colour)| draw(summary, &runs_of(report, summary.variant), colour));
    drawn.collect()
}

fn runs_of(report: &Report, variant: Variant) -> Vec<&Run> {
    report.runs.iter().filter(|run| run.variant == variant).collect()
}

fn row(summary: &Summary, runs: &[&Run], colour: &'static str, time: &Axis) -> Row {
    let place = |ms: u64| time.place(ms as f64 / 1000.0);
    let mut ready: Vec<u64> = runs.iter().map(|run| run.ready_ms).collect();
    ready.sort_unstable();
    let at = |quarter: usize| {
        let index = (ready.len().saturating_sub(1) * quarter + 2) / 4;
        ready.get(index).copied().map_or(0.0, place)
    };
    Row {
        name: summary.variant.name(),
        colour,
        dots: runs.iter().map(|run| (place(run.ready_ms), seconds(run.ready_ms))).collect(),
        quartiles: [at(1), place(summary.ready_ms), at(3)],
        median: seconds(summary.ready_ms),
    }
}

fn median_run<'a>(runs: &[&'a Run]) -> Option<&'a Run> {
    let mut runs = runs.to_vec();
    runs.sort_by_key(|run| run.ready_ms);
    runs.get(runs.len() / 2).copied()
}

fn points(run: &Run, time: &Axis, amount: &Axis) -> String {
    let progress = &run.traffic.progress;
    let step = progress.len().div_ceil(POINTS_MAX).max(1);
    let last = progress.last().map(|(_, bytes)| (run.ready_ms, *bytes));
    let point = |(ms, bytes): (u64, u64)| {
        let x = time.place(ms as f64 / 1000.0);
        let y = HEIGHT - amount.place(mebibytes(bytes));
        format!("{x:.1},{y:.1}")
    };
    let shown = progress.iter().step_by(step).copied().chain(last);
    std::iter::once((0, 0)).chain(shown).map(point).collect::<Vec<_>>().join(" ")
}

fn waterfall(run: &Run, colour: &'static str) -> Waterfall {
    let time = Axis::new(run.ready_ms as f64 / 1000.0, WIDTH);
    let place = |ms: u64| time.place(ms as f64 / 1000.0);
    let bar = |request: &link::Request| Bar {
        x: place(request.begin_ms),
        width: (place(request.end_ms) - place(request.begin_ms)).max(1.5),
        words: format!(
            "{} - {} to {} ms, {} bytes",
            request.words, request.begin_ms, request.end_ms, request.bytes
        ),
    };
    let requests = &run.traffic.requests;
    Waterfall {
        name: run.variant.name(),
        colour,
        bars: requests.iter().take(WATERFALL_MAX).map(bar).collect(),
        left_out: requests.len().saturating_sub(WATERFALL_MAX),
        brought: place(run.brought_ms),
        ready: place(run.ready_ms),
        end: seconds(run.ready_ms),
        ticks: time.ticks(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, report_of};
    use super::*;

    #[test]
    fn the_page_stands_alone_and_names_everything() {
        let page = render(&[report(), report()]);
        for words in [
            "nova-api:1",
            "eager: podman pull",
            "lazy with pack",
            "<polyline",
            "<circle",
            "time since the image was asked for (s)",
            "from the registry (MiB)",
        ] {
            assert!(page.contains(words), "`{words}` is not in the page");
        }
        for outside in ["http://", "https://", "<script", "@import", "src="] {
            // The name space of SVG is an address that nobody fetches.
            let page = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains(outside), "`{outside}` is in the page");
        }
        assert_eq!(page.matches("<circle").count(), 12, "one dot per run of each image");
    }

    #[test]
    fn what_peers_sent_has_a_column_where_there_are_some() {
        let page = render(&[report_of(Variant::LazyPeers)]);
        assert!(page.contains("<th>from peers</th>") && page.contains("<td>200.0 MiB</td>"));
        assert!(page.contains("Requests to the registry in one start: lazy with peers"));
        assert!(!render(&[report()]).contains("<th>from peers</th>"));
    }

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let page = render(&[report()]);
        assert!(page.contains("&lt;name&gt;") && !page.contains("<name>"));
    }
}
