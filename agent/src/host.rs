//! The machine underneath: what is mounted, what its programs say, what its podman is.
//!
//! Every look is bounded in time and none touches a mount: this serves those who want to know why
//! a node is stuck.

pub mod mounts;
pub mod podman;
pub mod program;
