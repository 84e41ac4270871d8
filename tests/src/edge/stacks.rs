//! Members that meet other members: duplicates, hard links, whiteouts, layers over layers.

use super::Case;
use crate::archive::{Archive, Member};
use crate::edge::Verdict;
use crate::image::{Image, Layer};
use crate::model::Model;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = within_a_layer();
    cases.extend(whiteouts());
    cases.extend(replacements());
    cases.extend(escapes());
    cases.extend(lower_links());
    cases.extend(markers());
    cases.push(same_layer_twice());
    cases.push(whiteouts_of_this_and_the_parent_directory());
    cases.push(whiteouts_of_one_inode());
    cases
}

fn within_a_layer() -> Vec<Case> {
    let hard_links = [
        Member::dir("x"),
        Member::file("x/f", vec![b'c'; 70_000]).mode(0o640).owner(12, 34),
        Member::hardlink("y/1", "x/f"),
        Member::hardlink("z", "y/1"),
        // The header of a link says nothing: the file has one inode.
        Member::hardlink("x/2", "x/f").mode(0o777).owner(9, 0).mtime(5, 0),
    ];
    let first_name_deleted = [Member::whiteout("x", "f")];
    let to_links = [
        Member::symlink("q", "dangling"),
        Member::hardlink("h", "q"),
        Member::file("./a", "content"),
        Member::hardlink("./b", "./a"),
        Member::hardlink("c", "/a"),
    ];
    vec![
        Case::layers(
            "children before their directory",
            &[&[
                Member::file("d/s/x", "content"),
                Member::dir("d/s").mode(0o750).owner(7, 0).mtime(1_500_000_000, 0),
                Member::file("d/y", "hello"),
                Member::dir("d").mode(0o500).mtime(1_400_000_000, 0),
            ]],
        ),
        Case::layers(
            "directories never listed",
            &[&[Member::file("a/b/c/d", "x")], &[Member::file("a/b/c/e", "")]],
        ),
        Case::layers(
            "duplicates, the last wins",
            &[&[
                Member::file("f", "1"),
                Member::file("f", "longer content").mode(0o600),
                Member::file("f", "last").owner(3, 0),
                Member::dir("d").mode(0o700),
                Member::file("d/x", "x"),
                Member::dir("d").mode(0o711),
                Member::symlink("l", "a"),
                Member::symlink("l", "b"),
            ]],
        ),
        Case::layers(
            "duplicates of another type",
            &[&[
                Member::file("a", "1"),
                Member::dir("a"),
                Member::file("a/k", "hello"),
                Member::symlink("b", "t"),
                Member::file("b", "content"),
                Member::dir("c"),
                Member::file("c", "x"),
            ]],
        ),
        Case::layers("hard links", &[&hard_links]),
        Case::layers("first name of a hard link deleted", &[&hard_links, &first_name_deleted]),
        Case::layers("hard links to links and with prefixes", &[&to_links]),
        Case::layers("hard link replaced above", &[&hard_links, &[Member::file("z", "new")]]),
        Case::layers(
            "prefixes of paths",
            &[
                &[
                    Member::dir("./").mode(0o711).owner(1, 0).mtime(1_234_567_890, 0),
                    Member::dir("./d"),
                    Member::file("./d/a", "a"),
                    Member::file("d//b", "b"),
                    Member::file("d/./c", "c"),
                    Member::dir("e//"),
                    Member::file("/e/.//y", "y"),
                    Member::hardlink("./h", "d/a"),
                ],
                &[Member::file("./d/.wh.a", "")],
            ],
        ),
        Case::layers(
            "aufs bookkeeping",
            &[&[Member::dir("d"), Member::file("d/a", "x"), Member::file(".wh..wh.aufs", "")]],
        ),
    ]
}

