//! Workloads shared by the benches, and how their figures are told.
//!
//! Every bench prints its workload, its machine and each single run; a figure stands beside its
//! reference, measured in turns with it in the same process.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

pub mod figure;
pub mod machine;
pub mod race;
pub mod rebuild;
pub mod stage;
pub mod start;
pub mod traffic;
pub mod workload;
