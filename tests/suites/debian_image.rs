//! A real Debian, end to end.
#![allow(clippy::unwrap_used)]
use undermount_tests::debian::{NEEDS, debian};
use undermount_tests::requirement::{lacking, skipped};

#[test]
fn debian_is_made() {
    if lacking(NEEDS) {
        return;
    }
    let debian = match debian() {
        Ok(debian) => debian,
        Err(reason) => return skipped(&reason),
    };
    let tree = debian.tree();
    assert!(tree.entries.len() > 3000);
}
