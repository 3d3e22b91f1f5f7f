//! A device reaches exactly the buffer that was shared with it: other data in the same pages is never exposed, and nothing is left
//! behind.
#![cfg(not(loom))]

mod common;

use common::{storm::Random, tables::TestFrames};
use framepool::{PhysAddr, vtd::*};
use std::{
    mem::MaybeUninit,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
};

const PAGE: usize = 4096;
const SLOTS: u32 = 8;
const SLOT_PAGES: u32 = 5;
const BASE: u64 = 0x10_0000;

/// A machine whose physical addresses are its virtual ones, without a unit; counts what it was told to forget.
#[derive(Default)]
struct Machine {
    forgotten: AtomicU64,
}

// SAFETY: no unit remembers anything.
unsafe impl WindowHost<&'static TestFrames> for Machine {
    fn physical(&self, pointer: NonNull<u8>) -> PhysAddr {
        PhysAddr::new(pointer.addr().get() as u64)
    }

    fn forget(&self, invalidation: Invalidation<'_, &'static TestFrames>) {
        self.forgotten.fetch_add(1, SeqCst);
        // SAFETY: as above.
        unsafe { invalidation.complete() };
    }
}

type Window = DmaWindow<'static, SecondStage, &'static TestFrames, Machine>;

fn window() -> (&'static TestFrames, &'static Window) {
    let frames: &'static TestFrames = Box::leak(Box::default());
    let domain =
        Box::leak(Box::new(SecondStageDomain::new(DomainConfig::new(Levels::Three), frames).unwrap()));
    let config = WindowConfig { base: Iova::new(BASE), slots: SLOTS, slot_pages: SLOT_PAGES };
    let memory = Box::leak(Box::new([MaybeUninit::uninit(); 4096]));
    let window = DmaWindow::new_in(memory, domain, Machine::default(), config).unwrap();
    (frames, Box::leak(Box::new(window)))
}

/// Memory for buffers that starts at a page.
#[repr(C, align(4096))]
struct Pages([u8; 8 * PAGE]);

fn buffer(pages: &mut Pages, start: usize, length: usize) -> NonNull<[u8]> {
    NonNull::from(&mut pages.0[start..start + length])
}

/// What the device sees at `iova`: the byte, if it may do what `access` says.
fn device(window: &Window, iova: u64, access: Permissions) -> Option<*mut u8> {
    let at = window.domain().translate(Iova::new(iova))?;
    at.permissions.contains(access).then_some(at.target.as_u64() as *mut u8)
}

fn device_reads(window: &Window, iova: u64) -> Option<u8> {
    // SAFETY: what is mapped is memory of this process.
    device(window, iova, Permissions::READ).map(|byte| unsafe { byte.read_volatile() })
}

fn device_writes(window: &Window, iova: u64, value: u8) -> bool {
    // SAFETY: as above.
    device(window, iova, Permissions::WRITE).map(|byte| unsafe { byte.write_volatile(value) }).is_some()
}

#[test]
fn the_device_reads_the_buffer_and_zeros_around_it() {
    let (_, window) = window();
    for (start, length) in
        [(100, 200), (0, 1), (PAGE - 1, 2), (10, PAGE), (0, 3 * PAGE), (500, 4 * PAGE), (PAGE, PAGE)]
    {
        let mut pages = Box::new(Pages([0xEE; 8 * PAGE]));
        for (at, byte) in pages.0[start..start + length].iter_mut().enumerate() {
            *byte = at as u8 | 1;
        }
        let shared = buffer(&mut pages, start, length);
        // SAFETY: the buffer is left alone until it is withdrawn.
        let iova = unsafe { window.share(shared, Permissions::READ) }.unwrap().as_u64();
        assert!(!device_writes(window, iova, 1), "the device may only read");
        let first = iova - start as u64 % PAGE as u64;
        for at in 0..(start % PAGE + length).next_multiple_of(PAGE) {
            let inside = at.wrapping_sub(start % PAGE);
            let expected = if inside < length { inside as u8 | 1 } else { 0 };
            assert_eq!(device_reads(window, first + at as u64), Some(expected), "{start} {length} {at}");
        }
        assert_eq!(device_reads(window, first - 1), None);
        // SAFETY: as shared.
        unsafe { window.withdraw(Iova::new(iova), shared, Permissions::READ) };
        assert_eq!(window.domain().mappings().count(), 0);
    }
    assert_eq!(window.host().forgotten.load(SeqCst), 7, "hardware is told once for each buffer");
}

#[test]
fn what_the_device_writes_arrives_and_nothing_around_it_changes() {
    let (frames, window) = window();
    for (start, length) in [(100, 200), (PAGE - 1, 2), (10, PAGE), (4, 3 * PAGE), (0, 2 * PAGE)] {
        let mut pages = Box::new(Pages([0xEE; 8 * PAGE]));
        let shared = buffer(&mut pages, start, length);
        // SAFETY: the buffer is left alone until it is withdrawn.
        let iova = unsafe { window.share(shared, Permissions::WRITE) }.unwrap().as_u64();
        assert_eq!(device_reads(window, iova), None, "the device may only write");
        let first = iova - start as u64 % PAGE as u64;
        for at in 0..(start % PAGE + length).next_multiple_of(PAGE) as u64 {
            assert!(device_writes(window, first + at, 0x77), "a device writes wherever it can");
        }
        // SAFETY: as shared.
        unsafe { window.withdraw(Iova::new(iova), shared, Permissions::WRITE) };
        for (at, &byte) in pages.0.iter().enumerate() {
            let inside = (start..start + length).contains(&at);
            assert_eq!(byte, if inside { 0x77 } else { 0xEE }, "{start} {length} {at}");
        }
    }
    assert_eq!(frames.live(), window.domain().table_frames(), "every bounce frame is back");
}

