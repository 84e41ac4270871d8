//! The file that deployment reads, under its header, and how files are put in place.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A file that could not be written; what was there before is untouched.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: std::io::Error,
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
    let write = || match std::fs::metadata(path) {
        Ok(found) if found.is_file() => replace(&path.canonicalize()?, text),
        Ok(found) if !found.is_dir() => std::fs::write(path, text),
        _ => replace(path, text),
    };
    write().map_err(|source| WriteError { path: path.to_owned(), source })
}

/// Makes sure that [`write`] will find a directory it can write to, before hours of work.
///
/// # Errors
/// [`WriteError`] where it would not.
pub fn check(path: &Path) -> Result<(), WriteError> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Ok(());
    }
    temporary(path).map(drop).map_err(|source| WriteError { path: path.to_owned(), source })
}

fn temporary(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    tempfile::Builder::new()
        .prefix(".undermount-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory.unwrap_or(Path::new(".")))
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = temporary(path)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
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
}
