//! The pull-through mirror on a loopback address, for clients that pull whole images.

pub mod upstream;
