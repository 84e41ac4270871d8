//! Pieces on disk, for others: unpacked contents cannot be turned back into the bytes that travel.
//!
//! ```text
//! pieces/own/REALM-HEX     what this node owns by its rank      a budget of its own
//! pieces/held/REALM-HEX    what it fetched for itself           a smaller one
//! ```
//!
//! REALM says who may have the piece, see [`Realm`]; HEX is its digest. Files appear whole, by
//! rename, and are never synced: each is hashed when it is first used after a start, or after its
//! file has changed, and a damaged one is dropped. The least recently used goes first.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use tempfile::NamedTempFile;
use undermount_fs::digest::{Digest, Verified};
use undermount_fs::disk::{Access, Disk as _, LocalDisk, is_damage, open_regular};

use super::realm::Realm;
use super::wanted::MAX_PIECE;

/// Why a node has a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// The node owns it by its rank.
    Own,
    /// The node wanted it itself.
    Held,
}

/// How many bytes of pieces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceLimits {
    /// The most bytes of pieces that the node owns.
    pub own: u64,
    /// The most bytes of other pieces.
    pub held: u64,
    /// The bytes of the file system that stay free.
    pub reserve: u64,
}

impl Default for PieceLimits {
    /// 8 GiB of its own, 1 GiB of others, 1 GiB free.
    fn default() -> Self {
        Self { own: 8 << 30, held: 1 << 30, reserve: 1 << 30 }
    }
}

/// A piece as peers know it.
pub type PieceKey = (Realm, Digest);

/// The pieces on disk.
#[derive(Debug)]
pub struct Pieces {
    own: Shelf,
    held: Shelf,
}

/// One of the two directories.
#[derive(Debug)]
struct Shelf {
    root: PathBuf,
    limit: u64,
    reserve: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    bytes: u64,
    pieces: LruCache<PieceKey, Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    size: u64,
    /// The stamp of the file when its bytes were right; `None` until it was hashed.
    checked: Option<Stamp>,
}

/// What changes when the content of a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { inode: meta.ino(), size: meta.size(), changed })
    }
}

/// An open piece, whose bytes were right when it was opened.
#[derive(Debug)]
pub struct OpenPiece {
    /// The file; it stays readable when the piece is dropped meanwhile.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
}

impl Pieces {
    /// The pieces below `root`, which is made where it is missing.
    ///
    /// # Errors
    /// Where a directory cannot be made or read.
    pub fn open(root: &Path, limits: PieceLimits) -> io::Result<Self> {
        let shelf = |name, limit| Shelf::open(root.join(name), limit, limits.reserve);
        Ok(Self { own: shelf("own", limits.own)?, held: shelf("held", limits.held)? })
    }

    /// Whether the piece is here.
    pub fn has(&self, key: &PieceKey) -> bool {
        self.own.has(key) || self.held.has(key)
    }

    /// Opens a piece; `None` where it is not here, damaged, or cannot be opened now. Blocks on the disk, and hashes what
    /// was not hashed since the start.
    pub fn get(&self, key: &PieceKey) -> Option<OpenPiece> {
        self.own.get(key).or_else(|| self.held.get(key))
    }

    /// Reads all bytes of a piece, verified; `None` as [`Self::get`] says. A damaged one is dropped.
    /// Blocks on the disk.
    pub fn read(&self, key: &PieceKey) -> Option<Verified> {
        let open = self.get(key)?;
        read_all(open, &key.1)
            .inspect_err(|error| {
                tracing::warn!(piece = %key.1, %error, "cannot read a piece");
                if is_lost(error) {
                    self.own.remove(key);
                    self.held.remove(key);
                }
            })
            .ok()
    }

    /// Keeps a piece, and returns whether it is here now. Where there is no room, it is silently
    /// left out; other failures are logged. Blocks on the disk.
    pub fn put(&self, key: &PieceKey, piece: &Verified, keeping: Keeping) -> bool {
        let shelf = match keeping {
            Keeping::Own => &self.own,
            Keeping::Held => &self.held,
        };
        if self.has(key) {
            return true;
        }
        shelf.put(key, piece).unwrap_or_else(|error| {
            tracing::warn!(piece = %key.1, %error, "cannot keep a piece for others");
            false
        })
    }

    /// Bytes of the pieces that the node owns, and of the others.
    pub fn bytes(&self) -> (u64, u64) {
        (self.own.kept().bytes, self.held.kept().bytes)
    }
}

/// Whether `error` says that a piece is damaged or gone, and not that it cannot be read now.
fn is_lost(error: &io::Error) -> bool {
    is_damage(error) || error.kind() == io::ErrorKind::NotFound
}

