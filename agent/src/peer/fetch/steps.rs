//! The order in which members are asked for a piece.

use std::collections::VecDeque;

use super::{HOPS, Mode, OWNERS, PROBES};
use crate::peer::member::MemberId;

/// The ranks of a piece, as one node goes through them.
#[derive(Debug)]
pub(super) struct Steps {
    /// The ranks above oneself, then those below.
    ranks: VecDeque<(MemberId, Mode)>,
    /// How many members may still be asked to read through, as owners.
    owners: usize,
    /// How many members may still be asked for what they have.
    probes: usize,
}

impl Steps {
    /// The steps of `own` for a piece with this `ranking`, in the name of a request that was passed
    /// on `hop` times.
    pub fn new(own: MemberId, ranking: &[MemberId], hop: u8) -> Self {
        let place = ranking.iter().position(|member| *member == own).unwrap_or(ranking.len());
        let mode = |rank: usize| if rank < place { Mode::Owner } else { Mode::Cached };
        let ranks = ranking.iter().enumerate().filter(|(_, member)| **member != own);
        let ranks = ranks.map(|(rank, member)| (*member, mode(rank))).collect();
        let owners = if hop < HOPS { OWNERS } else { 0 };
        Self { ranks, owners, probes: PROBES }
    }

    /// The member to ask next, and for what; members that are shunned are skipped.
    pub fn next(&mut self, is_shunned: impl Fn(&MemberId) -> bool) -> Option<(MemberId, Mode)> {
        while let Some((member, mode)) = self.ranks.pop_front() {
            if is_shunned(&member) {
                continue;
            }
            let mode = if self.owners == 0 { Mode::Cached } else { mode };
            let left = self.left(mode)?;
            *left = left.checked_sub(1)?;
            return Some((member, mode));
        }
        None
    }

    /// Does not count the member that was asked last in this mode, because it is not there.
    pub fn pass_over(&mut self, mode: Mode) {
        if let Some(left) = self.left(mode) {
            *left += 1;
        }
    }

    fn left(&mut self, mode: Mode) -> Option<&mut usize> {
        match mode {
            Mode::Owner => Some(&mut self.owners),
            Mode::Cached => Some(&mut self.probes),
            Mode::Holder => None,
        }
    }
}