fn whiteouts() -> Vec<Case> {
    let lower = [
        Member::dir("d"),
        Member::file("a", "content"),
        Member::file("keep", "x"),
        Member::file("d/f", "content"),
        Member::dir("d/s"),
        Member::file("d/s/x", "x"),
        Member::symlink("l", "a"),
    ];
    let deletes = [
        Member::whiteout("", "a"),
        Member::whiteout("d", "f"),
        Member::whiteout("", "l"),
        Member::whiteout("", "never-was"),
    ];
    let tree = [Member::whiteout("d", "s")];
    let opaque =
        [Member::dir("d"), Member::opaque("d"), Member::file("d/new", "n"), Member::dir("d/s")];
    let opaque_last =
        [Member::dir("d"), Member::file("d/s/y", "n"), Member::dir("d/s"), Member::opaque("d")];
    let above = [Member::dir("d"), Member::file("d/third", "3")];
    let again = [Member::whiteout("", "d"), Member::dir("d"), Member::file("d/new", "n")];
    let again_last = [Member::dir("d"), Member::file("d/new", "n"), Member::whiteout("", "d")];
    let apart = [
        Member::whiteout("", "d"),
        Member::whiteout("d", "f"),
        Member::whiteout("d/s", "x"),
        Member::opaque("d/s"),
    ];
    let apart_first = [Member::whiteout("d", "f"), Member::whiteout("", "d"), Member::opaque("d")];
    let apart_and_new = [Member::whiteout("", "d"), apart[1].clone(), Member::file("d/s/n", "n")];
    let device = [Member::char_device("a", 0, 0).mode(0), Member::char_device("nothing", 0, 0)];
    let device_and_file = [
        Member::file("a", "new"),
        Member::char_device("a", 0, 0),
        Member::char_device("keep", 0, 0),
        Member::file("keep", "new"),
    ];
    vec![
        Case::layers("whiteouts", &[&lower, &deletes]),
        Case::layers("whiteout of a directory", &[&lower, &tree]),
        Case::layers("directory deleted, and its content apart", &[&lower, &apart]),
        Case::layers("content deleted, then its directory", &[&lower, &apart_first]),
        Case::layers("directory deleted, its content apart, and new", &[&lower, &apart_and_new]),
        Case::layers("opaque directory", &[&lower, &opaque, &above]),
        Case::layers("opaque marker after the members", &[&lower, &opaque_last, &above]),
        Case::layers("deleted and made again in one layer", &[&lower, &again]),
        Case::layers("made and then deleted below in one layer", &[&lower, &again_last]),
        Case::layers("device 0:0 is a whiteout", &[&lower, &device]),
        Case::layers("device 0:0 and file of one name", &[&lower, &device_and_file]),
        Case::layers("deleted twice", &[&lower, &deletes, &deletes]),
        Case::layers("opaque root", &[&lower, &[Member::opaque(""), Member::file("only", "x")]]),
        Case::layers("empty layers", &[&[], &lower, &[], &deletes, &[]]),
    ]
}

fn replacements() -> Vec<Case> {
    let lower = [
        Member::file("f", "one"),
        Member::dir("d"),
        Member::file("d/in", "x"),
        Member::symlink("s", "f"),
    ];
    let gone = [Member::whiteout("", "f"), Member::whiteout("", "d")];
    let swapped =
        [Member::dir("f"), Member::file("f/kid", "content"), Member::file("d", "now a file")];
    let as_link =
        [Member::symlink("f", "d"), Member::dir("d").mode(0o700), Member::file("d/other", "x")];
    // umoci spells it so, in either order.
    let piecemeal = [
        Member::file("d", "now a file"),
        Member::whiteout("d", "in"),
        Member::whiteout("d/deeper", "still"),
    ];
    let piecemeal_first = [Member::whiteout("d", "in"), Member::file("d", "now a file")];
    let metadata = [Member::dir("d").mode(0o700).owner(5, 0).mtime(1_600_000_000, 0)];
    let usr = [
        Member::dir("usr"),
        Member::dir("usr/bin"),
        Member::file("usr/bin/tool", "x"),
        Member::symlink("bin", "usr/bin"),
    ];
    vec![
        Case::layers("recreated as another type", &[&lower, &gone, &swapped]),
        Case::layers("recreated as a link", &[&lower, &gone, &as_link]),
        Case::layers("type changed without whiteout", &[&lower, &swapped]),
        Case::layers("directory becomes a file and its content deleted", &[&lower, &piecemeal]),
        Case::layers("content deleted and directory becomes a file", &[&lower, &piecemeal_first]),
        Case::layers("directory becomes a link", &[&lower, &[Member::symlink("d", "s")]]),
        Case::layers("file becomes a file through a link", &[&lower, &[Member::file("s", "own")]]),
        Case::layers("metadata of a directory changed", &[&lower, &metadata]),
        Case::layers("directory written through a link", &[&usr, &[Member::file("bin/new", "n")]]),
        Case::layers(
            "extended attributes replaced and dropped",
            &[
                &[
                    Member::file("u", "x").xattr("user.a", "1"),
                    Member::file("v", "x").xattr("user.a", "1"),
                    Member::dir("d").xattr("user.d", "1"),
                ],
                &[
                    Member::file("u", "y"),
                    Member::file("v", "x").xattr("user.b", "2"),
                    Member::dir("d"),
                ],
            ],
        ),
        Case::layers(
            "attributes that would steer an overlay",
            &[
                &[Member::dir("d"), Member::file("d/kept", "x"), Member::file("secret", "x")],
                &[
                    Member::dir("d").xattr("trusted.overlay.opaque", "y"),
                    Member::file("m", "")
                        .xattr("trusted.overlay.metacopy", "")
                        .xattr("trusted.overlay.redirect", "/secret")
                        .xattr("user.overlay.whiteout", "y"),
                ],
            ],
        ),
    ]
}

