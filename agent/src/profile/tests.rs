use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use undermount_fs::index::LayerTree;
use undermount_fs::layer::Indexer;
use undermount_fs::pack::{Profile, UnitName};
use undermount_fs::tree::ImageTree;

use super::*;

fn units(paths: &[&str]) -> Vec<FileUnit> {
    paths.iter().map(|path| FileUnit { path: (*path).to_owned(), number: 0 }).collect()
}

fn record(command: &str, starts: &[&[&str]]) -> StartRecord {
    let (reference, command) = ("registry/nova-api:zed".to_owned(), command.to_owned());
    let empty = StartRecord::new(reference, Digest::of(b"manifest"), command);
    starts.iter().fold(empty, |record, start| record.with_start(&units(start)))
}

/// The tree of an image with one layer for each list of files and their sizes.
fn tree(layers: &[&[(&str, usize)]]) -> ImageTree {
    let layer = |files: &&[(&str, usize)]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, size) in *files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(*size as u64);
            archive.append_data(&mut header, path, &vec![b'x'; *size][..]).unwrap();
        }
        let mut indexer = Indexer::new();
        indexer.write_all(&archive.into_inner().unwrap()).unwrap();
        Arc::new(LayerTree::new(indexer.finish().unwrap().tree.to_vec().into()).unwrap())
    };
    ImageTree::merge(layers.iter().map(layer).collect()).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let record = record("nova-api -v", &[&["a", "b/c", "a"], &[]]);
    let path = Path::new("file");
    assert_eq!(StartRecord::from_json(&record.to_json(), path).unwrap(), record);
}

#[test]
fn the_format_is_pinned() {
    let json: serde_json::Value =
        serde_json::from_slice(&record("run", &[&["b/c", "a"]]).to_json()).unwrap();
    let expected = serde_json::json!({
        "version": 2,
        "reference": "registry/nova-api:zed",
        "manifest": Digest::of(b"manifest"),
        "command": "run",
        "files": ["b/c", "a"],
        "starts": [[[0, 0], [1, 0]]],
    });
    assert_eq!(json, expected);
}

#[test]
fn something_else_is_refused_by_name_and_reason() {
    let good = String::from_utf8(record("run", &[&["a"]]).to_json()).unwrap();
    let many = format!("[{}[0,0]]", "[0,0],".repeat(UNITS_MAX));
    let long = good.replace("\"a\"", &format!("\"{}\"", "x".repeat(2 << 20)));
    let spelled_out = long.replace("[[0,0]]", &format!("[{}[0,0]]", "[0,0],".repeat(40)));
    for (text, words) in [
        ("rubbish".to_owned(), "not a profile"),
        (good.replace("\"version\":2", "\"version\":1"), "record it again"),
        (good.replace("[0,0]", "[7,0]"), "not listed"),
        (good.replace("\"command\"", "\"kommand\""), "not a profile"),
        (good.replace("[[0,0]]", &many), "at most"),
        (spelled_out, "its units name files by more than"),
        (good.replace("run", &"x".repeat(FILE_MAX as usize)), "more than any profile"),
    ] {
        let error = StartRecord::from_json(text.as_bytes(), Path::new("/p/x.json"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("/p/x.json"), "{error}");
    }
}

#[test]
fn starts_of_one_command_are_kept_together_and_the_oldest_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let profiles = Profiles::new(directory.path().join("profiles"));
    assert_eq!(profiles.list().unwrap(), []);
    for start in 0..STARTS_MAX + 2 {
        profiles.add(record("run", &[&[&start.to_string()]])).unwrap();
    }
    let other = profiles.add(record("other", &[&["9"]])).unwrap();
    let listed = profiles.list().unwrap();
    assert_eq!(listed.len(), 2);
    let (name, kept) = listed.iter().find(|(name, _)| *name != other).unwrap();
    assert_eq!(kept.starts(), STARTS_MAX);
    assert_eq!(kept.files[0], "2", "what only forgotten starts read is forgotten");
    profiles.remove(name).unwrap();
    assert!(matches!(profiles.get(name), Err(ProfileError::Unknown(_))));
    assert_eq!(profiles.list().unwrap().len(), 1);
    profiles.keep_newest(0).unwrap();
    assert_eq!(profiles.list().unwrap(), []);
}

