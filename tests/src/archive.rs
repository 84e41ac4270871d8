//! Writes layer archives byte by byte, so that every header that tools have ever produced, and
//! some that they should not have, can be made on purpose.
//!
//! A [`Member`] says what the author of the image means; the [`Style`] of the [`Archive`] says
//! how it is spelt. [`crate::model`] says what a stack of such layers unpacks to.

mod read;

use bytes::Bytes;

pub use read::read;

const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with its content.
    File(Bytes),
    /// A directory.
    Dir,
    /// A symbolic link and what it says.
    Symlink(Vec<u8>),
    /// Another name of an earlier member.
    Hardlink(Vec<u8>),
    /// A character device, major and minor.
    Char(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One member of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As it stands in the archive: `usr/bin/x`, `./usr`, `/etc`, `a/.wh.b`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds after `mtime`.
    pub nanos: u32,
    /// Extended attributes in the order of the archive.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// When the members were changed, unless they say otherwise: 14 November 2023.
pub const MTIME: i64 = 1_700_000_000;

impl Member {
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Self {
        let path = path.as_ref().to_vec();
        Self { path, kind, mode, uid: 0, gid: 0, mtime: MTIME, nanos: 0, xattrs: Vec::new() }
    }

    /// A regular file, 0644.
    pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::File(Bytes::copy_from_slice(content.as_ref())), 0o644)
    }

    /// A directory, 0755.
    pub fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Dir, 0o755)
    }

    /// A symbolic link, 0777.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
    }

    /// A hard link to an earlier member.
    pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Hardlink(target.as_ref().to_vec()), 0o644)
    }

    /// A character device, 0666.
    pub fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Char(major, minor), 0o666)
    }

    /// A block device, 0660.
    pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Block(major, minor), 0o660)
    }

    /// A named pipe, 0644.
    pub fn fifo(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Fifo, 0o644)
    }

    /// The marker that deletes `name` of the layers below: `directory/.wh.name`.
    pub fn whiteout(directory: &str, name: &str) -> Self {
        Self::file(join(directory, &format!(".wh.{name}")), "")
    }

    /// The marker that hides everything that the layers below have in `directory`.
    pub fn opaque(directory: &str) -> Self {
        Self::file(join(directory, ".wh..wh..opq"), "")
    }

    /// With other permission bits.
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With another owner and group.
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    /// Changed at another time.
    pub fn mtime(self, mtime: i64, nanos: u32) -> Self {
        Self { mtime, nanos, ..self }
    }

    /// With one more extended attribute.
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// How headers spell what a plain ustar header cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// PAX records, as current tools write them.
    #[default]
    Pax,
    /// `L` and `K` members and base-256 numbers, as GNU tar writes them; PAX for the rest.
    Gnu,
    /// The `prefix` field of ustar for names up to 255 bytes; PAX for the rest.
    Ustar,
    /// No magic, no owners' names, no prefix: the seventh edition.
    V7,
}

/// A tar archive in the making.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    style: Style,
}

impl Archive {
    /// An empty archive whose headers are spelt in `style`.
    pub fn new(style: Style) -> Self {
        Self { bytes: Vec::new(), style }
    }

    /// The complete archive of `members`, in the default style.
    pub fn of(members: &[Member]) -> Vec<u8> {
        let mut archive = Self::default();
        members.iter().for_each(|member| archive.add(member));
        archive.finish()
    }

    /// Adds a member.
    pub fn add(&mut self, member: &Member) {
        self.add_patched(member, |_| {});
    }

    /// Adds a member whose main header is changed at will before its checksum is taken.
    pub fn add_patched(&mut self, member: &Member, patch: impl FnOnce(&mut Header)) {
        let records = self.records_before(member);
        if !records.is_empty() {
            self.pax(b'x', &records);
        }
        let content = member.kind.content();
        let mut header = Header::of(member, self.style, content.len() as u64);
        patch(&mut header);
        self.block(header);
        self.data(&content);
    }

    /// Adds a PAX header of type `x` (for the next member) or `g` (for all that follow).
    pub fn pax(&mut self, kind: u8, records: &[(Vec<u8>, Vec<u8>)]) {
        let text: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.pax_raw(kind, &text);
    }

    /// The same with the records as bytes, which need not be right.
    pub fn pax_raw(&mut self, kind: u8, text: &[u8]) {
        self.special(kind, b"PaxHeaders.0/member", text);
    }

    /// Adds bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds content, padded to whole blocks.
    pub fn data(&mut self, content: &[u8]) {
        self.raw(content);
        let end = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(end, 0);
    }

