//! Right archives in unusual streams.

use serde_json::json;
use undermount_fs::digest::{Digest, Hasher};

use super::{Case, content, content_archive};
use crate::archive::{Archive, Header, Kind, Member};
use crate::compression::{Compression, zstd_checked, zstd_frame, zstd_skippable, zstd_windowed};
use crate::image::Layer;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        ("plain tar", Compression::Plain),
        ("gzip of stored blocks", Compression::GzipStored),
        ("gzip with header fields", Compression::GzipNamed),
        ("gzip of several members", Compression::GzipMembers(100_000)),
        ("gzip of tiny members", Compression::GzipMembers(700)),
        ("gzip with flushes", Compression::GzipFlushed(9_000)),
        ("zstd", Compression::Zstd),
        ("zstd of several frames", Compression::ZstdFrames(100_000)),
    ]
    .into_iter()
    .map(|(name, way)| Case::layer(name, Layer::compressed(&content_archive(), way), &content()))
    .collect();
    cases.extend(media_types_that_lie());
    cases.extend([
        gzip_followed_by_zeros(),
        gzip_followed_by_garbage(),
        gzip_with_a_header_checksum(),
        gzip_among_empty_members(),
        zstd_without_content_size(),
        zstd_among_skippable_and_empty_frames(),
        zstd_with_a_large_window(),
        zstd_chunked(),
        no_padding_at_the_end(),
        no_closing_blocks(),
        one_closing_block(),
        empty_blob_of_an_empty_archive(),
        estargz("estargz", |toc| toc),
        estargz("estargz with a lying table of contents", |_| {
            br#"{"version":1,"entries":[{"name":"d/small","type":"reg","size":5,"offset":0}]}"#
                .to_vec()
        }),
        estargz_with_another_footer(),
        bomb(),
    ]);
    cases
}

/// The media type says one compression, the bytes say another: the bytes are right.
fn media_types_that_lie() -> Vec<Case> {
    [
        ("plain tar called gzip", Compression::Plain, Compression::Gzip),
        ("gzip called plain tar", Compression::Gzip, Compression::Plain),
        ("zstd called gzip", Compression::Zstd, Compression::Gzip),
    ]
    .into_iter()
    .map(|(name, is, says)| {
        let mut layer = Layer::compressed(&content_archive(), is);
        layer.media_type = says.media_type().to_owned();
        Case::layer(name, layer, &content())
    })
    .collect()
}

/// Tapes and some mirrors pad with zeros; gzip ignores them.
fn gzip_followed_by_zeros() -> Case {
    let tar = content_archive();
    let blob = [Compression::Gzip.apply(&tar), vec![0; 3_000]].concat();
    Case::layer("gzip followed by zeros", Layer::raw(blob, &tar, GZIP), &content())
}

/// gzip(1) ignores what is no member.
fn gzip_followed_by_garbage() -> Case {
    let tar = content_archive();
    let blob = [&Compression::Gzip.apply(&tar)[..], b"\x1fgarbage, not a member"].concat();
    Case::layer("gzip followed by garbage", Layer::raw(blob, &tar, GZIP), &content())
}

/// Every optional field of the header, and the checksum over it (RFC 1952, FHCRC).
fn gzip_with_a_header_checksum() -> Case {
    let tar = content_archive();
    let deflated = Compression::Gzip.apply(&tar)[10..].to_vec();
    let mut head = vec![0x1f, 0x8b, 8, 0b1_1111, 1, 2, 3, 4, 2, 255];
    head.extend([8, 0]);
    head.extend(b"SG\x04\x00abcd");
    head.extend(b"layer.tar\0");
    head.extend(b"a comment\0");
    let mut crc = flate2::Crc::new();
    crc.update(&head);
    head.extend_from_slice(&crc.sum().to_le_bytes()[..2]);
    let blob = [head, deflated].concat();
    Case::layer("gzip with a header checksum", Layer::raw(blob, &tar, GZIP), &content())
}

fn gzip_among_empty_members() -> Case {
    let tar = content_archive();
    let empty = Compression::Gzip.apply(b"").repeat(500);
    let (one, two) = tar.split_at(tar.len() / 2);
    let [one, two] = [one, two].map(|part| Compression::Gzip.apply(part));
    let blob = [&empty[..], &one, &empty, &two, &empty].concat();
    Case::layer("gzip among empty members", Layer::raw(blob, &tar, GZIP), &content())
}

fn zstd_layer(name: &str, tar: &[u8], blob: Vec<u8>) -> Case {
    Case::layer(name, Layer::raw(blob, tar, Compression::Zstd.media_type()), &content())
}

fn zstd_among_skippable_and_empty_frames() -> Case {
    let tar = content_archive();
    let (one, two) = tar.split_at(tar.len() / 3);
    let between = [zstd_frame(b""), zstd_skippable(b""), zstd_skippable(&[7; 70_000])].concat();
    let blob = [&between[..], &zstd_frame(one), &between, &zstd_checked(two), &between].concat();
    zstd_layer("zstd among skippable and empty frames", &tar, blob)
}

/// `zstd --long=26`: 64 MiB, twice what the format recommends to support at least.
fn zstd_with_a_large_window() -> Case {
    let tar = content_archive();
    zstd_layer("zstd with a large window", &tar, zstd_windowed(&tar, 26))
}

