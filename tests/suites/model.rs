//! Random stacks of layers against the reference model: through the view in this process, where
//! many are cheap, and through the real mount.
//!
//! A failure prints the smallest stack that shows it; `PROPTEST_CASES` asks for more of them and
//! `PROPTEST_RNG_SEED` for others.
#![allow(clippy::unwrap_used)]

use std::fmt;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use undermount_tests::archive::{Archive, Member, Style, noise};
use undermount_tests::compression::Compression;
use undermount_tests::image::{Image, Layer};
use undermount_tests::model::Model;
use undermount_tests::node::{self, Node};
use undermount_tests::origin::Origin;
use undermount_tests::requirement::lacking;
use undermount_tests::shelf::Shelf;
use undermount_tests::tree::{Tree, encode};

/// Few names, so that members meet often; some of them odd.
const NAMES: &[&[u8]] =
    &[b"a", b"b", b"c", b"usr", b"e f", b"\xff\xfe", b"new\nline", b".wh", b"%41"];

/// Sizes around the limits of objects, spans and windows; small ones most often.
const SIZES: &[usize] = &[
    0,
    0,
    1,
    5,
    511,
    512,
    513,
    600,
    600,
    5_000,
    5_000,
    33_000,
    70_000,
    300_000,
    1 << 20,
    (1 << 20) + 1,
    2_500_000,
];

/// One that reads well, one that needs care, one of the system and one that must not count.
const ATTRIBUTES: &[(&str, &[u8])] = &[
    ("user.a", b"value"),
    ("user.lines", b"a\n7 b=c\n\0\xff"),
    (
        "security.capability",
        b"\x00\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ),
    ("trusted.overlay.opaque", b"y"),
];

/// A member as it is drawn: small to print, also where its content is not.
#[derive(Clone)]
struct Draft {
    path: Vec<u8>,
    spelling: Spelling,
    what: What,
    mode: u32,
    owner: (u32, u32),
    time: (i64, u32),
    attribute: Option<(&'static str, &'static [u8])>,
}

/// How a path is written.
#[derive(Debug, Clone, Copy)]
enum Spelling {
    Plain,
    Dotted,
    Absolute,
    Slashes,
}

#[derive(Debug, Clone)]
enum What {
    File {
        seed: u64,
        size: usize,
        text: bool,
    },
    Dir,
    Symlink(Vec<u8>),
    /// To one of the paths that the stack has named so far, or to any other.
    Hardlink(Option<Index>, Vec<u8>),
    Whiteout,
    Opaque,
    Device(u32, u32),
    Fifo,
}

/// A layer as it is drawn.
#[derive(Debug, Clone)]
struct LayerDraft {
    members: Vec<Draft>,
    style: Style,
    compression: Compression,
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, spelling, what, mode, owner, time, attribute } = self;
        let path = encode(path);
        write!(f, "{path} {spelling:?} {what:?} {mode:o} {owner:?} {time:?} {attribute:?}")
    }
}

impl Draft {
    fn member(&self, known: &[Vec<u8>]) -> Member {
        let path = self.spelt();
        let member = match &self.what {
            What::File { seed, size, text } => Member::file(path, content(*seed, *size, *text)),
            What::Dir => Member::dir(path),
            What::Symlink(target) => Member::symlink(path, target),
            What::Hardlink(Some(index), _) if !known.is_empty() => {
                Member::hardlink(path, index.get(known))
            }
            What::Hardlink(_, target) => Member::hardlink(path, target),
            What::Whiteout => Member::file(marker(&path), ""),
            What::Opaque => Member::file([&path[..], b"/.wh..wh..opq"].concat(), ""),
            What::Device(major, minor) => Member::char_device(path, *major, *minor),
            What::Fifo => Member::fifo(path),
        };
        let (uid, gid) = self.owner;
        let mode = if matches!(self.what, What::Symlink(_)) { 0o777 } else { self.mode };
        let member = member.mode(mode).owner(uid, gid).mtime(self.time.0, self.time.1);
        match self.attribute {
            Some((name, value)) => member.xattr(name, value),
            None => member,
        }
    }

