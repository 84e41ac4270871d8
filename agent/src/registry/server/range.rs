//! The `Range` header of a download and the `Content-Range` of an uploaded chunk.

use std::ops::Range;

/// More ranges than this in one request are answered with the whole blob.
const MAX_RANGES: usize = 256;

/// What a `Range` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The whole blob: no header, or one that RFC 9110 lets a server ignore.
    Whole,
    /// These parts, in the order of the request; none of them empty.
    Parts(Vec<Range<u64>>),
    /// Nothing that the blob has: 416.
    Unsatisfiable,
}

impl Wanted {
    /// Reads `header` for a blob of `size` bytes (RFC 9110, section 14.2). Another unit than
    /// bytes and malformed headers mean the whole blob; ranges beyond the end are left out.
    ///
    /// A range that ends before it begins is answered with 416, as the conformance suite of the
    /// distribution-spec has it, although RFC 9110 would ignore it.
    pub fn parse(header: Option<&str>, size: u64) -> Self {
        let Some(list) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let mut parts = Vec::new();
        for (count, spec) in list.split(',').enumerate() {
            match (count < MAX_RANGES).then(|| part(spec.trim(), size)).flatten() {
                Some(part) if part.is_empty() => {}
                Some(part) => parts.push(part),
                None => return Self::Whole,
            }
        }
        if parts.is_empty() { Self::Unsatisfiable } else { Self::Parts(parts) }
    }
}

/// One `first-last`, `first-` or `-suffix`; empty where the blob has none of it, `None` where
/// it is malformed.
fn part(spec: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        return Some(size.saturating_sub(number(last)?)..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() { size } else { number(last)?.saturating_add(1).min(size) };
    Some(first..end)
}

/// The bytes that a chunk of an upload says to hold: `Content-Range: <first>-<last>`, with or
/// without the unit and total of RFC 9110 which some clients add.
pub fn parse_chunk(header: &str) -> Option<Range<u64>> {
    let spec = header.trim();
    let spec = spec.strip_prefix("bytes").map_or(spec, |rest| rest.trim_start_matches([' ', '=']));
    let spec = spec.split_once('/').map_or(spec, |(range, _total)| range);
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..last.checked_add(1)?)
}

/// Digits only: no sign, no space. A number too large for 64 bits is beyond any end.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_every_form_are_read() {
        for (header, parts) in [
            ("bytes=500-1499", vec![500..1500]),
            ("bytes=500-", vec![500..2048]),
            ("bytes=-500", vec![1548..2048]),
            ("bytes=-5000", vec![0..2048]),
            ("bytes=0-0", vec![0..1]),
            ("bytes=2000-5000", vec![2000..2048]),
            ("bytes=0-99999999999999999999999", vec![0..2048]),
            ("bytes=0-9,20-29", vec![0..10, 20..30]),
            ("bytes=0-9, 5000-, -1", vec![0..10, 2047..2048]),
        ] {
            assert_eq!(Wanted::parse(Some(header), 2048), Wanted::Parts(parts), "{header}");
        }
    }

    #[test]
    fn what_the_blob_does_not_have_is_unsatisfiable() {
        for header in ["bytes=2048-", "bytes=5000-10000", "bytes=500-0", "bytes=-0"] {
            assert_eq!(Wanted::parse(Some(header), 2048), Wanted::Unsatisfiable, "{header}");
        }
        assert_eq!(Wanted::parse(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn what_cannot_be_read_means_the_whole() {
        let many = format!("bytes={}0-1", "0-1,".repeat(MAX_RANGES));
        for header in ["", "lines=0-1", "bytes=", "bytes=a-b", "bytes=+1-2", "bytes=-", &many] {
            assert_eq!(Wanted::parse(Some(header), 2048), Wanted::Whole, "{header}");
        }
        assert_eq!(Wanted::parse(None, 2048), Wanted::Whole);
    }

    #[test]
    fn chunks_come_in_the_spelling_of_either_specification() {
        for header in ["0-1023", "bytes 0-1023", "bytes=0-1023", "bytes 0-1023/4096", " 0-1023 "] {
            assert_eq!(parse_chunk(header), Some(0..1024), "{header}");
        }
        for header in ["", "-", "1-0", "0-", "-5", "a-b", "0-18446744073709551615", "0-1-2"] {
            assert_eq!(parse_chunk(header), None, "{header}");
        }
    }
}
