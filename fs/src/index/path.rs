//! The way back from an inode to a name, for people: nothing on the way of a read needs it.

use super::{EntryKind, IndexError, LayerTree};

impl LayerTree {
    /// A path of inode `number`, from the root of the layer on and without a leading slash; `None`
    /// where no directory of the layer has it. Looks at all names.
    ///
    /// # Errors
    /// [`IndexError::Damaged`] where an entry lies outside its section.
    pub fn path_of(&self, number: u32) -> Result<Option<Vec<u8>>, IndexError> {
        // A damaged tree may lead in circles.
        let mut seen = vec![false; self.inodes().len()];
        let mut directories = vec![(0, Vec::new())];
        while let Some((directory, path)) = directories.pop() {
            let inode = self.inode(directory)?;
            if std::mem::replace(&mut seen[directory as usize], true) {
                continue;
            }
            for entry in self.entries(inode)? {
                if self.kind(entry)? != EntryKind::Inode {
                    continue;
                }
                let child = entry.inode.get();
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(self.name(entry)?);
                if child == number {
                    return Ok(Some(path));
                }
                if self.inode(child)?.is_directory() {
                    directories.push((child, path));
                }
            }
        }
        Ok(None)
    }
}