#[test]
fn regression_the_oldest_are_forgotten_under_whatever_name_they_have() {
    let directory = tempfile::tempdir().unwrap();
    let profiles = Profiles::new(directory.path().to_owned());
    let name = profiles.add(record("run", &[&["1"]])).unwrap();
    let file = |name: &str| directory.path().join(format!("{name}.json"));
    fs::rename(file(&name), file("0123456789ab-01234567")).unwrap();
    profiles.keep_newest(0).unwrap();
    assert_eq!(profiles.list().unwrap(), []);
}

#[test]
fn names_do_not_lead_out_of_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("x.json"), "{}").unwrap();
    let profiles = Profiles::new(directory.path().join("profiles"));
    for name in ["../x", "", "a/b", "."] {
        assert!(matches!(profiles.get(name), Err(ProfileError::Unknown(_))), "{name}");
        assert!(matches!(profiles.remove(name), Err(ProfileError::Unknown(_))), "{name}");
    }
}

#[test]
fn commands_are_combined_one_after_the_other() {
    let records = [record("a", &[&["1", "2"]]), record("b", &[&["2", "3"]])];
    assert_eq!(combined(&records), units(&["1", "2", "3"]));
}

#[test]
fn the_records_of_the_image_count_more_than_those_of_the_latest() {
    let of = |manifest: &[u8], command: &str| {
        StartRecord::new("r".to_owned(), Digest::of(manifest), command.to_owned())
    };
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let records =
        vec![(at(1), of(b"old", "a")), (at(3), of(b"before", "b")), (at(2), of(b"before", "c"))];
    let fit = |manifest: &[u8]| fitting(records.clone(), &Digest::of(manifest));
    assert_eq!(fit(b"old"), [of(b"old", "a")]);
    assert_eq!(fit(b"new"), [of(b"before", "b"), of(b"before", "c")]);
    assert_eq!(fitting(Vec::new(), &Digest::of(b"new")), []);
}

#[test]
fn a_profile_is_placed_in_another_build_of_the_image() {
    let before = tree(&[&[("lib/a", 10), ("lib/b", 10)], &[("lib/c", 10), ("lib/b", 20)]]);
    let layers: Vec<Digest> = before.layers().iter().map(|layer| layer.header().layer).collect();
    let inode = |layer: usize, path: &str| {
        let placed = place_units(&units(&[path]), &before);
        let unit = placed.units()[0];
        assert_eq!(unit.layer, layers[layer], "{path}");
        unit
    };
    let recorded = Profile::new([inode(1, "lib/c"), inode(1, "lib/b"), inode(0, "lib/a")]);
    let foreign = UnitName { layer: Digest::of(b"other"), inode: 1, number: 0 };
    let with_foreign = Profile::new(recorded.units().iter().copied().chain([foreign]));
    let named = name_units(&with_foreign, &before);
    assert_eq!(named, units(&["lib/c", "lib/b", "lib/a"]));
    // The next build has other layers, and no longer has all of the files.
    let after = tree(&[&[("first", 1), ("lib/b", 5)], &[("lib/c", 10)]]);
    let placed = place_units(&named, &after);
    let found: Vec<Digest> = placed.units().iter().map(|unit| unit.layer).collect();
    let digest = |layer: usize| after.layers()[layer].header().layer;
    assert_eq!(found, [digest(1), digest(0)]);
}

#[test]
fn names_that_lead_nowhere_are_left_out() {
    let tree = tree(&[&[("lib/a", 10), ("empty", 0)]]);
    for path in ["", "lib", "lib/a/b", "../lib/a", "empty", "lib//none", "/"] {
        assert_eq!(place_units(&units(&[path]), &tree), Profile::default(), "{path}");
    }
    assert_eq!(place_units(&units(&["/lib//a"]), &tree).units().len(), 1);
    let beyond = [FileUnit { path: "lib/a".to_owned(), number: u32::MAX }];
    assert_eq!(place_units(&beyond, &tree), Profile::default());
}

#[test]
fn regression_a_pipe_in_place_of_a_profile_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = read(&pipe).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("it is a pipe"), "{cause}");
}
