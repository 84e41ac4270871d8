//! What one node asks another for, as the target of an HTTP request. Pure.
//!
//! ```text
//! GET /v1/pieces/HEX?mode=owner&hop=0&offset=0&blob=HEX&start=0&end=1048577
//!                   &priority=demand&scope=uc.example:8787/nova/nova-api&tried=ID,ID
//!
//! HEX, blob      digests of the piece and of the blob that it is a part of, without `sha256:`
//! start, end     the bytes of the blob that are the piece
//! offset         the first byte of the piece that is wanted
//! scope          the repository by which an owner reads through
//! tried          members that need not be named in a redirect
//! &kind=manifest at the end, where the piece is a manifest, which a registry keeps apart
//! ```
//!
//! The target is signed as it stands, so there is one way to write it, and it is read back
//! strictly.

use std::fmt::Write as _;
use std::str::FromStr;

use undermount_fs::digest::Digest;
use undermount_fs::source::{Piece, Priority, Scope};

use super::fetch::{Ask, Mode};
use super::member::MemberId;
use crate::image::manifest::MAX_MANIFEST;

/// The path of pieces, before the digest.
pub const PIECES: &str = "/v1/pieces/";
/// The size, in bytes, above which pieces do not travel between peers.
pub const MAX_PIECE: u64 = 64 << 20;
/// What the target of a request for a manifest ends with.
const MANIFEST: &str = "&kind=manifest";
/// How many members a request may name as tried.
const MAX_TRIED: usize = 32;

/// A piece that is wanted, and what it takes to read it from the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The repository in whose name it is wanted.
    pub scope: Scope,
    /// The piece.
    pub piece: Piece,
    /// How urgent it is.
    pub priority: Priority,
    /// Where a registry has it.
    pub kind: Kind,
}

/// Where a registry has a piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Among its blobs.
    #[default]
    Blob,
    /// Among its manifests; the piece is all of it.
    Manifest,
}

impl Wanted {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.piece.range.end.saturating_sub(self.piece.range.start)
    }

    /// Whether it can travel between peers.
    pub fn fits(&self) -> bool {
        let Piece { blob, range, digest } = &self.piece;
        let is_right = match self.kind {
            Kind::Blob => true,
            Kind::Manifest => {
                blob == digest && range.start == 0 && range.end <= MAX_MANIFEST as u64
            }
        };
        is_right && (1..=MAX_PIECE).contains(&self.size()) && is_plain(self.scope.as_str())
    }
}

/// A request for a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceCall {
    /// What is wanted.
    pub wanted: Wanted,
    /// What to do where it is not there.
    pub mode: Mode,
    /// How often the request was passed on.
    pub hop: u8,
    /// Members that need not be named.
    pub tried: Vec<MemberId>,
    /// The first byte that is wanted.
    pub offset: u64,
}

/// A target that is not a request; the name of the part that is missing or malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a request for a piece: `{0}` is missing or malformed")]
pub struct BadCall(pub &'static str);

impl PieceCall {
    /// The call for `ask`, with the latest `MAX_TRIED` of its tried members.
    pub fn new(wanted: &Wanted, ask: &Ask) -> Self {
        let skip = ask.tried.len().saturating_sub(MAX_TRIED);
        Self {
            wanted: wanted.clone(),
            mode: ask.mode,
            hop: ask.hop,
            tried: ask.tried[skip..].to_vec(),
            offset: ask.offset,
        }
    }

    /// The target of the request.
    pub fn target(&self) -> String {
        let Self { wanted, mode, hop, tried, offset } = self;
        let Wanted { scope, piece, priority, kind } = wanted;
        let (mode, priority) = (mode_name(*mode), priority_name(*priority));
        let (hex, blob, range) = (piece.digest.hex(), piece.blob.hex(), &piece.range);
        let mut target = format!(
            "{PIECES}{hex}?mode={mode}&hop={hop}&offset={offset}&blob={blob}&start={}&end={}\
             &priority={priority}&scope={scope}&tried=",
            range.start, range.end
        );
        for (place, member) in tried.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(target, "{comma}{member}").expect("a string takes everything");
        }
        if *kind == Kind::Manifest {
            target.push_str(MANIFEST);
        }
        target
    }

    /// Reads what the request with this target asks for.
    ///
    /// # Errors
    /// [`BadCall`] names the part that is missing or wrong.
    pub fn parse(target: &str) -> Result<Self, BadCall> {
        let (digest, query) = target
            .strip_prefix(PIECES)
            .and_then(|rest| rest.split_once('?'))
            .ok_or(BadCall("path"))?;
        let (query, kind) = match query.strip_suffix(MANIFEST) {
            Some(query) => (query, Kind::Manifest),
            None => (query, Kind::Blob),
        };
        let mut parts = query.split('&');
        let mode = mode_of(take(&mut parts, "mode")?).ok_or(BadCall("mode"))?;
        let hop = number(&mut parts, "hop")?;
        let offset = number(&mut parts, "offset")?;
        let blob = digest_of(take(&mut parts, "blob")?, "blob")?;
        let range = number(&mut parts, "start")?..number(&mut parts, "end")?;
        let priority = priority_of(take(&mut parts, "priority")?).ok_or(BadCall("priority"))?;
        let scope = Scope::new(take(&mut parts, "scope")?);
        let tried = tried_of(take(&mut parts, "tried")?)?;
        let piece = Piece { blob, range, digest: digest_of(digest, "digest")? };
        let wanted = Wanted { scope, piece, priority, kind };
        if parts.next().is_some() {
            return Err(BadCall("query"));
        }
        if !wanted.fits() || offset >= wanted.size() {
            return Err(BadCall("range"));
        }
        Ok(Self { wanted, mode, hop, tried, offset })
    }
}

