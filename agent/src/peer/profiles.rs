//! Profiles of starts in the cluster: who keeps them, and how they are asked for.
//!
//! ```text
//! a start was recorded, and its registry makes no packs
//!   -> HEAD /v1/profiles?manifest=HEX&scope=uc.example:8787/nova/nova-api
//!                                             200 undermount-starts: 2
//!   -> PUT  the same target, the profile      204; 409 where there are enough
//! an image came without a pack of its starts
//!   -> GET  the same target                   200 the profiles, sealed; 404 where none is known
//! ```
//!
//! The members that rank highest for a repository keep its profiles ([`keepers`]), as owners keep
//! pieces, so that nobody has to search. Requests are signed, and for a private repository they
//! carry the same ticket as requests for its pieces ([`super::realm`]). A body is profiles, one
//! JSON object a line, compressed with zstd.
//!
//! No node can tell a right profile from an invented one. An invented one makes nodes fetch files
//! that nobody reads, up to the bounds of [`place_units`](crate::profile::place_units), and does no
//! other harm.

mod shelf;

use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;
use undermount_fs::digest::Digest;
use undermount_fs::source::Scope;

use super::member::{MemberId, Members};
use super::placement::{PROTOCOL, ranking};
use super::wanted::{BadCall, digest_of, is_plain, take};
use crate::image::Repository;
use crate::profile::{FILE_MAX, ProfileError, StartRecord};

pub use shelf::{Answer, Shelf};

/// The path of profiles.
pub const PROFILES: &str = "/v1/profiles";
/// The longest body with one start, in bytes as they are sent.
pub const ONE_MAX: usize = 1 << 20;
/// The longest body with all profiles that a member knows, in bytes as they are sent.
pub const ALL_MAX: usize = FILE_MAX as usize;
/// The largest start, in bytes of JSON: a quarter of a file, so that
/// [`ENOUGH`](crate::profile::ENOUGH) of them fit into one.
const START_MAX: u64 = FILE_MAX / 4;
/// How many members keep the profiles of a repository: one, and another in case the first leaves.
pub const KEEPERS: usize = 2;
/// How many members are asked for them: some may have joined since and rank higher now.
pub const ASKED: usize = 4;
/// How many profiles are taken from a body, all of one build of an image: one for each command.
const COMMANDS: usize = 8;
/// The largest window that is accepted, as a power of two: 8 MiB (RFC 8878, 3.1.1.1.2), which is
/// enough for what [`pack`] makes.
const WINDOW_LOG: u32 = 23;
/// The compression level: paths have much in common, and a body is made once for all who ask.
const LEVEL: i32 = 9;

/// The `most` members that rank highest for the profiles of `scope`, the highest first.
pub fn keepers(scope: &Scope, members: &Members, most: usize) -> Vec<MemberId> {
    ranking(&Digest::of(scope.as_str().as_bytes()), members, &PROTOCOL, most)
}

/// Which profiles a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileCall {
    /// The repository.
    pub scope: Scope,
    /// The image.
    pub manifest: Digest,
}

impl ProfileCall {
    /// A call about `manifest` in `scope`; `None` where the repository cannot stand in a request.
    pub fn new(scope: &Scope, manifest: &Digest) -> Option<Self> {
        let (scope, manifest) = (scope.clone(), *manifest);
        is_plain(scope.as_str()).then_some(Self { scope, manifest })
    }

    /// The target of the request.
    pub fn target(&self) -> String {
        format!("{PROFILES}?manifest={}&scope={}", self.manifest.hex(), self.scope)
    }

    /// Reads what the request with this target is about.
    ///
    /// # Errors
    /// [`BadCall`] names the part that is missing or wrong.
    pub fn parse(target: &str) -> Result<Self, BadCall> {
        let query = target.strip_prefix(PROFILES).and_then(|rest| rest.strip_prefix('?'));
        let mut parts = query.ok_or(BadCall("path"))?.split('&');
        let manifest = digest_of(take(&mut parts, "manifest")?, "manifest")?;
        let scope = Scope::new(take(&mut parts, "scope")?);
        if parts.next().is_some() {
            return Err(BadCall("query"));
        }
        Self::new(&scope, &manifest).ok_or(BadCall("scope"))
    }

    /// Whether `record` is of the image, or of another build in its repository.
    pub fn is_answered_by(&self, record: &StartRecord) -> bool {
        let repository: Option<Repository> = self.scope.as_str().parse().ok();
        let is_build = repository.is_some_and(|repository| record.is_of(repository.path()));
        record.manifest == self.manifest || is_build
    }
}

/// Why a body does not hold the profiles that it should.
#[derive(Debug, thiserror::Error)]
pub enum BadProfiles {
    /// It is not compressed as it should be.
    #[error("it is not compressed with zstd")]
    Compression(#[source] io::Error),
    /// It is too long.
    #[error("it has more than {0} bytes")]
    TooLong(u64),
    /// It holds something that is not a profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It is about another image, or about more than one start.
    #[error("it is not one start of the image that is asked about")]
    NotTheStart,
}

/// Packs `records` into a body; those that would make it too long are left out.
pub fn pack(records: &[StartRecord]) -> Bytes {
    let mut lines = Vec::new();
    for line in records.iter().take(COMMANDS).map(StartRecord::to_json) {
        if (lines.len() + line.len()) as u64 >= FILE_MAX {
            break;
        }
        lines.extend(line);
        lines.push(b'\n');
    }
    zstd::bulk::compress(&lines, LEVEL).expect("memory takes everything").into()
}

/// Unpacks the profiles in a body. Lines that are not profiles are left out: another version may
/// have written them.
///
/// # Errors
/// [`BadProfiles`] where the body is not zstd, or too long.
pub fn unpack(body: &[u8]) -> Result<Vec<StartRecord>, BadProfiles> {
    let lines = decompress(body, FILE_MAX)?;
    let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.take(COMMANDS).filter_map(|line| of(line).ok()).collect())
}

/// Unpacks a body with the profile of one start of the image of `call`.
///
/// # Errors
/// [`BadProfiles`] where it is something else.
pub fn unpack_start(body: &[u8], call: &ProfileCall) -> Result<StartRecord, BadProfiles> {
    let record = of(&decompress(body, START_MAX)?)?;
    let is_right = record.manifest == call.manifest && record.starts() == 1;
    if is_right && call.is_answered_by(&record) {
        Ok(record)
    } else {
        Err(BadProfiles::NotTheStart)
    }
}

fn of(line: &[u8]) -> Result<StartRecord, BadProfiles> {
    Ok(StartRecord::from_json(line, Path::new("a profile of a peer"))?)
}

fn decompress(body: &[u8], most: u64) -> Result<Vec<u8>, BadProfiles> {
    let mut text = Vec::new();
    let mut decoder = zstd::Decoder::with_buffer(body).map_err(BadProfiles::Compression)?;
    decoder.window_log_max(WINDOW_LOG).map_err(BadProfiles::Compression)?;
    decoder.take(most + 1).read_to_end(&mut text).map_err(BadProfiles::Compression)?;
    if text.len() as u64 > most { Err(BadProfiles::TooLong(most)) } else { Ok(text) }
}

#[cfg(test)]
mod tests;
