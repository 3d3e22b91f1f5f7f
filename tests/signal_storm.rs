//! A storm of signals on every thread of a pool: timers tens of microseconds apart interrupt the pool's operations at
//! arbitrary instructions, and the handlers use the same pool, balanced or not, map and unmap in a domain over it, and nest.
//!
//! Owner stamps prove that no frame was handed out twice, the accounts at the end that none was lost: a stamp in each data
//! frame, and one beside the pool for every frame, since a table has no room for one. The harness is as signal-safe as what it
//! tests: atomics only, and no memory from the heap in a handler. Too few signals inside an operation fail the test, since it
//! then has shown nothing. `FRAMEPOOL_STORM_SECONDS` sets the length (default 4, once for each way to own a cache).
#![cfg(not(loom))]

mod common;
#[path = "common/pool_storm.rs"]
mod pool_storm;
#[path = "common/world.rs"]
mod world;

use framepool::LinuxPlatform;

type Host = LinuxPlatform;

/// Runs this program once for each way in which a cache can be owned.
fn main() {
    match std::env::var("FRAMEPOOL_STORM_PLATFORM").as_deref() {
        Ok("claiming") => run(LinuxPlatform::claiming()),
        Ok(_) => run(LinuxPlatform::new()),
        Err(_) => {
            for platform in ["new", "claiming"] {
                let program = std::env::current_exe().unwrap();
                let mut command = std::process::Command::new(program);
                assert!(command.env("FRAMEPOOL_STORM_PLATFORM", platform).status().unwrap().success());
            }
        }
    }
}

fn run(platform: LinuxPlatform) {
    let owner = if platform.uses_restartable_sequences() { "restartable sequences" } else { "claim" };
    pool_storm::storm(platform, owner, |_| ());
}