/// As containers/storage writes it: frames cut at files, then the table of contents and a footer
/// in skippable frames. Nobody may trust the table.
fn zstd_chunked() -> Case {
    let tar = content_archive();
    let toc = zstd_frame(br#"{"version":1,"entries":[{"type":"reg","name":"evil"}]}"#);
    let mut blob: Vec<u8> = tar.chunks(50_000).flat_map(zstd_frame).collect();
    let offset = blob.len() as u64 + 8;
    blob.extend(zstd_skippable(&toc));
    let numbers = [offset, toc.len() as u64, 55, 1];
    let footer: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    blob.extend(zstd_skippable(&[&footer[..], b"GNUlInUx"].concat()));
    zstd_layer("zstd:chunked", &tar, blob)
}

fn no_padding_at_the_end() -> Case {
    let mut archive = Archive::default();
    content().iter().for_each(|member| archive.add(member));
    let mut tar = archive.finish_without_end();
    // The last file has five bytes.
    tar.truncate(tar.len() - 507);
    Case::archive("no padding at the end", &tar, &content())
}

fn zstd_without_content_size() -> Case {
    let tar = content_archive();
    let blob = [zstd_skippable(b"first"), zstd_checked(&tar)].concat();
    let layer = Layer::raw(blob, &tar, Compression::Zstd.media_type());
    Case::layer("zstd without content size", layer, &content())
}

fn no_closing_blocks() -> Case {
    let mut archive = Archive::default();
    content().iter().for_each(|member| archive.add(member));
    Case::archive("no closing blocks", &archive.finish_without_end(), &content())
}

fn one_closing_block() -> Case {
    let mut archive = Archive::default();
    content().iter().for_each(|member| archive.add(member));
    archive.raw(&[0; 512]);
    Case::archive("one closing block", &archive.finish_without_end(), &content())
}

fn empty_blob_of_an_empty_archive() -> Case {
    let layer = Layer::compressed(&[], Compression::Gzip);
    Case::layer("archive of no bytes", layer, &[])
}

/// A member of its own for every file, a table of contents as the last file and a footer that
/// points to it, as the eStargz converter writes them. Nobody may trust the table.
fn estargz(name: &str, table: impl Fn(Vec<u8>) -> Vec<u8>) -> Case {
    let mut members = content();
    members.push(Member::file(".no.prefetch.landmark", [0xf]));
    let toc = table(table_of_contents(&members));
    members.push(Member::file("stargz.index.json", toc));
    let mut tar = Vec::new();
    let mut blob = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let mut archive = Archive::default();
        archive.add(member);
        let mut part = archive.finish_without_end();
        if at + 1 == members.len() {
            part.extend_from_slice(&[0; 1024]);
        }
        blob.extend(Compression::Gzip.apply(&part));
        tar.extend(part);
    }
    let offset = blob.len() as u64 - 600;
    blob.extend(footer(offset));
    Case::layer(name, Layer::raw(blob, &tar, GZIP), &members)
}

/// The footer of older converters has 47 bytes; and one that points nowhere.
fn estargz_with_another_footer() -> Case {
    let tar = content_archive();
    let extra = format!("{:016x}STARGZ", u64::MAX);
    let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 22, 0];
    let footer = [&head[..], extra.as_bytes(), &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat();
    let blob = [Compression::GzipMembers(40_000).apply(&tar), footer].concat();
    Case::layer("stargz with a footer only", Layer::raw(blob, &tar, GZIP), &content())
}

fn table_of_contents(members: &[Member]) -> Vec<u8> {
    let entry = |member: &Member| {
        let name = String::from_utf8_lossy(&member.path);
        match &member.kind {
            Kind::File(content) => json!({
                "name": name, "type": "reg", "size": content.len(), "digest": Digest::of(content),
            }),
            _ => json!({ "name": name, "type": "dir" }),
        }
    };
    let entries: Vec<_> = members.iter().map(entry).collect();
    json!({ "version": 1, "entries": entries }).to_string().into_bytes()
}

/// 51 bytes: an empty gzip member whose extra field holds the offset of the table.
fn footer(offset: u64) -> Vec<u8> {
    let extra = format!("SG\x16\x00{offset:016x}STARGZ");
    let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0];
    [&head[..], extra.as_bytes(), &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat()
}

/// 1 GiB of zeros in 1 MB: costs time, but no memory in proportion.
fn bomb() -> Case {
    const PART: usize = 16 << 20;
    const PARTS: usize = 64;
    let size = (PART * PARTS) as u64;
    let members = [Member::file("zeros", ""), Member::file("after", "x")];
    let mut head = Archive::default();
    head.add_patched(&members[0], |header| header.number(Header::SIZE, size));
    let mut tail = Archive::default();
    tail.add(&members[1]);
    let (head, tail) = (head.finish_without_end(), tail.finish());
    let zeros = vec![0; PART];
    // One gzip member of zeros many times, so that the test does not compress a GiB itself.
    let [first, middle, last] = [&head, &zeros, &tail].map(|part| Compression::Gzip.apply(part));
    let blob = [first, middle.repeat(PARTS), last].concat();
    let mut hasher = Hasher::default();
    hasher.update(&head);
    (0..PARTS).for_each(|_| hasher.update(&zeros));
    hasher.update(&tail);
    let mut layer = Layer::raw(blob, &[], GZIP);
    layer.diff_id = hasher.finish();
    let mut case = Case::layer("bomb of zeros", layer, &members);
    case.override_content("zeros", size, ZEROS_1_GIB);
    case
}

/// The SHA-256 of 1 GiB of zeros.
const ZEROS_1_GIB: &str = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14";
