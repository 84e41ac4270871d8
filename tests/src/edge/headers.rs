//! Members whose headers are spelt in unusual ways.

use super::Case;
use crate::archive::{Archive, Header, Member, Style, noise};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = plain_layers();
    cases.extend(styles());
    cases.extend([
        unknown_records(),
        global_records(),
        type_bits_in_modes(),
        old_types(),
        directory_by_trailing_slash(),
        base_256_everywhere(),
        path_record_beats_the_header(),
        link_with_content_size(),
        the_last_pax_header_counts(),
        gnu_names_beat_pax_paths(),
        blanks_and_nuls_before_digits(),
        file_with_a_trailing_slash(),
        types_that_nobody_knows(),
        volume_label(),
        attributes_that_linux_does_not_take(),
    ]);
    cases
}

/// Oddities that the usual spelling already has.
fn plain_layers() -> Vec<Case> {
    let long = |length: usize| "n".repeat(length);
    let ids = [0, 7, 2_097_151, 2_097_152, 65_534, 2_147_483_648, 4_294_967_294];
    let owners: Vec<Member> = ids
        .iter()
        .flat_map(|id| {
            [
                Member::file(format!("u{id}"), "x").owner(*id, 0),
                Member::dir(format!("g{id}")).owner(0, *id),
            ]
        })
        .collect();
    let modes: Vec<Member> = [0, 0o1, 0o444, 0o1000, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777]
        .iter()
        .flat_map(|mode| {
            [
                Member::file(format!("f{mode:o}"), "x").mode(*mode),
                Member::dir(format!("d{mode:o}")).mode(*mode),
            ]
        })
        .collect();
    let times = [
        Member::file("zero", "").mtime(0, 0),
        Member::file("fraction", "").mtime(1_700_000_000, 800_414_511),
        Member::file("negative", "").mtime(-1, 0),
        Member::file("negative-fraction", "").mtime(-2, 500_000_000),
        Member::file("y2040", "").mtime(2_208_988_800, 0),
        Member::file("y2200", "").mtime(7_258_118_400, 1),
        Member::symlink("link", "x").mtime(1_600_000_000, 5),
        Member::dir("dir").mtime(1, 25_000_000),
    ];
    let names: Vec<Member> = [
        &b" lead"[..],
        b"%41",
        b"-rf",
        b"...",
        b".wh",
        b"a:b,c=d",
        b"back\\slash",
        b"bad\xff\xfe",
        "caf\u{e9}".as_bytes(),
        "e\u{301}".as_bytes(),
        b"new\nline",
        b"q\"'`$(x)",
        b"tab\t",
        b"~",
        b"\x01ctl\x7f",
    ]
    .iter()
    .map(|name| Member::file(name, "x"))
    .chain([Member::dir(b"d\xff"), Member::symlink(b"d\xff/l\xfe", b"\xc0\xaf")])
    .collect();
    let links = [
        Member::dir("d"),
        Member::file("d/f", "content"),
        Member::symlink("absolute", "/d/f"),
        Member::symlink("dangling", "nothing"),
        Member::symlink("loop1", "loop2"),
        Member::symlink("loop2", "loop1"),
        Member::symlink("self", "self"),
        Member::symlink("d/up", ".."),
        Member::symlink("slash", "d/"),
        Member::symlink("long", format!("{0}/{0}/{0}", long(250))),
    ];
    let lengths: Vec<Member> = [99, 100, 101, 155, 156, 200, 255]
        .iter()
        .flat_map(|length| {
            [
                Member::file(long(*length), "x"),
                Member::file(format!("p{}/{}/{}", long(90), long(60), long(*length)), "y"),
                Member::symlink(format!("l{length}"), long(*length)),
            ]
        })
        .collect();
    let attributes = [
        Member::file("cap", "x").xattr("security.capability", CAPABILITY),
        Member::hardlink("cap-link", "cap"),
        Member::dir("d").xattr("user.dir", "v"),
        Member::file("binary", "x").xattr("user.bytes", b"a\nb=c\0\xff 7 x=y\n"),
        Member::file("names", "x").xattr("user.sp ace", "1").xattr("user.\u{e9}", "2"),
        Member::file("empty", "x").xattr("user.empty", ""),
        Member::file("big", "x").xattr("user.big", noise(9, 3_000)),
        Member::file("trusted", "x").xattr("trusted.own", "t"),
    ];
    let devices = [
        Member::char_device("null", 1, 3),
        Member::char_device("big", 300, 70_000),
        Member::block_device("loop", 7, 0).owner(0, 6),
        Member::fifo("pipe").mode(0o620),
    ];
    let deep = vec!["b"; 300].join("/");
    let many: Vec<Member> =
        (0..2_500).map(|n| Member::file(format!("many/f{n}"), format!("{}", n % 50))).collect();
    vec![
        Case::layers("ids up to 2^32-2", &[&owners]),
        Case::layers("modes", &[&modes]),
        Case::layers("times", &[&times]),
        Case::layers("odd names", &[&names]),
        Case::layers("symlinks", &[&links]),
        Case::layers("long names", &[&lengths]),
        Case::layers("extended attributes", &[&attributes]),
        Case::layers("devices", &[&devices]),
        Case::layers("deep", &[&[Member::file(format!("{deep}/leaf"), "x")]]),
        Case::layers("many files", &[&many]),
    ]
}

