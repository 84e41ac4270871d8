//! Views of layers that podman has removed, until the kernel has forgotten them.
//!
//! ```text
//! shown --- podman uses the layer no longer, and nobody has asked since the last look ---> hidden
//! hidden -- somebody asks for it ---------------------------------------------------------> shown
//! hidden -- the kernel knows none of its nodes: no container, open file or cached name ---> gone
//! ```
//!
//! The kernel keeps what it has cached until it needs the memory, unless it finds the name gone:
//! then it drops what nobody uses. It finds that out when somebody visits the path. It drops the
//! name as well, so a later visit would not reach what a container has read since. Each view is
//! therefore visited twice: first with its name, so that the kernel caches the name again if it had
//! dropped it, and then hidden. A view that stays is visited again at the 3rd, 7th, 15th look and
//! so on, since whoever uses it has to ask again for what was dropped.
//!
//! Nothing depends on whether podman has really stopped to use a layer, which it reports once and
//! never again: what is hidden is answered as before below its root, and what is gone is shown
//! anew, in new slots, when somebody asks for it. Correctness depends only on the kernel knowing
//! none of its nodes, see [`Lookups`].
//!
//! [`Lookups`]: undermount_fs::session::Lookups

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use undermount_fs::digest::Digest;
use undermount_fs::view::SlotName;

use super::{Held, ShelfError, Shown, State};
use crate::control::LayersStatus;

/// The visits to a view that is hidden, or about to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaving {
    /// Visits so far.
    visits: u32,
    /// Looks since the last visit.
    looks: u32,
}

/// The most looks between two visits to a view.
const LOOKS_MAX: u32 = 64;

impl Leaving {
    /// Counts a look. Returns whether the view is to be visited at it.
    fn is_due(&mut self) -> bool {
        self.looks += 1;
        let is_due =
            self.looks >= 1_u32.checked_shl(self.visits).unwrap_or(LOOKS_MAX).min(LOOKS_MAX);
        if is_due {
            *self = Self { visits: self.visits + 1, looks: 0 };
        }
        is_due
    }
}

impl Shown {
    /// Counts the views: shown, leaving, and dropped so far.
    pub fn census(&self) -> LayersStatus {
        let state = self.state();
        let leaving = state.views.values().filter(|held| held.leaving.is_some()).count();
        let shown = (state.views.len() - leaving) as u64;
        LayersStatus { shown, leaving: leaving as u64, dropped: state.dropped }
    }

    /// Whether a directory that was offered once is still shown. If so, it stays beyond the next
    /// look.
    pub fn has(&self, directory: &Path) -> bool {
        let name = directory.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|hex| Digest::from_hex(hex).ok()) else { return false };
        let mut state = self.state();
        let held = state.views.get_mut(&name).filter(|held| held.leaving.is_none());
        held.map(|held| held.asked = true).is_some()
    }

    /// Makes views leave that nobody has asked for since the last look and whose layer podman does
    /// not use. `used` has the digests of used layers or of their trees. Returns the views that are
    /// to be visited, which have their names back until [`Self::hide`].
    pub fn look(&self, used: &HashSet<Digest>) -> Vec<Digest> {
        let mut due = Vec::new();
        let mut state = self.state();
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, held) in &mut state.views {
            let was_asked = std::mem::take(&mut held.asked);
            let is_used = [held.tree, held.layer].iter().any(|digest| used.contains(digest));
            if held.leaving.is_none() && !was_asked && !is_used {
                held.leaving = Some(Leaving::default());
            }
            if held.leaving.as_mut().is_some_and(Leaving::is_due) {
                self.view.unhide_layer(name, &slots);
                due.push(*name);
            }
        }
        due
    }

    /// Hides those of `names` that nobody has asked for since [`Self::look`].
    pub fn hide(&self, names: &[Digest]) {
        let state = self.state();
        for name in names {
            if state.views.get(name).is_some_and(|held| held.leaving.is_some()) {
                self.view.hide_layer(name);
            }
        }
    }

    /// The paths that a view may have: without and with extended attributes.
    pub fn paths(&self, name: &Digest) -> [PathBuf; 2] {
        [false, true].map(|xattrs| self.runtime.content(xattrs).join("layers").join(name.hex()))
    }

    /// Drops the hidden views of which the kernel knows no node any more, and returns how many.
    ///
    /// # Errors
    /// [`ShelfError`] where slots or log cannot be written. Then the next worker shows the views
    /// again.
    pub fn drop_forgotten(&self) -> Result<usize, ShelfError> {
        let mut state = self.state();
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free: Vec<SlotName> = Vec::new();
        let before = state.views.len();
        state.views.retain(|name, held| {
            let freed = match held.leaving {
                Some(_) => self.view.drop_layer(name, &held.tree, &slots),
                None => Vec::new(),
            };
            free.extend(&freed);
            freed.is_empty()
        });
        let dropped = before - state.views.len();
        if dropped > 0 {
            state.dropped += dropped as u64;
            slots.give_up(&free).map_err(ShelfError::of(&self.runtime.slots()))?;
            self.write_all_down(&mut state)?;
        }
        Ok(dropped)
    }

    fn write_all_down(&self, state: &mut State) -> Result<(), ShelfError> {
        let held = state.views.values().map(|held: &Held| &held.line);
        let lines: Vec<String> = state.lost.iter().chain(held).cloned().collect();
        let written = self.log(&mut state.log).and_then(|log| log.replace(&lines));
        written.map_err(ShelfError::of(&self.runtime.layers()))
    }
}

#[cfg(test)]
mod tests;
