//! What single writers have made of the headers, and Go's reader, with it the container engines,
//! makes of them.

use super::Case;
use super::headers::records;
use crate::archive::{Archive, Header, Member, Style};

pub(super) fn cases() -> Vec<Case> {
    vec![
        split_paths_of_other_writers(),
        old_go_splits_paths_in_gnu_headers(),
        gnu_times_are_no_path(),
        empty_long_name(),
        negative_owners(),
        numbers_beyond_32_bits(),
        devices_of_the_seventh_edition(),
        global_header_behind_another(),
        numbers_with_a_sign(),
        sparse_records_without_a_map(),
        extension_without_a_member(),
    ]
}

/// Solaris and busybox leave the version out; star has less room for the prefix, and its times
/// behind it.
fn split_paths_of_other_writers() -> Case {
    let deep = |directory: &str| format!("{}/file", directory.repeat(131));
    let members =
        [Member::file(deep("n"), "x"), Member::file(deep("b"), "x"), Member::file(deep("s"), "x")];
    let mut archive = Archive::new(Style::Ustar);
    archive.add_patched(&members[0], |header| header.set(263, b"\0\0"));
    archive.add_patched(&members[1], |header| header.set(263, b"  "));
    archive.add_patched(&members[2], |header| {
        header.set(476, b"14524770400 14524770400 ");
        header.set(508, b"tar\0");
    });
    Case::archive("split paths of other writers", &archive.finish(), &members)
}

/// Go before 1.8, and so docker up to 1.13, wrote long paths with large numbers like this.
fn old_go_splits_paths_in_gnu_headers() -> Case {
    let mut archive = Archive::new(Style::Gnu);
    let directory = "d".repeat(100);
    archive.add_patched(&Member::file("file", "x"), |header| {
        header.set(345, format!("pre/{directory}").as_bytes());
    });
    archive.add_patched(&Member::file("other", "y"), |header| header.set(345, b"14524770400/dir"));
    let members = [
        Member::file(format!("pre/{directory}/file"), "x"),
        Member::file("14524770400/dir/other", "y"),
    ];
    Case::archive("gnu headers with a prefix", &archive.finish(), &members)
}

fn gnu_times_are_no_path() -> Case {
    let members = [Member::file("file", "x")];
    let mut archive = Archive::new(Style::Gnu);
    archive.add_patched(&members[0], |header| header.set(345, b"14524770400\x0014524770400\0"));
    Case::archive("gnu headers with times", &archive.finish(), &members)
}

fn empty_long_name() -> Case {
    let members = [Member::file("file", "x"), Member::symlink("link", "file")];
    let mut archive = Archive::new(Style::Gnu);
    archive.special(b'L', b"././@LongLink", b"");
    archive.add(&members[0]);
    archive.special(b'K', b"././@LongLink", b"\0");
    archive.add(&members[1]);
    Case::archive("empty gnu long names", &archive.finish(), &members)
}

/// chown(2) takes -1 for "unchanged", and knows the others by their last 32 bits.
fn negative_owners() -> Case {
    let mut archive = Archive::default();
    archive.add_patched(&Member::file("unchanged", "x"), |header| {
        header.base_256(Header::UID, -1);
    });
    archive.add_patched(&Member::file("nobody", "x"), |header| header.base_256(Header::GID, -2));
    archive.pax(b'x', &records(&[("uid", "-2"), ("gid", "-1")]));
    archive.add(&Member::file("record", "x"));
    let members = [
        Member::file("unchanged", "x"),
        Member::file("nobody", "x").owner(0, 4_294_967_294),
        Member::file("record", "x").owner(4_294_967_294, 0),
    ];
    Case::archive("negative owners", &archive.finish(), &members)
}

/// The system calls take the last bits of what is said.
fn numbers_beyond_32_bits() -> Case {
    let mut archive = Archive::default();
    archive.add_patched(&Member::file("owner", "x"), |header| {
        header.base_256(Header::UID, (1 << 32) + 5);
        header.base_256(Header::GID, (1 << 33) - 1);
    });
    archive.pax(b'x', &records(&[("uid", "4294967305"), ("gid", "9223372036854775807")]));
    archive.add(&Member::file("record", "x"));
    archive.add_patched(&Member::block_device("device", 0, 0), |header| {
        header.number((329, 8), 4_097);
        header.number((337, 8), (1 << 20) + 5);
    });
    let members = [
        Member::file("owner", "x").owner(5, 0),
        Member::file("record", "x").owner(9, 0),
        Member::block_device("device", 1, 5),
    ];
    Case::archive("numbers beyond 32 bits", &archive.finish(), &members)
}

/// Its headers had no place for numbers; what stands there means nothing.
fn devices_of_the_seventh_edition() -> Case {
    let mut archive = Archive::new(Style::V7);
    archive.add_patched(&Member::block_device("b", 0, 0), |header| {
        header.number((329, 8), 7);
        header.number((337, 8), 1);
    });
    archive.add(&Member::file("f", "x"));
    let members = [Member::block_device("b", 0, 0), Member::file("f", "x")];
    Case::archive("devices of the seventh edition", &archive.finish(), &members)
}

/// To Go a global header is a member, of which the other one speaks.
fn global_header_behind_another() -> Case {
    let mut archive = Archive::default();
    archive.pax(b'x', &records(&[("path", "global"), ("uid", "7")]));
    archive.pax(b'g', &records(&[("comment", "x")]));
    archive.add(&Member::file("f", "x"));
    Case::archive("global header behind another", &archive.finish(), &[Member::file("f", "x")])
}

fn numbers_with_a_sign() -> Case {
    let mut archive = Archive::default();
    archive.pax(b'x', &records(&[("mtime", "+5.25"), ("uid", "+7"), ("size", "+7")]));
    archive.add(&Member::file("f", "content"));
    let members = [Member::file("f", "content").mtime(5, 250_000_000).owner(7, 0)];
    Case::archive("numbers with a plus sign", &archive.finish(), &members)
}

/// What is not in one of the known formats is no sparse file.
fn sparse_records_without_a_map() -> Case {
    let members = ["size", "realsize", "version", "name"].map(|name| Member::file(name, "x"));
    let unknown = [
        ("GNU.sparse.major", "0"),
        ("GNU.sparse.minor", "5"),
        ("GNU.sparse.size", "10"),
        ("GNU.sparse.map", "0,1"),
    ];
    let all: [&[(&str, &str)]; 4] = [
        &[("GNU.sparse.size", "10")],
        &[("GNU.sparse.realsize", "10")],
        &unknown,
        &[("GNU.sparse.name", "other")],
    ];
    let mut archive = Archive::default();
    for (member, pairs) in members.iter().zip(all) {
        archive.pax(b'x', &records(pairs));
        archive.add(member);
    }
    Case::archive("sparse records without a map", &archive.finish(), &members)
}

fn extension_without_a_member() -> Case {
    let members = [Member::file("f", "hello")];
    let mut archive = Archive::default();
    archive.add(&members[0]);
    archive.pax(b'x', &records(&[("path", "nothing")]));
    Case::archive("extension without a member", &archive.finish(), &members)
}
