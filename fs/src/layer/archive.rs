//! tar archives as members with positions.
//!
//! Reads v7, ustar, PAX (POSIX.1-2017, pax) and GNU headers from a stream and says for each member
//! where in the stream its content lies. Header layouts come from the `tar` crate; numbers and
//! PAX records are read here, since names and attributes may hold any byte.

use std::collections::BTreeMap;

use tar::Header;

use super::LayerError;
use super::numeric::{field, pax_number, pax_signed, pax_time};
use super::sparse::{self, DataRun};
use super::stream::TarStream;

const BLOCK: usize = 512;

/// Long names and PAX records above this size are refused, in bytes.
const META_LIMIT: u64 = 1024 * 1024;

/// What kind of thing a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file with its content's place.
    File(Content),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A hard link and the path of what it links to.
    HardLink(Vec<u8>),
    /// A device node: `S_IFCHR` or `S_IFBLK`, major and minor number.
    Device(u32, u32, u32),
    /// A named pipe.
    Fifo,
}

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Size of the file in bytes.
    pub size: u64,
    /// Bytes that the archive stores for it.
    pub stored: u64,
    /// The runs of data of a sparse file, in order; `None` where all of it is stored.
    pub data: Option<Vec<DataRun>>,
}

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The path as the archive spells it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type PaxRecords = BTreeMap<Vec<u8>, Vec<u8>>;

/// What extension headers say about the member that follows.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: PaxRecords,
}

/// The next member of the archive in `stream`, `None` at its end. The content of a file must be
/// read (or skipped) before the next member is asked for.
///
/// Global PAX records are read and dropped, as Go's reader does, and with it every container
/// engine.
///
/// # Errors
/// [`LayerError`] where headers are damaged or the stream ends inside one.
pub fn next_member(stream: &mut TarStream) -> Result<Option<Member>, LayerError> {
    let compression =
        if stream.position() == 0 { foreign_compression(stream.peek(8)) } else { None };
    let refused = |error| match compression {
        Some(name) => LayerError::Compression { name },
        None => error,
    };
    let mut extensions = Extensions::default();
    loop {
        // What extensions say about a member that does not come is said about nothing.
        let Some(header) = read_header(stream).map_err(refused)? else { return Ok(None) };
        let size = size_of_body(&header, stream.position())?;
        match header.as_bytes()[156] {
            b'L' => extensions.path = read_long_name(stream, size)?,
            b'K' => extensions.link = read_long_name(stream, size)?,
            b'x' | b'X' => extensions.pax = read_pax(stream, size)?,
            b'g' => {
                // To Go's reader this is a member, so that what was said before is spent on it.
                read_pax(stream, size)?;
                extensions = Extensions::default();
            }
            b'V' | b'N' => stream.skip_padded(size)?,
            b'M' => {
                let what = "its member begins in another volume";
                return Err(LayerError::Header { position: stream.position(), what });
            }
            _ => return member(stream, &header, size, extensions).map(Some),
        }
    }
}

/// The compression that a stream begins with, of those that image layers do not have.
fn foreign_compression(start: &[u8]) -> Option<&'static str> {
    match start {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some("lz4"),
        [0x5d, 0, 0, ..] => Some("lzma"),
        [b'L', b'Z', b'I', b'P', ..] => Some("lzip"),
        [0x1f, 0x9d, ..] => Some("compress"),
        _ => None,
    }
}

/// The next header, `None` where the archive ends: at two blocks of zeros, or with the stream.
fn read_header(stream: &mut TarStream) -> Result<Option<Header>, LayerError> {
    let Some(block) = stream.block()? else { return Ok(None) };
    let is_zero = |block: [u8; BLOCK]| block.iter().all(|&byte| byte == 0);
    if is_zero(block) {
        // Some tools stop here, some refuse to go on, none shows what follows.
        return match stream.block()? {
            Some(block) if !is_zero(block) => {
                let what = "it stands behind a single block of zeros";
                Err(LayerError::Header { position: stream.position(), what })
            }
            _ => Ok(None),
        };
    }
    check_sum(&block, stream.position())?;
    Ok(Some(Header::from_byte_slice(&block).clone()))
}

/// The sum of all bytes with the sum's own field taken as blanks; old tars summed signed bytes.
fn check_sum(block: &[u8; BLOCK], position: u64) -> Result<(), LayerError> {
    let damaged = || LayerError::Header { position, what: "its checksum is wrong" };
    let stored = field(&block[148..156]).ok_or_else(damaged)?;
    let blanked = |i: usize, byte: u8| if (148..156).contains(&i) { b' ' } else { byte };
    let bytes = || block.iter().enumerate().map(|(i, &byte)| blanked(i, byte));
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
    if stored == unsigned || stored == signed { Ok(()) } else { Err(damaged()) }
}

