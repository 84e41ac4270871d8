//! The owner of a cache directory: images made ready, mounted, completed.
//!
//! ```text
//! command -- control socket --> api -> owner -> images -> fill -> supply -> registry
//!                                        |         `--> index, tree
//!                                        `--> view, slots, bind mount
//! ```

pub mod api;
mod binding;
pub mod cache;
pub mod completion;
mod figures;
pub mod foresight;
mod health;
pub mod images;
pub mod layers;
pub mod owner;
pub mod packing;
pub mod peers;
pub mod pins;
pub mod process;
pub mod readahead;
pub mod recordings;
pub mod sharing;
mod slow;
pub mod starts;
#[cfg(test)]
mod testing;
pub mod upkeep;

pub use binding::{BindError, check_mount_point, is_mounted};
