//! The order of copies that touch each other's images.
//!
//! Entries of `ContainerImagePrepare` are processed one after the other, so an entry may read what
//! an earlier one has pushed. Copies are made side by side all the same, but for those.

use std::collections::HashMap;

use super::{CopyJob, Location};

/// `jobs` with their positions, in rounds. Within a round they can be copied in any order; a later
/// round has those that read or write what an earlier one writes, or write what it reads.
pub fn rounds(jobs: Vec<CopyJob>) -> Vec<Vec<(usize, CopyJob)>> {
    let mut rounds: Vec<Vec<(usize, CopyJob)>> = Vec::new();
    // The last round so far that writes, and reads, each location.
    let (mut writes, mut reads) = (HashMap::new(), HashMap::new());
    for (position, job) in jobs.into_iter().enumerate() {
        let touched = [writes.get(&job.source), writes.get(&job.target), reads.get(&job.target)];
        let round = touched.into_iter().flatten().max().map_or(0, |last| last + 1);
        note(&mut writes, &job.target, round);
        note(&mut reads, &job.source, round);
        rounds.resize_with(rounds.len().max(round + 1), Vec::new);
        rounds[round].push((position, job));
    }
    rounds
}

fn note(last: &mut HashMap<Location, usize>, location: &Location, round: usize) {
    let last = last.entry(location.clone()).or_default();
    *last = round.max(*last);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(source: &str, target: &str) -> CopyJob {
        let location = |name: &str| Location::Storage(name.to_owned());
        CopyJob { source: location(source), target: location(target), multi_arch: false }
    }

    fn positions(jobs: &[(&str, &str)]) -> Vec<Vec<usize>> {
        let jobs = jobs.iter().map(|(source, target)| job(source, target)).collect();
        let positions = |round: Vec<(usize, _)>| round.iter().map(|(place, _)| *place).collect();
        rounds(jobs).into_iter().map(positions).collect()
    }

    #[test]
    fn copies_that_share_no_target_are_one_round() {
        assert_eq!(positions(&[("a", "x"), ("b", "y"), ("a", "z")]), [vec![0, 1, 2]]);
        assert!(positions(&[]).is_empty());
    }

    #[test]
    fn what_an_earlier_copy_writes_is_read_and_written_after_it() {
        let chain = [("a", "b"), ("b", "c"), ("x", "y"), ("c", "d")];
        assert_eq!(positions(&chain), [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(positions(&[("a", "x"), ("b", "x")]), [vec![0], vec![1]]);
    }

    #[test]
    fn what_an_earlier_copy_reads_is_written_after_it() {
        assert_eq!(positions(&[("a", "x"), ("b", "a")]), [vec![0], vec![1]]);
        assert_eq!(positions(&[("b", "a"), ("a", "x"), ("c", "a")]), [vec![0], vec![1], vec![2]]);
    }
}
