//! The hit path of a take and a give as code of its own, for `.ci/hit-path`, which looks at what the compiler made of it.
//!
//! `cargo run --release --example hit_path`

use framepool::{AnonymousMemory, Builder, Frame, FramePool, LinuxPlatform};
use std::hint::black_box;

type Pool = FramePool<AnonymousMemory, LinuxPlatform>;

#[inline(never)]
fn hit_path_take(pool: &Pool) -> Option<Frame<'_, AnonymousMemory, LinuxPlatform>> {
    pool.alloc().ok()
}

#[inline(never)]
fn hit_path_give(frame: Frame<'_, AnonymousMemory, LinuxPlatform>) {
    drop(frame);
}

fn main() {
    let pool = Builder::new(64).build(AnonymousMemory::new(64).unwrap(), LinuxPlatform::new()).unwrap();
    for _ in 0..1000 {
        if let Some(frame) = black_box(hit_path_take(&pool)) {
            hit_path_give(frame);
        }
    }
    assert_eq!((pool.stats().in_use, pool.stats().misuses), (0, 0));
    println!("{} hits", pool.stats().cache_hits);
}
