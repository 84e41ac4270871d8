//! How far to fetch beyond what a read needs: pure decisions.
//!
//! Positions are spans of one layer. Three things are decided at a miss:
//!
//! - neighbours that come along with the span, since they take no longer than a round trip;
//! - whether somebody reads the layer in order, so that it is fetched ahead of him;
//! - whether so much of the layer is wanted that the rest of it had better come at once.
//!
//! A reader of everything then waits for the link, as if the image had been pulled, and not for
//! a round trip for each span.

use std::collections::BTreeSet;
use std::ops::Range;

use super::gauge::Link;

/// Misses at most this many spans apart belong to somebody who reads in order: he skips files that
/// are here already.
const NEAR: usize = 3;

/// How many such misses in a row it takes to believe it.
const IN_ORDER: usize = 3;

/// A layer is wanted as a whole once more than this share of its spans was missed, or a smaller one
/// where a miss costs more than a span that nobody reads.
const SHARE: f64 = 0.5;
/// The smallest such share: fewer spans say nothing about the others.
const SHARE_LEAST: f64 = 0.2;
/// A layer that takes longer than this, in seconds, is never fetched as a whole: a read that nobody
/// foresaw would wait behind it.
const WHOLE_SECONDS: f64 = 1.0;
/// The same for a far link, where readers wait even longer for one span after the other.
const WHOLE_SECONDS_FAR: f64 = 2.0;

/// Roughly how long a processor takes to inflate and hash a span, in seconds.
const UNPACKING: f64 = 0.008;

/// The most compressed bytes of neighbours that come along with a missed span.
const ALONG_MAX: u64 = 2 * 1024 * 1024;
/// The most spans that are fetched unasked at once, along with a miss or as a group: what compresses
/// to nearly nothing takes no time to fetch, but long to unpack.
pub const UNASKED_MAX: usize = 64;

/// How far ahead of a reader who has not moved yet is fetched, in compressed bytes.
const AHEAD_FIRST: u64 = 512 * 1024;
/// How many bytes that distance grows by for each byte that the reader moves on.
const AHEAD_GROWTH: u64 = 2;
/// The distance grows up to what the link delivers in this time, in seconds.
const AHEAD_SECONDS: f64 = 0.5;
/// The least bytes that the distance may grow to, however slow the link is.
const AHEAD_MIN: u64 = 4 * 1024 * 1024;
/// The most bytes that the distance may grow to, however fast the link is.
const AHEAD_MAX: u64 = 32 * 1024 * 1024;

/// How long a group of spans may take to arrive, in seconds: a read that nobody foresaw waits for it.
const GROUP_SECONDS: f64 = 0.05;
/// The least and the most compressed bytes of a group of spans that is fetched ahead.
const GROUP_MIN: u64 = 512 * 1024;
const GROUP_MAX: u64 = 4 * 1024 * 1024;

/// How much comes along with a span that is fetched over `link`, in compressed bytes.
pub fn along(link: Link) -> u64 {
    // Half a round trip's worth, so that a miss takes at most half as long again.
    (link.bytes_in_flight() / 2).min(ALONG_MAX)
}

/// How far ahead of one who reads in order to fetch over `link`, in compressed bytes, after he has
/// moved on by `moved`. One who only seemed to read in order costs little.
pub fn distance(link: Link, moved: u64) -> u64 {
    let most = ((link.bytes_per_second * AHEAD_SECONDS) as u64).clamp(AHEAD_MIN, AHEAD_MAX);
    AHEAD_FIRST.saturating_add(moved.saturating_mul(AHEAD_GROWTH)).min(most)
}

/// Bytes of a group of spans that is fetched ahead over `link`.
pub fn group(link: Link) -> u64 {
    ((link.bytes_per_second * GROUP_SECONDS) as u64).clamp(GROUP_MIN, GROUP_MAX)
}

