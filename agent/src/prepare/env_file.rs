//! The file that deployment reads, under its header, and how files are put in place.

use std::io;
use std::path::{Path, PathBuf};

use crate::host::file::{self, Lasting};

/// Everybody may read it.
const MODE: u32 = 0o644;

/// A file that could not be written; what was there before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// `text` under a header that says when and by which command it was made.
pub fn with_header(text: &str, time: &str, command: &str) -> String {
    // A line break in an argument must not end the comment.
    let command = command.replace(['\n', '\r'], " ");
    format!("# Generated with the following on {time}\n#\n#   {command}\n#\n\n{text}")
}

/// Puts `text` in place of `path`: first whole under another name, then renamed, so that nobody
/// ever reads half of it. A link is followed; what is no file (`/dev/stdout`) is written to.
///
/// # Errors
/// [`WriteError`] where the directory is absent or not writable, or the disk is full.
pub fn write(path: &Path, text: &str) -> Result<(), WriteError> {
    let write = || match place(path)? {
        Some(place) => file::replace(&place, text.as_bytes(), MODE, Lasting::PowerCut),
        None => std::fs::write(path, text),
    };
    write().map_err(failed(path))
}

/// Makes sure that [`write()`] will find a directory it can write to, before hours of work.
///
/// # Errors
/// [`WriteError`] where it would not.
pub fn check(path: &Path) -> Result<(), WriteError> {
    let check = || match place(path)? {
        Some(place) => file::draft(&place, MODE).map(drop),
        None => Ok(()),
    };
    check().map_err(failed(path))
}

/// The file to put in place of the one that `path` means; nothing where that is no file, and is
/// written to.
fn place(path: &Path) -> io::Result<Option<PathBuf>> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => path.canonicalize().map(Some),
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(path.to_owned())),
        Err(error) => Err(error),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> WriteError + use<> {
    let path = path.to_owned();
    move |source| WriteError { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_when_and_how() {
        let text = with_header("a: b\n", "2020-01-02T03:04:05", "undermount prepare -e\nx");
        assert_eq!(
            text,
            "# Generated with the following on 2020-01-02T03:04:05\n#\n#   undermount prepare -e x\n\
             #\n\na: b\n"
        );
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env.yaml");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let link = directory.path().join("link.yaml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, "three").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
        check(&path).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        let absent = directory.path().join("absent/env.yaml");
        assert!(check(&absent).is_err());
        let error = write(&absent, "x").unwrap_err().to_string();
        assert!(error.contains("absent/env.yaml"), "{error}");
    }

    #[test]
    fn regression_what_cannot_be_replaced_is_told_before_the_work() {
        let directory = tempfile::tempdir().unwrap();
        assert!(check(directory.path()).is_err(), "a directory is no file");
        // No file can be made beside it, not even by root.
        let link = directory.path().join("link.yaml");
        std::os::unix::fs::symlink("/proc/version", &link).unwrap();
        assert!(check(&link).is_err(), "what counts is where the link goes");
        let target = directory.path().join("target.yaml");
        write(&target, "one").unwrap();
        let good = directory.path().join("good.yaml");
        std::os::unix::fs::symlink("target.yaml", &good).unwrap();
        check(&good).unwrap();
    }
}
