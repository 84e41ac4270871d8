//! Layers to measure with.

use std::fs;
use std::io::{Read as _, Write};
use std::path::Path;

use undermount_tests::archive::{Archive, Member};

/// An archive of files of this machine below `/usr`, in the order of their paths, until it has
/// `limit` bytes: programs, libraries, scripts and data as images hold them.
pub fn host_archive(limit: usize) -> Vec<u8> {
    host_archives(1, limit).remove(0)
}

/// The same files spread over `count` archives, which have about `limit` bytes together.
pub fn host_archives(count: usize, limit: usize) -> Vec<Vec<u8>> {
    let mut archives: Vec<_> = (0..count).map(|_| tar::Builder::new(Vec::new())).collect();
    for directory in ["/usr/bin", "/usr/lib", "/usr/share"] {
        let mut turn = 0;
        add(&mut archives, &mut turn, Path::new(directory), limit / count);
    }
    archives.into_iter().map(|archive| archive.into_inner().unwrap()).collect()
}

/// Adds what `directory` holds, each member to the next archive in turn.
fn add(archives: &mut [tar::Builder<Vec<u8>>], turn: &mut usize, directory: &Path, limit: usize) {
    let Ok(children) = fs::read_dir(directory) else { return };
    let mut children: Vec<_> = children.filter_map(Result::ok).map(|child| child.path()).collect();
    children.sort();
    for child in children {
        *turn = (*turn + 1) % archives.len();
        let archive = &mut archives[*turn];
        if archive.get_ref().len() >= limit {
            return;
        }
        let Ok(metadata) = fs::symlink_metadata(&child) else { continue };
        let name = child.strip_prefix("/").unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&metadata);
        if metadata.is_dir() {
            header.set_size(0);
            archive.append_data(&mut header, name, &[][..]).unwrap();
            add(archives, turn, &child, limit);
        } else if metadata.is_symlink() {
            header.set_size(0);
            archive.append_link(&mut header, name, fs::read_link(&child).unwrap()).unwrap();
        } else if metadata.is_file() {
            let mut content = Vec::new();
            if fs::File::open(&child).and_then(|mut file| file.read_to_end(&mut content)).is_ok() {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, name, content.as_slice()).unwrap();
            }
        }
    }
}

/// The usual compression of layers: gzip at level 6, one member.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes an archive of `count` small files, 250 in each directory, to `sink`.
pub fn many_files(count: usize, sink: &mut impl Write) {
    for chunk in 0..count.div_ceil(250) {
        let mut archive = Archive::default();
        let directory = format!("opt/tree/{:02}/directory{chunk:05}", chunk % 100);
        for file in (chunk * 250..count).take(250) {
            let content = format!("content {file}");
            archive.add(&Member::file(format!("{directory}/file{file:07}.py"), content));
        }
        sink.write_all(&archive.finish_without_end()).unwrap();
    }
    sink.write_all(&[0; 1024]).unwrap();
}
