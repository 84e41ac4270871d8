//! Digests as the registry meets them: SHA-256, and SHA-512 which the OCI specifications allow
//! besides it. The rest of Undermount knows SHA-256 only; what carries another digest is
//! stored and served here, and never indexed.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};
use undermount_fs::digest::Digest;

/// A hash function of the OCI image-spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// The canonical one.
    Sha256,
    /// The other registered one.
    Sha512,
}

impl Algorithm {
    /// Every algorithm that the registry takes.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name before the colon of a digest; also the name of the directory of its blobs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of a blob or manifest: `<algorithm>:<lower-case hex>`. Its parts are safe as file
/// names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentDigest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Text that is not a digest which the registry can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest (sha256 or sha512, a colon and lower-case hex digits)")]
pub struct ParseContentDigestError(String);

impl ContentDigest {
    /// The digest of `bytes` by `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hash function.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// `<algorithm>-<hex>`: one file name for the digest.
    pub fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    /// The digest whose [`file_name`](Self::file_name) is `name`, if it is one.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (algorithm, hex) = name.split_once('-')?;
        Self::from_parts(algorithm, hex)
    }

    /// The digest as the rest of Undermount knows it; `None` where it is no SHA-256.
    pub fn sha256(&self) -> Option<Digest> {
        match self.algorithm {
            Algorithm::Sha256 => Digest::from_hex(&self.hex).ok(),
            Algorithm::Sha512 => None,
        }
    }

    fn from_parts(algorithm: &str, hex: &str) -> Option<Self> {
        let algorithm = Algorithm::ALL.into_iter().find(|known| known.name() == algorithm)?;
        let digits = hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        (digits && hex.len() == algorithm.hex_len()).then(|| Self { algorithm, hex: hex.into() })
    }
}

impl From<Digest> for ContentDigest {
    fn from(digest: Digest) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: digest.hex().into() }
    }
}

impl FromStr for ContentDigest {
    type Err = ParseContentDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once(':')
            .and_then(|(algorithm, hex)| Self::from_parts(algorithm, hex))
            .ok_or_else(|| ParseContentDigestError(text.to_owned()))
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl serde::Serialize for ContentDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ContentDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream piece by piece by one of the algorithms.
#[derive(Clone)]
pub enum ContentHasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl ContentHasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Adds `bytes` to the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added so far.
    pub fn finish(self) -> ContentDigest {
        match self {
            Self::Sha256(hasher) => Digest::from_bytes(hasher.finalize().into()).into(),
            Self::Sha512(hasher) => {
                let hex = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                ContentDigest { algorithm: Algorithm::Sha512, hex }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_file_names_round_trip() {
        for algorithm in Algorithm::ALL {
            let digest = ContentDigest::of(algorithm, b"layer");
            assert_eq!(digest.to_string().parse::<ContentDigest>().unwrap(), digest);
            assert_eq!(ContentDigest::from_file_name(&digest.file_name()), Some(digest));
        }
    }

    #[test]
    fn the_canonical_digest_is_the_one_of_the_file_system() {
        let digest = ContentDigest::of(Algorithm::Sha256, b"layer");
        assert_eq!(digest.sha256(), Some(Digest::of(b"layer")));
        assert_eq!(ContentDigest::of(Algorithm::Sha512, b"layer").sha256(), None);
    }

    #[test]
    fn malformed_digests_are_refused() {
        let hex = "0".repeat(64);
        for text in [
            "",
            "sha256:",
            "sha256:baddigeststring",
            &hex,
            &format!("md5:{hex}"),
            &format!("sha512:{hex}"),
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:../{}", "0".repeat(61)),
        ] {
            assert!(text.parse::<ContentDigest>().is_err(), "{text}");
        }
    }
}
