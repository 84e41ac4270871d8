use std::collections::BTreeMap;

use super::*;
use crate::index::{EntryKind, InodeFlags, LayerTree};
use crate::object::ObjectKey;

/// A member of a test archive: path, type flag, link target, content.
type Sample<'a> = (&'a str, u8, &'a str, &'a [u8]);

fn archive(members: &[Sample<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, target, content) in members {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.as_old_mut().linkflag = [*kind];
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn index(blob: &[u8]) -> Result<LayerIndex, LayerError> {
    let mut indexer = Indexer::new();
    // A malformed layer may close the pipe early; finish() tells.
    let _ = indexer.write_all(blob);
    indexer.finish()
}

/// Every entry of the tree by path: what it is.
fn listing(tree: &LayerTree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut stack = vec![(0, String::new())];
    while let Some((number, path)) = stack.pop() {
        let directory = tree.inode(number).unwrap();
        for entry in tree.entries(directory).unwrap() {
            let name = String::from_utf8_lossy(tree.name(entry).unwrap()).into_owned();
            let path = format!("{path}/{name}");
            let inode = tree.inode(entry.inode.get()).unwrap();
            let what = match tree.kind(entry).unwrap() {
                EntryKind::Whiteout => "whiteout".into(),
                EntryKind::LowerLink => {
                    format!("lower {}", tree.target(inode).unwrap().escape_ascii())
                }
                EntryKind::Inode => match inode.mode.get() & libc::S_IFMT {
                    libc::S_IFDIR => {
                        stack.push((entry.inode.get(), path.clone()));
                        let flags = inode.flags.get();
                        let opaque = if flags & InodeFlags::OPAQUE != 0 { " opaque" } else { "" };
                        let implicit =
                            if flags & InodeFlags::IMPLICIT != 0 { " implicit" } else { "" };
                        format!("directory{opaque}{implicit}")
                    }
                    libc::S_IFLNK => {
                        format!("-> {}", tree.target(inode).unwrap().escape_ascii())
                    }
                    libc::S_IFREG => {
                        format!("file {} x{}", inode.size.get(), inode.nlink.get())
                    }
                    other => format!("{other:o}"),
                },
            };
            found.insert(path, what);
        }
    }
    found
}

fn tree_of(members: &[Sample<'_>]) -> LayerTree {
    let index = index(&archive(members)).unwrap();
    LayerTree::new(index.tree.to_vec().into()).unwrap()
}

fn check_listing(members: &[Sample<'_>], expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(path, what)| (path.to_string(), what.to_string())).collect();
    assert_eq!(listing(&tree_of(members)), expected);
}

#[test]
fn members_become_a_tree() {
    check_listing(
        &[
            ("./", b'5', "", b""),
            ("usr/bin/perl", b'0', "", b"content"),
            ("usr", b'5', "", b""),
            ("/abs//path/./x", b'0', "", b""),
            ("bin", b'2', "usr/bin", b""),
            ("h", b'1', "./usr/bin/perl", b""),
            ("bin/sh", b'0', "", b"#"),
            ("old/", b'\0', "", b""),
            ("lower", b'1', "etc/passwd", b""),
        ],
        &[
            ("/usr", "directory"),
            ("/usr/bin", "directory implicit"),
            ("/usr/bin/perl", "file 7 x2"),
            ("/usr/bin/sh", "file 1 x1"),
            ("/abs", "directory implicit"),
            ("/abs/path", "directory implicit"),
            ("/abs/path/x", "file 0 x1"),
            ("/bin", "-> usr/bin"),
            ("/h", "file 7 x2"),
            ("/old", "directory"),
            ("/lower", "lower etc/passwd"),
        ],
    );
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    check_listing(
        &[
            ("d/.wh.gone", b'0', "", b""),
            ("d/.wh..wh..opq", b'0', "", b""),
            (".wh.again", b'0', "", b""),
            ("again", b'5', "", b""),
            ("again/new", b'0', "", b""),
            ("new", b'0', "", b"x"),
            (".wh.new", b'0', "", b""),
            ("e/.wh..", b'0', "", b""),
            (".wh..wh.aufs", b'0', "", b""),
        ],
        &[
            ("/d", "directory opaque implicit"),
            ("/d/gone", "whiteout"),
            ("/again", "directory opaque"),
            ("/again/new", "file 0 x1"),
            ("/new", "file 1 x1"),
            ("/e", "directory implicit"),
        ],
    );
}

#[test]
fn paths_never_leave_the_root() {
    check_listing(
        &[
            ("../../etc/passwd", b'0', "", b"x"),
            ("link", b'2', "../../../outside", b""),
            ("link/below", b'0', "", b"y"),
        ],
        &[
            ("/etc", "directory implicit"),
            ("/etc/passwd", "file 1 x1"),
            ("/link", "-> ../../../outside"),
            ("/outside", "directory implicit"),
            ("/outside/below", "file 1 x1"),
        ],
    );
}

#[test]
fn the_last_of_several_members_with_one_path_wins() {
    check_listing(
        &[
            ("a", b'0', "", b"first"),
            ("a", b'0', "", b"2"),
            ("b", b'2', "x", b""),
            ("b", b'5', "", b""),
            ("b/c", b'0', "", b""),
        ],
        &[("/a", "file 1 x1"), ("/b", "directory"), ("/b/c", "file 0 x1")],
    );
}

#[test]
fn regression_the_root_belongs_to_root() {
    let tree = tree_of(&[("./", b'5', "", b"")]);
    let root = tree.inode(0).unwrap();
    assert_eq!((root.uid.get(), root.gid.get(), root.mode.get()), (0, 0, 0o40644));
}

#[test]
fn regression_an_attribute_without_a_value_is_none() {
    let mut builder = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.user.lines", b"a\nb=c\n"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    builder.append_data(&mut header, "f", &b""[..]).unwrap();
    let index = index(&builder.into_inner().unwrap()).unwrap();
    let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
    let entry = tree.find(tree.inode(0).unwrap(), b"f").unwrap().unwrap();
    let xattrs = tree.xattrs(tree.inode(entry.inode.get()).unwrap()).unwrap();
    assert_eq!(xattrs, [(&b"user.lines"[..], &b"a\nb=c\n"[..])]);
}

#[test]
fn contents_have_keys_and_places() {
    let large = vec![3; 2_500_000];
    let members: [Sample<'_>; 4] = [
        ("s", b'0', "", b"small"),
        ("l", b'0', "", &large),
        ("s2", b'0', "", b"small"),
        ("e", b'0', "", b""),
    ];
    let blob = archive(&members);
    let tree = tree_of(&members);
    let root = *tree.inode(0).unwrap();
    let inode = |name: &[u8]| {
        let entry = tree.find(&root, name).unwrap().unwrap();
        *tree.inode(entry.inode.get()).unwrap()
    };
    assert_eq!(tree.key(&inode(b"s")).unwrap(), Some(ObjectKey::small(b"small")));
    assert_eq!(inode(b"s").key, inode(b"s2").key);
    assert_eq!(tree.key(&inode(b"e")).unwrap(), None);
    let chunks = tree.chunks(&inode(b"l")).unwrap();
    assert_eq!(chunks.len(), 3);
    assert_eq!(
        tree.key(&inode(b"l")).unwrap(),
        Some(ObjectKey::large(large.len() as u64, &chunks))
    );
    for (name, content) in [(&b"s"[..], &b"small"[..]), (b"l", &large)] {
        let extent = tree.extents(&inode(name)).unwrap()[0];
        let start = extent.data.get() as usize;
        assert_eq!(&blob[start..start + content.len()], content);
    }
    assert_eq!(tree.order().len(), 3);
    assert_eq!(tree.header().content_size, 5 + 2_500_000);
}

#[test]
fn the_same_layer_gives_the_same_index_however_it_arrives() {
    let members: Vec<String> = (0..3000).map(|i| format!("dir{}/file{i}", i % 7)).collect();
    let samples: Vec<Sample<'_>> =
        members.iter().map(|path| (path.as_str(), b'0', "", path.as_bytes())).collect();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive(&samples)).unwrap();
    let blob = encoder.finish().unwrap();
    let reference = index(&blob).unwrap();
    assert_eq!(reference.layer, Digest::of(&blob));
    assert_eq!(reference.diff_id, Digest::of(&archive(&samples)));
    let mut indexer = Indexer::new();
    for chunk in blob.chunks(777) {
        indexer.write_all(chunk).unwrap();
    }
    assert_eq!(indexer.finish().unwrap(), reference);
}

/// More of it than fits between the stages.
#[test]
fn regression_padding_behind_a_layer_is_read_to_its_end() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive(&[("f", b'0', "", b"text")])).unwrap();
    let blob = [encoder.finish().unwrap(), vec![0; 100_000]].concat();
    let mut indexer = Indexer::new();
    for chunk in blob.chunks(1_000) {
        indexer.write_all(chunk).unwrap();
    }
    assert_eq!(indexer.finish().unwrap().layer, Digest::of(&blob));
}

/// The bytes of an index are a promise to every other machine: what changes them needs
/// another format version. (The spans file is pinned in `index::spans`.)
#[test]
fn the_format_is_pinned() {
    let index = index(&archive(&[("d/f", b'0', "", b"text"), ("l", b'2', "t", b"")])).unwrap();
    let pinned = "sha256:5f00eb72b9fd711711b058acfd3e1db33a24be6673c7555040238a4b0cc5c668";
    assert_eq!(index.tree_digest().to_string(), pinned);
}

const SPARSE_SIZE: (&str, &[u8]) = ("GNU.sparse.size", b"1000");

/// One PAX header with these records, then an empty file `f`.
fn with_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    builder.append_data(&mut header, "f", &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn regression_a_hole_of_any_size_costs_bounded_memory() {
    let sparse = |size: &str| {
        with_records(&[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.map", b"0,0"),
        ])
    };
    let error = index(&sparse("9223372036854775807")).unwrap_err().to_string();
    assert!(error.contains("exceed 2 TiB"), "{error}");
    let index = index(&sparse("5000000")).unwrap();
    let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
    assert_eq!(tree.header().content_size, 5_000_000);
}

#[test]
fn regression_names_that_no_file_system_holds_are_refused() {
    for (length, fits) in [(255, true), (256, false), (259, false)] {
        let name = "n".repeat(length);
        let outcome = index(&with_records(&[("path", name.as_bytes())]));
        assert_eq!(outcome.is_ok(), fits, "{length}");
    }
    let deep = "d/".repeat(2_048);
    assert!(index(&with_records(&[("path", deep.as_bytes())])).is_err());
}

#[test]
fn regression_attributes_that_no_file_system_takes_are_dropped() {
    let blob = with_records(&[
        ("SCHILY.xattr.user.kept", b"1"),
        ("SCHILY.xattr.security.capability", b"2"),
        ("SCHILY.xattr.security.selinux", b"system_u:object_r:bin_t:s0"),
        ("SCHILY.xattr.system.posix_acl_access", b"3"),
        ("SCHILY.xattr.system.other", b"4"),
        ("SCHILY.xattr.nowhere", b"5"),
        ("SCHILY.xattr.user.", b"6"),
        ("LIBARCHIVE.xattr.user.other", b"Nw=="),
    ]);
    let index = index(&blob).unwrap();
    let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
    let xattrs = tree.xattrs(tree.inode(1).unwrap()).unwrap();
    let names: Vec<&[u8]> = xattrs.iter().map(|(name, _)| *name).collect();
    let kept: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"user.kept"];
    assert_eq!(names, kept);
}

#[test]
fn regression_a_stream_may_end_in_the_middle_of_a_block_of_zeros() {
    let whole = archive(&[("a", b'0', "", b"1")]);
    let blob = &whole[..2 * 512];
    assert_eq!(index(&[blob, &[0; 100]].concat()).unwrap().uncompressed_size, 1124);
    let error = index(&[blob, &[0, 0, 1]].concat()).unwrap_err();
    assert!(matches!(error, LayerError::Truncated { .. }), "{error}");
}

/// overlayfs makes all its whiteouts names of one inode, and tar writes them so.
#[test]
fn regression_whiteouts_may_be_hard_links() {
    let device = ("d/f", b'3', "", &b""[..]);
    let links = [device, ("g", b'1', "d/f", b""), ("h", b'1', "g", b""), ("g", b'0', "", b"x")];
    let expected = [
        ("/d", "directory implicit"),
        ("/d/f", "whiteout"),
        ("/g", "file 1 x1"),
        ("/h", "whiteout"),
    ];
    check_listing(&links, &expected);
    let error = index(&archive(&[device, ("d/f/x", b'0', "", b"")])).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn regression_a_link_into_a_lower_layer_leads_through_what_its_own_layer_has() {
    let link = |path, target| (path, b'1', target, &b""[..]);
    check_listing(
        &[("d", b'2', "e/./x", b""), ("e", b'5', "", b""), link("h", "d/f"), link("i", "d/../f")],
        &[("/d", "-> e/./x"), ("/e", "directory"), ("/h", "lower e/x/f"), ("/i", "lower f")],
    );
    let error = index(&archive(&[("d", b'0', "", b""), link("h", "d/f")])).unwrap_err();
    assert!(error.to_string().contains("no directory"), "{error}");
}

/// Deeper than any stack: each link leads as far down as a path can say.
#[test]
fn regression_directories_of_any_depth_are_laid_out() {
    let down = "d/".repeat(1_500);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, target: &str| {
        let records = [("path", path.as_bytes()), ("linkpath", target.as_bytes())];
        builder.append_pax_extensions(records).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_data(&mut header, "x", &b""[..]).unwrap();
    };
    let mut above = String::new();
    for step in 0..35 {
        add(&format!("{above}{down}.wh.x"), tar::EntryType::Regular, "");
        add(&format!("l{step}"), tar::EntryType::Symlink, &format!("{above}{down}"));
        above = format!("l{step}/");
    }
    add(".wh.d", tar::EntryType::Regular, "");
    let index = index(&builder.into_inner().unwrap()).unwrap();
    let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
    let entry = tree.find(tree.inode(0).unwrap(), b"d").unwrap().unwrap();
    assert_eq!(tree.kind(entry).unwrap(), EntryKind::Whiteout);
}

#[test]
fn regression_an_opaque_root_hides_nothing() {
    let tree = tree_of(&[(".wh..wh..opq", b'0', "", b""), ("d/.wh..wh..opq", b'0', "", b"")]);
    let flags = |number| tree.inode(number).unwrap().flags.get() & InodeFlags::OPAQUE;
    assert_eq!((flags(0), flags(1)), (0, InodeFlags::OPAQUE));
}

/// As chown(2) and mknod(2) do it; the headers of the seventh edition have no device numbers.
#[test]
fn regression_ids_and_devices_are_taken_by_their_last_bits() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mut header: tar::Header, kind: u8| {
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_uid((1 << 32) + 5);
        header.set_gid((1 << 33) - 1);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_size(0);
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.set_device_major(0o10_003);
            ustar.set_device_minor(0o4_000_007);
        }
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    };
    add("big", tar::Header::new_ustar(), b'4');
    let mut old = tar::Header::new_old();
    old.as_mut_bytes()[329..345].copy_from_slice(b"0000007\x000000001\0");
    add("old", old, b'4');
    let index = index(&builder.into_inner().unwrap()).unwrap();
    let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
    let facts = |name: &[u8]| {
        let entry = tree.find(tree.inode(0).unwrap(), name).unwrap().unwrap();
        let inode = tree.inode(entry.inode.get()).unwrap();
        (inode.uid.get(), inode.gid.get(), inode.rdev.get())
    };
    assert_eq!(facts(b"big"), (5, 0, 3 << 8 | 7));
    assert_eq!(facts(b"old"), (5, 0, 0));
}