/// `cap_net_bind_service=p`, as file systems store it (revision 2).
const CAPABILITY: &[u8] =
    b"\x00\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

/// The same members in every style that can hold them.
fn styles() -> Vec<Case> {
    let long = format!("{}/{}/{}", "p".repeat(80), "q".repeat(60), "r".repeat(90));
    let members = [
        Member::dir("d").mode(0o2750).owner(3, 4),
        Member::file("d/f", "content").mtime(8_589_934_600, 0),
        Member::file(&long, "long"),
        Member::symlink("s", &long),
        Member::hardlink("h", &long),
        Member::file("ids", "x").owner(3_000_000, 4_000_000),
        Member::file("before", "x").mtime(-5, 0),
    ];
    let short = [Member::dir("d"), Member::file("d/f", "content"), Member::symlink("s", "d/f")];
    [
        ("gnu headers", Style::Gnu, &members[..]),
        ("ustar headers with prefix", Style::Ustar, &members),
        ("seventh edition headers", Style::V7, &short),
    ]
    .map(|(name, style, members)| {
        let mut archive = Archive::new(style);
        members.iter().for_each(|member| archive.add(member));
        Case::archive(name, &archive.finish(), members)
    })
    .into()
}

pub(super) fn records(pairs: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn unknown_records() -> Case {
    let members = [Member::file("a", "hello").owner(1000, 0), Member::file("b", "world")];
    let mut archive = Archive::default();
    let pairs = [
        ("atime", "1.5"),
        ("ctime", "2"),
        ("VENDOR.x", "y"),
        ("uname", "nobody"),
        ("comment", "words"),
        ("LIBARCHIVE.creationtime", "1"),
        ("uid", "1000"),
    ];
    archive.pax(b'x', &records(&pairs));
    archive.add_patched(&members[0], |header| header.number(Header::UID, 0));
    archive.add(&members[1]);
    Case::archive("unknown pax records", &archive.finish(), &members)
}

/// Go's reader, and with it every container engine, leaves them alone.
fn global_records() -> Case {
    let members = [Member::file("a", "x"), Member::file("b", "x").owner(88, 0)];
    let mut archive = Archive::default();
    archive.pax(b'g', &records(&[("uid", "77"), ("path", "all"), ("comment", "a git commit")]));
    archive.add(&members[0]);
    archive.pax(b'x', &records(&[("uid", "88")]));
    archive.add(&Member::file("b", "x"));
    Case::archive("global pax records", &archive.finish(), &members)
}

fn the_last_pax_header_counts() -> Case {
    let mut archive = Archive::default();
    archive.pax(b'x', &records(&[("path", "first"), ("uid", "7")]));
    archive.pax(b'x', &records(&[("gid", "8")]));
    archive.add(&Member::file("header", "x"));
    let members = [Member::file("header", "x").owner(0, 8)];
    Case::archive("two pax headers", &archive.finish(), &members)
}

fn gnu_names_beat_pax_paths() -> Case {
    let (name, target) = (format!("gnu-{}", "n".repeat(120)), "t".repeat(150));
    let mut archive = Archive::new(Style::Gnu);
    archive.pax(b'x', &records(&[("path", "pax-name"), ("linkpath", "pax-target")]));
    archive.add(&Member::symlink(&name, &target));
    let members = [Member::symlink(name, target)];
    Case::archive("gnu names and pax paths", &archive.finish(), &members)
}

fn blanks_and_nuls_before_digits() -> Case {
    let mut archive = Archive::default();
    archive.add_patched(&Member::file("f", "content"), |header| {
        header.set(100, b"\x00  640 \0");
        header.set(108, b"     7\0 ");
        header.set(124, b"\0\0       7 ");
    });
    let members = [Member::file("f", "content").mode(0o640).owner(7, 0)];
    Case::archive("blanks and NULs before digits", &archive.finish(), &members)
}

/// Only the type of the seventh edition, which had no directories, means one by a slash.
fn file_with_a_trailing_slash() -> Case {
    let mut archive = Archive::default();
    archive.add(&Member::file("f/", "content"));
    archive.add(&Member::file("g", "x"));
    let members = [Member::file("f", "content"), Member::file("g", "x")];
    Case::archive("file with a trailing slash", &archive.finish(), &members)
}

/// POSIX: what a reader does not know it takes as a regular file.
fn types_that_nobody_knows() -> Case {
    let members = [Member::file("a", "unknown"), Member::file("b", "x")];
    let mut archive = Archive::default();
    archive.add_patched(&members[0], |header| header.set(156, b"Q"));
    archive.add(&members[1]);
    Case::archive("unknown member type", &archive.finish(), &members)
}

fn volume_label() -> Case {
    let mut archive = Archive::new(Style::Gnu);
    archive.add_patched(&Member::file("label", ""), |header| header.set(156, b"V"));
    archive.add(&Member::file("f", "x"));
    Case::archive("volume label", &archive.finish(), &[Member::file("f", "x")])
}

/// Without a namespace, of users on what is neither file nor directory, in base64 by libarchive.
fn attributes_that_linux_does_not_take() -> Case {
    let odd = [("nowhere", "1"), ("user.", "2"), ("system.other", "3"), ("other.name", "4")];
    let with = |member: Member, pairs: &[(&str, &str)]| {
        pairs.iter().fold(member, |member, (name, value)| member.xattr(name, value))
    };
    let mut archive = Archive::default();
    archive.add(&with(Member::file("f", "x").xattr("user.kept", "k"), &odd));
    archive.add(&Member::symlink("l", "f").xattr("user.dropped", "d").xattr("trusted.kept", "k"));
    archive.add(&Member::fifo("p").xattr("user.dropped", "d"));
    archive.pax(b'x', &records(&[("LIBARCHIVE.xattr.user.a", "aGVsbG8=")]));
    archive.add(&Member::file("libarchive", "x"));
    let members = [
        Member::file("f", "x").xattr("user.kept", "k"),
        Member::symlink("l", "f").xattr("trusted.kept", "k"),
        Member::fifo("p"),
        Member::file("libarchive", "x"),
    ];
    Case::archive("attributes that Linux does not take", &archive.finish(), &members)
}

fn type_bits_in_modes() -> Case {
    let members = [
        Member::file("f", "hello"),
        Member::dir("d"),
        Member::symlink("l", "d"),
        Member::file("x", "hello").mode(0o4755),
    ];
    let mut archive = Archive::default();
    for (member, bits) in members.iter().zip([0o100_000, 0o040_000, 0o120_000, 0o100_000]) {
        archive.add_patched(member, |header| {
            header.number(Header::MODE, u64::from(member.mode | bits));
        });
    }
    Case::archive("type bits in modes", &archive.finish(), &members)
}

fn old_types() -> Case {
    let members = [
        Member::file("v7", "old style"),
        Member::file("contiguous", "c"),
        Member::file("g", "hello"),
    ];
    let mut archive = Archive::default();
    for (member, flag) in members.iter().zip([0, b'7', b'0']) {
        archive.add_patched(member, |header| header.set(156, &[flag]));
    }
    Case::archive("old member types", &archive.finish(), &members)
}

fn directory_by_trailing_slash() -> Case {
    let mut archive = Archive::new(Style::V7);
    archive.add_patched(&Member::file("d/", "").mode(0o711), |header| header.set(156, &[0]));
    archive.add(&Member::file("d/f", "x"));
    let members = [Member::dir("d").mode(0o711), Member::file("d/f", "x")];
    Case::archive("directory by trailing slash", &archive.finish(), &members)
}

fn base_256_everywhere() -> Case {
    let member = Member::file("f", "content").owner(5, 6).mtime(-86_400, 0);
    let mut archive = Archive::new(Style::Gnu);
    archive.add_patched(&member, |header| {
        header.base_256(Header::UID, 5);
        header.base_256(Header::GID, 6);
        header.base_256(Header::SIZE, 7);
        header.base_256(Header::MODE, 0o644);
        header.base_256(Header::MTIME, -86_400);
    });
    Case::archive("base 256 numbers", &archive.finish(), &[member])
}

fn path_record_beats_the_header() -> Case {
    let members = [Member::file("real", "content"), Member::symlink("link", "target")];
    let mut archive = Archive::default();
    archive.pax(b'x', &records(&[("path", "real"), ("size", "7")]));
    archive.add_patched(&Member::file("fake", "content"), |header| header.number(Header::SIZE, 0));
    archive.pax(b'x', &records(&[("linkpath", "target"), ("path", "link")]));
    archive.add(&Member::symlink("other", "elsewhere"));
    Case::archive("pax records beat the header", &archive.finish(), &members)
}

/// Some writers give a hard link the size of its target, and no content.
fn link_with_content_size() -> Case {
    let members = [Member::file("f", "content"), Member::hardlink("h", "f"), Member::file("z", "")];
    let mut archive = Archive::default();
    archive.add(&members[0]);
    archive.add_patched(&members[1], |header| header.number(Header::SIZE, 7));
    archive.add(&members[2]);
    Case::archive("hard link with a size", &archive.finish(), &members)
}
