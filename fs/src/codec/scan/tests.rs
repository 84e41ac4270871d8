use std::io::{Read, Write};

use super::*;
use crate::codec::decode::{Entry, decode};

/// Text with some entropy: compresses about three times.
fn sample(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 16);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state % 5 {
            0 => writeln!(bytes, "def method_{}(self):", state % 997).unwrap(),
            1 => writeln!(bytes, "    return {}", state >> 40).unwrap(),
            _ => bytes.extend_from_slice(b"        self.assertEqual(expected, actual)\n"),
        }
    }
    bytes.truncate(size);
    bytes
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn scan_chunked(blob: &[u8], chunk: usize) -> Result<(Scan, Vec<u8>), CodecError> {
    let chunks: Vec<Bytes> = blob.chunks(chunk).map(Bytes::copy_from_slice).collect();
    let (sender, receiver) = std::sync::mpsc::channel();
    let scan = scan(Input::from(chunks), move |bytes| sender.send(bytes).is_ok())?;
    Ok((scan, receiver.into_iter().flatten().collect()))
}

fn piece(scan: &Scan, span: usize) -> std::ops::Range<usize> {
    let start = scan.checkpoints[span].bit / 8;
    let end = scan.checkpoints.get(span + 1).map_or(scan.end, |next| next.bit.div_ceil(8));
    start as usize..end as usize
}

/// Every span decodes alone, from its own piece, to what a whole pass gives.
fn check_spans(blob: &[u8], plain: &[u8]) -> Scan {
    let (scan, whole) = scan_chunked(blob, 64 * 1024).unwrap();
    assert_eq!(whole, plain);
    assert_eq!(scan.size, plain.len() as u64);
    for (span, checkpoint) in scan.checkpoints.iter().enumerate() {
        let piece = Bytes::copy_from_slice(&blob[piece(&scan, span)]);
        assert_eq!(Digest::of(&piece), scan.pieces[span]);
        let entry = Entry {
            codec: scan.codec,
            start: checkpoint.start,
            bit: (checkpoint.bit % 8) as u8,
            window: &checkpoint.window,
        };
        let end = scan.checkpoints.get(span + 1).map_or(scan.size, |next| next.out);
        let mut decoded = vec![0; (end - checkpoint.out) as usize];
        decode(entry, vec![piece]).unwrap().read_exact(&mut decoded).unwrap();
        assert_eq!(decoded, plain[checkpoint.out as usize..end as usize], "span {span}");
    }
    scan
}

#[test]
fn every_gzip_span_decodes_alone() {
    let plain = sample(5_000_000);
    for level in [1, 6, 9] {
        let scan = check_spans(&gzip(&plain, level), &plain);
        assert!(scan.checkpoints.len() >= 2, "{}", scan.checkpoints.len());
    }
    check_spans(&gzip(&plain, 0), &plain);
    check_spans(&gzip(b"", 6), b"");
}

#[test]
fn spans_cross_member_boundaries() {
    let plain = sample(3_000_000);
    let small: Vec<u8> = plain.chunks(70_000).flat_map(|part| gzip(part, 6)).collect();
    check_spans(&small, &plain);
    let large: Vec<u8> = plain.chunks(1_400_000).flat_map(|part| gzip(part, 6)).collect();
    check_spans(&large, &plain);
}

#[test]
fn zstd_spans_start_at_frames() {
    let plain = sample(3_000_000);
    let mut blob = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip".to_vec();
    for part in plain.chunks(300_000) {
        blob.extend(zstd::bulk::compress(part, 3).unwrap());
        blob.extend(b"\x5e\x2a\x4d\x18\x02\x00\x00\x00ab");
    }
    let scan = check_spans(&blob, &plain);
    assert!(scan.checkpoints.len() >= 4);
    check_spans(&zstd::bulk::compress(&plain, 3).unwrap(), &plain);
}

#[test]
fn plain_spans_are_ranges() {
    let plain = sample(2_500_000);
    assert_eq!(check_spans(&plain, &plain).checkpoints.len(), 3);
    check_spans(&[], &[]);
}

