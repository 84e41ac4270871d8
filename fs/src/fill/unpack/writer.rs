//! What a pack brought, on its way to the disk: behind the start that it is for.
//!
//! Making thousands of files takes a processor longer than unpacking them does, and nobody waits
//! for it: everything is in memory meanwhile. So the thread that writes takes what the processors
//! have left over, until more waits for it than half of what may.

use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::super::extract::note_unkept;
use crate::object::{Object, Store};
use crate::share::{LEAST, ORDINARY, set_nice};

/// Frames that were unpacked and wait for the disk, at most. The store holds more than these in
/// memory.
const UNWRITTEN: usize = 32;

/// A thread that writes objects into a store.
pub struct Writer {
    objects: mpsc::Sender<Vec<Object>>,
    written: oneshot::Receiver<()>,
}

/// The thread could not be started, or did not come to its end.
#[derive(Debug)]
pub struct Stopped;

impl Writer {
    /// A writer into `store`.
    ///
    /// # Errors
    /// [`Stopped`] where no thread is to be had.
    pub fn new(store: Arc<Store>) -> Result<Self, Stopped> {
        let (objects, mut waiting) = mpsc::channel::<Vec<Object>>(UNWRITTEN);
        let (done, written) = oneshot::channel();
        let write = move || {
            while let Some(objects) = waiting.blocking_recv() {
                let is_behind = waiting.len() > UNWRITTEN / 2;
                // Where it is not granted, the start has a little less.
                let _ = set_nice(if is_behind { ORDINARY } else { LEAST });
                for object in objects {
                    if let Err(error) = store.insert(&object) {
                        note_unkept(object.key(), &error);
                    }
                }
            }
            // Who began it may have gone away.
            let _ = done.send(());
        };
        let started = thread::Builder::new().name("pack-writer".to_owned()).spawn(write);
        started.map(|_| Self { objects, written }).map_err(|_| Stopped)
    }

    /// Has `objects` written; waits while too much is waiting.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn write(&self, objects: Vec<Object>) -> Result<(), Stopped> {
        self.objects.send(objects).await.map_err(|_| Stopped)
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn finish(self) -> Result<(), Stopped> {
        drop(self.objects);
        self.written.await.map_err(|_| Stopped)
    }
}
