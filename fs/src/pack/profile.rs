//! What starts of an image read, in order.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::UnitName;
use super::format::UNITS_MAX;

/// Where several starts are known, a unit that fewer than one in this many of them read is left
/// out of their common profile.
const RARE: usize = 4;

/// The distinct units that a start reads, in the order of the first read of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    units: Vec<UnitName>,
}

impl Profile {
    /// A profile from the reads of one start. Repeated reads count once, and a start that reads
    /// more units than a pack holds is cut off there.
    pub fn new(reads: impl IntoIterator<Item = UnitName>) -> Self {
        let mut seen = HashSet::new();
        let distinct = reads.into_iter().filter(|unit| seen.insert(*unit));
        Self { units: distinct.take(UNITS_MAX).collect() }
    }

    /// Its units in order.
    pub fn units(&self) -> &[UnitName] {
        &self.units
    }
}

/// What several starts have in common: units by their mean place among the reads of the starts
/// that read them, without those that hardly any start reads. A unit may be named in any way.
pub fn common<U: Copy + Eq + Hash + Ord>(starts: &[Vec<U>]) -> Vec<U> {
    #[derive(Default)]
    struct Places {
        sum: f64,
        count: usize,
    }
    let mut places: HashMap<U, Places> = HashMap::new();
    for start in starts {
        let mut seen = HashSet::new();
        for (place, unit) in start.iter().filter(|unit| seen.insert(**unit)).enumerate() {
            let places = places.entry(*unit).or_default();
            places.sum += place as f64;
            places.count += 1;
        }
    }
    let mut common: Vec<(f64, U)> = places
        .into_iter()
        .filter(|(_, places)| places.count * RARE >= starts.len())
        .map(|(unit, places)| (places.sum / places.count as f64, unit))
        .collect();
    // Equal means in a fixed order: the same starts give the same profile.
    common.sort_by(|(a, a_unit), (b, b_unit)| a.total_cmp(b).then(a_unit.cmp(b_unit)));
    common.into_iter().map(|(_, unit)| unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn profile(inodes: &[u32]) -> Profile {
        let layer = Digest::of(b"layer");
        Profile::new(inodes.iter().map(|&inode| UnitName { layer, inode, number: 0 }))
    }

    #[test]
    fn only_the_first_read_of_a_unit_counts() {
        assert_eq!(profile(&[3, 1, 3, 2, 1]), profile(&[3, 1, 2]));
    }

    #[test]
    fn a_start_that_reads_everything_is_cut_off() {
        let everything: Vec<u32> = (0..UNITS_MAX as u32 + 10).collect();
        assert_eq!(profile(&everything).units().len(), UNITS_MAX);
    }

    #[test]
    fn starts_are_merged_by_mean_place() {
        assert_eq!(common(&[vec![1, 2, 3], vec![2, 1, 3, 4]]), [1, 2, 3, 4]);
        assert_eq!(common(&[vec![5, 4, 5]]), [5, 4]);
        assert_eq!(common::<u32>(&[]), [0; 0]);
    }

    #[test]
    fn what_hardly_any_start_reads_is_left_out() {
        let mut starts = vec![vec![1]; 4];
        starts.push(vec![1, 9]);
        assert_eq!(common(&starts), [1]);
        assert_eq!(common(&starts[1..]), [1, 9]);
    }
}
