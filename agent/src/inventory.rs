//! What a registry or an image-serve tree holds: listed, described, checked and repaired.
//!
//! A tree is served to ourselves for that ([`Holder`]), so that everything here asks a registry.

mod list;
mod place;
mod repair;
mod show;
mod verify;

pub use list::{Listed, list};
pub use place::{Holder, Place, PlaceError, Wanted};
pub use show::{IndexState, Shown, show};
pub use verify::{Checked, Damage, Verification, verify};