#[test]
fn a_share_that_fails_leaves_nothing_behind() {
    let (frames, window) = window();
    let mut pages = Box::new(Pages([0; 8 * PAGE]));
    let shared = buffer(&mut pages, 1, 3 * PAGE);
    // SAFETY: nobody touches the buffer.
    let share = |access| unsafe { window.share(shared, access) };
    let before = frames.live();
    for lacking in 0..4 {
        frames.allow(lacking);
        assert!(matches!(share(Permissions::all()), Err(ShareError::NoFrame | ShareError::Map(_))));
        assert_eq!(window.domain().mappings().count(), 0);
        assert_eq!(frames.live(), before + window.domain().table_frames() - 1);
    }
    frames.allow(u64::MAX);
    assert_eq!(share(Permissions::empty()), Err(ShareError::Map(MapError::NoPermissions)));
    let held: Vec<_> = (0..SLOTS).map(|_| share(Permissions::all()).unwrap()).collect();
    assert_eq!(share(Permissions::all()), Err(ShareError::NoSlot));
    // SAFETY: no buffer is there.
    unsafe {
        window.withdraw(Iova::new(BASE - 1), shared, Permissions::all());
        window.withdraw(Iova::new(BASE << 20), shared, Permissions::all());
    }
    for iova in held {
        // SAFETY: as shared.
        unsafe { window.withdraw(iova, shared, Permissions::all()) };
        // SAFETY: a buffer that is there no more.
        unsafe { window.withdraw(iova, shared, Permissions::all()) };
    }
    assert_eq!(window.domain().mappings().count(), 0);
    let empty = buffer(&mut pages, 5, 0);
    // SAFETY: nobody touches the buffers.
    unsafe {
        assert_eq!(window.share(empty, Permissions::all()), Err(ShareError::Empty));
        let long = buffer(&mut pages, 1, SLOT_PAGES as usize * PAGE);
        assert_eq!(
            window.share(long, Permissions::all()),
            Err(ShareError::TooLong { pages: 6, most: SLOT_PAGES })
        );
    }
    assert!((0..SLOTS).all(|_| share(Permissions::all()).is_ok()), "every slot is free again");
}

#[test]
fn a_window_lies_in_its_domain() {
    let frames: &'static TestFrames = Box::leak(Box::default());
    let domain =
        Box::leak(Box::new(SecondStageDomain::new(DomainConfig::new(Levels::Three), frames).unwrap()));
    let window = |base, slots, slot_pages, bytes: usize| {
        let config = WindowConfig { base: Iova::new(base), slots, slot_pages };
        let memory = vec![MaybeUninit::uninit(); bytes].leak();
        DmaWindow::new_in(memory, &*domain, Machine::default(), config).err()
    };
    for (base, slots, slot_pages) in [
        (0, 1, 1),
        (1, 1, 1),
        (BASE, 0, 1),
        (BASE, 1, 0),
        (1 << 39, 1, 1),
        (0xFEDF_F000, 2, 1),
        (!0xFFF, u32::MAX, u32::MAX),
    ] {
        let refused = window(base, slots, slot_pages, 4096);
        assert!(matches!(refused, Some(WindowError::Range { .. })), "{base:#x} {slots} {slot_pages}");
    }
    assert_eq!(window((1 << 39) - 0x1000, 1, 1, 4096), None);
    assert_eq!(window(BASE, 64, 1, 16), Some(WindowError::MemoryTooSmall { given: 16 }));
}

#[test]
fn threads_share_buffers_at_the_same_time() {
    let (frames, window) = window();
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut pages = Box::new(Pages([0; 8 * PAGE]));
                for _ in 0..400 {
                    let start = random.next() as usize % PAGE;
                    let length = 2 + random.next() as usize % (2 * PAGE);
                    let value = random.next() as u8;
                    pages.0.fill(value);
                    let shared = buffer(&mut pages, start, length);
                    // SAFETY: the buffer is left alone until it is withdrawn.
                    let Ok(iova) = (unsafe { window.share(shared, Permissions::all()) }) else { continue };
                    for at in [0, length as u64 - 1] {
                        assert_eq!(device_reads(window, iova.as_u64() + at), Some(value));
                        assert!(device_writes(window, iova.as_u64() + at, !value));
                    }
                    // SAFETY: as shared.
                    unsafe { window.withdraw(iova, shared, Permissions::all()) };
                    let mut expected = [value; 8 * PAGE];
                    expected[start] = !value;
                    expected[start + length - 1] = !value;
                    assert_eq!(pages.0, expected);
                }
            });
        }
    });
    assert_eq!(window.domain().mappings().count(), 0);
    assert_eq!(frames.live(), window.domain().table_frames());
}
