//! Whatever happens to a file of the store while nobody holds it open is found at its next use:
//! a miss, then right bytes again, never wrong ones.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use undermount_fs::object::{Store, StoreLimits};

use super::Content;

/// A way to spoil a file.
pub type Damage = (&'static str, fn(&Path));

/// Every way.
pub const DAMAGES: [Damage; 8] = [
    ("altered", |path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        let middle = file.metadata().unwrap().len() / 2;
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
    }),
    ("truncated", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 3).unwrap();
    }),
    ("emptied", |path| drop(File::create(path).unwrap())),
    ("zeroed", |path| {
        let size = path.metadata().unwrap().len();
        fs::write(path, vec![0; size as usize]).unwrap();
    }),
    ("deleted", |path| fs::remove_file(path).unwrap()),
    ("replaced by a directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
    }),
    ("replaced by a link to itself elsewhere", |path| {
        let elsewhere = path.with_extension("elsewhere");
        fs::rename(path, &elsewhere).unwrap();
        symlink(&elsewhere, path).unwrap();
    }),
    ("replaced by a pipe", |path| {
        fs::remove_file(path).unwrap();
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    }),
];

/// What is damaged.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Object,
    CompleteLarge,
    Incomplete,
}

#[test]
fn damage_is_found_at_the_next_use_and_repaired_by_the_next_fill() {
    for victim in [Victim::Object, Victim::CompleteLarge, Victim::Incomplete] {
        for (what, damage) in DAMAGES {
            for reopened in [false, true] {
                check(victim, what, damage, reopened);
            }
        }
    }
}

fn check(victim: Victim, what: &str, damage: fn(&Path), reopened: bool) {
    let case = format!("{victim:?} {what}, reopened: {reopened}");
    let root = tempfile::tempdir().unwrap();
    let open = || Store::open(root.path(), StoreLimits::default()).unwrap();
    let mut store = open();
    let (content, here) = match victim {
        Victim::Object => (Content::of(1, 5000), 1),
        Victim::CompleteLarge => (Content::of(2, (1 << 20) + 5), 2),
        Victim::Incomplete => (Content::of(3, (2 << 20) + 5), 1),
    };
    for chunk in 0..here {
        content.keep(&store, chunk).unwrap();
        assert!(content.is_read(&store, chunk), "{case}");
    }
    let places = content.places(root.path());
    damage(places.iter().find(|path| path.exists()).unwrap());
    if reopened {
        drop(store);
        store = open();
    }
    let found = (0..here).filter(|chunk| content.is_read(&store, *chunk)).count();
    assert!(found < here || matches!(victim, Victim::Incomplete), "{case}");
    if !what.contains("altered") {
        assert!(!content.is_read(&store, 0) || what == "truncated", "{case}");
    }
    assert!(!store.contains(&content.key), "{case}: counts as complete");
    content.keep_all(&store).unwrap();
    for chunk in 0..content.chunks.len().max(1) {
        assert!(content.is_read(&store, chunk), "{case}");
    }
    assert!(store.contains(&content.key) && !places[1].exists(), "{case}");
}