impl Shelf {
    fn open(root: PathBuf, limit: u64, reserve: u64) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&root)?.filter_map(Result::ok) {
            let name = entry.file_name().into_string().unwrap_or_default();
            let file = entry.metadata().ok().filter(fs::Metadata::is_file);
            match (key_of(&name), file) {
                (Some(key), Some(meta)) => found.push((meta.mtime(), key, meta.len())),
                // A crash has left it, or somebody else.
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        found.sort_by_key(|(written, _, _)| *written);
        let kept = Mutex::new(Kept { bytes: 0, pieces: LruCache::unbounded() });
        let shelf = Self { root, limit, reserve, kept };
        for (_, key, size) in found {
            shelf.note(key, Entry { size, checked: None });
        }
        Ok(shelf)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: &PieceKey) -> PathBuf {
        self.root.join(format!("{}-{}", key.0, key.1.hex()))
    }

    fn has(&self, key: &PieceKey) -> bool {
        self.kept().pieces.contains(key)
    }

    fn get(&self, key: &PieceKey) -> Option<OpenPiece> {
        let entry = *self.kept().pieces.get(key)?;
        match self.open_checked(key, entry) {
            Ok(open) => Some(open),
            Err(error) if is_lost(&error) => {
                tracing::warn!(piece = %key.1, %error, "dropped a damaged piece");
                self.remove(key);
                None
            }
            Err(error) => {
                tracing::warn!(piece = %key.1, %error, "cannot read a piece");
                None
            }
        }
    }

    fn open_checked(&self, key: &PieceKey, entry: Entry) -> io::Result<OpenPiece> {
        let file = open_regular(&self.path(key), Access::Read)?;
        let stamp = Stamp::of(&file)?;
        if stamp.size != entry.size || stamp.size > MAX_PIECE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its size has changed"));
        }
        if entry.checked != Some(stamp) {
            let mut bytes = Vec::with_capacity(stamp.size as usize);
            (&file).read_to_end(&mut bytes)?;
            verified(bytes, &key.1)?;
            io::Seek::seek(&mut &file, io::SeekFrom::Start(0))?;
            if let Some(entry) = self.kept().pieces.get_mut(key) {
                entry.checked = Some(stamp);
            }
        }
        Ok(OpenPiece { file, size: stamp.size })
    }

    fn put(&self, key: &PieceKey, piece: &Verified) -> io::Result<bool> {
        let size = piece.bytes().len() as u64;
        if size > self.limit || LocalDisk.space(&self.root)?.free < self.reserve + size {
            return Ok(false);
        }
        let mut file = NamedTempFile::new_in(&self.root)?;
        file.write_all(piece.bytes())?;
        let file = file.persist(self.path(key)).map_err(|error| error.error)?;
        self.note(*key, Entry { size, checked: Some(Stamp::of(&file)?) });
        Ok(true)
    }

    /// Notes a piece that is there now, and drops the least recently used ones beyond the limit.
    fn note(&self, key: PieceKey, entry: Entry) {
        let mut superfluous = Vec::new();
        {
            let mut kept = self.kept();
            let before = kept.pieces.put(key, entry).map_or(0, |before| before.size);
            kept.bytes = kept.bytes + entry.size - before;
            while kept.bytes > self.limit {
                let Some((key, entry)) = kept.pieces.pop_lru() else { break };
                kept.bytes -= entry.size;
                superfluous.push(key);
            }
        }
        for key in superfluous {
            // A file that stays is found and dropped after the next start.
            let _ = fs::remove_file(self.path(&key));
        }
    }

    fn remove(&self, key: &PieceKey) {
        let mut kept = self.kept();
        if let Some(entry) = kept.pieces.pop(key) {
            kept.bytes -= entry.size;
        }
        drop(kept);
        let _ = fs::remove_file(self.path(key));
    }
}

fn read_all(open: OpenPiece, digest: &Digest) -> io::Result<Verified> {
    let OpenPiece { mut file, size } = open;
    let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(io::Error::other)?);
    file.read_to_end(&mut bytes)?;
    verified(bytes, digest)
}

fn verified(bytes: Vec<u8>, digest: &Digest) -> io::Result<Verified> {
    let damaged = |wrong| io::Error::new(io::ErrorKind::InvalidData, wrong);
    Verified::check(bytes.into(), digest).map_err(damaged)
}

