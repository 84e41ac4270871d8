//! The machine underneath: its service manager, its mounts, its programs, its files, its podman.
//!
//! Every look is bounded in time and none touches a mount: this serves those who want to know why
//! a node is stuck.

pub mod file;
pub mod manager;
pub mod mounts;
pub mod patience;
pub mod podman;
pub mod program;
pub mod unit;
