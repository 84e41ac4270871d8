//! Opening files in passthrough mode.
//!
//! ```text
//! OPEN -> Opens::join -> open already: answered alike
//!           ` not open -> View::begin_open -> file, or none -> Opens::open -> answer
//!                           ` unchecked: task -> View::finish_open -> Opens::open -> answer
//! ```
//!
//! The kernel itself reads a file that the store has whole. Any other file is read through the
//! worker, as in cached mode, until its last user has closed it. [`Opens`] has the last word on how
//! a file is open: the kernel takes one way at a time for a node.

use std::fs::File;
use std::sync::Arc;

use fuser::{Errno, FileHandle, FopenFlags, INodeNo, ReplyOpen};

use super::{Adapter, Question, refuse};
use crate::session::{OpenError, Opened, Opens};
use crate::view::{NodeId, Open};

/// An OPEN that is not answered yet.
pub(super) struct PendingOpen {
    opens: Arc<Opens>,
    unique: u64,
    node: NodeId,
    reply: ReplyOpen,
}

impl Adapter {
    /// Answers an OPEN, in a blocking task where a content takes long to check.
    pub(super) fn open_through(&self, open: PendingOpen, question: Question<'_>) {
        match open.opens.join(open.unique, open.node.0) {
            Ok(None) => {}
            Ok(Some(opened)) => return open.answer(Ok(opened)),
            Err(error) => return open.answer(Err(error)),
        }
        match self.view.begin_open(open.node) {
            Ok(Open::Done(file)) => open.open(file.as_deref()),
            Ok(Open::Unchecked(content)) => {
                let view = self.view.clone();
                let ticket = question.ticket;
                self.runtime.spawn_blocking(move || {
                    open.open(view.finish_open(&content).as_deref());
                    drop(ticket);
                });
            }
            Err(error) => open.reply.error(refuse(&error)),
        }
    }
}

impl PendingOpen {
    /// The OPEN with the id `unique` for `node`.
    pub(super) fn new(opens: Arc<Opens>, unique: u64, node: INodeNo, reply: ReplyOpen) -> Self {
        Self { opens, unique, node: NodeId(node.0), reply }
    }

    fn open(self, file: Option<&File>) {
        let opened = self.opens.open(self.unique, self.node.0, file);
        self.answer(opened);
    }

    fn answer(self, opened: Result<Opened, OpenError>) {
        match opened {
            Ok(Opened { handle, backing: None }) => {
                self.reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(Opened { handle, backing: Some(id) }) => {
                // SAFETY: `opens` holds this id of the mount open for as long as the file is open,
                // and `into_raw` below takes it back before it could be closed.
                let id = unsafe { self.reply.wrap_backing(id) };
                let flags = FopenFlags::FOPEN_NOFLUSH;
                self.reply.opened_passthrough(FileHandle(handle), flags, &id);
                id.into_raw();
            }
            Err(error) => {
                let error = &error as &(dyn std::error::Error + 'static);
                tracing::warn!(node = self.node.0, error, "cannot open a file");
                self.reply.error(Errno::EIO);
            }
        }
    }
}