#[test]
fn chunking_of_the_input_changes_nothing() {
    let plain = sample(2_600_000);
    let two_members = [gzip(&plain[..1_000_001], 6), gzip(&plain[1_000_001..], 1)].concat();
    let reference = scan_chunked(&two_members, usize::MAX).unwrap();
    for chunk in [1000, 4096, 65_537] {
        assert_eq!(scan_chunked(&two_members, chunk).unwrap(), reference);
    }
}

#[test]
fn windows_keep_only_what_is_referred_to() {
    let plain = sample(4_000_000);
    let (scan, _) = scan_chunked(&gzip(&plain, 6), 65_536).unwrap();
    let windows: Vec<_> = scan.checkpoints.iter().filter(|c| c.start == Start::Block).collect();
    assert!(!windows.is_empty());
    let zeros: usize =
        windows.iter().map(|c| c.window.iter().filter(|&&byte| byte == 0).count()).sum();
    let total: usize = windows.iter().map(|c| c.window.len()).sum();
    assert!(zeros * 4 > total, "{zeros} of {total}");
}

/// Empty stored blocks in front of what refers to the window.
#[test]
fn regression_blocks_without_output_are_not_piled_up() {
    let plain = sample(1_300_000);
    // The flush ends the first block at which a checkpoint is wanted.
    let (head, tail) = plain.split_at(SPAN as usize);
    let mut deflate = flate2::Compress::new(flate2::Compression::new(6), false);
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blob.reserve(2 * plain.len());
    deflate.compress_vec(head, &mut blob, flate2::FlushCompress::Sync).unwrap();
    blob.extend([0, 0, 0, 0xff, 0xff].repeat(100_000));
    blob.reserve(2 * plain.len());
    deflate.compress_vec(tail, &mut blob, flate2::FlushCompress::Finish).unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(&plain);
    blob.extend(crc.sum().to_le_bytes());
    blob.extend(crc.amount().to_le_bytes());
    let scan = check_spans(&blob, &plain);
    let window = &scan.checkpoints.last().unwrap().window;
    assert_eq!(window.len(), WINDOW, "nothing told which bytes are needed");
    for chunk in [1000, usize::MAX] {
        assert_eq!(scan_chunked(&blob, chunk).unwrap().0, scan);
    }
}

#[test]
fn frames_that_need_a_dictionary_are_refused_as_such() {
    let words: Vec<Vec<u8>> =
        (0..2_000).map(|n| format!("{{\"name\": \"{n}\", \"kind\": \"x\"}}").into()).collect();
    let dictionary = zstd::dict::from_samples(&words, 4096).unwrap();
    let mut compressor = zstd::bulk::Compressor::with_dictionary(3, &dictionary).unwrap();
    let blob = compressor.compress(&sample(5_000)).unwrap();
    let error = scan_chunked(&blob, 4096).unwrap_err();
    assert!(matches!(error, CodecError::Dictionary { .. }), "{error}");
}

#[test]
fn padding_after_the_last_member_is_ignored() {
    let plain = sample(100_000);
    let mut blob = gzip(&plain, 6);
    let end = blob.len() as u64;
    blob.extend([0; 700]);
    let (scan, whole) = scan_chunked(&blob, 999).unwrap();
    assert_eq!((scan.end, whole), (end, plain));
}

#[test]
fn damaged_streams_are_refused() {
    let plain = sample(400_000);
    for blob in [gzip(&plain, 6), zstd::bulk::compress(&plain, 3).unwrap()] {
        for cut in [5, blob.len() / 2, blob.len() - 1] {
            let error = scan_chunked(&blob[..cut], 4096).unwrap_err();
            assert!(matches!(error, CodecError::Truncated { .. }), "{cut}: {error}");
        }
    }
    let mut blob = gzip(&plain, 6);
    let crc = blob.len() - 8;
    blob[crc] ^= 1;
    assert!(matches!(scan_chunked(&blob, 4096).unwrap_err(), CodecError::Corrupt { .. }));
}