/// What to do beyond a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// Nothing.
    Nothing,
    /// Somebody reads in order: fetch ahead of him, as long as he follows.
    Follow,
    /// The layer is wanted: fetch all of it.
    Rest,
}

/// The misses of one layer so far.
#[derive(Debug, Default)]
pub struct Misses {
    spans: BTreeSet<usize>,
    last: Option<usize>,
    in_order: usize,
}

impl Misses {
    /// Notes that `spans` of a layer of `count` spans and `size` compressed bytes are missed, and
    /// says what to do beyond them over `link`.
    pub fn note(&mut self, spans: Range<usize>, count: usize, size: u64, link: Link) -> Beyond {
        let end = spans.end.checked_sub(1);
        // Another file of the span before tells nothing.
        if self.last != Some(spans.start) || self.last != end {
            let follows = |last: usize| (last..=last + NEAR).contains(&spans.start);
            self.in_order = if self.last.is_some_and(follows) { self.in_order + 1 } else { 1 };
        }
        self.last = end;
        self.spans.extend(spans);
        // What takes no longer than a few round trips is not worth them.
        let seconds = size as f64 / link.bytes_per_second;
        let is_quick = seconds <= 4.0 * link.round_trip;
        let share = self.spans.len() as f64 / count.max(1) as f64;
        let most = if is_far(size, count, link) { WHOLE_SECONDS_FAR } else { WHOLE_SECONDS };
        let is_wanted = share > wanted_share(size, count, link) && seconds <= most;
        if is_quick || is_wanted {
            Beyond::Rest
        } else if self.in_order >= IN_ORDER {
            Beyond::Follow
        } else {
            Beyond::Nothing
        }
    }
}

/// Whether a round trip of `link` takes longer than what one of the `count` spans of a layer of
/// `size` compressed bytes costs: what is fetched in vain is then cheaper than what is missed.
pub fn is_far(size: u64, count: usize, link: Link) -> bool {
    link.least_round_trip.is_finite() && span_cost(size, count, link) < link.least_round_trip
}

/// The part of the spans of a layer above which the others are worth fetching: with this chance for
/// each to be read, those that are not cost as much as the round trips that the others save.
fn wanted_share(size: u64, count: usize, link: Link) -> f64 {
    let cost = span_cost(size, count, link);
    let share = match link.least_round_trip {
        round_trip if round_trip.is_finite() => cost / (cost + round_trip),
        _ => SHARE,
    };
    share.clamp(SHARE_LEAST, SHARE)
}

