//! Files with holes, in every format that GNU tar has had for them.

use super::Case;
use super::headers::records;
use crate::archive::{Archive, Header, Member, Style, noise};

pub(super) fn cases() -> Vec<Case> {
    vec![
        gnu_sparse("old gnu sparse", &islands(), SPARSE_SIZE),
        gnu_sparse("old gnu sparse with many runs", &archipelago(), SPARSE_SIZE),
        gnu_sparse("old gnu sparse of one hole", &[], SPARSE_SIZE),
        gnu_sparse("old gnu sparse without holes", &[(0, noise(1, 1_536))], 1_536),
        pax_sparse_1_0(),
        pax_sparse_0_1(),
        pax_sparse_0_0(),
        sparse_larger_than_4_gib(),
    ]
}

/// Where a sparse file has data: offset and whole blocks of bytes. It ends with a hole.
fn islands() -> Vec<(u64, Vec<u8>)> {
    (0..6)
        .map(|n| (n * 300_000 + 1_024, noise(n, 2_048 + 512 * usize::try_from(n).unwrap())))
        .collect()
}

const SPARSE_SIZE: u64 = 2_500_000;

fn dense(islands: &[(u64, Vec<u8>)], size: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(size).unwrap()];
    for (offset, bytes) in islands {
        let offset = usize::try_from(*offset).unwrap();
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    content
}

fn members(islands: &[(u64, Vec<u8>)], size: u64) -> [Member; 2] {
    [Member::file("sparse", dense(islands, size)), Member::file("after", "x")]
}

fn packed(islands: &[(u64, Vec<u8>)]) -> Vec<u8> {
    islands.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
}

/// The old GNU format: a table of four in the header, the rest in extension blocks.
fn gnu_sparse_archive(islands: &[(u64, Vec<u8>)], size: u64) -> Vec<u8> {
    let octal = |value: u64| format!("{value:011o}\0").into_bytes();
    let mut table: Vec<Vec<u8>> = islands
        .iter()
        .map(|(offset, bytes)| [octal(*offset), octal(bytes.len() as u64)].concat())
        .collect();
    table.push([octal(size), octal(0)].concat());
    let mut archive = Archive::new(Style::Gnu);
    let content = packed(islands);
    let mut header = Header::default();
    header.set(0, b"sparse");
    header.number(Header::MODE, 0o644);
    header.number(Header::UID, 0);
    header.number(Header::GID, 0);
    header.number(Header::SIZE, content.len() as u64);
    header.number(Header::MTIME, crate::archive::MTIME.cast_unsigned());
    header.set(156, b"S");
    header.set(257, b"ustar  \0");
    let (first, rest) = table.split_at(table.len().min(4));
    header.set(386, &first.concat());
    header.set(482, &[u8::from(!rest.is_empty())]);
    header.number((483, 12), size);
    archive.block(header);
    for (at, part) in rest.chunks(21).enumerate() {
        let mut block = part.concat();
        block.resize(504, 0);
        block.push(u8::from((at + 1) * 21 < rest.len()));
        block.resize(512, 0);
        archive.raw(&block);
    }
    archive.data(&content);
    archive.add(&Member::file("after", "x"));
    archive.finish()
}

fn gnu_sparse(name: &str, islands: &[(u64, Vec<u8>)], size: u64) -> Case {
    Case::archive(name, &gnu_sparse_archive(islands, size), &members(islands, size))
}

/// So many islands that the table goes on in several extension blocks.
fn archipelago() -> Vec<(u64, Vec<u8>)> {
    (0..60).map(|n| (n * 40_960, noise(n, 512 * (1 + usize::try_from(n % 3).unwrap())))).collect()
}

fn pax_sparse_1_0() -> Case {
    let islands = islands();
    let mut map = format!("{}\n", islands.len() + 1);
    for (offset, bytes) in &islands {
        map.push_str(&format!("{offset}\n{}\n", bytes.len()));
    }
    map.push_str(&format!("{SPARSE_SIZE}\n0\n"));
    let mut content = map.into_bytes();
    content.resize(content.len().next_multiple_of(512), 0);
    content.extend(packed(&islands));
    let mut archive = Archive::default();
    archive.pax(
        b'x',
        &records(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "sparse"),
            ("GNU.sparse.realsize", &SPARSE_SIZE.to_string()),
        ]),
    );
    archive.add(&Member::file("./GNUSparseFile.1/sparse", content));
    archive.add(&Member::file("after", "x"));
    Case::archive("pax sparse 1.0", &archive.finish(), &members(&islands, SPARSE_SIZE))
}

fn pax_sparse_0_1() -> Case {
    let islands = islands();
    let map: Vec<String> =
        islands.iter().map(|(offset, bytes)| format!("{offset},{}", bytes.len())).collect();
    pax_sparse_0("pax sparse 0.1", &islands, &[("GNU.sparse.map", &map.join(","))])
}

/// The first of the formats repeats its keywords.
fn pax_sparse_0_0() -> Case {
    let islands = islands();
    let numbers: Vec<(String, String)> = islands
        .iter()
        .map(|(offset, bytes)| (offset.to_string(), bytes.len().to_string()))
        .collect();
    let map: Vec<(&str, &str)> = numbers
        .iter()
        .flat_map(|(offset, length)| {
            [("GNU.sparse.offset", offset.as_str()), ("GNU.sparse.numbytes", length.as_str())]
        })
        .collect();
    pax_sparse_0("pax sparse 0.0", &islands, &map)
}

fn pax_sparse_0(name: &str, islands: &[(u64, Vec<u8>)], map: &[(&str, &str)]) -> Case {
    let (size, count) = (SPARSE_SIZE.to_string(), islands.len().to_string());
    let head = [("GNU.sparse.size", &*size), ("GNU.sparse.numblocks", &*count)];
    let mut archive = Archive::default();
    archive.pax(b'x', &records(&[&head[..], map, &[("GNU.sparse.name", "sparse")]].concat()));
    archive.add(&Member::file("GNUSparseFile.1/sparse", packed(islands)));
    archive.add(&Member::file("after", "x"));
    Case::archive(name, &archive.finish(), &members(islands, SPARSE_SIZE))
}

/// Its tree is written down: 4 GiB are too many for the model.
fn sparse_larger_than_4_gib() -> Case {
    let islands = vec![(0, [&b"begin"[..], &[0; 507]].concat()), (4 << 30, b"end".to_vec())];
    let size = (4 << 30) + 3;
    let tar = gnu_sparse_archive(&islands, size);
    let members = [Member::file("sparse", ""), Member::file("after", "x")];
    let mut case = Case::archive("sparse beyond 4 GiB", &tar, &members);
    case.override_content("sparse", size, SPARSE_4_GIB);
    case
}

/// `begin`, zeros up to 4 GiB, `end`.
const SPARSE_4_GIB: &str = "1e3a9c640651a19a2e31f7391e9d3aeb0755aa8e1aa150bf517346ee7e038249";
