//! Nothing: a package must have a target besides its benchmarks.
