//! Container images as a registry describes them: names, manifests, platforms, and the index
//! artifact that Undermount attaches. No network here; everything takes and gives bytes.

pub mod artifact;
pub mod manifest;
pub mod platform;
pub mod reference;
pub mod referrers;
pub mod run;

pub use manifest::{Descriptor, Document, ImageConfig, Index, Manifest, ManifestError, media_type};
pub use platform::Platform;
pub use reference::{Reference, ReferenceError, Repository, Tag};
pub use run::RunConfig;
