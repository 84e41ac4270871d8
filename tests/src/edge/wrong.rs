//! Images that are wrong: damaged on the way, written by a broken tool, or made to harm.

use serde_json::{Value, json};
use undermount_fs::digest::Digest;

use super::{Case, Verdict, content, content_archive};
use crate::archive::{Archive, Header, Member};
use crate::compression::{Compression, zstd_checked, zstd_window_claim};
use crate::image::{Image, Layer};
use crate::model::Model;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = streams();
    cases.extend(archives());
    cases.extend(descriptors());
    cases.extend(hard_links());
    cases
}

/// Layers whose blob is what the manifest says, but does not decode.
fn streams() -> Vec<Case> {
    let tar = content_archive();
    let flip = |mut blob: Vec<u8>, at: usize| {
        blob[at] ^= 0x10;
        blob
    };
    let cut = |blob: Vec<u8>| blob[..blob.len() * 2 / 3].to_vec();
    let gzip = Compression::Gzip.apply(&tar);
    let zstd = Compression::Zstd.apply(&tar);
    let checked = zstd_checked(&tar);
    let checksum = gzip.len() - 6;
    let gzip_again = gzip.clone();
    // Magic number, then a length of 4 GiB.
    let endless_skip = [0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 1, 2, 3];
    let cases = [
        ("truncated gzip", Compression::Gzip, cut(gzip.clone())),
        ("gzip without its trailer", Compression::Gzip, gzip[..gzip.len() - 8].to_vec()),
        ("gzip with a wrong checksum", Compression::Gzip, flip(gzip.clone(), checksum)),
        ("gzip with a wrong byte", Compression::Gzip, flip(gzip.clone(), gzip.len() / 2)),
        ("gzip of one and a half members", Compression::Gzip, [gzip.clone(), cut(gzip)].concat()),
        ("truncated zstd", Compression::Zstd, cut(zstd.clone())),
        ("zstd with a wrong byte", Compression::Zstd, flip(checked.clone(), checked.len() / 2)),
        ("gzip of a page of HTML", Compression::Gzip, b"<html>sign in</html>".to_vec()),
        ("gzip member of an unknown method", Compression::Gzip, flip(gzip_again.clone(), 2)),
        (
            "gzip followed by a broken member",
            Compression::Gzip,
            [&gzip_again[..], b"\x1f\x8b\x08"].concat(),
        ),
        ("zstd followed by garbage", Compression::Zstd, [&checked[..], b"garbage"].concat()),
        ("zstd window of 2 GiB", Compression::Zstd, zstd_window_claim(31)),
        ("zstd skippable frame without end", Compression::Zstd, endless_skip.to_vec()),
        ("xz", Compression::Gzip, b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46".to_vec()),
        ("bzip2", Compression::Gzip, [&b"BZh91AY&SY"[..], &[0x42; 900]].concat()),
    ];
    cases
        .into_iter()
        .map(|(name, way, blob)| {
            let layer = Layer::raw(blob, &tar, way.media_type());
            Case::malformed_layers(name, "the stream is damaged", vec![layer], &content())
        })
        .collect()
}

fn archives() -> Vec<Case> {
    let f = Member::file("f", "hello");
    let mut truncated = Archive::of(&[f.clone(), Member::file("g", vec![1; 5_000])]);
    truncated.truncate(512 * 5);
    let mut checksum = Archive::of(std::slice::from_ref(&f));
    checksum[148] ^= 1;
    let patched = |patch: fn(&mut Header)| {
        let mut archive = Archive::default();
        archive.add(&f);
        archive.add_patched(&Member::file("g", "x"), patch);
        archive.finish()
    };
    let pax = |text: &[u8]| {
        let mut archive = Archive::default();
        archive.add(&f);
        archive.pax_raw(b'x', text);
        archive.add(&Member::file("g", "x"));
        archive.finish()
    };
    let huge = |header: &mut Header| header.number(Header::SIZE, 1 << 62);
    let negative = |header: &mut Header| header.base_256(Header::SIZE, -5);
    let no_number = |header: &mut Header| header.set(124, b"zzzzzzzzzzz\0");
    let cases = [
        ("archive that ends in a member", truncated),
        ("wrong header checksum", checksum),
        ("member of 2^62 bytes", patched(huge)),
        ("member of negative size", patched(negative)),
        ("size that is no number", patched(no_number)),
        ("pax record without length", pax(b"path=x\n")),
        ("pax record longer than its header", pax(b"9999 path=x\n")),
        ("pax size that is no number", pax(b"11 size=x1\n")),
        ("pax path with a NUL", pax(b"12 path=a\0b\n")),
        ("pax record without a keyword", pax(b"5 =x\n")),
        ("pax keyword with a NUL", pax(b"27 SCHILY.xattr.user.a\0b=c\n")),
        ("pax access time that is none", pax(b"15 atime=later\n")),
        ("pax header of 1 GiB", huge_pax()),
        ("member behind a single block of zeros", behind_zeros()),
        ("member begun in another volume", patched(|header| header.set(156, b"M"))),
        ("name of 256 bytes", Archive::of(&[f.clone(), Member::file("n".repeat(256), "x")])),
        (
            "path of 4096 bytes",
            Archive::of(&[f.clone(), Member::file("d/".repeat(2_047) + "xx", "x")]),
        ),
        (
            "link target of 4096 bytes",
            Archive::of(&[f.clone(), Member::symlink("l", "t".repeat(4_096))]),
        ),
        ("link without a target", Archive::of(&[f.clone(), Member::symlink("l", "")])),
        ("attribute above 64 KiB", Archive::of(&[f.clone().xattr("user.a", vec![b'v'; 65_537])])),
        ("member below a file", Archive::of(&[f.clone(), Member::file("f/g", "x")])),
        (
            "member below a circle of links",
            Archive::of(&[Member::symlink("f", "f"), Member::file("f/g", "x")]),
        ),
        ("hole of an exabyte", hole("1152921504606846976", "0,0")),
        ("sparse map beyond its file", hole("1000", "900,200")),
        ("sparse map of overlapping runs", hole("1000", "0,5,3,2")),
        ("sparse map of half a run", hole("1000", "0,1,7")),
        ("sparse map that ends in a comma", hole("1000", "0,7,")),
        ("sparse map with an empty run beyond its file", hole("1000", "0,7,2000,0")),
        ("sparse map that repeats its keywords out of turn", out_of_turn()),
        ("sparse file of two sizes", two_sizes()),
    ];
    cases
        .into_iter()
        .map(|(name, tar)| {
            let seen =
                [f.clone(), Member::file("g", "x"), Member::file("x", "x"), Member::file("a", "x")];
            Case::malformed(name, "the archive is damaged", &tar, &seen)
        })
        .collect()
}

fn behind_zeros() -> Vec<u8> {
    let f = Archive::of(&[Member::file("f", "hello")]);
    [&f[..f.len() - 512], &Archive::of(&[Member::file("g", "x")])].concat()
}

/// A sparse file that stores seven bytes.
fn hole(size: &str, map: &str) -> Vec<u8> {
    let mut archive = Archive::default();
    let record = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    let runs = (map.split(',').count() / 2).to_string();
    let numbers =
        [("GNU.sparse.size", size), ("GNU.sparse.numblocks", &runs), ("GNU.sparse.map", map)];
    archive.pax(b'x', &numbers.map(|(key, value)| record(key, value)));
    archive.add(&Member::file("h", if map == "0,0" { "" } else { "content" }));
    archive.finish()
}

/// Taken in pairs as they come it would put the seven bytes elsewhere.
fn out_of_turn() -> Vec<u8> {
    let mut archive = Archive::default();
    let records = [
        ("GNU.sparse.size", "1000"),
        ("GNU.sparse.numblocks", "1"),
        ("GNU.sparse.numbytes", "90"),
        ("GNU.sparse.offset", "7"),
    ];
    archive.pax(b'x', &super::headers::records(&records));
    archive.add(&Member::file("h", "content"));
    archive.finish()
}

fn two_sizes() -> Vec<u8> {
    let mut archive = Archive::default();
    let records = [
        ("GNU.sparse.size", "1000"),
        ("GNU.sparse.realsize", "900"),
        ("GNU.sparse.numblocks", "1"),
        ("GNU.sparse.map", "0,7"),
    ];
    archive.pax(b'x', &super::headers::records(&records));
    archive.add(&Member::file("h", "content"));
    archive.finish()
}

/// A PAX header that says that it goes on for a GiB: nobody may reserve that.
fn huge_pax() -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add_patched(&Member::file("f", "hello"), |header| {
        header.set(156, b"x");
        header.number(Header::SIZE, 1 << 30);
    });
    archive.finish()
}

