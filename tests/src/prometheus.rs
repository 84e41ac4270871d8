//! A page of metrics as Prometheus reads it (text format 0.0.4), held to what `promtool check
//! metrics` asks for: each name explained and typed once, no series twice, base units.

use std::collections::{BTreeMap, BTreeSet};

/// A page that was found to be right.
#[derive(Debug)]
pub struct Page {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Page {
    /// Reads `text`.
    ///
    /// # Errors
    /// All that is wrong with it, a line each.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut page = Self { types: BTreeMap::new(), samples: BTreeMap::new() };
        let mut help = BTreeSet::new();
        let mut wrong = Vec::new();
        if !text.ends_with('\n') {
            wrong.push("the last line does not end".to_owned());
        }
        for line in text.lines() {
            let outcome = match line.split_once(' ') {
                Some(("#", rest)) => page.comment(rest, &mut help),
                _ => page.sample(line),
            };
            wrong.extend(outcome.err().map(|reason| format!("{reason}: {line}")));
        }
        for name in page.types.keys().filter(|name| !help.contains(*name)) {
            wrong.push(format!("{name} has no HELP"));
        }
        wrong.extend(page.histograms());
        if wrong.is_empty() { Ok(page) } else { Err(wrong) }
    }

    /// Names of all metrics.
    pub fn names(&self) -> BTreeSet<&str> {
        self.types.keys().map(String::as_str).collect()
    }

    /// The value of a series, named with its labels as it is written.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        let known = || self.samples.keys().collect::<Vec<_>>();
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", known()))
    }

    fn comment(&mut self, rest: &str, help: &mut BTreeSet<String>) -> Result<(), String> {
        let (kind, rest) = rest.split_once(' ').ok_or("a comment without a name")?;
        let (name, words) = rest.split_once(' ').ok_or("a comment without words")?;
        match kind {
            "HELP" if !help.insert(name.to_owned()) => Err("HELP twice".to_owned()),
            "HELP" => Ok(()),
            "TYPE" => {
                conventional(name, words)?;
                let before = self.types.insert(name.to_owned(), words.to_owned());
                before.map_or(Ok(()), |_| Err("TYPE twice".to_owned()))
            }
            _ => Err("neither HELP nor TYPE".to_owned()),
        }
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or("a sample without a value")?;
        let value: f64 = value.parse().map_err(|_| "a value that is no number")?;
        let name = series.split('{').next().unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"]
            .into_iter()
            .filter_map(|ending| name.strip_suffix(ending))
            .find(|family| self.types.get(*family).is_some_and(|kind| kind == "histogram"))
            .unwrap_or(name);
        let kind = self.types.get(family).ok_or("a sample before its TYPE")?;
        if kind != "gauge" && (value < 0.0 || value.is_nan()) {
            return Err(format!("a {kind} that is not positive"));
        }
        labels(&series[name.len()..])?;
        let before = self.samples.insert(series.to_owned(), value);
        before.map_or(Ok(()), |_| Err("a series twice".to_owned()))
    }

    /// What is wrong with the histograms.
    fn histograms(&self) -> Vec<String> {
        let histograms = self.types.iter().filter(|(_, kind)| *kind == "histogram");
        let wrong = histograms.filter_map(|(name, _)| {
            let mut buckets: Vec<(f64, f64)> = self
                .samples
                .iter()
                .filter_map(|(series, count)| {
                    let bound = series.strip_prefix(&format!("{name}_bucket{{le=\""))?;
                    let bound = bound.strip_suffix("\"}")?;
                    Some((bound.parse().ok()?, *count))
                })
                .collect();
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            let last = buckets.last().copied()?;
            let count = self.samples.get(&format!("{name}_count"));
            let right = buckets.is_sorted_by(|one, other| one.1 <= other.1)
                && last.0.is_infinite()
                && count == Some(&last.1)
                && self.samples.contains_key(&format!("{name}_sum"));
            (!right).then(|| format!("the buckets of {name} do not add up: {buckets:?}"))
        });
        wrong.collect()
    }
}

/// Whether a name follows the conventions for its kind.
fn conventional(name: &str, kind: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.bytes().all(plain) || !name.starts_with("undermount_") {
        return Err("a name that is not ours".to_owned());
    }
    for unit in ["milliseconds", "_ms", "micros", "minutes", "kilobytes", "_mb", "percent"] {
        if name.contains(unit) {
            return Err(format!("{unit} is no base unit"));
        }
    }
    match kind {
        "counter" if !name.ends_with("_total") => Err("a counter without _total".to_owned()),
        "gauge" | "histogram" if name.ends_with("_total") => Err(format!("a {kind} with _total")),
        "histogram" if !name.ends_with("_seconds") && !name.ends_with("_bytes") => {
            Err("a histogram without a unit".to_owned())
        }
        "counter" | "gauge" | "histogram" => Ok(()),
        _ => Err(format!("an unknown type {kind}")),
    }
}

/// Whether labels are `{name="value",...}` or nothing, and none names an image, layer or host.
fn labels(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    for label in inner.ok_or("labels without braces")?.split(',') {
        let (name, value) = label.split_once("=\"").ok_or("a label without a value")?;
        let value = value.strip_suffix('"').ok_or("a label whose value does not end")?;
        let unbounded = ["image", "layer", "digest", "reference", "peer", "host"].contains(&name);
        if unbounded || value.contains("sha256:") || value.contains('/') {
            return Err(format!("a label with too many values, {name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = "# HELP undermount_a_total words\n# TYPE undermount_a_total counter\n\
                         undermount_a_total{source=\"x\"} 1\nundermount_a_total{source=\"y\"} 2\n\
                         # HELP undermount_b_seconds words\n# TYPE undermount_b_seconds histogram\n\
                         undermount_b_seconds_bucket{le=\"0.5\"} 1\n\
                         undermount_b_seconds_bucket{le=\"+Inf\"} 3\n\
                         undermount_b_seconds_sum 4.5\nundermount_b_seconds_count 3\n";

    #[test]
    fn a_right_page_is_read() {
        let page = Page::parse(RIGHT).unwrap();
        assert_eq!(page.value("undermount_a_total{source=\"y\"}"), 2.0);
        assert_eq!(page.names().len(), 2);
    }

    #[test]
    fn each_mistake_is_found() {
        for (from, to) in [
            ("source=\"y\"", "source=\"x\""),
            ("# HELP undermount_a_total words\n", ""),
            ("# TYPE undermount_a_total counter\n", ""),
            ("undermount_a_total counter", "undermount_a_total gauge"),
            ("undermount_a_total", "undermount_a"),
            ("_b_seconds", "_b_ms"),
            ("le=\"+Inf\"} 3", "le=\"+Inf\"} 2"),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 4"),
            ("source=\"x\"", "layer=\"x\""),
            ("source=\"x\"", "source=\"sha256:12\""),
            ("} 1\n", "} one\n"),
            ("} 2\n", "} -2\n"),
            ("_count 3\n", "_count 3"),
        ] {
            let text = RIGHT.replace(from, to);
            assert!(Page::parse(&text).is_err(), "{from} -> {to}\n{text}");
        }
    }
}
