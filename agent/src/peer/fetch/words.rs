//! The words between a fetch and the code that carries it out.

use std::time::Duration;

use crate::peer::member::MemberId;
use crate::peer::standing::Moment;

/// What a member is asked to do for a piece that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Fetch it, as its owner.
    Owner,
    /// Pass on what is arriving there: the owner has named it.
    Holder,
    /// Nothing, unless it is arriving from the registry right now.
    Cached,
}

/// The source that a fetch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// The registry.
    Registry,
    /// A member that says at once what it has.
    Probe(MemberId),
    /// A member that fetches the piece, or is receiving it.
    Member(MemberId),
}

/// A request to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The member.
    pub member: MemberId,
    /// What it is asked to do.
    pub mode: Mode,
    /// How often the request was passed on.
    pub hop: u8,
    /// Members that need not be named in a redirect.
    pub tried: Vec<MemberId>,
    /// The first byte that is missing.
    pub offset: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask a member.
    Ask(Ask),
    /// Read from the registry, from byte `offset` on.
    Registry {
        /// The first byte that is missing.
        offset: u64,
    },
    /// Wait until this time, and then report [`Event::Tick`].
    Pause(Moment),
    /// Nobody has it.
    GiveUp,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The member sends (200).
    Answered {
        /// Whether it does not have all of the piece itself.
        arriving: bool,
    },
    /// So many bytes arrived.
    Bytes(u64),
    /// It names others (307).
    Redirect(Vec<MemberId>),
    /// It waits for the piece itself (202).
    Waiting,
    /// It has no room for the request and wants to be left alone for a while (429, 503).
    Busy(Duration),
    /// It does not have the piece, could not get it, or does not give it (404, 502, 403 and all
    /// other statuses).
    Missing,
    /// It is of another cluster or version (401, 421).
    Foreign,
    /// No connection could be made.
    Unreachable,
    /// It did not answer within the time that it may take.
    NoAnswer,
    /// The transfer ended before its last byte.
    Broken,
    /// The piece is here and is wrong: the words say how.
    Wrong(String),
    /// The registry does not deliver.
    RegistryFailed,
    /// Time went by.
    Tick,
}
