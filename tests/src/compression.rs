//! The ways in which real tools compress a layer, and a few that only the formats allow.

use std::io::Write;

use flate2::{Compress, Compression as Level, FlushCompress, GzBuilder, Status};

/// How the archive becomes a layer blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    Plain,
    /// One gzip member.
    Gzip,
    /// A new gzip member after every so many bytes, as eStargz and `pigz -i` write them.
    GzipMembers(usize),
    /// One member whose header carries name, comment, extra field and time.
    GzipNamed,
    /// One member, flushed (sync and full in turn) after every so many bytes.
    GzipFlushed(usize),
    /// One member of stored blocks.
    GzipStored,
    /// One zstd frame.
    Zstd,
    /// A new zstd frame after every so many bytes, skippable frames between them.
    ZstdFrames(usize),
}

impl Compression {
    /// The OCI media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Zstd | Self::ZstdFrames(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }

    /// Compresses `bytes`; the same bytes give the same blob.
    pub fn apply(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gzip => gzip(GzBuilder::new(), bytes, Level::new(6)),
            Self::GzipMembers(size) => parts(bytes, size)
                .flat_map(|part| gzip(GzBuilder::new(), part, Level::new(6)))
                .collect(),
            Self::GzipNamed => {
                let header = GzBuilder::new()
                    .filename("layer.tar")
                    .comment("a comment")
                    .extra(b"SG\x04\x00abcd".to_vec())
                    .mtime(1_700_000_000);
                gzip(header, bytes, Level::new(6))
            }
            Self::GzipFlushed(size) => gzip_flushed(bytes, size),
            Self::GzipStored => gzip(GzBuilder::new(), bytes, Level::none()),
            Self::Zstd => zstd_frame(bytes),
            Self::ZstdFrames(size) => parts(bytes, size)
                .flat_map(|part| [zstd_frame(part), zstd_skippable(b"between")].concat())
                .collect(),
        }
    }
}

/// `bytes` in parts of `size`; at least one, so that nothing still makes a stream.
fn parts(bytes: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let empty: &[u8] = &[];
    bytes.chunks(size).chain(std::iter::repeat_n(empty, usize::from(bytes.is_empty())))
}

fn gzip(header: GzBuilder, bytes: &[u8], level: Level) -> Vec<u8> {
    let mut writer = header.write(Vec::new(), level);
    writer.write_all(bytes).expect("memory takes all bytes");
    writer.finish().expect("memory takes all bytes")
}

fn gzip_flushed(bytes: &[u8], size: usize) -> Vec<u8> {
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut deflate = Compress::new(Level::new(6), false);
    for (turn, part) in parts(bytes, size).enumerate() {
        let flush = if turn % 2 == 0 { FlushCompress::Sync } else { FlushCompress::Full };
        deflate_part(&mut deflate, part, flush, &mut blob);
    }
    deflate_part(&mut deflate, &[], FlushCompress::Finish, &mut blob);
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    blob.extend_from_slice(&crc.sum().to_le_bytes());
    blob.extend_from_slice(&crc.amount().to_le_bytes());
    blob
}

fn deflate_part(deflate: &mut Compress, part: &[u8], flush: FlushCompress, blob: &mut Vec<u8>) {
    let before = deflate.total_in();
    loop {
        blob.reserve(64 << 10);
        let done = usize::try_from(deflate.total_in() - before).expect("a part is in memory");
        let room = blob.capacity();
        let status = deflate.compress_vec(&part[done..], blob, flush).expect("deflate works");
        let flushed = deflate.total_in() - before == part.len() as u64 && blob.len() < room;
        if status == Status::StreamEnd || (flushed && flush != FlushCompress::Finish) {
            return;
        }
    }
}

/// One zstd frame of `bytes`.
pub fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("memory takes all bytes")
}

/// One zstd frame of `bytes` that ends in a checksum and does not tell its size.
pub fn zstd_checked(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("a valid level");
    encoder.include_checksum(true).expect("a valid flag");
    encoder.write_all(bytes).expect("memory takes all bytes");
    encoder.finish().expect("memory takes all bytes")
}

/// One zstd frame of `bytes` that asks its decoder for a window of 2^`log` bytes.
pub fn zstd_windowed(bytes: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("a valid level");
    encoder.long_distance_matching(true).expect("a valid flag");
    encoder.window_log(log).expect("a valid window");
    encoder.write_all(bytes).expect("memory takes all bytes");
    encoder.finish().expect("memory takes all bytes")
}

/// A zstd frame that says no more than that it needs a window of 2^`log` bytes, and holds nothing.
pub fn zstd_window_claim(log: u8) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3][..], &[1, 0, 0]].concat()
}

/// A frame that decoders skip (RFC 8878, 3.1.2).
pub fn zstd_skippable(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("a skippable frame is small");
    [&0x184D_2A50_u32.to_le_bytes(), &length.to_le_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn every_way_decodes_to_the_same_bytes() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for input in [text.as_slice(), b"", b"x"] {
            for way in [
                Compression::Gzip,
                Compression::GzipMembers(70_000),
                Compression::GzipNamed,
                Compression::GzipFlushed(30_000),
                Compression::GzipStored,
            ] {
                let mut decoded = Vec::new();
                let blob = way.apply(input);
                flate2::read::MultiGzDecoder::new(blob.as_slice())
                    .read_to_end(&mut decoded)
                    .unwrap();
                assert!(decoded == input, "{way:?}");
            }
            for way in [Compression::Zstd, Compression::ZstdFrames(70_000)] {
                assert!(zstd::decode_all(way.apply(input).as_slice()).unwrap() == input, "{way:?}");
            }
        }
    }
}
