//! Damaged inputs of every format that comes from outside: no reader may panic, hang, take memory
//! out of proportion or show bytes that nobody vouches for.
//!
//! `UNDERMOUNT_FUZZ_SECONDS` gives them more time than the usual minute.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::LazyLock;

use bytes::Bytes;
use undermount::image::artifact::{self, Artifact, LayerBlobs};
use undermount::image::{Descriptor, Document, ImageConfig};
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::index::{LayerTree, SpanTable};
use undermount_fs::layer::{Indexer, LayerError, LayerIndex};
use undermount_fs::pack::{Builder, Table, UnitName};
use undermount_tests::archive::{Archive, Header, noise};
use undermount_tests::compression::Compression;
use undermount_tests::edge::cases;
use undermount_tests::fuzz::{Meter, fuzz, mutate, turn};
use undermount_tests::image::Image;
use undermount_tests::shelf::{BlobMap, Shelf};
use undermount_tests::tree::Tree;

#[global_allocator]
static METER: Meter = Meter::new();

/// How many tests share the time.
const TARGETS: u32 = 6;
/// Inputs are smaller than this, so that many can be tried.
const INPUT_MAX: usize = 400_000;
/// What reading one input may take: queues, windows and a few contents of 1 MiB.
const MEMORY_MAX: usize = 96 << 20;
/// Contents above this size are not read back.
const CONTENT_MAX: u64 = 16 << 20;

/// Layer blobs of the edge images, right and wrong ones.
fn blobs() -> &'static [Vec<u8>] {
    static BLOBS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let layers = cases().into_iter().flat_map(|case| {
            let layers = case.image.layers();
            let blob = |(digest, _)| case.image.blobs.get(&digest).map(|blob| blob.to_vec());
            layers.into_iter().filter_map(blob).collect::<Vec<_>>()
        });
        layers.filter(|blob| (1..INPUT_MAX).contains(&blob.len())).collect()
    });
    &BLOBS
}

/// The archives of those that can be decompressed.
fn archives() -> &'static [Vec<u8>] {
    static ARCHIVES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        blobs().iter().filter_map(|blob| inflate(blob)).filter(|tar| !tar.is_empty()).collect()
    });
    &ARCHIVES
}

fn inflate(blob: &[u8]) -> Option<Vec<u8>> {
    let mut tar = Vec::new();
    let limit = INPUT_MAX as u64;
    let read = match blob {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(blob).take(limit).read_to_end(&mut tar)
        }
        [0x28, 0xb5, ..] => zstd::Decoder::new(blob).ok()?.take(limit).read_to_end(&mut tar),
        _ => blob.take(limit).read_to_end(&mut tar),
    };
    read.ok().map(|_| tar)
}

fn index(blob: &[u8], chunk: usize) -> Result<LayerIndex, LayerError> {
    let mut indexer = Indexer::new();
    for chunk in blob.chunks(chunk) {
        if indexer.write_all(chunk).is_err() {
            break;
        }
    }
    indexer.finish()
}

/// What is accepted has one index however it arrives, which passes the checks for indexes of
/// strangers, and every file of it can be read.
fn try_layer(blob: &[u8]) {
    let peak = METER.peak_of(|| {
        // What is wrong with a layer depends on who notices first, its index does not.
        let [one, other] = [1 << 20, 509].map(|chunk| index(blob, chunk).ok());
        assert_eq!(one, other, "the index depends on the chunks");
        let Some(index) = one else { return };
        let tree = LayerTree::new(index.tree.to_vec().into()).unwrap();
        tree.check().unwrap();
        if tree.header().content_size.get() < CONTENT_MAX {
            read_back(blob, &index);
        }
    });
    assert!(peak < MEMORY_MAX, "{} KiB of memory for {} bytes", peak >> 10, blob.len());
}