    /// Adds a header block with its checksum.
    pub fn block(&mut self, header: Header) {
        self.raw(&header.sealed());
    }

    /// The archive with its two closing blocks of zeros.
    pub fn finish(mut self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]);
        self.bytes
    }

    /// The archive without an end, as some writers leave it.
    pub fn finish_without_end(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds a member of a type that says something about others.
    pub fn special(&mut self, kind: u8, name: &[u8], content: &[u8]) {
        let mut header = Header::default();
        header.name(name);
        header.number(Header::MODE, 0o644);
        header.number(Header::SIZE, content.len() as u64);
        header.set(156, &[kind]);
        header.set(257, b"ustar\x0000");
        self.block(header);
        self.data(content);
    }

    /// Writes GNU long-name members and returns the PAX records that `member` needs.
    fn records_before(&mut self, member: &Member) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut records = Vec::new();
        let mut record = |key: &str, value: &[u8]| {
            records.push((key.as_bytes().to_vec(), value.to_vec()));
        };
        let link = member.kind.link();
        match self.style {
            Style::V7 => {}
            Style::Gnu => {
                let long = |text: &[u8]| [text, b"\0"].concat();
                if link.len() > 100 {
                    self.special(b'K', b"././@LongLink", &long(link));
                }
                if member.path.len() > 100 {
                    self.special(b'L', b"././@LongLink", &long(&member.path));
                }
            }
            Style::Pax | Style::Ustar => {
                let prefixed = self.style == Style::Ustar && split_prefix(&member.path).is_some();
                if member.path.len() > 100 && !prefixed {
                    record("path", &member.path);
                }
                if link.len() > 100 {
                    record("linkpath", link);
                }
                if member.uid > Header::MAX_ID {
                    record("uid", member.uid.to_string().as_bytes());
                }
                if member.gid > Header::MAX_ID {
                    record("gid", member.gid.to_string().as_bytes());
                }
            }
        }
        let base_256 = self.style == Style::Gnu;
        let far = !(0..=0o77_777_777_777).contains(&member.mtime) && !base_256;
        if self.style != Style::V7 && (member.nanos != 0 || far) {
            record("mtime", decimal_time(member.mtime, member.nanos).as_bytes());
        }
        for (name, value) in &member.xattrs {
            record(&format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value);
        }
        records
    }
}

impl Kind {
    fn content(&self) -> Bytes {
        match self {
            Self::File(content) => content.clone(),
            _ => Bytes::new(),
        }
    }

    fn link(&self) -> &[u8] {
        match self {
            Self::Symlink(target) | Self::Hardlink(target) => target,
            _ => &[],
        }
    }
}

/// A header block; offsets and widths as in POSIX ustar.
#[derive(Debug, Clone)]
pub struct Header(pub [u8; BLOCK]);

impl Default for Header {
    fn default() -> Self {
        Self([0; BLOCK])
    }
}

impl Header {
    /// Offset and width of the mode.
    pub const MODE: (usize, usize) = (100, 8);
    /// Offset and width of the owner.
    pub const UID: (usize, usize) = (108, 8);
    /// Offset and width of the group.
    pub const GID: (usize, usize) = (116, 8);
    /// Offset and width of the size.
    pub const SIZE: (usize, usize) = (124, 12);
    /// Offset and width of the time.
    pub const MTIME: (usize, usize) = (136, 12);
    const CHECKSUM: (usize, usize) = (148, 8);
    /// The largest id that seven octal digits hold.
    const MAX_ID: u32 = 0o7_777_777;

    fn of(member: &Member, style: Style, size: u64) -> Self {
        let mut header = Self::default();
        match split_prefix(&member.path).filter(|_| style == Style::Ustar) {
            Some((prefix, name)) => {
                header.name(name);
                header.set(345, prefix);
            }
            None => header.name(&member.path),
        }
        header.number(Self::MODE, u64::from(member.mode));
        header.id(Self::UID, member.uid, style);
        header.id(Self::GID, member.gid, style);
        header.number(Self::SIZE, size);
        header.time(member.mtime, style);
        header.set(156, &[member.kind.flag()]);
        header.set(157, &member.kind.link()[..member.kind.link().len().min(100)]);
        match style {
            Style::V7 => {}
            Style::Gnu => header.set(257, b"ustar  \0"),
            Style::Pax | Style::Ustar => header.set(257, b"ustar\x0000"),
        }
        if let Kind::Char(major, minor) | Kind::Block(major, minor) = member.kind {
            header.number((329, 8), u64::from(major));
            header.number((337, 8), u64::from(minor));
        }
        header
    }

