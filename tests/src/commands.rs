//! Programs of this machine as members of a layer, so that an image can run them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::archive::Member;
use crate::process::call;

/// What it takes to run the programs at `paths`: themselves and the libraries that they name, with
/// the directories and links on the way.
pub fn runnable(paths: &[&str]) -> Vec<Member> {
    let mut wanted: BTreeSet<PathBuf> = paths.iter().map(PathBuf::from).collect();
    for path in paths {
        let libraries = call("ldd", &[path]);
        wanted.extend(
            libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from),
        );
    }
    let mut directories = BTreeSet::new();
    let mut members = Vec::new();
    for path in &wanted {
        directories.extend(path.ancestors().skip(1).map(relative).filter(|dir| !dir.is_empty()));
        // Links are followed: each path is a file of its own in the image.
        let content = std::fs::read(path).unwrap();
        members.push(Member::file(relative(path), content).mode(0o755));
    }
    directories.into_iter().map(Member::dir).chain(members).collect()
}

fn relative(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}