fn read_back(blob: &[u8], index: &LayerIndex) {
    let blobs = [(index.layer, Bytes::copy_from_slice(blob))].into_iter();
    let blobs = blobs.chain([(Digest::of(&index.spans), index.spans.clone())]).collect();
    match Shelf::of_indexes(blobs, vec![index.tree.to_vec()]) {
        Ok(shelf) => drop(shelf.tree().unwrap()),
        Err(error) => assert!(error.contains("hard link"), "{error}"),
    }
}

/// Gives every block that looks like a header its right checksum again.
fn repair_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            let header = Header((&*block).try_into().unwrap());
            block.copy_from_slice(&header.sealed());
        }
    }
}

#[test]
fn damaged_archives_are_refused_or_read_back() {
    let turn = turn();
    fuzz(&turn, "archives", TARGETS, |dice| {
        let input = dice.pick(archives());
        let mut archive = mutate(dice, input, archives());
        if dice.chance(80) {
            repair_checksums(&mut archive);
        }
        try_layer(&archive);
    });
}

#[test]
fn damaged_streams_are_refused_or_read_back() {
    let turn = turn();
    let ways = [
        Compression::Gzip,
        Compression::GzipMembers(3_000),
        Compression::GzipFlushed(2_000),
        Compression::GzipStored,
        Compression::Zstd,
        Compression::ZstdFrames(5_000),
    ];
    fuzz(&turn, "streams", TARGETS, |dice| {
        let input = if dice.chance(50) {
            dice.pick(blobs()).clone()
        } else {
            let archive: &Vec<u8> = dice.pick(archives());
            dice.pick(&ways).apply(archive)
        };
        try_layer(&mutate(dice, &input, blobs()));
    });
}

/// An image with its indexes, and what may be seen of it.
struct Specimen {
    blob: Bytes,
    index: LayerIndex,
    contents: BTreeSet<String>,
}

/// Right layers of one image each, several spans among them.
fn specimens() -> &'static [Specimen] {
    static SPECIMENS: LazyLock<Vec<Specimen>> = LazyLock::new(|| {
        let mut images: Vec<Image> = cases().into_iter().map(|case| case.image).collect();
        images.extend([Compression::Gzip, Compression::Zstd].map(several_spans));
        images.iter().filter_map(Specimen::of).collect()
    });
    &SPECIMENS
}

fn several_spans(way: Compression) -> Image {
    use undermount_tests::archive::Member;
    use undermount_tests::image::Layer;
    let text: String = (0..130_000).map(|n| format!("{} line {n}\n", n * 7919 % 1_009)).collect();
    let members = [
        Member::file("text", &text),
        Member::file("noise", noise(1, 300_000)),
        Member::file("again", &text[500_000..1_400_000]),
    ];
    Image::from_layers(vec![Layer::compressed(&Archive::of(&members), way)])
}

impl Specimen {
    fn of(image: &Image) -> Option<Self> {
        let (digest, _) = *image.layers().first()?;
        let blob = image.blobs.get(&digest)?.clone();
        let index = index(&blob, 1 << 20).ok()?;
        let tree = LayerTree::new(index.tree.to_vec().into()).ok()?;
        if image.layers().len() > 1 || tree.header().content_size.get() > CONTENT_MAX {
            return None;
        }
        let shown = Shelf::of(image).ok()?.tree().ok()?;
        let mut contents = small_contents(&shown);
        // That a file is empty takes no proof.
        contents.insert(Digest::of(b"").hex());
        Some(Self { blob, index, contents })
    }

