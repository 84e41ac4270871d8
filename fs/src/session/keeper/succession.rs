//! One worker after the other: started, introduced to the mounts, buried, replaced.
//!
//! ```text
//! start_worker -> introduce -> (serves) -> bury_worker: recall its requests, judge its end
//!      ^                                        |
//!      `--- when the watch says so -------------'
//! ```

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use super::Keeper;
use super::child::{Worker, judge, obituary};
use super::held::HeldMount;
use super::watch::Death;
use crate::session::SessionError;
use crate::session::link::{PROTOCOL, Start, ToWorker};

impl Keeper {
    /// Starts the next worker. Where its program does not start, the keeper gives up unless a
    /// worker has `proven` that the mounts can be served; then it falls back to the program before
    /// an upgrade, and tries again later.
    pub(super) fn start_worker(&mut self, proven: bool, now: Instant) -> Result<(), SessionError> {
        match Worker::start(&self.program, &self.arguments) {
            Ok(mut worker) => {
                // Noted before the worker can answer anything: a keeper that takes over must find
                // and end it.
                if let Some(deposit) = &self.deposit {
                    deposit.note_worker(worker.child.id());
                }
                if let Err(error) = self.introduce(&worker) {
                    tracing::error!(%error, "cannot hand the mounts to the worker");
                    worker.link = None;
                }
                tracing::info!(pid = worker.child.id(), restarts = self.history.restarts, "worker");
                self.worker = Some(worker);
                self.watch.started(now);
                Ok(())
            }
            Err(source) => {
                let error = SessionError::StartWorker { program: self.program.clone(), source };
                if !proven {
                    return Err(error);
                }
                tracing::error!(error = &error as &dyn std::error::Error, "no worker");
                self.fall_back();
                self.watch.start_failed(now);
                Ok(())
            }
        }
    }

    /// Sends a new worker the description of all mounts, and the descriptors.
    fn introduce(&self, worker: &Worker) -> std::io::Result<()> {
        let Some(link) = &worker.link else { return Ok(()) };
        let start = Start {
            protocol: PROTOCOL,
            history: self.history.clone(),
            mounts: self.mounts.iter().map(HeldMount::introduction).collect(),
            keepsakes: self.keepsakes.iter().map(|(name, _)| name.clone()).collect(),
            entrusted: self.deposit.is_some(),
        };
        let descriptors: Vec<BorrowedFd<'_>> = self
            .mounts
            .iter()
            .flat_map(HeldMount::descriptors)
            .chain(self.keepsakes.iter().map(|(_, fd)| fd.as_fd()))
            .collect();
        link.send(&ToWorker::Start(start), &descriptors)
    }

    /// Notes that the worker is about to exit so that one of `program` can take its place.
    pub(super) fn plan_upgrade(&mut self, program: PathBuf) {
        tracing::info!(program = %program.display(), "the next worker");
        let present = std::mem::replace(&mut self.program, program);
        self.proven_program.get_or_insert(present);
        if let Some(worker) = &mut self.worker {
            worker.leaving = true;
        }
    }

    /// If the worker has ended, recalls the requests that it had in hand and decides when the next
    /// one starts.
    pub(super) fn bury_worker(&mut self, proven: bool, now: Instant) -> Result<(), SessionError> {
        let Some(worker) = &mut self.worker else { return Ok(()) };
        let ended = worker.child.try_wait();
        let Some(status) = ended.map_err(|source| SessionError::System { call: "wait", source })?
        else {
            return Ok(());
        };
        let complaint = worker.complaint.take();
        let death = judge(status, worker.leaving);
        self.worker = None;
        if self.watch.is_stopping() {
            return Ok(());
        }
        self.mounts.iter().for_each(HeldMount::recall);
        let obituary = obituary(status, complaint.as_deref());
        if !proven && death == Death::Crash {
            return Err(SessionError::FirstWorker { reason: obituary });
        }
        tracing::warn!(obituary, "the worker is gone");
        if !self.watch.is_serving() {
            self.fall_back();
        }
        self.watch.died(death, now);
        self.history.restarts += 1;
        self.history.last_exit = Some(obituary);
        Ok(())
    }

    /// Goes back to the program before an upgrade, where the new one did not come up.
    fn fall_back(&mut self) {
        if let Some(program) = self.proven_program.take() {
            tracing::error!(
                failed = %self.program.display(), program = %program.display(),
                "the new program does not come up; back to the one before"
            );
            self.program = program;
        }
    }
}