    fn spelt(&self) -> Vec<u8> {
        let path = self.path.as_slice();
        match self.spelling {
            Spelling::Plain => path.to_vec(),
            Spelling::Dotted => [b"./", path].concat(),
            Spelling::Absolute => [b"/", path].concat(),
            Spelling::Slashes => {
                path.split(|byte| *byte == b'/').collect::<Vec<_>>().join(&b"//"[..])
            }
        }
    }
}

/// `d/name` becomes `d/.wh.name`.
fn marker(path: &[u8]) -> Vec<u8> {
    let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..name], b".wh.", &path[name..]].concat()
}

fn content(seed: u64, size: usize, text: bool) -> Vec<u8> {
    match text {
        true => {
            format!("line {seed} of a text\n").into_bytes().into_iter().cycle().take(size).collect()
        }
        false => noise(seed, size),
    }
}

fn paths() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(select(NAMES), 1..4).prop_map(|names| names.join(&b'/'))
}

fn targets() -> impl Strategy<Value = Vec<u8>> {
    const PREFIXES: &[&[u8]] = &[b"", b"", b"/", b"../", b"./", b"../../"];
    (select(PREFIXES), paths()).prop_map(|(prefix, path)| [prefix, &path].concat())
}

fn whats() -> impl Strategy<Value = What> {
    let files = (0..40_u64, select(SIZES), any::<bool>());
    prop_oneof![
        8 => files.prop_map(|(seed, size, text)| What::File { seed, size, text }),
        5 => Just(What::Dir),
        2 => targets().prop_map(What::Symlink),
        3 => (prop::option::weighted(0.9, any::<Index>()), targets())
            .prop_map(|(index, target)| What::Hardlink(index, target)),
        3 => Just(What::Whiteout),
        1 => Just(What::Opaque),
        1 => select(&[(0, 0), (1, 3), (300, 70_000)][..]).prop_map(|(a, b)| What::Device(a, b)),
        1 => Just(What::Fifo),
    ]
}

fn drafts() -> impl Strategy<Value = Draft> {
    let spellings =
        select(&[Spelling::Plain, Spelling::Dotted, Spelling::Absolute, Spelling::Slashes][..]);
    let owners = select(&[(0, 0), (0, 0), (7, 3_000_000), (4_294_967_294, 1)][..]);
    let times = select(
        &[(1_700_000_000, 0), (1_700_000_000, 800_414_511), (-86_401, 1), (7_258_118_400, 5)][..],
    );
    let modes = select(&[0o644, 0o755, 0o4755, 0o1777, 0, 0o7777][..]);
    (
        paths(),
        spellings,
        whats(),
        modes,
        owners,
        times,
        prop::option::weighted(0.15, select(ATTRIBUTES)),
    )
        .prop_map(|(path, spelling, what, mode, owner, time, attribute)| Draft {
            path,
            spelling,
            what,
            mode,
            owner,
            time,
            attribute,
        })
}

fn layers() -> impl Strategy<Value = LayerDraft> {
    let styles = select(&[Style::Pax, Style::Gnu, Style::Ustar][..]);
    let compressions = select(
        &[
            Compression::Plain,
            Compression::Gzip,
            Compression::GzipMembers(3_000),
            Compression::GzipNamed,
            Compression::GzipFlushed(10_000),
            Compression::GzipStored,
            Compression::Zstd,
            Compression::ZstdFrames(40_000),
        ][..],
    );
    (prop::collection::vec(drafts(), 0..12), styles, compressions)
        .prop_map(|(members, style, compression)| LayerDraft { members, style, compression })
}

fn stacks() -> impl Strategy<Value = Vec<LayerDraft>> {
    prop::collection::vec(layers(), 1..5)
}

