//! The way back from an inode to a name, for people: nothing on the way of a read needs it.

use super::{EntryKind, IndexError, LayerTree};

/// The longest path that a system call takes (`PATH_MAX` in limits.h), in bytes. A tree may have longer
/// ones, which no reader can name.
const PATH_MAX: usize = 4096;

/// The directory that has a child, and the child's name in it; `None` for what was not met yet.
type Parent<'t> = Option<(u32, &'t [u8])>;

impl LayerTree {
    /// A path of inode `number`, from the root of the layer on and without a leading slash; `None`
    /// where no directory of the layer has it, or only one below a path that nobody can name. Looks
    /// at all names: may take a while.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where an entry lies outside its section.
    pub fn path_of(&self, number: u32) -> Result<Option<Vec<u8>>, IndexError> {
        let mut parents: Vec<Parent<'_>> = vec![None; self.inodes().len()];
        let mut directories = vec![0];
        while let Some(directory) = directories.pop() {
            for entry in self.entries(self.inode(directory)?)? {
                if self.kind(entry)? != EntryKind::Inode {
                    continue;
                }
                let (child, name) = (entry.inode.get(), self.name(entry)?);
                if child == number {
                    return Ok(path(&parents, directory, name));
                }
                // A damaged tree may lead in circles.
                let is_new = child != 0 && parents.get(child as usize).is_some_and(Option::is_none);
                if is_new && self.inode(child)?.is_directory() {
                    parents[child as usize] = Some((directory, name));
                    directories.push(child);
                }
            }
        }
        Ok(None)
    }
}

/// The path of what is called `name` in `directory`.
fn path(parents: &[Parent<'_>], mut directory: u32, name: &[u8]) -> Option<Vec<u8>> {
    let (mut names, mut length) = (vec![name], name.len());
    while let Some(Some((above, name))) = parents.get(directory as usize) {
        names.push(name);
        length += name.len() + 1;
        if length >= PATH_MAX {
            return None;
        }
        directory = *above;
    }
    names.reverse();
    Some(names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::layer::Indexer;

    #[test]
    fn each_inode_has_its_path() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        builder.append_data(&mut header, "a/b/file", std::io::empty()).unwrap();
        let mut indexer = Indexer::new();
        indexer.write_all(&builder.into_inner().unwrap()).unwrap();
        let tree = LayerTree::new(indexer.finish().unwrap().tree.to_vec().into()).unwrap();
        let path = |number| String::from_utf8(tree.path_of(number).unwrap().unwrap()).unwrap();
        let mut found: Vec<String> = (1..tree.inodes().len() as u32).map(path).collect();
        found.sort();
        assert_eq!(found, ["a", "a/b", "a/b/file"]);
        assert_eq!(tree.path_of(0).unwrap(), None, "the root has no name");
    }

    #[test]
    fn regression_what_nobody_can_name_has_no_path() {
        let name = [b'n'; 255];
        let parents: Vec<Parent<'_>> =
            (0..20).map(|above: u32| Some((above.checked_sub(1)?, &name[..]))).collect();
        assert_eq!(path(&parents, 14, b"f").map(|path| path.len()), Some(14 * 256 + 1));
        assert_eq!(path(&parents, 16, b"f"), None);
    }
}
