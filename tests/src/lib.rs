//! Harness for the suites: image builder, servers, node processes, tree comparison.
//!
//! Everything here runs in tests only: it may panic and print, which says what went wrong.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

pub mod apache;
pub mod architecture;
pub mod archive;
pub mod artifact;
pub mod cluster;
pub mod commands;
pub mod compression;
pub mod conformance;
pub mod debian;
pub mod distribution;
pub mod edge;
pub mod fuzz;
pub mod gallery;
pub mod golden;
pub mod grove;
pub mod hostile;
pub mod http;
pub mod image;
pub mod image_serve;
pub mod manager;
pub mod model;
pub mod network;
pub mod node;
pub mod origin;
pub mod podman;
pub mod port;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod registry;
pub mod requirement;
pub mod root;
pub mod session;
pub mod shelf;
pub mod soak;
pub mod systemd;
pub mod tree;
pub mod userland;
pub mod wave;
