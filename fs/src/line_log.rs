//! A file of lines that grows, and is written anew where it has grown too long.
//!
//! Nodeids are numbers of lines, so a line that was begun and not ended must neither count nor
//! spoil the one that follows it. Such a line is left where a file system is full, or where the
//! machine stops in the middle of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// An open log.
#[derive(Debug)]
pub struct LineLog {
    path: PathBuf,
    file: File,
    /// Bytes of its whole lines.
    length: u64,
}

impl LineLog {
    /// Opens the log at `path`, or makes an empty one, and returns its whole lines with it. Nobody
    /// else may write to it.
    ///
    /// # Errors
    /// Those of opening and reading, and `InvalidData` where it is no text.
    pub fn open(path: &Path) -> io::Result<(Self, String)> {
        // What a process has left that was killed while it replaced the lines.
        let _ = std::fs::remove_file(beside(path));
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        bytes.truncate(end);
        let lines = String::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((Self { path: path.to_owned(), file, length: lines.len() as u64 }, lines))
    }

    /// Has `lines` take the place of all that is there. Whoever opens the log finds either.
    ///
    /// # Errors
    /// Those of writing; nothing has changed then.
    pub fn replace(&mut self, lines: &[String]) -> io::Result<()> {
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let beside = beside(&self.path);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&beside)?;
        file.write_all_at(text.as_bytes(), 0)?;
        std::fs::rename(&beside, &self.path)?;
        (self.file, self.length) = (file, text.len() as u64);
        Ok(())
    }

    /// Adds a line. It is there for whoever opens the log after this, or not at all.
    ///
    /// # Errors
    /// Those of writing; the next attempt writes in the same place.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        // Takes away what an attempt before has left.
        self.file.set_len(self.length)?;
        self.file.write_all_at(line.as_bytes(), self.length)?;
        self.length += line.len() as u64;
        Ok(())
    }
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_are_there_when_the_log_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut log, lines) = LineLog::open(&path).unwrap();
        assert_eq!(lines, "");
        log.append("first").unwrap();
        log.append("second").unwrap();
        let (mut log, lines) = LineLog::open(&path).unwrap();
        assert_eq!(lines, "first\nsecond\n");
        log.append("third").unwrap();
        assert_eq!(LineLog::open(&path).unwrap().1, "first\nsecond\nthird\n");
    }

    #[test]
    fn other_lines_take_the_place_of_all_and_grow_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut log, _) = LineLog::open(&path).unwrap();
        log.append("first").unwrap();
        log.append("second").unwrap();
        log.replace(&["2".to_owned()]).unwrap();
        log.append("third").unwrap();
        assert_eq!(LineLog::open(&path).unwrap().1, "2\nthird\n");
        log.replace(&[]).unwrap();
        assert_eq!(LineLog::open(&path).unwrap().1, "");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn regression_a_line_that_was_not_ended_spoils_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for (torn, whole) in
            [(&b"fi"[..], ""), (b"first\nsec", "first\n"), (b"first\n\xc3", "first\n")]
        {
            fs::write(&path, torn).unwrap();
            let (mut log, lines) = LineLog::open(&path).unwrap();
            assert_eq!(lines, whole);
            log.append("next").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{whole}next\n"));
        }
    }
}
