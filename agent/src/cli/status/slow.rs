//! The slowest reads, in words.

use std::time::{SystemTime, UNIX_EPOCH};

use undermount::control::SlowReadStatus;

/// As many as fit below a list of mounts; `--json` has all.
const SHOWN: usize = 5;

/// Faster ones are nobody's trouble, in seconds.
const SLOW: f64 = 0.1;

/// The slowest reads of the last day, if there are any that somebody may have noticed.
pub fn in_words(reads: &[SlowReadStatus]) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let slow = reads.iter().filter(|read| read.seconds >= SLOW).take(SHOWN);
    let lines: Vec<String> = slow.map(|read| line(read, now)).collect();
    (!lines.is_empty()).then(|| format!("slowest reads\n{}", lines.join("\n")))
}

fn line(read: &SlowReadStatus, now: u64) -> String {
    let path = read.path.as_deref().unwrap_or("a file");
    let image = read.image.clone().unwrap_or_else(|| format!("layer {}", read.layer));
    let source = match (&read.source, &read.supplier) {
        (None, _) => "failed".to_owned(),
        (Some(source), Some(supplier)) => format!("from {source} {supplier}"),
        (Some(source), None) => format!("from {source}"),
    };
    let waits: Vec<String> =
        read.waits.iter().map(|wait| format!("{} {:.3} s", wait.what, wait.seconds)).collect();
    let waits = if waits.is_empty() { String::new() } else { format!(" ({})", waits.join(", ")) };
    let ago = ago(now.saturating_sub(read.at));
    format!("  {:.3} s  {path} of {image}, {ago}, {source}{waits}", read.seconds)
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        _ => format!("{} h ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use undermount::control::WaitStatus;
    use undermount_fs::digest::Digest;

    use super::*;

    #[test]
    fn a_slow_read_is_told_with_file_image_source_and_waits() {
        let mut read = SlowReadStatus {
            image: Some("registry:5000/nova:1".into()),
            layer: Digest::of(b"layer"),
            path: Some("/usr/bin/python3".into()),
            offset: 0,
            length: 4096,
            at: 1000,
            seconds: 1.25,
            source: Some("registry".into()),
            supplier: Some("registry:5000".into()),
            fetched: 5000,
            waits: vec![WaitStatus { what: "fetch".into(), seconds: 1.2 }],
        };
        let expected = "  1.250 s  /usr/bin/python3 of registry:5000/nova:1, 5 min ago, from \
                        registry registry:5000 (fetch 1.200 s)";
        assert_eq!(line(&read, 1300), expected);
        read.seconds = 0.01;
        assert_eq!(in_words(&[read]), None);
    }
}
