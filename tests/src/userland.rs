//! Programs of this machine as members of a layer, with the libraries that they need: an image
//! that runs, without a package mirror.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::Member;
use crate::process::{SOON, program, run};

/// `names` as `/bin/<name>`, their libraries where the programs look for them, and the usual empty
/// directories.
pub fn userland(names: &[&str]) -> Vec<Member> {
    let mut members: Vec<Member> =
        ["bin", "dev", "etc", "proc", "sys"].map(Member::dir).into_iter().collect();
    members.push(Member::dir("tmp").mode(0o1777));
    let mut libraries = BTreeSet::new();
    for name in names {
        let path = program(name).get_program().to_owned();
        libraries.extend(libraries_of(Path::new(&path)));
        members.push(Member::file(format!("bin/{name}"), fs::read(path).unwrap()).mode(0o755));
    }
    let mut directories = BTreeSet::new();
    for library in &libraries {
        let above: Vec<&Path> = library.parent().unwrap().ancestors().collect();
        directories.extend(above.into_iter().map(inside).filter(|path| !path.is_empty()));
    }
    members.extend(directories.into_iter().map(Member::dir));
    let library = |path: &PathBuf| Member::file(inside(path), fs::read(path).unwrap()).mode(0o755);
    members.extend(libraries.iter().map(library));
    members
}

/// The path in an archive.
fn inside(path: &Path) -> String {
    path.to_str().unwrap().trim_start_matches('/').to_owned()
}

/// What `ldd` says that the program at `path` loads.
fn libraries_of(path: &Path) -> Vec<PathBuf> {
    let text = run(program("ldd").arg(path), SOON).success().stdout;
    let library = |line: &str| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(path))
    };
    text.lines().filter_map(library).collect()
}
