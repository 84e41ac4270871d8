//! What is said about reads that took long.

use serde::{Deserialize, Serialize};
use undermount_fs::digest::Digest;

/// A read that took long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlowReadStatus {
    /// An image that shows the file: its name where it is mounted, else its repository; `None`
    /// where nothing shows it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The layer that has the file.
    pub layer: Digest,
    /// The file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// When it came, in seconds since 1970.
    pub at: u64,
    /// How long it took.
    pub seconds: f64,
    /// Where the bytes came from: `registry`, `peer`, `pack`, or `shared` with another read;
    /// `None` where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The registry or peer that delivered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supplier: Option<String>,
    /// Bytes that were fetched for it.
    pub fetched: u64,
    /// What it waited for, a millisecond or longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<WaitStatus>,
}

/// One of the things that a read waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitStatus {
    /// `pack`, `turn` (another read of the same spans), `fetch` or `decode`.
    pub what: String,
    /// How long.
    pub seconds: f64,
}
