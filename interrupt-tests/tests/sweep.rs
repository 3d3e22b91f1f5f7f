//! The sweep as part of `cargo test`: the release build of it, whatever profile this test has.
//!
//! `FRAMEPOOL_SWEEP_EVERY` (default 9) says with one of how many interrupts each instruction is tried, in turn: with a
//! ninth of them in each state, and so with each of them over the states. The command itself tries all.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::{env, process::Command};

#[test]
fn every_operation_may_be_interrupted_at_every_instruction() {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let every = env::var("FRAMEPOOL_SWEEP_EVERY").unwrap_or_else(|_| "9".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--locked", "-p", "interrupt-tests", "--", "--every", &every])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // An incremental build is cut into more pieces, between which less is inlined: the limits are not for those.
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .unwrap();
    assert!(status.success(), "see what the sweep printed above");
}
