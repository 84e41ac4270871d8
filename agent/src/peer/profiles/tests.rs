use std::io::Write as _;

use super::*;
use crate::profile::FileUnit;

fn call() -> ProfileCall {
    ProfileCall::new(&Scope::new("[fd00::1]:8787/nova/nova-api"), &Digest::of(b"m")).unwrap()
}

fn units(count: u32) -> Vec<FileUnit> {
    (0..count).map(|number| FileUnit { path: format!("file {number}"), number: 0 }).collect()
}

/// One start of a build of the image.
fn start(build: &[u8], count: u32) -> StartRecord {
    let reference = "[fd00::1]:8787/nova/nova-api:zed".to_owned();
    StartRecord::new(reference, Digest::of(build), "nova-api".to_owned()).with_start(&units(count))
}

#[test]
fn a_call_reads_back_as_written_and_is_a_valid_target() {
    let target = call().target();
    let uri: http::Uri = target.parse().unwrap();
    assert_eq!(uri.path_and_query().unwrap().as_str(), target);
    assert_eq!(ProfileCall::parse(&target), Ok(call()));
    assert_eq!(ProfileCall::new(&Scope::new("uc/nova&more=1"), &call().manifest), None);
}

#[test]
fn a_malformed_call_is_refused_by_its_part() {
    let good = call().target();
    for (from, to, part) in [
        (PROFILES, "/v1/profile", "path"),
        ("manifest=", "manifest=x", "manifest"),
        ("scope=", "repository=", "scope"),
        ("nova/nova-api", "nova api", "scope"),
        ("nova/nova-api", "nova/nova-api&more=1", "query"),
    ] {
        assert_eq!(ProfileCall::parse(&good.replace(from, to)), Err(BadCall(part)), "{from} {to}");
    }
}

#[test]
fn profiles_read_back_as_packed_as_far_as_there_is_room() {
    let records = [start(b"m", 3), start(b"m", 500)];
    assert_eq!(unpack(&pack(&records)).unwrap(), records);
    assert!(unpack(&pack(&[])).unwrap().is_empty());
    let many: Vec<StartRecord> = (0..20).map(|build| start(&[build], 1)).collect();
    assert_eq!(unpack(&pack(&many)).unwrap(), many[..COMMANDS]);
    let mut long = start(b"m", 1);
    long.command = "x".repeat(5 << 20);
    assert_eq!(unpack(&pack(&[long.clone(), long.clone()])).unwrap(), [long]);
}

#[test]
fn one_start_of_the_image_is_taken_and_nothing_else() {
    let right = start(b"m", 3);
    assert_eq!(unpack_start(&pack(std::slice::from_ref(&right)), &call()).unwrap(), right);
    // The same image may have another name elsewhere.
    let mut renamed = right.clone();
    renamed.reference = "r/other:1".to_owned();
    assert_eq!(unpack_start(&pack(std::slice::from_ref(&renamed)), &call()).unwrap(), renamed);
    let twice = right.clone().with_start(&units(3));
    for wrong in [start(b"another build", 3), twice] {
        assert!(unpack_start(&pack(&[wrong]), &call()).is_err());
    }
    assert!(unpack_start(&pack(&[right.clone(), right]), &call()).is_err());
    assert!(unpack_start(&pack(&[]), &call()).is_err());
}

#[test]
fn what_another_version_has_written_is_left_out_and_not_kept() {
    let right = start(b"m", 3);
    let lines = [&b"{\"version\":3,\"paths\":[]}\n{\n"[..], &right.to_json()].concat();
    let body = zstd::encode_all(&lines[..], 1).unwrap();
    assert_eq!(unpack(&body).unwrap(), [right]);
    assert!(matches!(unpack_start(&body, &call()), Err(BadProfiles::Profile(_))));
}

#[test]
fn a_body_that_is_not_honest_is_refused_and_takes_no_memory() {
    let endless = zstd::encode_all(io::repeat(b' ').take(FILE_MAX * 100), 1).unwrap();
    assert!(matches!(unpack(&endless), Err(BadProfiles::TooLong(FILE_MAX))));
    assert!(matches!(unpack_start(&endless, &call()), Err(BadProfiles::TooLong(START_MAX))));
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    wide.long_distance_matching(true).unwrap();
    wide.write_all(&vec![b' '; 9 << 20]).unwrap();
    let wide = wide.finish().unwrap();
    assert!(matches!(unpack(&wide), Err(BadProfiles::Compression(_))), "128 MiB of window");
    assert!(matches!(unpack(b"{}"), Err(BadProfiles::Compression(_))));
}
