//! Types of single values, which cannot hold a wrong one.
//!
//! A [`Value`] says in one phrase what is allowed. That phrase is part of every refusal, of the
//! file and of the flags alike.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::image::Repository;

/// A value that is written as an integer or as text.
pub trait Value: Sized {
    /// What is allowed, as it follows "expected".
    fn allowed() -> String;

    /// The value that an integer means.
    fn of_integer(_number: u64) -> Option<Self> {
        None
    }

    /// The value that a text means.
    fn of_text(_text: &str) -> Option<Self> {
        None
    }
}

/// Reads a value from a word of the command line.
///
/// # Errors
/// Where it is not allowed, with what is.
pub fn from_word<T: Value>(word: &str) -> Result<T, String> {
    let number = word.parse().ok().and_then(T::of_integer);
    number.or_else(|| T::of_text(word)).ok_or_else(|| format!("expected {}", T::allowed()))
}

struct ValueVisitor<T>(PhantomData<T>);

impl<T: Value> Visitor<'_> for ValueVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::allowed())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        T::of_integer(number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number)
            .ok()
            .and_then(T::of_integer)
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::of_text(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// Reads a value from a file.
pub(super) fn deserialize<'de, T: Value, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_any(ValueVisitor(PhantomData))
}

/// A number of bytes, at least [`Self::LEAST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ByteCount(u64);

impl ByteCount {
    /// Less is a mistake, such as a number that was meant to have a unit.
    pub const LEAST: u64 = 1 << 20;

    const UNITS: [(&str, u64); 4] =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