fn size_of_body(header: &Header, position: u64) -> Result<u64, LayerError> {
    field(&header.as_old().size)
        .and_then(|size| u64::try_from(size).ok())
        .ok_or(LayerError::Header { position, what: "its size is not a number" })
}

/// A name of the GNU kind; an empty one says nothing.
fn read_long_name(stream: &mut TarStream, size: u64) -> Result<Option<Vec<u8>>, LayerError> {
    let name = until_nul(&read_meta(stream, size)?);
    Ok((!name.is_empty()).then_some(name))
}

fn read_meta(stream: &mut TarStream, size: u64) -> Result<Vec<u8>, LayerError> {
    if size > META_LIMIT {
        let position = stream.position();
        return Err(LayerError::Header { position, what: "its extension is above 1 MiB" });
    }
    let mut bytes = Vec::new();
    stream.read(size, |chunk| bytes.extend_from_slice(chunk))?;
    stream.skip_padding(size);
    Ok(bytes)
}

/// PAX records are `"%d %s=%s\n"`: the length of the whole record, the keyword, the value.
fn read_pax(stream: &mut TarStream, size: u64) -> Result<PaxRecords, LayerError> {
    let position = stream.position();
    let damaged = || LayerError::Header { position, what: "it has a damaged PAX record" };
    let bytes = read_meta(stream, size)?;
    let mut rest = bytes.as_slice();
    let mut records = PaxRecords::new();
    let mut map = sparse::RepeatedMap::default();
    while !rest.is_empty() {
        let blank = rest.iter().position(|&byte| byte == b' ').ok_or_else(damaged)?;
        let length = pax_number(&rest[..blank])
            .and_then(|length| usize::try_from(length).ok())
            .filter(|&length| length > blank + 1 && length <= rest.len())
            .ok_or_else(damaged)?;
        let record = rest[blank + 1..length].strip_suffix(b"\n").ok_or_else(damaged)?;
        rest = &rest[length..];
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(damaged)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(damaged());
        }
        if !map.take(key, value).ok_or_else(damaged)? {
            records.insert(key.to_vec(), value.to_vec());
        }
    }
    map.finish(&mut records);
    Ok(records)
}

/// Joins a header and its extensions to a member.
fn member(
    stream: &mut TarStream,
    header: &Header,
    size: u64,
    extensions: Extensions,
) -> Result<Member, LayerError> {
    let position = stream.position();
    let damaged = |what| LayerError::Header { position, what };
    let Extensions { path, link, pax } = extensions;
    let text = |key: &str| pax.get(key.as_bytes()).filter(|value| !value.is_empty());
    let fields = header.as_old();
    let sparse_name = || text("GNU.sparse.name").filter(|_| sparse::PaxVersion::of(&pax).is_some());
    let path = sparse_name()
        .cloned()
        .or(path)
        .or_else(|| text("path").cloned())
        .unwrap_or_else(|| header_path(header));
    let link = link.or(text("linkpath").cloned()).unwrap_or_else(|| until_nul(&fields.linkname));
    let size = match text("size") {
        Some(text) => pax_number(text).ok_or(damaged("its PAX size is not a number"))?,
        None => size,
    };
    let mtime = match text("mtime") {
        Some(text) => pax_time(text).ok_or(damaged("its PAX mtime is not a time"))?,
        None => (field(&fields.mtime).ok_or(damaged("its mtime is not a number"))?, 0),
    };
    for key in ["atime", "ctime"] {
        // Nobody is shown them; but a writer that gets them wrong got more wrong.
        if text(key).is_some_and(|text| pax_time(text).is_none()) {
            return Err(damaged("a PAX time of it is not a time"));
        }
    }
    let id = |key: &str, bytes: &[u8], what| match text(key) {
        Some(text) => pax_signed(text).map(owner).ok_or(damaged(what)),
        None => field(bytes).map(owner).ok_or(damaged(what)),
    };
    let uid = id("uid", &fields.uid, "its owner is not a number")?;
    let gid = id("gid", &fields.gid, "its group is not a number")?;
    let mode = field(&fields.mode).ok_or(damaged("its mode is not a number"))? as u32 & 0o7777;
    let kind = match header.as_bytes()[156] {
        b'1' => MemberKind::HardLink(link),
        b'2' => MemberKind::Symlink(link),
        b'\0' if path.ends_with(b"/") => MemberKind::Directory,
        typeflag => unlinked(stream, header, typeflag, size, &pax)?,
    };
    let xattrs = xattrs(&pax, &kind);
    Ok(Member { path, kind, mode, uid, gid, mtime, xattrs })
}

