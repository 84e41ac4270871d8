//! `info`: what containers/storage reads of a layer, in the words of its `Layer` record.
//!
//! There are two generations of the protocol. The older one asks by the digest of the blob and
//! believes the DiffID that it finds here. The newer one asks by the digest in the layer's
//! annotation, wants to find that one again, and takes a DiffID here for one that was verified:
//! it gets the one of the image's config as what is to be expected.

use bytes::Bytes;
use serde::Serialize;
use undermount_fs::digest::Digest;

/// How a layer is compressed, in the numbers of containers/storage (`pkg/archive`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Gzip => 2,
            Self::Zstd => 4,
        }
    }
}

/// What `info` is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// The digest of the compressed bytes.
    pub blob: Digest,
    /// Their number.
    pub blob_size: u64,
    /// The digest of the uncompressed bytes.
    pub diff_id: Digest,
    /// Their number.
    pub diff_size: u64,
    /// How they are compressed.
    pub compression: Compression,
    /// The users who own files, in ascending order.
    pub uids: Vec<u32>,
    /// The groups that own files, in ascending order.
    pub gids: Vec<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Record<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed_diff_digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compressed_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_digest: Option<Digest>,
    diff_size: i64,
    compression: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    toc_digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<Flags>,
    uidset: &'a [u32],
    gidset: &'a [u32],
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Flags {
    expected_layer_diffid: Digest,
}

/// The size of a layer that nobody has counted.
const UNKNOWN_SIZE: i64 = -1;

impl LayerInfo {
    /// The file for a podman that asks for `key`.
    pub fn to_json(&self, key: &Digest) -> Bytes {
        let by_blob = *key == self.blob;
        let record = Record {
            compressed_diff_digest: by_blob.then_some(self.blob),
            compressed_size: by_blob.then_some(self.blob_size),
            diff_digest: by_blob.then_some(self.diff_id),
            diff_size: if by_blob { self.known_size() } else { UNKNOWN_SIZE },
            compression: self.compression.number(),
            toc_digest: (!by_blob).then_some(*key),
            flags: (!by_blob).then_some(Flags { expected_layer_diffid: self.diff_id }),
            uidset: &self.uids,
            gidset: &self.gids,
        };
        serde_json::to_vec(&record).expect("the record is plain data").into()
    }

    fn known_size(&self) -> i64 {
        i64::try_from(self.diff_size).unwrap_or(UNKNOWN_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn info() -> LayerInfo {
        LayerInfo {
            blob: Digest::of(b"blob"),
            blob_size: 95,
            diff_id: Digest::of(b"tar"),
            diff_size: 205,
            compression: Compression::Gzip,
            uids: vec![0, 42],
            gids: vec![0],
        }
    }

    fn told(key: &Digest) -> Value {
        serde_json::from_slice(&info().to_json(key)).unwrap()
    }

    #[test]
    fn who_asks_by_the_blob_is_told_its_digests() {
        let expected = json!({
            "compressed-diff-digest": Digest::of(b"blob").to_string(),
            "compressed-size": 95,
            "diff-digest": Digest::of(b"tar").to_string(),
            "diff-size": 205,
            "compression": 2,
            "uidset": [0, 42],
            "gidset": [0],
        });
        assert_eq!(told(&Digest::of(b"blob")), expected);
    }

    #[test]
    fn who_asks_by_the_table_of_contents_is_told_nothing_that_was_not_verified() {
        let toc = Digest::of(b"tree");
        let expected = json!({
            "toc-digest": toc.to_string(),
            "flags": { "expected-layer-diffid": Digest::of(b"tar").to_string() },
            "diff-size": -1,
            "compression": 2,
            "uidset": [0, 42],
            "gidset": [0],
        });
        assert_eq!(told(&toc), expected);
    }
}
