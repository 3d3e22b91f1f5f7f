//! The storm of `signal_storm.rs` on threads that keep caches of their own: their handlers nest in them, and the worker and the threads
//! ask each other for what is in them.
#![cfg(not(loom))]

mod common;
#[path = "common/pool_storm.rs"]
mod pool_storm;
#[path = "common/world.rs"]
mod world;

use framepool::ThreadPlatform;

type Host = ThreadPlatform;

fn main() {
    let platform = ThreadPlatform::new(common::storm::THREADS as u32).unwrap();
    pool_storm::storm(platform, "their threads", |pool| pool.pin_thread().unwrap());
}