    /// What an image of these index files shows holds no small file that the layer does not have.
    fn try_index(&self, tree: Vec<u8>, spans: Vec<u8>) {
        let claimed = LayerTree::new(tree.clone().into()).map(|tree| *tree.header());
        let mut blobs = BlobMap::from([(self.index.layer, self.blob.clone())]);
        blobs.insert(Digest::of(&spans), spans.into());
        let peak = METER.peak_of(|| {
            let Ok(header) = claimed else { return };
            if let Ok(tree) = LayerTree::new(tree.clone().into()) {
                // Both outcomes are right: what it lets through must be harmless all the same.
                let _ = tree.check();
            }
            if header.content_size.get() > CONTENT_MAX << 10 {
                return;
            }
            let Ok(shelf) = Shelf::of_indexes(blobs, vec![tree]) else { return };
            let Ok(shown) = shelf.tree() else { return };
            let wrong: Vec<_> =
                small_contents(&shown).difference(&self.contents).cloned().collect();
            assert!(wrong.is_empty(), "contents that the layer does not have: {wrong:?}");
        });
        assert!(peak < MEMORY_MAX, "{} KiB of memory", peak >> 10);
    }
}

/// The digests of all files that are verified as a whole.
fn small_contents(tree: &Tree) -> BTreeSet<String> {
    let files = tree.entries.keys().filter_map(|path| {
        let size: u64 = tree.field(path, "size")?.parse().ok()?;
        (size <= 1 << 20).then(|| tree.field(path, "sha256"))?
    });
    files.map(str::to_owned).collect()
}

#[test]
fn damaged_trees_show_nothing_that_the_layer_does_not_have() {
    let turn = turn();
    let trees: Vec<Vec<u8>> = specimens().iter().map(|one| one.index.tree.to_vec()).collect();
    fuzz(&turn, "trees", TARGETS, |dice| {
        let specimen = dice.pick(specimens());
        let tree = mutate(dice, &specimen.index.tree, &trees);
        specimen.try_index(tree, specimen.index.spans.to_vec());
    });
}

const SPANS_HEADER: usize = 64;
const SPAN_RECORD: usize = 96;

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Gives every piece of a damaged table the digest of the bytes that it now names.
fn repair_pieces(spans: &mut [u8], blob: &[u8]) {
    let mut at = SPANS_HEADER;
    while let (Some(start), Some(end)) = (number(spans, at), number(spans, at + SPAN_RECORD)) {
        let range = (start / 8) as usize..end.div_ceil(8) as usize;
        if let Some(piece) = blob.get(range) {
            let digest = Digest::of(piece);
            spans[at + 16..at + 48].copy_from_slice(&hex_bytes(&digest));
        }
        at += SPAN_RECORD;
    }
}

fn hex_bytes(digest: &Digest) -> [u8; 32] {
    let hex = digest.hex();
    std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
}

/// The tree, pointing to other spans.
fn with_spans(tree: &[u8], spans: &[u8]) -> Vec<u8> {
    let count = number(spans, 48).unwrap_or(0).min(1 << 20) as usize;
    let table = (SPANS_HEADER + SPAN_RECORD * (count + 1)).min(spans.len());
    let mut tree = tree.to_vec();
    tree[80..112].copy_from_slice(&hex_bytes(&Digest::of(spans)));
    tree[112..144].copy_from_slice(&hex_bytes(&Digest::of(&spans[..table])));
    tree[160..168].copy_from_slice(&(spans.len() as u64).to_le_bytes());
    tree[168..176].copy_from_slice(&(table as u64).to_le_bytes());
    tree
}

#[test]
fn damaged_spans_show_nothing_that_the_layer_does_not_have() {
    let turn = turn();
    let all: Vec<Vec<u8>> = specimens().iter().map(|one| one.index.spans.to_vec()).collect();
    fuzz(&turn, "spans", TARGETS, |dice| {
        let specimen = dice.pick(specimens());
        let mut spans = mutate(dice, &specimen.index.spans, &all);
        if dice.chance(70) {
            repair_pieces(&mut spans, &specimen.blob);
        }
        drop(SpanTable::new(spans.clone().into()));
        specimen.try_index(with_spans(&specimen.index.tree, &spans), spans);
    });
}

