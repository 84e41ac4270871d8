//! Small files, read and written whole.
//!
//! What the operator names (settings, keys, passwords, certificates) is read again and again, by
//! processes that others wait for. So a pipe that somebody has put in the place of a file is not
//! waited for, and no file is larger than memory. What is written is never seen by half.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use tempfile::NamedTempFile;

/// Bytes that such a file may have: more than any bundle of certificates.
const MOST: u64 = 16 << 20;

/// Opens a file, or a device (`/dev/null`) in its place, and waits for nobody.
///
/// # Errors
/// Those of open(2), and `InvalidInput` for anything else.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_char_device() {
        return Ok(file);
    }
    let what = if kind.is_fifo() { "it is a pipe, not a file" } else { "it is no file" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// The bytes of a file.
///
/// # Errors
/// Those of [`open`] and of reading, and `FileTooLarge` above 16 MiB.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        let words = format!("it has more than {} MiB", MOST >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, words));
    }
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// Those of [`read`], and `InvalidData` where it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What the name of a file begins with that is not finished: a process that is killed leaves it.
pub const UNFINISHED: &str = ".undermount-";

/// How long a file that is written has to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// Until the machine ends, however it does.
    ThisBoot,
    /// Also over a power cut.
    PowerCut,
}

/// An empty file beside `path`, to become the one at `path`; it goes when it is dropped.
///
/// # Errors
/// Those of making files.
pub fn draft(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory_of(path))
}

/// Puts a file with `bytes` and `mode` at `path`, in place of what is there: whoever looks sees
/// the one or the other.
///
/// # Errors
/// Those of writing files; what was there is then still there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, lasting: Lasting) -> io::Result<()> {
    let mut file = draft(path, mode)?;
    file.write_all(bytes)?;
    if lasting == Lasting::PowerCut {
        file.as_file().sync_data()?;
    }
    file.persist(path).map_err(|error| error.error)?;
    match lasting {
        Lasting::ThisBoot => Ok(()),
        // The name is on stable storage with its directory only.
        Lasting::PowerCut => File::open(directory_of(path))?.sync_all(),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn regression_neither_a_pipe_nor_a_file_without_end_holds_up_its_reader() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        File::create(at("large")).unwrap().set_len(MOST + 1).unwrap();
        for (path, words) in [
            (at("pipe"), "it is a pipe"),
            (at("large"), "more than 16 MiB"),
            ("/dev/zero".into(), "more than 16 MiB"),
            (at(""), "it is no file"),
        ] {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{}: {error}", path.display());
        }
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (text, mode) in [("before", 0o600), ("after", 0o400), ("at last", 0o640)] {
            replace(&path, text.as_bytes(), mode, Lasting::PowerCut).unwrap();
            assert_eq!(read_text(&path).unwrap(), text);
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, mode);
        }
        std::fs::create_dir(directory.path().join("taken")).unwrap();
        let taken = replace(&directory.path().join("taken"), b"x", 0o600, Lasting::ThisBoot);
        taken.unwrap_err();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left");
    }

    #[test]
    fn files_are_read_through_links_and_nothing_is_an_empty_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "words").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        assert_eq!(read_text(&at("link")).unwrap(), "words");
        assert_eq!(read_text(Path::new("/dev/null")).unwrap(), "");
        std::fs::write(at("file"), b"\xff").unwrap();
        assert_eq!(read_text(&at("file")).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&at("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
