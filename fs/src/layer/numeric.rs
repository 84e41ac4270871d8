//! Numbers in tar headers and PAX records.

/// A header field: octal digits, or base-256 where the first bit is set (a GNU extension, two's
/// complement, also negative). Blank fields are 0. `None` where it is neither, or too large.
pub fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first()? {
        first if first & 0x80 != 0 => base256(bytes),
        _ => octal(bytes),
    }
}

fn octal(bytes: &[u8]) -> Option<i64> {
    // Writers have put blanks and NULs in front of the digits as well as behind them.
    let start = bytes.iter().position(|byte| !matches!(byte, 0 | b' ')).unwrap_or(bytes.len());
    let text = bytes[start..].split(|&byte| byte == 0).next().unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Some(0);
    }
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with(['+', '-']))?;
    i64::from_str_radix(text, 8).ok()
}

fn base256(bytes: &[u8]) -> Option<i64> {
    let negative = bytes[0] & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, &byte) in bytes.iter().enumerate() {
        let byte = match (i, negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = (value << 8) | i128::from(byte);
        if value > i128::from(i64::MAX) || value < i128::from(i64::MIN) {
            return None;
        }
    }
    Some(value as i64)
}

/// A PAX time: decimal seconds with an optional fraction, also negative. Seconds, rounded down,
/// and nanoseconds counted forward from there; digits beyond nanoseconds are dropped.
pub fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

/// A PAX number: decimal digits, behind a plus sign or not.
pub fn pax_number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text.strip_prefix(b"+").unwrap_or(text)).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A PAX number that may be negative.
pub fn pax_signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) if !digits.starts_with(b"+") => {
            i64::try_from(pax_number(digits)?).ok().map(|n| -n)
        }
        Some(_) => None,
        None => pax_number(text)?.try_into().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_octal_or_base_256() {
        let table: [(&[u8], Option<i64>); 11] = [
            (b"0000644\0", Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0 00644\0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"9999\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\xff\xff\xff\xfe", Some(0xffff_fffe)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xae\x80", Some(-20864)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (bytes, value) in table {
            assert_eq!(field(bytes), value, "{bytes:?}");
        }
    }

    #[test]
    fn pax_times_count_nanoseconds_forward() {
        let table: [(&str, Option<(i64, u32)>); 12] = [
            ("0", Some((0, 0))),
            ("+5", Some((5, 0))),
            ("-+5", None),
            ("5.", Some((5, 0))),
            ("1700000000.800414416", Some((1_700_000_000, 800_414_416))),
            ("12345.5", Some((12_345, 500_000_000))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("", None),
            ("1e9", None),
            ("99999999999999999999", None),
        ];
        for (text, value) in table {
            assert_eq!(pax_time(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn pax_numbers_may_have_a_sign() {
        let table: [(&str, Option<i64>); 8] = [
            ("7", Some(7)),
            ("+7", Some(7)),
            ("-7", Some(-7)),
            ("", None),
            ("-", None),
            ("--7", None),
            ("-+7", None),
            (" 7", None),
        ];
        for (text, value) in table {
            assert_eq!(pax_signed(text.as_bytes()), value, "{text}");
            let unsigned = value.and_then(|value| u64::try_from(value).ok());
            assert_eq!(pax_number(text.as_bytes()), unsigned, "{text}");
        }
    }
}