/// What a member with this `typeflag` is that is no link.
fn unlinked(
    stream: &mut TarStream,
    header: &Header,
    typeflag: u8,
    size: u64,
    pax: &PaxRecords,
) -> Result<MemberKind, LayerError> {
    Ok(match typeflag {
        b'3' | b'4' => {
            let (position, what) = (stream.position(), "its device is no number");
            device(header, typeflag).ok_or(LayerError::Header { position, what })?
        }
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        b'D' => {
            stream.skip_padded(size)?;
            MemberKind::Directory
        }
        b'S' => MemberKind::File(sparse::old_gnu(stream, header, size)?),
        _ => MemberKind::File(sparse::pax(stream, pax, size)?),
    })
}

/// The path in the header itself. POSIX headers, whatever version they name, may split it; those
/// of star do so too, in less space. GNU headers have times in that place; but before version 1.8
/// Go's writer, and with it docker, put the beginning of long paths there.
fn header_path(header: &Header) -> Vec<u8> {
    const PREFIX: std::ops::Range<usize> = 345..500;
    const STAR_PREFIX: std::ops::Range<usize> = 345..476;
    let block = header.as_bytes();
    let name = until_nul(&header.as_old().name);
    let prefix = match &block[257..265] {
        [b'u', b's', b't', b'a', b'r', 0, ..] if &block[508..512] == b"tar\0" => {
            until_nul(&block[STAR_PREFIX])
        }
        [b'u', b's', b't', b'a', b'r', 0, ..] => until_nul(&block[PREFIX]),
        b"ustar  \0" if !has_gnu_times(block) => {
            Some(until_nul(&block[PREFIX])).filter(|prefix| prefix.is_ascii()).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    if prefix.is_empty() { name } else { [prefix.as_slice(), b"/", &name].concat() }
}

/// Whether a GNU header has numbers where its times of access and change belong, or nothing.
fn has_gnu_times(block: &[u8; BLOCK]) -> bool {
    let is_time = |bytes: &[u8]| bytes[0] == 0 || field(bytes).is_some();
    is_time(&block[345..357]) && is_time(&block[357..369])
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

/// An owner or group as chown(2) takes it: the last 32 bits of what the archive says, of which -1
/// stands for "unchanged": the file stays root's.
fn owner(id: i64) -> u32 {
    let id = id as u32;
    if id == u32::MAX { 0 } else { id }
}

/// A device as mknod(2) takes it: 12 bits of the major and 20 of the minor number. The seventh
/// edition had no place for them in its headers.
fn device(header: &Header, kind: u8) -> Option<MemberKind> {
    let block = header.as_bytes();
    let number = |bytes: &[u8], bits: u32| match is_seventh_edition(block) {
        true => Some(0),
        false => field(bytes).map(|number| number as u32 & ((1 << bits) - 1)),
    };
    let kind = if kind == b'3' { libc::S_IFCHR } else { libc::S_IFBLK };
    Some(MemberKind::Device(kind, number(&block[329..337], 12)?, number(&block[337..345], 20)?))
}

/// Whether a header has the magic of neither POSIX nor GNU.
fn is_seventh_edition(block: &[u8; BLOCK]) -> bool {
    !block[257..].starts_with(b"ustar\0") && !block[257..].starts_with(b"ustar  \0")
}

/// The extended attributes that a file system of Linux would take. Those of overlayfs are its own
/// business: taken from an image they would forge opaque directories and redirects. An empty
/// value takes a record back (POSIX.1-2017, pax).
fn xattrs(pax: &PaxRecords, kind: &MemberKind) -> BTreeMap<Vec<u8>, Vec<u8>> {
    pax.iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?, value)))
        .filter(|(name, value)| !value.is_empty() && is_storable(name, kind))
        .map(|(name, value)| (name.to_vec(), value.clone()))
        .collect()
}

/// xattr(7): four namespaces, of which `user` is for files and directories only. What a label of
/// SELinux means depends on the host, which labels the mount.
fn is_storable(name: &[u8], kind: &MemberKind) -> bool {
    if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
        return false;
    }
    let dot = name.iter().position(|&byte| byte == b'.');
    match dot.map(|dot| (&name[..dot], &name[dot + 1..])) {
        Some((b"user", rest)) => {
            !rest.is_empty() && matches!(kind, MemberKind::File(_) | MemberKind::Directory)
        }
        Some((b"trusted" | b"security", rest)) => !rest.is_empty(),
        Some((b"system", rest)) => matches!(rest, b"posix_acl_access" | b"posix_acl_default"),
        _ => false,
    }
}