/// Right images whose paths and links point outside; the tree stays inside.
fn escapes() -> Vec<Case> {
    let outside = "/var/tmp/undermount-canary";
    vec![
        Case::layers(
            "absolute and dotted paths",
            &[&[
                Member::file("/etc/passwd", "own"),
                Member::file("//etc/shadow", "own"),
                Member::file("../up", "own"),
                Member::file("a/../../../b", "own"),
            ]],
        ),
        Case::layers(
            "file below a link that leads outside",
            &[&[Member::symlink("x", outside)], &[Member::file("x/file", "own")]],
        ),
        Case::layers(
            "file over a link that leads outside",
            &[&[Member::symlink("x", format!("{outside}/file"))], &[Member::file("x", "own")]],
        ),
        Case::layers(
            "whiteout below a link that leads outside",
            &[
                &[Member::symlink("x", outside), Member::file("ok", "x")],
                &[Member::whiteout("x", "file")],
            ],
        ),
        Case::layers(
            "whiteout above the root",
            &[&[Member::file("ok", "x")], &[Member::file("../.wh.canary", "")]],
        ),
    ]
}

/// Hard links whose target another layer has, as umoci and old builders write them.
fn lower_links() -> Vec<Case> {
    let lower = [
        Member::dir("d"),
        Member::file("d/f", "content").mode(0o640).owner(3, 4),
        Member::symlink("s", "d"),
        Member::symlink("up", "/d/../s"),
    ];
    let one = [Member::hardlink("h", "d/f")];
    let chain = [Member::hardlink("h2", "h"), Member::hardlink("h3", "./h2")];
    let through = [Member::hardlink("h", "s/f"), Member::hardlink("i", "up/f")];
    let deleted_later = [Member::hardlink("h", "d/f"), Member::whiteout("d", "f")];
    let to_link = [Member::hardlink("t", "s")];
    let own_link = [Member::symlink("own", "d"), Member::hardlink("h", "own/f")];
    let other = [Member::dir("e"), Member::file("e/f", "other")];
    let own_link_replaces = [Member::symlink("d", "/e"), Member::hardlink("h", "d/f")];
    let replaced = [Member::file("d/f", "new"), Member::hardlink("h", "d/f")];
    let gone = [Member::whiteout("", "d")];
    vec![
        Case::layers("hard link to a lower layer", &[&lower, &one]),
        Case::layers("hard links across three layers", &[&lower, &one, &chain]),
        Case::layers("hard link through links of a lower layer", &[&lower, &through]),
        Case::layers("hard link to what is deleted afterwards", &[&lower, &deleted_later]),
        Case::layers("hard link to a link of a lower layer", &[&lower, &to_link]),
        Case::layers("hard link through an own link to a lower layer", &[&lower, &own_link]),
        Case::layers(
            "hard link through an own link in place of a directory",
            &[&lower, &other, &own_link_replaces],
        ),
        Case::layers("hard link to what was replaced", &[&lower, &replaced]),
        Case::layers("hard link outlives its target", &[&lower, &one, &gone]),
        Case::layers(
            "hard link through a link of its layer",
            &[&[lower[0].clone(), lower[1].clone(), lower[2].clone(), through[0].clone()]],
        ),
        Case::layers(
            "hard link to what its layer replaces",
            &[&[Member::file("a", "1"), Member::hardlink("b", "a"), Member::file("a", "2")]],
        ),
    ]
}

