//! What the original made of the same inputs: every case of `goldens/cases`, with real commands
//! and registries.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use undermount_tests::golden::case::Case;
use undermount_tests::golden::{Left, World};
use undermount_tests::requirement::{Need, lacking};

/// Cases at a time.
const PARALLEL: usize = 4;
/// The page that tells where ours differs.
const DOCUMENT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/doc/prepare.md"));

/// What is wrong with what a case left behind, in words.
fn complaints(case: &Case, left: &Left) -> Vec<String> {
    let expected = case.expected();
    let names: BTreeSet<_> = expected.keys().chain(left.parts.keys()).collect();
    let mut complaints: Vec<_> = names
        .into_iter()
        .filter(|name| expected.get(*name) != left.parts.get(*name))
        .map(|name| {
            let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            let (expected, found) = (show(expected.get(name)), show(left.parts.get(name)));
            format!("{name}: expected {expected}\n    found {found}")
        })
        .collect();
    for words in &case.expect.stderr {
        if !left.stderr.contains(words) {
            complaints.push(format!("stderr lacks `{words}`"));
        }
    }
    complaints
}

#[test]
fn every_case_comes_out_as_in_the_original_or_better() {
    if lacking(&[Need::Program("docker-registry")]) {
        return;
    }
    let (world, cases) = (World::new(), Case::all());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let left = world.run(case);
                    let complaints = complaints(case, &left);
                    if !complaints.is_empty() {
                        let words = complaints.join("\n  ");
                        let text =
                            format!("{}: {}\n  {words}\n{}", case.name, case.title, left.stderr);
                        failed.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} cases failed:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n\n")
    );
}

#[test]
fn where_ours_differs_is_told_in_the_documents() {
    for case in Case::all() {
        if let Some(ours) = &case.ours {
            assert!(!ours.parts.is_empty() && !ours.reason.is_empty(), "{}", case.name);
            assert!(DOCUMENT.contains(&format!("`{}`", case.name)), "{}", case.name);
        }
    }
}
