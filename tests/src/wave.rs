//! A wave of reads: the files of an image, read through its mount and held against what was put
//! into the image.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::archive::{Member, noise};
use crate::image::Image;

/// Threads that read on one node.
const READERS: usize = 4;

/// The files of an image, by their numbers.
#[derive(Debug, Clone)]
pub struct Files(Arc<Vec<Vec<u8>>>);

impl Files {
    /// So many files whose sizes come to about `total` bytes and which cannot be compressed.
    pub fn new(count: usize, total: usize) -> Self {
        let mean = total / count;
        // From a quarter of the mean to seven quarters, as mixed as those of a real image.
        let size = |n: usize| mean / 4 + n * 7919 % (mean * 3 / 2);
        let files = (0..count).map(|n| noise(n as u64 + 1, size(n)));
        Self(Arc::new(files.collect()))
    }

    /// Where a file lies in the image.
    pub fn path(number: usize) -> String {
        format!("usr/lib/d{}/f{number}", number / 50)
    }

    /// An image of one layer that holds them.
    pub fn image(&self) -> Image {
        let files = self.0.iter().enumerate();
        let members: Vec<_> =
            files.map(|(number, content)| Member::file(Self::path(number), content)).collect();
        Image::of(&[&members])
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads all of them below `mount`, by several threads, in their order.
    pub fn read(&self, mount: &Path) -> Wave {
        let (begin, next) = (Instant::now(), AtomicUsize::new(0));
        let waves: Vec<Wave> = thread::scope(|scope| {
            let readers: Vec<_> =
                (0..READERS).map(|_| scope.spawn(|| self.read_some(mount, &next))).collect();
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        let mut wave = Wave { elapsed: begin.elapsed(), ..Wave::default() };
        for part in waves {
            wave.right += part.right;
            wave.slowest = wave.slowest.max(part.slowest);
            wave.failed.extend(part.failed);
        }
        wave
    }

    fn read_some(&self, mount: &Path, next: &AtomicUsize) -> Wave {
        let mut wave = Wave::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(content) = self.0.get(number) else { return wave };
            let (path, begin) = (Self::path(number), Instant::now());
            match fs::read(mount.join(&path)) {
                // Not `assert_eq!`: nobody wants to see the bytes.
                Ok(read) if read == *content => wave.right += 1,
                Ok(_) => panic!("wrong bytes in {path}"),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => wave.failed.push(path),
                Err(error) => panic!("{path}: {error}"),
            }
            wave.slowest = wave.slowest.max(begin.elapsed());
        }
    }
}

/// How the reads of one node went.
#[derive(Debug, Default)]
pub struct Wave {
    /// Files that read right.
    pub right: usize,
    /// Files that failed with EIO.
    pub failed: Vec<String>,
    /// The longest that one file took.
    pub slowest: Duration,
    /// From the beginning to the last file.
    pub elapsed: Duration,
}
