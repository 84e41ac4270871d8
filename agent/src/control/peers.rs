//! What an agent tells of its peers.

use serde::{Deserialize, Serialize};

use crate::peer::counters::Traffic;
use crate::peer::membership::MembershipStatus;

/// This node among the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersStatus {
    /// Who they are.
    pub membership: MembershipStatus,
    /// What this node has taken from them and given to them; nothing where it cannot share.
    #[serde(default)]
    pub traffic: Option<Traffic>,
}