/// Markers of unusual types, in unusual places.
fn markers() -> Vec<Case> {
    let lower = [
        Member::dir("d"),
        Member::file("d/x", "x"),
        Member::file("d/e/q", "q"),
        Member::file("e", "e"),
        Member::file("f", "f"),
        Member::file("k", "k"),
    ];
    let types =
        [Member::dir(".wh.d"), Member::symlink(".wh.e", "k"), Member::hardlink(".wh.f", "k")];
    let nested = [
        Member::opaque("d"),
        Member::whiteout("d/e", "q"),
        Member::file("d/e/new", "n"),
        Member::opaque("d/e"),
    ];
    let aufs = [
        Member::file("d/.wh..wh.plnk/1.2", "linked"),
        Member::hardlink("l", "d/.wh..wh.plnk/1.2"),
        Member::dir("d/.wh..wh.orph"),
        Member::file(".wh..wh.aufs", ""),
    ];
    vec![
        Case::layers("markers that are no files", &[&lower, &types]),
        Case::layers("opaque directory in an opaque directory", &[&lower, &nested]),
        Case::layers("opaque directory without members", &[&lower, &[Member::opaque("d")]]),
        Case::layers("aufs pseudo-links", &[&lower, &aufs]),
        Case::layers(
            "marker of a name with a space",
            &[
                &[Member::file("a b", "1"), Member::file("n\nl", "2"), Member::file("m", "3")],
                &[Member::whiteout("", "a b"), Member::whiteout("", "n\nl")],
            ],
        ),
        Case::layers(
            "file, directory and file again",
            &[&[Member::file("a", "1")], &[Member::file("a/x", "2")], &[Member::file("a", "3")]],
        ),
        Case::layers(
            "file deleted below a file",
            &[&[Member::file("a", "1"), Member::file("k", "k")], &[Member::whiteout("a", "x")]],
        ),
    ]
}

fn same_layer_twice() -> Case {
    let layer = [Member::dir("d"), Member::file("d/x", "x"), Member::file("y", "y")];
    let deletes = [Member::whiteout("", "y"), Member::whiteout("d", "x")];
    let stack: [&[Member]; 4] = [&layer, &deletes, &layer, &layer];
    Case::layers("the same layer twice", &stack)
}

/// overlayfs makes its whiteouts names of one inode, so that archives of its upper directories have
/// hard links to the first of them.
fn whiteouts_of_one_inode() -> Case {
    let lower = [Member::dir("d"), Member::file("d/a", "a"), Member::file("b", "b")];
    let upper = [
        Member::dir("d"),
        Member::char_device("d/a", 0, 0),
        Member::hardlink("b", "d/a"),
        Member::hardlink("nothing", "b"),
        Member::file("new", "x"),
    ];
    Case::layers("whiteouts that are hard links", &[&lower, &upper])
}

/// `.wh..` and `.wh...` would delete `.` and `..`: they delete nothing.
fn whiteouts_of_this_and_the_parent_directory() -> Case {
    let lower = [Member::dir("d"), Member::file("d/f", "x"), Member::file("k", "x")];
    let upper = [Member::file("d/.wh..", ""), Member::file("d/.wh...", "")];
    let layers = [&lower[..], &upper].map(|members| {
        Layer::compressed(&Archive::of(members), crate::compression::Compression::Gzip)
    });
    let mut tree = Model::tree_of(&[&lower]);
    for field in ["mode", "uid", "gid", "mtime_ns"] {
        tree.open("d", field);
    }
    Case {
        name: "whiteouts of . and ..".to_owned(),
        image: Image::from_layers(layers.into()),
        verdict: Verdict::Tree(tree),
    }
}
