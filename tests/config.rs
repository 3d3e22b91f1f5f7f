//! Every number that a pool is built from is checked, with an error that names it.
#![cfg(not(loom))]

mod common;

use common::TestHost;
use framepool::{AnonymousMemory, BuildError, Builder, Watermarks};
use std::mem::MaybeUninit;

fn error(builder: Builder) -> BuildError {
    assert_eq!(
        builder.memory_layout().err(),
        builder.build(AnonymousMemory::new(8).unwrap(), TestHost::default()).err()
    );
    builder.memory_layout().unwrap_err()
}

#[test]
fn watermarks_must_not_descend_and_must_fit() {
    for (min, low, high, max) in
        [(3, 2, 4, 8), (1, 5, 4, 8), (1, 2, 8, 7), (1, 2, 3, 9), (9, 9, 9, 9), (0, 0, 0, u32::MAX)]
    {
        let watermarks = Watermarks { min, low, high, max };
        assert_eq!(
            error(Builder::new(8).watermarks(watermarks)),
            BuildError::Watermarks { watermarks, capacity: 8 }
        );
    }
    for capacity in (1..200).chain([1 << 20, u32::MAX - 1]) {
        let Watermarks { min, low, high, max } = Watermarks::for_capacity(capacity);
        assert!(
            min <= low && low <= high && high <= max && max <= capacity,
            "the defaults hold for {capacity}"
        );
    }
}

#[test]
fn zero_and_too_much_are_refused() {
    assert_eq!(error(Builder::new(0)), BuildError::CapacityZero);
    assert_eq!(error(Builder::new(u32::MAX)), BuildError::CapacityTooLarge { capacity: u32::MAX });
    assert_eq!(error(Builder::new(1 << 31)), BuildError::CapacityTooLarge { capacity: 1 << 31 });
    assert_eq!(error(Builder::new(8).cpus(0)), BuildError::Cpus { cpus: 0 });
    assert_eq!(error(Builder::new(8).cpus(usize::MAX)), BuildError::Cpus { cpus: usize::MAX });
    assert_eq!(error(Builder::new(8).magazine_size(0)), BuildError::MagazineSize { magazine_size: 0 });
    assert_eq!(error(Builder::new(8).magazine_size(4096)), BuildError::MagazineSize { magazine_size: 4096 });
    let many = Builder::new((1 << 31) - 1).magazine_size(1);
    assert_eq!(error(many), BuildError::TooManyMagazines { magazine_size: 1 });
    let watermarks = Watermarks { min: 2, low: 2, high: 4, max: 8 };
    let initial = |initial| BuildError::Initial { initial, min: 2, capacity: 8 };
    assert_eq!(error(Builder::new(8).watermarks(watermarks).initial(1)), initial(1));
    assert_eq!(error(Builder::new(8).watermarks(watermarks).initial(9)), initial(9));
}

#[test]
fn given_memory_that_is_too_small_is_refused_and_enough_is_enough() {
    let builder = Builder::new(8).cpus(2);
    let layout = builder.memory_layout().unwrap();
    let memory = |bytes: usize| -> &'static mut [MaybeUninit<u8>] { Box::leak(Box::new_uninit_slice(bytes)) };
    let build =
        |bytes| builder.build_in(memory(bytes), AnonymousMemory::new(8).unwrap(), TestHost::default());
    let needed = layout.size() + layout.align();
    for given in [0, 1, layout.size() / 2, layout.size() - layout.align()] {
        assert_eq!(build(given).err(), Some(BuildError::MemoryTooSmall { given, needed }));
    }
    assert!(build(needed).is_ok());
}

#[test]
fn the_smallest_pool_works() {
    let watermarks = Watermarks { min: 0, low: 0, high: 1, max: 1 };
    let pool = Builder::new(1)
        .watermarks(watermarks)
        .cpus(1)
        .build(AnonymousMemory::new(1).unwrap(), TestHost::default());
    let pool = pool.unwrap();
    let frame = pool.alloc().unwrap();
    assert!(pool.alloc().is_err());
    drop(frame);
    assert!(pool.alloc().is_ok());
}

#[test]
fn bookkeeping_stays_below_twelve_bytes_a_frame() {
    let layout = Builder::new(1_000_000).cpus(2).memory_layout().unwrap();
    let bytes = layout.size() as f64 / 1e6;
    assert!(bytes < 12.0, "{bytes} bytes a frame");
}

#[test]
fn errors_say_what_to_do() {
    let errors = [
        error(Builder::new(0)).to_string(),
        error(Builder::new(8).cpus(0)).to_string(),
        framepool::AllocError::ReserveOnly.to_string(),
    ];
    assert!(errors.iter().all(|text| text.contains("give") || text.contains("free")), "{errors:?}");
}