    /// Overwrites bytes.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a number in octal, or in base 256 where it does not fit.
    pub fn number(&mut self, (at, width): (usize, usize), value: u64) {
        let octal = format!("{value:0digits$o}\0", digits = width - 1);
        if octal.len() <= width {
            self.set(at, octal.as_bytes());
        } else {
            self.base_256((at, width), i128::from(value));
        }
    }

    /// Writes a number in base 256, two's complement, the top bit set as the mark.
    pub fn base_256(&mut self, (at, width): (usize, usize), value: i128) {
        let bytes = value.to_be_bytes();
        self.set(at, &bytes[bytes.len() - width..]);
        self.0[at] |= 0x80;
    }

    fn name(&mut self, path: &[u8]) {
        self.set(0, &path[..path.len().min(100)]);
    }

    fn id(&mut self, field: (usize, usize), id: u32, style: Style) {
        match style {
            Style::Gnu | Style::V7 => self.number(field, u64::from(id)),
            Style::Pax | Style::Ustar => self.number(field, u64::from(id.min(Self::MAX_ID))),
        }
    }

    fn time(&mut self, mtime: i64, style: Style) {
        match u64::try_from(mtime) {
            Ok(mtime) if style == Style::Gnu || mtime <= 0o77_777_777_777 => {
                self.number(Self::MTIME, mtime);
            }
            Err(_) if style == Style::Gnu => self.base_256(Self::MTIME, i128::from(mtime)),
            _ => self.number(Self::MTIME, 0),
        }
    }

    /// The block with its checksum.
    pub fn sealed(mut self) -> [u8; BLOCK] {
        let (at, width) = Self::CHECKSUM;
        self.0[at..at + width].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.set(at, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl Kind {
    fn flag(&self) -> u8 {
        match self {
            Self::File(_) => b'0',
            Self::Hardlink(_) => b'1',
            Self::Symlink(_) => b'2',
            Self::Char(..) => b'3',
            Self::Block(..) => b'4',
            Self::Dir => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// `prefix` and `name` of a path that needs the prefix field and fits into it.
fn split_prefix(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return None;
    }
    let slash = (0..path.len().min(156)).rev().find(|at| path[*at] == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!name.is_empty() && name.len() <= 100).then_some((prefix, name))
}

/// Content that does not compress and is the same in every run.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = vec![0; length];
    for word in content.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        word.copy_from_slice(&random[..word.len()]);
    }
    content
}

/// `<length> <key>=<value>\n`, where the length counts itself.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap_or(1);
    [format!("{} ", rest + digits).as_bytes(), key, b"=", value, b"\n"].concat()
}

/// Seconds and nanoseconds as PAX spells them: `-1.5` is half a second before -1.
fn decimal_time(seconds: i64, nanos: u32) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Member> {
        vec![
            Member::dir("d").mode(0o2755).owner(3, 4),
            Member::file("d/f", "content").mtime(-2, 500_000_000),
            Member::file(format!("d/{}", "n".repeat(180)), "long").owner(4_000_000, 4_294_967_294),
            Member::symlink("d/s", "t".repeat(150)),
            Member::hardlink("d/h", "d/f"),
            Member::char_device("d/null", 1, 3),
            Member::fifo("d/p"),
            Member::file("x", "x").xattr("user.a", b"\0="),
        ]
    }

    #[test]
    fn the_tar_crate_reads_back_what_pax_and_gnu_headers_say() {
        for style in [Style::Pax, Style::Gnu, Style::Ustar] {
            let mut archive = Archive::new(style);
            members().iter().for_each(|member| archive.add(member));
            assert_eq!(read(&archive.finish()).unwrap(), members(), "{style:?}");
        }
    }

    #[test]
    fn a_pax_record_counts_its_own_length() {
        assert_eq!(pax_record(b"a", b"b"), b"6 a=b\n");
        assert_eq!(pax_record(b"path", &[b'x'; 91]).len(), 100 + 1);
        assert!(pax_record(b"path", &[b'x'; 90]).starts_with(b"99 path="));
        assert!(pax_record(b"path", &[b'x'; 91]).starts_with(b"101 path="));
    }

    #[test]
    fn times_before_1970_have_one_sign() {
        assert_eq!(decimal_time(-2, 500_000_000), "-1.500000000");
        assert_eq!(decimal_time(1, 25), "1.000000025");
        assert_eq!(decimal_time(-3, 0), "-3");
    }
}