/// What a span that nobody reads costs, in seconds: of the link, or of a processor.
fn span_cost(size: u64, count: usize, link: Link) -> f64 {
    (size as f64 / count.max(1) as f64 / link.bytes_per_second).max(UNPACKING)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABIT: Link = link(125e6, 0.0005);
    const FAR: Link = link(50e6, 0.02);
    const SLOW: Link = link(12.5e6, 0.005);

    const fn link(bytes_per_second: f64, round_trip: f64) -> Link {
        Link { bytes_per_second, round_trip, least_round_trip: round_trip }
    }

    /// The decision at the last of `misses` of a layer of `count` spans of 300 KiB.
    fn decision(misses: &[usize], count: usize, link: Link) -> Beyond {
        let mut seen = Misses::default();
        let size = count as u64 * 300 * 1024;
        let decisions: Vec<_> =
            misses.iter().map(|&span| seen.note(span..span + 1, count, size, link)).collect();
        *decisions.last().unwrap()
    }

    #[test]
    fn one_who_jumps_about_gets_what_he_asks_for() {
        for link in [GIGABIT, FAR, SLOW] {
            assert_eq!(decision(&[5], 200, link), Beyond::Nothing);
            assert_eq!(decision(&[5, 90, 17, 120, 40], 200, link), Beyond::Nothing);
            assert_eq!(decision(&[100, 99, 98, 97], 200, link), Beyond::Nothing, "backwards");
        }
    }

    #[test]
    fn one_who_reads_in_order_is_followed() {
        assert_eq!(decision(&[5, 6], 200, FAR), Beyond::Nothing);
        assert_eq!(decision(&[5, 6, 7], 200, FAR), Beyond::Follow);
        assert_eq!(decision(&[5, 7, 10], 200, FAR), Beyond::Follow, "some files are here");
        assert_eq!(decision(&[5, 6, 7, 100], 200, FAR), Beyond::Nothing, "no longer in order");
        assert_eq!(decision(&[5, 5, 5, 6], 200, FAR), Beyond::Nothing, "files of one span");
        assert_eq!(decision(&[5, 5, 6, 6, 7], 200, FAR), Beyond::Follow);
    }

    #[test]
    fn a_layer_of_which_much_is_wanted_comes_whole_where_that_is_quick() {
        let scattered: Vec<usize> = (0..101).map(|i| i * 37 % 200).collect();
        assert_eq!(decision(&scattered[..100], 200, GIGABIT), Beyond::Nothing);
        assert_eq!(decision(&scattered, 200, GIGABIT), Beyond::Rest);
        assert_eq!(decision(&scattered, 200, SLOW), Beyond::Nothing, "it takes five seconds");
        let smaller: Vec<usize> = (0..21).map(|i| i * 17 % 40).collect();
        assert_eq!(decision(&smaller, 40, SLOW), Beyond::Rest);
    }

    #[test]
    fn a_link_is_far_where_round_trips_take_longer_than_spans() {
        let size = 100 * 300 * 1024;
        assert!(is_far(size, 100, FAR));
        assert!(!is_far(size, 100, GIGABIT) && !is_far(size, 100, SLOW));
        assert!(!is_far(size, 100, link(125e6, 0.005)), "unpacking takes longer");
    }

    #[test]
    fn where_round_trips_are_long_less_must_be_wanted() {
        let scattered: Vec<usize> = (0..40).map(|i| i * 37 % 100).collect();
        assert_eq!(decision(&scattered, 100, GIGABIT), Beyond::Nothing);
        assert_eq!(decision(&scattered[..28], 100, FAR), Beyond::Nothing);
        assert_eq!(decision(&scattered[..30], 100, FAR), Beyond::Rest);
        assert_eq!(wanted_share(100 * 300 * 1024, 100, link(125e6, 0.2)), SHARE_LEAST);
    }

    #[test]
    fn a_layer_that_takes_a_few_round_trips_comes_whole() {
        assert_eq!(decision(&[7], 12, FAR), Beyond::Rest);
        assert_eq!(decision(&[7], 12, GIGABIT), Beyond::Nothing);
        assert_eq!(decision(&[7], 200, FAR), Beyond::Nothing);
    }

    #[test]
    fn along_comes_what_costs_less_than_a_round_trip() {
        assert!(along(GIGABIT) < 64 * 1024);
        assert_eq!(along(FAR), 500_000);
        assert_eq!(along(link(1e12, 1.0)), ALONG_MAX);
    }

    #[test]
    fn the_distance_grows_with_the_way_that_the_reader_has_gone() {
        assert_eq!(distance(GIGABIT, 0), AHEAD_FIRST);
        assert_eq!(distance(GIGABIT, 1 << 20), AHEAD_FIRST + (2 << 20));
        assert_eq!(distance(FAR, u64::MAX), 25_000_000);
        assert_eq!(distance(link(1.0, 1.0), 1 << 30), AHEAD_MIN);
        assert_eq!(distance(link(1e12, 1.0), 1 << 30), AHEAD_MAX);
    }

    #[test]
    fn groups_do_not_keep_other_reads_waiting() {
        assert_eq!((group(GIGABIT), group(SLOW)), (GROUP_MAX, 625_000));
        assert_eq!(group(link(1.0, 1.0)), GROUP_MIN);
    }
}
