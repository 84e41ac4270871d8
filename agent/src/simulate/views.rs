//! The ranks of a piece as each node sees them.
//!
//! What a member is worth for a piece depends on nobody else, so the ranks among some members
//! are those among all of them without the others. The real ranking of all is asked for once for
//! each piece; who a node does not know is left out of it. Only where few are known, all that are
//! known are ranked anew.

use std::collections::HashMap;
use std::time::Duration;

use super::cast::Cast;
use crate::peer::fetch::RANKS;
use crate::peer::member::{Member, MemberId, Members};
use crate::peer::placement::{PROTOCOL, ranking};

/// Ranks that are kept of each piece.
const KEPT: usize = 64;

/// The ranks of all pieces, made when they are asked for.
pub struct Views {
    members: Members,
    places: HashMap<MemberId, usize>,
    ranks: Vec<Option<Vec<MemberId>>>,
}

impl Views {
    /// The views of a cast.
    pub fn new(cast: &Cast) -> Self {
        let members = cast.actors.iter().map(|actor| actor.member.clone()).collect();
        let places = cast.actors.iter().enumerate();
        Self {
            members: Members::new(members),
            places: places.map(|(place, actor)| (actor.member.id, place)).collect(),
            ranks: vec![None; cast.parts.len()],
        }
    }

    /// The number of a node.
    pub fn place(&self, id: &MemberId) -> usize {
        self.places[id]
    }

    /// The first ranks of `part` among those that `viewer` knows at `now`.
    pub fn ranking(
        &mut self,
        cast: &Cast,
        viewer: usize,
        part: usize,
        now: Duration,
    ) -> Vec<MemberId> {
        let digest = &cast.parts[part].digest;
        let all =
            self.ranks[part].get_or_insert_with(|| ranking(digest, &self.members, &PROTOCOL, KEPT));
        let knows = |id: &&MemberId| cast.knows(viewer, self.places[*id], now);
        let known: Vec<MemberId> = all.iter().filter(knows).take(RANKS).copied().collect();
        if known.len() == RANKS || all.len() == self.members.len() {
            return known;
        }
        let members: Vec<Member> =
            self.members.iter().filter(|member| knows(&&member.id)).cloned().collect();
        ranking(digest, &Members::new(members), &PROTOCOL, RANKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Join, Scenario};

    #[test]
    fn what_is_left_of_all_ranks_is_the_ranking_of_who_is_known() {
        let delay = Duration::from_secs(4);
        let join = Join::WithTheWave { delay };
        let scenario =
            Scenario { nodes: 300, set: 20 << 20, dead: 0.2, join, ..Scenario::default() };
        let cast = Cast::new(&scenario);
        let mut views = Views::new(&cast);
        for now in [0, 1, 3, 6, 20].map(Duration::from_secs) {
            for viewer in [0, 100, 299] {
                let known = (0..300).filter(|other| cast.knows(viewer, *other, now));
                let known = known.map(|other| cast.actors[other].member.clone()).collect();
                let known = Members::new(known);
                for part in 0..cast.parts.len() {
                    let digest = &cast.parts[part].digest;
                    let expected = ranking(digest, &known, &PROTOCOL, RANKS);
                    assert_eq!(views.ranking(&cast, viewer, part, now), expected);
                }
            }
        }
    }
}
