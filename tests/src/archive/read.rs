//! Reads an archive with the `tar` crate: a second opinion on what a layer says.

use std::io::{self, Read};

use super::{Kind, Member};

/// The members of an archive.
///
/// # Errors
/// What the `tar` crate finds wrong, and types that it does not know.
pub fn read(archive: &[u8]) -> io::Result<Vec<Member>> {
    tar::Archive::new(archive).entries()?.map(|entry| member(entry?)).collect()
}

fn member(mut entry: tar::Entry<'_, &[u8]>) -> io::Result<Member> {
    let header = entry.header();
    let device = || -> io::Result<(u32, u32)> {
        Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
    };
    let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
    let path = entry.path_bytes().into_owned();
    let kind = match header.entry_type() {
        tar::EntryType::Directory => Kind::Dir,
        tar::EntryType::Regular if header.as_ustar().is_none() && path.ends_with(b"/") => Kind::Dir,
        tar::EntryType::Symlink => Kind::Symlink(link),
        tar::EntryType::Link => Kind::Hardlink(link),
        tar::EntryType::Char => device().map(|(major, minor)| Kind::Char(major, minor))?,
        tar::EntryType::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
        tar::EntryType::Fifo => Kind::Fifo,
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            Kind::File(bytes::Bytes::new())
        }
        other => return Err(io::Error::other(format!("a member of type {other:?}"))),
    };
    let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
    let mut member = Member {
        path,
        kind,
        mode: header.mode()?,
        uid: id(header.uid()?)?,
        gid: id(header.gid()?)?,
        mtime: header.mtime()?.cast_signed(),
        nanos: 0,
        xattrs: Vec::new(),
    };
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            record(&mut member, extension.key_bytes(), extension.value_bytes());
        }
    }
    if let Kind::File(content) = &mut member.kind {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        *content = bytes.into();
    }
    Ok(member)
}

/// What the crate leaves to its user: extended attributes and fractions of a second.
fn record(member: &mut Member, key: &[u8], value: &[u8]) {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        member.xattrs.push((name.to_vec(), value.to_vec()));
    } else if key == b"mtime" {
        let text = String::from_utf8_lossy(value);
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let nanos: i64 = format!("{fraction:0<9}")[..9].parse().unwrap_or(0);
        let negative = whole.starts_with('-');
        let total = i128::from(whole.parse::<i64>().unwrap_or(0)) * 1_000_000_000
            + i128::from(if negative { -nanos } else { nanos });
        member.mtime = i64::try_from(total.div_euclid(1_000_000_000)).unwrap_or(0);
        member.nanos = u32::try_from(total.rem_euclid(1_000_000_000)).unwrap_or(0);
    }
}