    /// That many bytes, where they are in range.
    pub fn new(bytes: u64) -> Option<Self> {
        // TOML knows no larger integers, and no disk has more.
        (Self::LEAST..=i64::MAX.cast_unsigned()).contains(&bytes).then_some(Self(bytes))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Value for ByteCount {
    fn allowed() -> String {
        "a number of bytes, or a number with KiB, MiB, GiB or TiB, at least 1 MiB".to_owned()
    }

    fn of_integer(number: u64) -> Option<Self> {
        Self::new(number)
    }

    fn of_text(text: &str) -> Option<Self> {
        Self::UNITS.into_iter().find_map(|(unit, bytes)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            Self::of_integer(number.checked_mul(bytes)?)
        })
    }
}

/// A number of seconds from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Seconds<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    /// That many seconds, where they are in range.
    pub fn new(seconds: u64) -> Option<Self> {
        (MIN..=MAX).contains(&seconds).then_some(Self(seconds))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Value for Seconds<MIN, MAX> {
    fn allowed() -> String {
        format!("a whole number of seconds from {MIN} to {MAX}")
    }

    fn of_integer(number: u64) -> Option<Self> {
        Self::new(number)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Seconds<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer)
    }
}

/// The cache directory, by an absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Directory(PathBuf);

impl Default for Directory {
    fn default() -> Self {
        Self("/var/lib/undermount".into())
    }
}

impl From<PathBuf> for Directory {
    /// For paths of the command line, which may be relative to where it was typed.
    fn from(path: PathBuf) -> Self {
        Self(std::path::absolute(&path).unwrap_or(path))
    }
}

impl Deref for Directory {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Value for Directory {
    fn allowed() -> String {
        "an absolute path".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        text.starts_with('/').then(|| Self(text.into()))
    }
}

/// A file, by an absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// This path, which is absolute.
    pub(super) fn new(path: &str) -> Self {
        Self(path.into())
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Value for AbsolutePath {
    fn allowed() -> String {
        "an absolute path".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        text.starts_with('/').then(|| Self(text.into()))
    }
}

/// The mount point of the layer store, as podman can take it: containers/storage splits its
/// option at `:` and `,`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct StorePath(PathBuf);

impl Default for StorePath {
    fn default() -> Self {
        Self("/var/lib/undermount-store".into())
    }
}

impl Deref for StorePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Value for StorePath {
    fn allowed() -> String {
        "an absolute path without `:` and `,`".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        let fits = text.starts_with('/') && !text.contains([':', ',']);
        fits.then(|| Self(text.into()))
    }
}

/// A security context of SELinux.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SelinuxContext(String);

impl fmt::Display for SelinuxContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Value for SelinuxContext {
    fn allowed() -> String {
        "a security context, USER:ROLE:TYPE or USER:ROLE:TYPE:LEVEL".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        // What else the policy may say of names; nothing that ends a mount option early.
        let fits = |part: &str| {
            let may = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-,:".contains(&byte);
            !part.is_empty() && part.bytes().all(may)
        };
        let parts: Vec<&str> = text.splitn(4, ':').collect();
        (parts.len() >= 3 && parts.into_iter().all(fits)).then(|| Self(text.to_owned()))
    }
}

/// An address of this machine that no other machine reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loopback(SocketAddr);

impl Loopback {
    /// The address.
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl Value for Loopback {
    fn allowed() -> String {
        "a loopback address with a port, such as `127.0.0.1:5055` or `[::1]:5055`".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        let address: SocketAddr = text.parse().ok()?;
        address.ip().is_loopback().then_some(Self(address))
    }
}

impl Serialize for Loopback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Where something is served, also for other hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(SocketAddr);

impl Listen {
    /// The address.
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl Value for Listen {
    fn allowed() -> String {
        "an IP address with a port, such as `127.0.0.1:9798` or `[::]:9798`".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A registry, `host` or `host:port`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RegistryName(String);

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Value for RegistryName {
    fn allowed() -> String {
        "a registry, HOST or HOST:PORT".to_owned()
    }

    fn of_text(text: &str) -> Option<Self> {
        let host = text.to_ascii_lowercase();
        // A registry is what stands before the first slash of a repository's name.
        let repository: Repository = format!("{host}/x").parse().ok()?;
        (repository.host() == host).then_some(Self(host))
    }
}

macro_rules! deserialized_as_value {
    ($($name:ident),+) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize(deserializer)
            }
        })+
    };
}

deserialized_as_value!(
    ByteCount,
    Directory,
    AbsolutePath,
    StorePath,
    SelinuxContext,
    Listen,
    Loopback,
    RegistryName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_take_binary_units() {
        for (word, bytes) in [
            ("1048576", Some(1 << 20)),
            ("1 MiB", Some(1 << 20)),
            ("20GiB", Some(20 << 30)),
            ("3 TiB", Some(3 << 40)),
            ("1048575", None),
            ("1023 KiB", None),
            ("1 GB", None),
            ("-1 GiB", None),
            ("99999999999 TiB", None),
            ("", None),
        ] {
            assert_eq!(from_word::<ByteCount>(word).ok().map(ByteCount::get), bytes, "{word}");
        }
    }

    #[test]
    fn a_word_that_is_not_allowed_is_answered_by_what_is() {
        let said = from_word::<Seconds<1, 60>>("61").unwrap_err();
        assert_eq!(said, "expected a whole number of seconds from 1 to 60");
    }

    #[test]
    fn a_context_holds_nothing_that_could_end_a_mount_option() {
        for (word, fits) in [
            ("system_u:object_r:container_ro_file_t:s0", true),
            ("system_u:object_r:container_file_t:s0:c14,c200", true),
            ("system_u:object_r:fusefs_t", true),
            ("fusefs_t", false),
            ("system_u::fusefs_t", false),
            ("system_u:object_r:fusefs_t:", false),
            ("a:b:c\",fd=0", false),
            ("a:b:c d", false),
        ] {
            assert_eq!(from_word::<SelinuxContext>(word).is_ok(), fits, "{word}");
        }
    }

    #[test]
    fn registries_are_hosts_without_paths() {
        for (word, fits) in [
            ("undercloud.ctlplane:8787", true),
            ("[fd00::1]:5000", true),
            ("docker.io", true),
            ("https://x", false),
            ("a.example/b", false),
            ("", false),
        ] {
            assert_eq!(from_word::<RegistryName>(word).is_ok(), fits, "{word}");
        }
    }
}