#[test]
fn damaged_documents_are_refused_or_understood() {
    let turn = turn();
    let image = Descriptor::of("application/vnd.oci.image.manifest.v1+json", b"image");
    let specimen = &specimens()[0].index;
    let layer = LayerBlobs {
        layer: specimen.layer,
        tree: specimen.tree.clone(),
        spans: specimen.spans.clone(),
    };
    let artifact = Artifact::build(&image, &[layer]).unwrap();
    let entry = artifact::parse(&artifact.manifest, &image.digest).unwrap().remove(0);
    let compressed = artifact.blobs[1].1.to_vec();
    let list = serde_json::json!({ "schemaVersion": 2, "manifests": [image, artifact.descriptor] });
    let mut corpus: Vec<Vec<u8>> = vec![artifact.manifest.to_vec(), list.to_string().into()];
    for case in cases().into_iter().take(30) {
        let configs = case.image.blobs.values().filter(|blob| blob.starts_with(b"{"));
        corpus.extend(configs.map(|config| config.to_vec()));
        corpus.push(case.image.manifest.to_vec());
    }
    fuzz(&turn, "documents", TARGETS, |dice| {
        let input = dice.pick(&corpus).clone();
        let document = mutate(dice, &input, &corpus);
        let blob = mutate(dice, &compressed, &corpus);
        let peak = METER.peak_of(|| {
            let manifest = Document::parse(&document, None).and_then(Document::into_manifest);
            let config = ImageConfig::parse(document.clone().into());
            if let (Ok(manifest), Ok(config)) = (manifest, config) {
                drop(config.layers(&manifest));
            }
            drop(artifact::parse(&document, &image.digest));
            drop(entry.unpack_tree(&blob));
        });
        assert!(peak < MEMORY_MAX, "{} KiB of memory", peak >> 10);
    });
}

/// Bytes of a pack's head before its table, and where among them the table's length is.
const HEAD: usize = 64;
const TABLE_LENGTH: usize = 24;

#[test]
fn damaged_packs_are_refused_or_hold_what_they_say() {
    let turn = turn();
    let mut builder = Builder::new().unwrap();
    for inode in 0..40 {
        let layer = Digest::of(&[(inode % 3) as u8]);
        let content = noise(inode, 3_000 + 700 * inode as usize);
        let unit = UnitName { layer, inode: inode as u32, number: 0 };
        assert!(builder.add(&unit, &content).unwrap());
    }
    let mut packed = builder.finish().unwrap();
    let mut pack = Vec::new();
    packed.file.read_to_end(&mut pack).unwrap();
    let head = pack[..packed.head_size as usize].to_vec();
    let table = zstd::decode_all(&head[HEAD..]).unwrap();
    fuzz(&turn, "packs", TARGETS, |dice| {
        let damaged = if dice.chance(40) {
            mutate(dice, &head, std::slice::from_ref(&table))
        } else {
            // Behind the compression, where a flipped bit gets through.
            let table = zstd::encode_all(&mutate(dice, &table, std::slice::from_ref(&head))[..], 1)
                .unwrap();
            let mut damaged = [&head[..HEAD], &table].concat();
            damaged[TABLE_LENGTH..TABLE_LENGTH + 4]
                .copy_from_slice(&(table.len() as u32).to_le_bytes());
            damaged
        };
        let frames = mutate(dice, &pack[head.len()..], std::slice::from_ref(&pack));
        let peak = METER.peak_of(|| try_pack(&damaged, &frames));
        assert!(peak < MEMORY_MAX, "{} KiB of memory", peak >> 10);
    });
}

fn try_pack(head: &[u8], frames: &[u8]) {
    let Ok(table) = Table::parse(Digest::of(head), head) else { return };
    for frame in table.frames() {
        let at = |position: u64| (position as usize).saturating_sub(head.len());
        let Some(bytes) = frames.get(at(frame.range.start)..at(frame.range.end)) else { return };
        let Ok(contents) = frame.contents(&Verified::name(bytes.to_vec().into())) else { continue };
        let lengths: Vec<usize> = contents.iter().map(Bytes::len).collect();
        let claimed: Vec<usize> = frame.units.iter().map(|unit| unit.length as usize).collect();
        assert_eq!(lengths, claimed);
    }
}
