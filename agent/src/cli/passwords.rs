//! Passwords that came as arguments, taken out of the list of processes.
//!
//! The original's commands take passwords as flags. Everyone on the host can read the arguments
//! of a process, which are a part of its memory: what a flag of a password has for a value is
//! written over there, as soon as it was read.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// The flags whose value is a password, and how short each may be typed.
const FLAGS: [(&str, &str); 2] = [("--password", "--p"), ("--source-password", "--source-p")];
/// What stands in the place of each byte.
const COVER: u8 = b'*';

/// Covers the passwords among the arguments of this process. They have to have been read before.
pub fn cover() {
    if let Err(error) = cover_in_memory() {
        tracing::debug!(%error, "passwords among the arguments stay in the list of processes");
    }
}

fn cover_in_memory() -> io::Result<()> {
    let line = fs::read("/proc/self/cmdline")?;
    let passwords = passwords(&line);
    if passwords.is_empty() {
        return Ok(());
    }
    let stat = fs::read("/proc/self/stat")?;
    let start =
        arguments_start(&String::from_utf8_lossy(&stat)).ok_or(io::ErrorKind::InvalidData)?;
    let memory = File::options().write(true).open("/proc/self/mem")?;
    for password in passwords {
        memory.write_all_at(&vec![COVER; password.len()], start + password.start as u64)?;
    }
    Ok(())
}

/// Where the passwords are among `arguments`, each of which ends with a zero byte.
fn passwords(arguments: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let (mut at, mut is_next) = (0, false);
    for argument in arguments.split_inclusive(|&byte| byte == 0) {
        let text = argument.strip_suffix(&[0]).unwrap_or(argument);
        let sign = text.iter().position(|&byte| byte == b'=');
        let takes_password = is_flag(&text[..sign.unwrap_or(text.len())]);
        match sign {
            _ if is_next => found.push(at..at + text.len()),
            Some(sign) if takes_password => found.push(at + sign + 1..at + text.len()),
            _ => {}
        }
        is_next = !is_next && sign.is_none() && takes_password;
        at += argument.len();
    }
    found.retain(|range| !range.is_empty());
    found
}

/// Whether `word` is a flag whose value is a password, in full or shortened.
fn is_flag(word: &[u8]) -> bool {
    let is = |(flag, shortest): &(&str, &str)| {
        flag.as_bytes().starts_with(word) && word.starts_with(shortest.as_bytes())
    };
    FLAGS.iter().any(is)
}

/// The address of the arguments in memory: field 48 of proc_pid_stat(5).
fn arguments_start(stat: &str) -> Option<u64> {
    // The second field is the program's name and may hold anything; it ends with the last bracket.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(48 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_password_flags_are_found() {
        for (line, found) in [
            ("u\0list\0--username\0alice\0", vec![]),
            ("u\0--password\0hush\0-y\0", vec!["hush"]),
            ("u\0--password=hush\0--source-password\0--password\0", vec!["hush", "--password"]),
            ("u\0--password\0\0--password=\0x\0", vec![]),
            ("u\0--passw\0hush\0--source-pass=a=b\0--source\0x\0--\0x\0", vec!["hush", "a=b"]),
            ("u\0--passwords\0x\0--source-user=x\0x=--password\0x\0", vec![]),
            ("u\0--password", vec![]),
        ] {
            let ranges = passwords(line.as_bytes());
            let texts: Vec<_> = ranges.into_iter().map(|range| &line[range]).collect();
            assert_eq!(texts, found, "{line:?}");
        }
    }

    #[test]
    fn the_address_stands_behind_any_name() {
        let fields: Vec<_> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b) {}", fields.join(" "));
        assert_eq!(arguments_start(&stat), Some(48));
        assert_eq!(arguments_start("7 (a) S"), None);
    }
}