/// The value of the next part of a query, which must be called `name`.
pub(super) fn take<'a>(
    parts: &mut std::str::Split<'a, char>,
    name: &'static str,
) -> Result<&'a str, BadCall> {
    let part = parts.next().and_then(|part| part.strip_prefix(name)?.strip_prefix('='));
    part.ok_or(BadCall(name))
}

fn number<T: FromStr>(
    parts: &mut std::str::Split<'_, char>,
    name: &'static str,
) -> Result<T, BadCall> {
    take(parts, name)?.parse().map_err(|_| BadCall(name))
}

/// The digest with these hex digits, in the part called `name`.
pub(super) fn digest_of(hex: &str, name: &'static str) -> Result<Digest, BadCall> {
    Digest::from_hex(hex).map_err(|_| BadCall(name))
}

fn tried_of(list: &str) -> Result<Vec<MemberId>, BadCall> {
    let members = list.split(',').filter(|id| !id.is_empty());
    let tried: Result<Vec<MemberId>, _> = members.take(MAX_TRIED + 1).map(str::parse).collect();
    tried.ok().filter(|tried| tried.len() <= MAX_TRIED).ok_or(BadCall("tried"))
}

/// Whether a scope can stand in a query as it is: names of repositories always can.
pub(super) fn is_plain(scope: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:[]@".contains(&byte);
    !scope.is_empty() && scope.len() <= 512 && scope.bytes().all(plain)
}

const MODES: [(Mode, &str); 3] =
    [(Mode::Owner, "owner"), (Mode::Holder, "holder"), (Mode::Cached, "cached")];
const PRIORITIES: [(Priority, &str); 3] =
    [(Priority::Demand, "demand"), (Priority::Pack, "pack"), (Priority::Background, "background")];

fn mode_name(mode: Mode) -> &'static str {
    MODES.iter().find(|(known, _)| *known == mode).map_or("owner", |(_, name)| name)
}

fn mode_of(name: &str) -> Option<Mode> {
    MODES.iter().find(|(_, known)| *known == name).map(|(mode, _)| *mode)
}

fn priority_name(priority: Priority) -> &'static str {
    PRIORITIES.iter().find(|(known, _)| *known == priority).map_or("demand", |(_, name)| name)
}

fn priority_of(name: &str) -> Option<Priority> {
    PRIORITIES.iter().find(|(_, known)| *known == name).map(|(priority, _)| *priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> PieceCall {
        let piece = Piece { blob: Digest::of(b"b"), range: 5..105, digest: Digest::of(b"p") };
        let scope = Scope::new("[fd00::1]:8787/nova/nova-api");
        let tried = vec![MemberId::from_bytes([1; 16]), MemberId::from_bytes([2; 16])];
        let (priority, kind) = (Priority::Background, Kind::Blob);
        let wanted = Wanted { scope, piece, priority, kind };
        PieceCall { wanted, mode: Mode::Holder, hop: 1, tried, offset: 99 }
    }

    #[test]
    fn a_call_reads_back_as_written_and_is_a_valid_target() {
        let one = call();
        let plain = PieceCall { tried: Vec::new(), offset: 0, mode: Mode::Owner, ..call() };
        let digest = Digest::of(b"m");
        let piece = Piece { blob: digest, range: 0..100, digest };
        let manifest = Wanted { piece, kind: Kind::Manifest, ..call().wanted };
        let manifest = PieceCall { wanted: manifest, ..call() };
        for call in [one, plain, manifest] {
            let target = call.target();
            let uri: http::Uri = target.parse().unwrap();
            assert_eq!(uri.path_and_query().unwrap().as_str(), target);
            assert_eq!(PieceCall::parse(&target), Ok(call));
        }
    }

    #[test]
    fn a_malformed_call_is_refused_by_its_part() {
        let good = call().target();
        for (from, to, part) in [
            (PIECES, "/v1/have/", "path"),
            ("mode=holder", "mode=any", "mode"),
            ("hop=1", "hop=256", "hop"),
            ("hop=1", "hop=-1", "hop"),
            ("offset=99", "offset=100", "range"),
            ("start=5", "start=105", "range"),
            ("end=105", "end=99999999999", "range"),
            ("blob=", "blob=x", "blob"),
            ("priority=background", "priority=now", "priority"),
            ("nova/nova-api", "nova api", "range"),
            ("tried=", "tried=x", "tried"),
            ("tried=", "more=1&tried=", "tried"),
            // A part of a blob is not a manifest.
            ("priority=background&scope=", "priority=background&scope=", "range"),
        ] {
            let good = if from == to { format!("{good}{MANIFEST}") } else { good.clone() };
            assert_eq!(
                PieceCall::parse(&good.replace(from, to)),
                Err(BadCall(part)),
                "{from} {to}"
            );
        }
        assert_eq!(PieceCall::parse(&format!("{good}&more=1")), Err(BadCall("query")));
        let many = vec![MemberId::from_bytes([1; 16]); MAX_TRIED + 1];
        let long = PieceCall { tried: many, ..call() }.target();
        assert_eq!(PieceCall::parse(&long), Err(BadCall("tried")));
    }
}
