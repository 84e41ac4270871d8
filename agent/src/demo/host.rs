//! Files of this host, to be shipped under the paths that they have here.
//!
//! A path is taken with everything that it needs to be found: the directories above it, and
//! every symbolic link on the way with what it leads to.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;
/// Files given to one run of `ldd`.
const BATCH: usize = 200;

/// A set of files, directories and links, by absolute path.
#[derive(Debug, Clone, Default)]
pub struct HostFiles {
    entries: BTreeMap<PathBuf, Metadata>,
    bytes: u64,
}

impl HostFiles {
    /// The entries in an order in which parents come first.
    pub fn entries(&self) -> impl Iterator<Item = (&Path, &Metadata)> {
        self.entries.iter().map(|(path, metadata)| (path.as_path(), metadata))
    }

    /// The sum of the sizes of the files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds one file, directory (without its content) or link; gives the path without links.
    ///
    /// # Errors
    /// Where something on the way cannot be looked at.
    pub fn add(&mut self, path: &Path) -> io::Result<PathBuf> {
        let mut ahead: VecDeque<PathBuf> = names(path).collect();
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == Path::new("..") {
                real.pop();
                continue;
            }
            let next = real.join(name);
            let metadata = fs::symlink_metadata(&next)?;
            if metadata.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                names(&target).rev().for_each(|name| ahead.push_front(name));
            } else {
                real.clone_from(&next);
            }
            self.insert(next, metadata);
        }
        Ok(real)
    }

    /// Adds a directory and what is below it, up to `limit` bytes in the whole set; links that
    /// lead nowhere are left out.
    ///
    /// # Errors
    /// Where a directory cannot be read.
    pub fn add_tree(&mut self, directory: &Path, limit: u64) -> io::Result<()> {
        let real = self.add(directory)?;
        let mut children: Vec<PathBuf> =
            fs::read_dir(&real)?.map(|child| Ok(child?.path())).collect::<io::Result<_>>()?;
        children.sort();
        for child in children {
            let kind = fs::symlink_metadata(&child)?.file_type();
            if kind.is_dir() {
                self.add_tree(&child, limit)?;
            } else if kind.is_symlink() {
                // A dangling link of the host is not the image's business.
                let _ = self.add(&child);
            } else if kind.is_file() && self.bytes < limit {
                self.add(&child)?;
            }
        }
        Ok(())
    }

    /// Adds the shared libraries of all programs and libraries of the set, as `ldd` finds them.
    ///
    /// # Errors
    /// Where `ldd` does not run or a library cannot be read.
    pub fn add_libraries(&mut self) -> io::Result<()> {
        let objects: Vec<PathBuf> = self
            .entries
            .iter()
            .filter(|(path, metadata)| metadata.is_file() && is_elf(path))
            .map(|(path, _)| path.clone())
            .collect();
        for batch in objects.chunks(BATCH) {
            // It fails for objects without libraries, and says everything about the others.
            let output = Command::new("ldd").args(batch).output()?;
            for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
                self.add(Path::new(library))?;
            }
        }
        Ok(())
    }

    /// What `self` has and `below` has not, with the directories above it.
    pub fn above(&self, below: &Self) -> Self {
        let mut rest = Self::default();
        for path in self.entries.keys().filter(|path| !below.entries.contains_key(*path)) {
            for step in path.ancestors() {
                if let Some(metadata) = self.entries.get(step) {
                    rest.insert(step.to_owned(), metadata.clone());
                }
            }
        }
        rest
    }

    /// The set in two parts of about equal weight, in the order of the
    /// paths; both have the directories above their files.
    pub fn halves(&self) -> [Self; 2] {
        let mut halves = [Self::default(), Self::default()];
        for (path, metadata) in self.entries.iter().filter(|(_, metadata)| !metadata.is_dir()) {
            let which = usize::from(halves[0].bytes >= self.bytes / 2);
            for step in path.ancestors().skip(1) {
                if let Some(metadata) = self.entries.get(step) {
                    halves[which].insert(step.to_owned(), metadata.clone());
                }
            }
            halves[which].insert(path.clone(), metadata.clone());
        }
        halves
    }

    fn insert(&mut self, path: PathBuf, metadata: Metadata) {
        let size = if metadata.is_file() { metadata.len() } else { 0 };
        if self.entries.insert(path, metadata).is_none() {
            self.bytes += size;
        }
    }
}

/// The names of a path, `..` included.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = PathBuf> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    })
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"\x7fELF"
}

/// The paths in the output of `ldd`: `name => path (address)` or `path (address)`, indented.
fn libraries(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter(|line| line.starts_with(char::is_whitespace)).filter_map(|line| {
        let found = line.split_once("=>").map_or(line, |(_, found)| found);
        found.split_whitespace().next().filter(|path| path.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_comes_with_its_directories_and_links() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/x.so.1"), "12345").unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("x.so.1", root.join("usr/lib/x.so")).unwrap();
        symlink("nowhere", root.join("usr/lib/broken")).unwrap();
        let mut files = HostFiles::default();
        assert_eq!(files.add(&root.join("lib/x.so")).unwrap(), root.join("usr/lib/x.so.1"));
        for name in ["", "lib", "usr", "usr/lib", "usr/lib/x.so", "usr/lib/x.so.1"] {
            assert!(files.entries.contains_key(&root.join(name)), "{name}");
        }
        assert_eq!(files.bytes(), 5);
        let mut more = files.clone();
        fs::write(root.join("usr/lib/y"), "678").unwrap();
        more.add_tree(&root.join("lib"), 1 << 20).unwrap();
        let rest = more.above(&files).entries;
        assert!(rest.contains_key(&root.join("usr/lib")), "the way to the rest");
        let links_and_files: Vec<&PathBuf> =
            rest.iter().filter(|(_, own)| !own.is_dir()).map(|(path, _)| path).collect();
        assert_eq!(links_and_files, [&root.join("usr/lib/broken"), &root.join("usr/lib/y")]);
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        symlink("b", directory.path().join("a")).unwrap();
        symlink("a", directory.path().join("b")).unwrap();
        let error = HostFiles::default().add(&directory.path().join("a")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn libraries_are_read_from_every_shape_of_line() {
        let output = "/usr/bin/x:\n\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlibgone.so => not found\n\
                      \tstatically linked\n";
        let found: Vec<&str> = libraries(output).collect();
        assert_eq!(found, ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