/// The piece that a file of this name holds.
fn key_of(name: &str) -> Option<PieceKey> {
    let (realm, hex) = name.split_once('-')?;
    Some((realm.parse().ok()?, Digest::from_hex(hex).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(number: u8) -> (PieceKey, Verified) {
        let piece = Verified::name(vec![number; 1000].into());
        ((Realm::Public, *piece.digest()), piece)
    }

    fn open(root: &Path) -> Pieces {
        Pieces::open(root, PieceLimits { own: 3000, held: 1500, reserve: 0 }).unwrap()
    }

    fn path(root: &Path, key: &PieceKey) -> PathBuf {
        root.join("own").join(format!("{}-{}", key.0, key.1.hex()))
    }

    #[test]
    fn the_least_used_piece_goes_first_and_each_kind_has_its_own_budget() {
        let root = tempfile::tempdir().unwrap();
        let pieces = open(root.path());
        for number in 0..3 {
            let (key, bytes) = piece(number);
            pieces.put(&key, &bytes, Keeping::Own);
        }
        for number in 10..12 {
            let (key, bytes) = piece(number);
            pieces.put(&key, &bytes, Keeping::Held);
        }
        assert!(pieces.get(&piece(0).0).is_some());
        let (key, bytes) = piece(3);
        pieces.put(&key, &bytes, Keeping::Own);
        let here = [0, 1, 2, 3, 10, 11].map(|number| pieces.has(&piece(number).0));
        assert_eq!(here, [true, false, true, true, false, true]);
        assert_eq!(pieces.bytes(), (3000, 1000));
        assert_eq!(fs::read_dir(root.path().join("own")).unwrap().count(), 3);
    }

    #[test]
    fn regression_a_piece_that_cannot_be_opened_now_is_not_lost() {
        for (error, lost) in [
            (io::Error::from_raw_os_error(libc::EMFILE), false),
            (io::Error::from_raw_os_error(libc::ENOMEM), false),
            (io::Error::from_raw_os_error(libc::EACCES), false),
            (io::Error::from_raw_os_error(libc::EIO), true),
            (io::Error::from_raw_os_error(libc::ENOENT), true),
            (verified(b"other".to_vec(), &Digest::of(b"piece")).unwrap_err(), true),
        ] {
            assert_eq!(is_lost(&error), lost, "{error}");
        }
    }

    #[test]
    fn pieces_survive_a_restart_and_what_is_no_piece_goes() {
        let root = tempfile::tempdir().unwrap();
        let (key, bytes) = piece(1);
        open(root.path()).put(&key, &bytes, Keeping::Own);
        fs::write(root.path().join("own/.tmpXYZ"), "half").unwrap();
        let pieces = open(root.path());
        assert_eq!(pieces.read(&key).unwrap().bytes(), bytes.bytes());
        assert_eq!(fs::read_dir(root.path().join("own")).unwrap().count(), 1);
    }

    #[test]
    fn regression_a_piece_that_the_disk_has_changed_unseen_is_dropped_when_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        let (key, bytes) = piece(1);
        let pieces = open(root.path());
        pieces.put(&key, &bytes, Keeping::Own);
        let file = path(root.path(), &key);
        fs::write(&file, [9; 1000]).unwrap();
        // As if nobody had touched the file.
        let stamp = Stamp::of(&File::open(&file).unwrap()).unwrap();
        pieces.own.kept().pieces.get_mut(&key).unwrap().checked = Some(stamp);
        assert!(pieces.read(&key).is_none());
        assert!(!pieces.has(&key) && !file.exists());
    }

    #[test]
    fn a_damaged_piece_is_dropped_after_a_start_and_after_a_change() {
        let root = tempfile::tempdir().unwrap();
        let (key, bytes) = piece(1);
        let pieces = open(root.path());
        for reopen in [true, false] {
            pieces.put(&key, &bytes, Keeping::Own);
            let mut damaged = bytes.bytes().to_vec();
            damaged[500] ^= 1;
            fs::write(path(root.path(), &key), damaged).unwrap();
            let again = open(root.path());
            let pieces = if reopen { &again } else { &pieces };
            assert!(pieces.get(&key).is_none());
            assert!(!pieces.has(&key) && pieces.bytes().0 == 0);
            assert!(!path(root.path(), &key).exists());
            // The first store does not know yet that it is gone.
            assert!(again.get(&key).is_none());
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let limits = PieceLimits { reserve: u64::MAX / 2, ..PieceLimits::default() };
        let pieces = Pieces::open(root.path(), limits).unwrap();
        let (key, bytes) = piece(1);
        assert!(!pieces.put(&key, &bytes, Keeping::Own));
        assert!(!pieces.has(&key));
        let limits = PieceLimits { held: 999, reserve: 0, ..PieceLimits::default() };
        let pieces = Pieces::open(root.path(), limits).unwrap();
        assert!(!pieces.put(&key, &bytes, Keeping::Held));
        assert!(pieces.put(&key, &bytes, Keeping::Own));
    }

    #[test]
    fn realms_do_not_mix() {
        let root = tempfile::tempdir().unwrap();
        let pieces = open(root.path());
        let (key, bytes) = piece(1);
        let private = (Realm::Private([7; 16]), key.1);
        pieces.put(&private, &bytes, Keeping::Own);
        assert!(pieces.get(&key).is_none());
        drop(pieces);
        let pieces = open(root.path());
        assert!(pieces.get(&key).is_none() && pieces.get(&private).is_some());
    }
}
