//! The power is cut after every single step of a day in the store's life.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use undermount_fs::blob::Blobs;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::object::{Store, StoreError, StoreLimits, Verify};

use super::Content;
use super::cut::{Cut, Loss};

/// Room for some of the contents below, so that others are evicted.
const QUOTA: u64 = 5 << 19;

fn limits() -> StoreLimits {
    StoreLimits { quota: Some(QUOTA), ..StoreLimits::default() }
}

/// Small objects, a large one that completes, one that does not, one that is damaged when it is
/// complete, and evictions among them.
fn contents() -> Vec<Content> {
    let sizes = [100, 0, 70_000, (1 << 20) + 5, 300_000, 1 << 20, (1 << 20) + 1, 40_000];
    sizes.iter().zip(1..).map(|(size, seed)| Content::of(seed, *size)).collect()
}

/// What happens until the first error, which is the cut.
fn day(disk: &Arc<Cut>, root: &Path, contents: &[Content]) -> Result<(), StoreError> {
    let store = Store::open_on(disk.clone(), root, limits())?;
    for content in contents {
        content.keep_all(&store)?;
        content.is_read(&store, 0);
    }
    let large = &contents[6];
    large.keep_all(&store)?;
    let [complete, _] = large.places(root);
    if let Ok(file) = fs::File::options().write(true).open(complete) {
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 70).unwrap();
    }
    drop(store);
    let store = Store::open_on(disk.clone(), root, limits())?;
    (0..2).for_each(|chunk| _ = large.is_read(&store, chunk));
    large.keep(&store, 0)?;
    contents[3].keep(&store, 0)?;
    store.make_room(QUOTA / 2)?;
    contents[0].keep_all(&store)
}

/// The store works, and nothing is on disk that is not one of `contents`.
fn assert_sound(root: &Path, contents: &[Content]) {
    let store = Store::open(root, StoreLimits::default()).unwrap();
    for content in contents {
        for chunk in 0..content.chunks.len().max(1) {
            content.is_read(&store, chunk);
        }
        content.keep_all(&store).unwrap();
        for chunk in 0..content.chunks.len().max(1) {
            assert!(content.is_read(&store, chunk), "{} is not kept", content.key);
        }
    }
    let known: HashSet<_> = contents.iter().flat_map(|content| content.places(root)).collect();
    for directory in ["objects", "partial", "tmp"] {
        for (path, _) in files_below(&root.join(directory)) {
            assert!(known.contains(&path), "{} is left over", path.display());
        }
    }
    for content in contents.iter().filter(|content| !content.chunks.is_empty()) {
        let [complete, incomplete] = content.places(root);
        assert!(complete.exists() && !incomplete.exists(), "{} is not complete", content.key);
    }
}

fn files_below(directory: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            let size = path.metadata().unwrap().len();
            found.push((path, size));
        }
    }
    found
}

#[test]
fn a_cut_between_any_two_steps_of_the_store_leaves_no_half_object() {
    let contents = contents();
    let root = tempfile::tempdir().unwrap();
    drop(Store::open(root.path(), limits()).unwrap());
    let whole = Arc::new(Cut::after(usize::MAX));
    day(&whole, root.path(), &contents).unwrap();
    assert!(whole.steps() > 40);
    for point in 0..=whole.steps() {
        for loss in [Loss::Nothing, Loss::Emptied, Loss::Zeroed] {
            let emptied = Store::open(root.path(), limits()).unwrap();
            emptied.make_room(u64::MAX).unwrap();
            drop(emptied);
            let disk = Arc::new(Cut::after(point));
            let ended = day(&disk, root.path(), &contents);
            assert!(ended.is_ok() || point < whole.steps(), "cut after {point}: {ended:?}");
            disk.lose(loss);
            assert_sound(root.path(), &contents);
        }
    }
}

/// A large file that arrives in chunks has its size from the beginning.
#[test]
fn regression_a_cut_leaves_no_holes_where_the_disk_is_trusted() {
    let large = Content::of(7, (1 << 20) + 5);
    let open = |disk: &Arc<Cut>, root: &Path| {
        Store::open_on(disk.clone(), root, limits()).map(|store| store.with_verify(Verify::Insert))
    };
    let fill = |disk: &Arc<Cut>, root: &Path| {
        let store = open(disk, root)?;
        (0..2).try_for_each(|chunk| large.keep(&store, chunk))
    };
    let root = tempfile::tempdir().unwrap();
    let whole = Arc::new(Cut::after(usize::MAX));
    fill(&whole, root.path()).unwrap();
    for point in 0..=whole.steps() {
        for loss in [Loss::Nothing, Loss::Emptied, Loss::Zeroed] {
            Store::open(root.path(), limits()).unwrap().make_room(u64::MAX).unwrap();
            let disk = Arc::new(Cut::after(point));
            let kept = fill(&disk, root.path()).is_ok();
            disk.lose(loss);
            let store = open(&Arc::new(Cut::after(usize::MAX)), root.path()).unwrap();
            let read = (0..2).filter(|chunk| large.is_read(&store, *chunk)).count();
            assert!(read == 2 || !kept || point < whole.steps(), "after {point}: {read} chunks");
        }
    }
}

#[test]
fn a_cut_while_the_directories_are_made_does_no_harm() {
    let contents = contents();
    for point in [0, 1, 100, 256, 257, 258] {
        let root = tempfile::tempdir().unwrap();
        let disk = Arc::new(Cut::after(point));
        assert!(day(&disk, root.path(), &contents).is_err());
        assert_sound(root.path(), &contents);
    }
}

#[test]
fn a_blob_that_was_kept_is_there_after_a_cut_and_no_other_is_wrong() {
    let blobs: Vec<Verified> =
        (1..4).map(|seed| Verified::name(Content::of(seed, 5000).bytes.into())).collect();
    let put_all = |disk: &Arc<Cut>, root: &Path| -> usize {
        let Ok(kept) = Blobs::open_on(disk.clone(), root) else { return 0 };
        blobs.iter().take_while(|blob| kept.put(blob).is_ok()).count()
    };
    let whole = Arc::new(Cut::after(usize::MAX));
    assert_eq!(put_all(&whole, tempfile::tempdir().unwrap().path()), blobs.len());
    for point in 0..=whole.steps() {
        for loss in [Loss::Nothing, Loss::Emptied, Loss::Zeroed] {
            let root = tempfile::tempdir().unwrap();
            let disk = Arc::new(Cut::after(point));
            let count = put_all(&disk, root.path());
            disk.lose(loss);
            let kept = Blobs::open(root.path()).unwrap();
            for (number, blob) in blobs.iter().enumerate() {
                let found = kept.get(blob.digest());
                assert!(found.is_some() || number >= count, "blob {number}, cut after {point}");
                assert!(found.is_none_or(|found| found.bytes() == blob.bytes()));
                kept.put(blob).unwrap();
            }
            let left: HashSet<_> = files_below(root.path())
                .into_iter()
                .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned())
                .collect();
            let expected: HashSet<_> =
                blobs.iter().map(|blob| Digest::hex(blob.digest())).collect();
            assert_eq!(left, expected, "cut after {point}");
        }
    }
}
