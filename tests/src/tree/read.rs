//! Reads a tree from a directory: a mount, or where an image was unpacked.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Fields, Tree, encode};

impl Tree {
    /// Everything below `root`, contents included, links not followed.
    ///
    /// # Errors
    /// The first one, with the path it concerns.
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut reader = Reader::default();
        reader.entry(root, ".")?;
        Ok(reader.finish())
    }
}

#[derive(Default)]
struct Reader {
    tree: Tree,
    /// (device, inode) to the paths seen, for what is not a directory.
    inodes: HashMap<(u64, u64), Vec<String>>,
}

impl Reader {
    fn entry(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let about =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = fs::symlink_metadata(path).map_err(about)?;
        let fields = fields(path, &metadata).map_err(about)?;
        self.tree.entries.insert(name.to_owned(), Some(fields));
        if !metadata.is_dir() {
            let inode = (metadata.dev(), metadata.ino());
            self.inodes.entry(inode).or_default().push(name.to_owned());
            return Ok(());
        }
        for child in fs::read_dir(path).map_err(about)? {
            let child = child.map_err(about)?;
            let own = encode(child.file_name().as_bytes());
            let name = if name == "." { own } else { format!("{name}/{own}") };
            self.entry(&child.path(), &name)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Tree {
        self.tree.group(self.inodes.into_values());
        self.tree
    }
}

fn fields(path: &Path, metadata: &Metadata) -> io::Result<Fields> {
    let kind = metadata.file_type();
    let mut fields = Fields::new();
    let mut set = |field: &str, value: String| fields.insert(field.to_owned(), Some(value));
    set("mode", format!("{:04o}", metadata.mode() & 0o7777));
    set("uid", metadata.uid().to_string());
    set("gid", metadata.gid().to_string());
    let mtime = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    set("mtime_ns", mtime.to_string());
    let name = if kind.is_dir() {
        "dir"
    } else if kind.is_symlink() {
        set("linktarget", encode(fs::read_link(path)?.as_os_str().as_bytes()));
        "symlink"
    } else if kind.is_file() {
        set("size", metadata.size().to_string());
        set("sha256", sha256(path)?);
        "file"
    } else if kind.is_char_device() || kind.is_block_device() {
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        set("rdev", format!("{major}:{minor}"));
        if kind.is_char_device() { "chr" } else { "blk" }
    } else if kind.is_fifo() {
        "fifo"
    } else {
        "sock"
    };
    set("type", name.to_owned());
    for attribute in xattr::list(path)? {
        // An overlayfs that lists its own bookkeeping does not make it part of the image.
        if !attribute.as_bytes().starts_with(b"trusted.overlay.") {
            set(&attribute_field(&attribute), attribute_value(path, &attribute)?);
        }
    }
    Ok(fields)
}

fn attribute_field(name: &OsStr) -> String {
    format!("xattr:{}", encode(name.as_bytes()))
}

fn attribute_value(path: &Path, name: &OsStr) -> io::Result<String> {
    use base64::Engine as _;
    let value = xattr::get(path, name)?.unwrap_or_default();
    Ok(base64::engine::general_purpose::STANDARD.encode(value))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_with_links_and_contents() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/a b"), "hello").unwrap();
        fs::hard_link(at("d/a b"), at("also")).unwrap();
        std::os::unix::fs::symlink("d/a b", at("link")).unwrap();
        let tree = Tree::read(root.path()).unwrap();
        let paths: Vec<&String> = tree.entries.keys().collect();
        assert_eq!(paths, [".", "also", "d", "d/a%20b", "link"]);
        assert_eq!(tree.field("d/a%20b", "nlink_group"), Some("also"));
        assert_eq!(tree.field("link", "linktarget"), Some("d/a%20b"));
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(tree.field("also", "sha256"), Some(hello));
        assert_eq!(tree.field("d", "type"), Some("dir"));
    }

    #[test]
    fn a_changed_byte_and_a_changed_time_are_seen() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        fs::write(&file, "one").unwrap();
        let before = Tree::read(root.path()).unwrap();
        fs::write(&file, "two").unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        let found = Tree::read(root.path()).unwrap().differences(&before);
        assert!(found.iter().any(|line| line.starts_with("f: sha256 is 3fc4")), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("f: mtime_ns is 0,")), "{found:?}");
    }
}