/// The members of every layer; hard links find their targets among what came before.
fn members(stack: &[LayerDraft]) -> Vec<Vec<Member>> {
    let mut known = Vec::new();
    let layer = |layer: &LayerDraft| {
        let member = |draft: &Draft| {
            let member = draft.member(&known);
            if matches!(draft.what, What::File { .. } | What::Symlink(_) | What::Hardlink(..)) {
                known.push(draft.path.clone());
            }
            member
        };
        layer.members.iter().map(member).collect()
    };
    stack.iter().map(layer).collect()
}

fn image(stack: &[LayerDraft], members: &[Vec<Member>]) -> Image {
    let layer = |(draft, members): (&LayerDraft, &Vec<Member>)| {
        let mut archive = Archive::new(draft.style);
        members.iter().for_each(|member| archive.add(member));
        Layer::compressed(&archive.finish(), draft.compression)
    };
    Image::from_layers(stack.iter().zip(members).map(layer).collect())
}

/// The image of `stack` without what no tool could unpack, and its tree.
fn right_image(stack: &[LayerDraft]) -> (Image, Tree) {
    let mut model = Model::default();
    let mut kept = Vec::new();
    for layer in members(stack) {
        let layer = model.admissible(layer);
        model.apply(&layer).expect("only what is admissible is left");
        kept.push(layer);
    }
    (image(stack, &kept), model.tree())
}

fn compare(tree: &Tree, expected: &Tree) -> Result<(), TestCaseError> {
    let found = tree.differences(expected);
    prop_assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// As many cases as the environment says, or else `default`; files of regressions are not kept.
fn runner(default: u32) -> TestRunner {
    let max_shrink_iters = 10 * default;
    let mut config = Config { failure_persistence: None, max_shrink_iters, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = default;
    }
    // The same stacks each time; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` look for others.
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(1);
    }
    TestRunner::new(config)
}

#[track_caller]
fn check(cases: u32, test: impl Fn(Vec<LayerDraft>) -> Result<(), TestCaseError>) {
    if let Err(error) = runner(cases).run(&stacks(), test) {
        panic!("{error}");
    }
}

#[test]
fn every_right_stack_shows_the_models_tree_in_the_view() {
    check(300, |stack| {
        let (image, expected) = right_image(&stack);
        let shelf = Shelf::of(&image).map_err(TestCaseError::fail)?;
        compare(&shelf.tree().map_err(TestCaseError::fail)?, &expected)
    });
}

#[test]
fn a_wrong_stack_is_refused_or_shows_nothing_wrong() {
    check(200, |stack| {
        let members = members(&stack);
        let mut model = Model::default();
        let outcomes: Vec<_> = members.iter().map(|layer| model.apply(layer)).collect();
        let accepted = outcomes.into_iter().collect::<Result<Vec<()>, _>>();
        match (Shelf::of(&image(&stack, &members)), accepted) {
            // What is wrong may be hidden by a layer above.
            (Ok(shelf), _) => compare(&shelf.tree().map_err(TestCaseError::fail)?, &model.tree()),
            (Err(error), Ok(_)) => Err(TestCaseError::fail(error)),
            (Err(_), Err(_)) => Ok(()),
        }
    });
}

#[test]
fn every_right_stack_shows_the_models_tree_through_the_mount() {
    if lacking(node::NEEDS) {
        return;
    }
    let (origin, node) = (Origin::new(), std::cell::RefCell::new(Node::new()));
    let directory = node.borrow().directory("mount");
    check(40, |stack| {
        let (image, expected) = right_image(&stack);
        let reference = origin.add("model/image", image);
        let outcome = node.borrow_mut().try_mount(&reference, &directory);
        prop_assert!(outcome.status.success(), "{}", outcome.stderr);
        let tree = Tree::read(&directory);
        node.borrow().umount(&directory);
        compare(&tree.map_err(|error| TestCaseError::fail(error.to_string()))?, &expected)
    });
}
