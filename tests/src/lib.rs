//! Harness for the suites: image builder, servers, node processes, tree comparison.
