//! Views of layers that podman has removed, until the kernel has forgotten them.
//!
//! ```text
//! shown --- podman uses the layer no longer, and nobody has asked since the last look ---> hidden
//! hidden -- somebody asks for it ---------------------------------------------------------> shown
//! hidden -- the kernel knows none of its nodes: no container, open file or cached name ---> gone
//! ```
//!
//! The kernel remembers what it has cached until it needs the memory, unless it is told that the
//! name is gone: then it drops what nobody uses. It is told by a visit to the path. It drops the
//! name as well, and no longer finds what a container reads after that. Hence two visits: one as
//! what it is, which brings the name back where the kernel has dropped it, and one as gone. A view
//! that stays is visited again at the 3rd, 7th, 15th look and so on: whoever uses it has to ask
//! again for what was dropped.
//!
//! Nothing depends on whether podman really uses a layer no longer, which it tells once and never
//! again: what is hidden answers as ever below its root, and what is gone is shown anew, in new
//! slots, when it is asked for. What does matter is that the kernel knows none of its nodes, see
//! [`Lookups`].
//!
//! [`Lookups`]: undermount_fs::session::Lookups

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use undermount_fs::digest::Digest;
use undermount_fs::view::SlotName;

use super::{Held, ShelfError, Shown, State};
use crate::control::LayersStatus;

/// A view is hidden, or about to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leaving {
    /// Visits so far.
    visits: u32,
    /// Looks since the last of them.
    looks: u32,
}

/// A view stays unvisited for no more looks than this.
const LOOKS_MAX: u32 = 64;

impl Leaving {
    /// Whether it is to be visited at this look.
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
    /// How many views there are.
    pub fn census(&self) -> LayersStatus {
        let state = self.state();
        let leaving = state.views.values().filter(|held| held.leaving.is_some()).count();
        let shown = (state.views.len() - leaving) as u64;
        LayersStatus { shown, leaving: leaving as u64, dropped: state.dropped }
    }

    /// Whether a directory that was offered once is still there. If so, it stays over the next look.
    pub fn has(&self, directory: &Path) -> bool {
        let name = directory.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|hex| format!("sha256:{hex}").parse().ok()) else {
            return false;
        };
        let mut state = self.state();
        let held = state.views.get_mut(&name).filter(|held| held.leaving.is_none());
        held.map(|held| held.asked = true).is_some()
    }

    /// Looks for views that nobody has asked for since the last look and of whose layers podman uses
    /// none, being those that are `used` by the digest of layer or tree: they leave. Which of all
    /// that do are to be visited, at first with their names, until [`Self::hide`].
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

    /// Hides those of `names` that nobody has asked for meanwhile.
    pub fn hide(&self, names: &[Digest]) {
        let state = self.state();
        for name in names {
            if state.views.get(name).is_some_and(|held| held.leaving.is_some()) {
                self.view.hide_layer(name);
            }
        }
    }

    /// The paths of a view, in either mount.
    pub fn paths(&self, name: &Digest) -> [PathBuf; 2] {
        [false, true].map(|xattrs| self.runtime.content(xattrs).join("layers").join(name.hex()))
    }

    /// Drops the hidden views of which the kernel knows nothing any more; how many.
    ///
    /// # Errors
    /// Where it cannot be written down that they are gone. Then the next worker shows them again.
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
