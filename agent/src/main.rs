//! The `undermount` binary: parses, runs, returns an exit code.

fn main() {}