/// Right layers, about which manifest or config say something wrong.
fn descriptors() -> Vec<Case> {
    let right = || Layer::of(&content());
    let changed = |change: fn(&mut Layer)| {
        let mut layer = right();
        change(&mut layer);
        vec![Layer::of(&[Member::file("base", "x")]), layer]
    };
    let mut seen = content();
    seen.push(Member::file("base", "x"));
    let case = |name: &str, reason: &'static str, layers: Vec<Layer>| {
        Case::malformed_layers(name, reason, layers, &seen)
    };
    let zstd = Compression::Zstd.apply(&content_archive());
    let flipped = zstd.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == zstd.len() / 2));
    let made = |blob: Vec<u8>, way: Compression| {
        vec![Layer::raw(blob, &content_archive(), way.media_type())]
    };
    let mut cases = vec![
        case(
            "zstd without checksum with a wrong byte",
            "the archive does not hash to its diff id",
            made(flipped.collect(), Compression::Zstd),
        ),
        case(
            "no bytes at all",
            "the archive does not hash to its diff id",
            made(Vec::new(), Compression::Gzip),
        ),
        case("blob missing", "the registry lacks a blob", changed(|layer| layer.blob = None)),
        case("wrong size in the manifest", "sizes differ", changed(|layer| layer.size += 7)),
        case(
            "wrong digest in the manifest",
            "the blob does not hash to its digest",
            changed(|layer| layer.digest = Digest::of(b"something else")),
        ),
        case(
            "wrong diff id",
            "the archive does not hash to its diff id",
            changed(|layer| layer.diff_id = Digest::of(b"something else")),
        ),
    ];
    for (name, diff_ids) in [("too few diff ids", 0), ("too many diff ids", 2)] {
        let layer = right();
        let ids: Vec<Value> = (0..diff_ids).map(|_| json!(layer.diff_id)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        cases.push(Case {
            name: name.to_owned(),
            image: Image::assemble(vec![layer], &config),
            verdict: Verdict::Malformed("diff ids and layers differ", Model::tree_of(&[&seen])),
        });
    }
    cases
}

