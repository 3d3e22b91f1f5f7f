//! The core needs neither std nor a heap: a program that is linked without any library runs a pool.
#![cfg(all(not(loom), target_arch = "x86_64"))]

use std::{env, path::Path, process::Command};

/// Builds the program and runs it.
fn run(features: &[&str], target: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (manifest, target) = (root.join("tests/no_std/Cargo.toml"), root.join("target").join(target));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked", "--manifest-path"])
        .arg(&manifest)
        .args(features)
        .arg("--target-dir")
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .status()
        .unwrap();
    assert!(build.success(), "the core asked for std, a heap or a C library");
    let status = Command::new(target.join("release/no-std-proof")).status().unwrap();
    assert_eq!(status.code(), Some(0), "see `check` in tests/no_std for what each status means");
}

#[test]
fn a_program_without_any_library_runs_a_pool() {
    run(&[], "no_std");
}

#[test]
fn nor_does_it_need_one_with_every_adapter_that_says_so() {
    run(&["--features", "everything"], "no_std_everything");
}
