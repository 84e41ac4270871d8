//! Files of this host and podman's storage, each opened once: an archive is read to its end, and
//! one of docker compressed, before it shows its images.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use super::CopyError;
use super::layout::Layout;
use super::location::{FileForm, FileLocation, Location};
use super::storage;

/// Layouts that are open.
pub struct Files {
    /// Where what has to be unpacked lies meanwhile.
    scratch: PathBuf,
    layouts: Mutex<HashMap<Location, Arc<OnceCell<Arc<Layout>>>>>,
}

impl Files {
    /// None yet; what has to be unpacked goes below `scratch`.
    pub fn new(scratch: PathBuf) -> Self {
        Self { scratch, layouts: Mutex::default() }
    }

    /// The layout in the files at `location`, whatever the name of the image.
    ///
    /// # Errors
    /// [`CopyError`] where there is none.
    pub async fn layout(&self, location: &FileLocation) -> Result<Arc<Layout>, CopyError> {
        let whole = FileLocation { name: None, ..location.clone() };
        let cell = self.cell(Location::File(whole.clone()));
        cell.get_or_try_init(|| async { Ok(Arc::new(open(whole, &self.scratch).await?)) })
            .await
            .cloned()
    }

    /// The image `name` of podman's storage as a layout.
    ///
    /// # Errors
    /// [`CopyError`] where it cannot be had.
    pub async fn stored(&self, name: &str) -> Result<Arc<Layout>, CopyError> {
        let cell = self.cell(Location::Storage(name.to_owned()));
        cell.get_or_try_init(|| async { Ok(Arc::new(storage::export(name, &self.scratch).await?)) })
            .await
            .cloned()
    }

    fn cell(&self, location: Location) -> Arc<OnceCell<Arc<Layout>>> {
        let mut layouts = self.layouts.lock().expect("no panic while it is held");
        Arc::clone(layouts.entry(location).or_default())
    }
}

async fn open(file: FileLocation, scratch: &Path) -> Result<Layout, CopyError> {
    let scratch = scratch.to_owned();
    let opened = tokio::task::spawn_blocking(move || match file.form {
        FileForm::Oci => Layout::directory(&file.path),
        FileForm::OciArchive => Layout::archive(&file.path),
        FileForm::DockerArchive => Layout::docker_archive(&file.path, &scratch),
        FileForm::ImageServe => unreachable!("a tree is no layout"),
    });
    Ok(opened.await.expect("layouts are opened without a panic")?)
}