fn hard_links() -> Vec<Case> {
    let ok = || Member::file("ok", "x");
    let outside = "../../../../../../../../../../../etc/hostname";
    let cases = [
        ("hard link to an absolute path outside", Member::hardlink("h", "/etc/hostname")),
        ("hard link out of the root", Member::hardlink("h", outside)),
        ("hard link to nothing", Member::hardlink("h", "nothing")),
        ("hard link to itself", Member::hardlink("h", "h")),
        ("hard link to a directory", Member::hardlink("h", "dir")),
        ("hard link to the root", Member::hardlink("h", "/")),
        ("hard link to what was deleted", Member::hardlink("h", "deleted")),
        ("hard link through a file", Member::hardlink("h", "ok/x")),
    ];
    let mut cases: Vec<Case> = cases
        .into_iter()
        .map(|(name, link)| {
            let members = [ok(), Member::dir("dir"), link, Member::whiteout("", "deleted")];
            let members = [&members[..2], &members[3..], &members[2..3]].concat();
            Case::malformed(name, "the target is not there", &Archive::of(&members), &members[..2])
        })
        .collect();
    let late = [Member::hardlink("h", "late"), Member::file("late", "x"), ok()];
    let seen = [Member::file("late", "x"), Member::hardlink("h", "late"), ok()];
    let tar = Archive::of(&late);
    cases.push(Case::malformed("hard link before its target", "no target yet", &tar, &seen));
    cases
}