#[test]
fn a_link_to_what_the_layer_deleted_is_refused() {
    let link = ("h", b'1', "d/f", &b""[..]);
    for deletion in ["d/.wh.f", ".wh.d", "d/.wh..wh..opq"] {
        let error = index(&archive(&[(deletion, b'0', "", b""), link])).unwrap_err();
        assert!(error.to_string().contains("has deleted"), "{deletion}: {error}");
        assert!(index(&archive(&[link, (deletion, b'0', "", b"")])).is_ok(), "{deletion}");
    }
}

#[test]
fn malformed_layers_are_refused_with_reasons() {
    let good = archive(&[("a", b'0', "", &[1; 2000])]);
    let mut bad_sum = good.clone();
    bad_sum[0] ^= 1;
    let lone = [&good[..good.len() - 1024], &[0; 512], &good].concat();
    let repeated = |map: &[(&str, &[u8])]| with_records(&[&[SPARSE_SIZE], map].concat());
    let table: [(Vec<u8>, &str); 13] = [
        (repeated(&[("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,0")]), "sparse map"),
        (repeated(&[("GNU.sparse.map", b"0,0")]), "sparse map"),
        (
            repeated(&[("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"500,0,5,0")]),
            "sparse map",
        ),
        (
            repeated(&[
                ("GNU.sparse.numblocks", b"1"),
                ("GNU.sparse.numbytes", b"0"),
                ("GNU.sparse.offset", b"0"),
            ]),
            "PAX record",
        ),
        (lone, "single block of zeros"),
        (b"\xfd7zXZ\0\0\x04".to_vec(), "compressed by xz"),
        ([&b"BZh91AY&SY"[..], &[7; 600]].concat(), "compressed by bzip2"),
        (archive(&[("m", b'M', "", b"rest")]), "another volume"),
        (bad_sum, "checksum"),
        (good[..1000].to_vec(), "truncated"),
        (archive(&[("a", b'0', "", b""), ("a/b", b'0', "", b"")]), "not a directory"),
        (archive(&[("d", b'5', "", b""), ("h", b'1', "d", b"")]), "hard link to a directory"),
        (archive(&[("l", b'2', "l", b""), ("l/x", b'0', "", b"")]), "too many symbolic links"),
    ];
    for (blob, words) in table {
        let error = index(&blob).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
