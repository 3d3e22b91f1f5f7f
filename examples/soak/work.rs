//! What the threads of the soak and their handlers do: every call of the pool that may be made there, at random, with every frame accounted for.

use crate::common::{
    Scripted,
    storm::{Harness, Random, THREADS},
};
use crate::world::*;
use framepool::{
    Frame, LinuxPlatform, PhysAddr, Quota, QuotaFrame, Request, Reservation,
    vtd::{Iova, ReclaimError},
};
use std::{
    ptr::NonNull,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst},
};

/// Frames that the handlers of a thread keep between two signals at most.
const STASH: usize = 16;
/// Frames that a thread holds at most.
pub const HELD: usize = 64;
/// Frames of a reservation.
const RESERVED: u32 = 6;
/// What each thread's quota promises, and where it ends.
pub const GUARANTEE: u32 = 3;
pub const LIMIT: u32 = 12;

type Stash = [AtomicU64; STASH];
type OwnReservation = Reservation<'static, Scripted, LinuxPlatform>;
type OwnQuota = Quota<'static, Scripted, LinuxPlatform>;

/// What the handlers kept, as addresses with 0 for nothing; taken and put by single exchanges.
static STASHES: [Stash; THREADS] = [const { [const { AtomicU64::new(0) }; STASH] }; THREADS];
/// The same for frames of the thread's quota.
static QUOTA_STASHES: [Stash; THREADS] = [const { [const { AtomicU64::new(0) }; STASH] }; THREADS];
/// The reservation that a thread and its handlers draw from.
static RESERVATIONS: [AtomicPtr<OwnReservation>; THREADS] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; THREADS];
static QUOTAS: [AtomicPtr<OwnQuota>; THREADS] = [const { AtomicPtr::new(std::ptr::null_mut()) }; THREADS];

/// Frames that were to be zero and were not.
pub static NOT_ZERO: AtomicU64 = AtomicU64::new(0);
pub static DRAWN: AtomicU64 = AtomicU64::new(0);
pub static CHARGED: AtomicU64 = AtomicU64::new(0);
pub static TRANSLATED: AtomicU64 = AtomicU64::new(0);
pub static RECLAIMED: AtomicU64 = AtomicU64::new(0);

/// Leaves something in a frame, but where its stamp is.
fn soil(start: NonNull<u8>, random: u64) {
    // SAFETY: the frame is the caller's, 4 KiB large, and reached as words that are atomics.
    let words = unsafe { start.cast::<[AtomicU64; 512]>().as_ref() };
    words[2 + random as usize % 510].store(random | 1, SeqCst);
}

/// INV-9. Before the frame gets its stamp.
fn check_zero(start: NonNull<u8>) {
    // SAFETY: as for `soil`.
    let words = unsafe { start.cast::<[AtomicU64; 512]>().as_ref() };
    if words.iter().any(|word| word.load(SeqCst) != 0) {
        NOT_ZERO.fetch_add(1, SeqCst);
    }
}

/// A zeroed frame, looked at.
pub fn take_zeroed() -> Option<Handle<'static>> {
    let Ok(frame) = pool().alloc_zeroed() else {
        REFUSED.fetch_add(1, SeqCst);
        return None;
    };
    check_zero(frame.as_ptr());
    ALLOCATED.fetch_add(1, SeqCst);
    own(&frame);
    Some(frame)
}

/// Puts `frame` into the stash, and gives back what was there.
fn exchange(place: &AtomicU64, frame: Option<Handle<'static>>) {
    let old = place.swap(frame.map_or(0, |frame| frame.into_raw().as_u64()), SeqCst);
    if old != 0 {
        // SAFETY: the stash holds each address once, and the exchange took it out.
        give(unsafe { Frame::from_raw(pool(), PhysAddr::new(old)) });
    }
}

/// A frame of the thread's quota into the stash if `takes`, and back what was there.
fn exchange_charged(thread: usize, place: &AtomicU64, takes: bool) {
    // SAFETY: the quota lives until the threads are gone, and the handlers with them.
    let Some(quota) = (unsafe { QUOTAS[thread].load(SeqCst).as_ref() }) else { return };
    let frame = if takes { quota.alloc().ok() } else { None };
    let new = frame.map_or(0, |frame| {
        CHARGED.fetch_add(1, SeqCst);
        own_at(frame.phys_addr(), frame.as_ptr());
        frame.into_raw().as_u64()
    });
    let old = place.swap(new, SeqCst);
    if old != 0 {
        // SAFETY: as for `exchange`.
        let frame = unsafe { QuotaFrame::from_raw(quota, PhysAddr::new(old)) };
        disown_at(frame.phys_addr(), frame.as_ptr());
    }
}

/// Draws a frame from the thread's reservation, if it has one.
fn draw(thread: usize) -> Option<Handle<'static>> {
    // SAFETY: only the thread itself replaces its reservation, and its handlers come and go in between.
    let reservation = unsafe { RESERVATIONS[thread].load(SeqCst).as_ref() }?;
    let frame = reservation.draw()?;
    DRAWN.fetch_add(1, SeqCst);
    own(&frame);
    Some(frame)
}

/// Replaces the thread's reservation; what was not drawn goes back. In the thread only.
fn reserve(harness: &Harness, thread: usize, renew: bool) {
    let reservation = if renew { harness.operation(thread, || pool().reserve(RESERVED).ok()) } else { None };
    let new = reservation.map_or(std::ptr::null_mut(), |reservation| Box::into_raw(Box::new(reservation)));
    let old = RESERVATIONS[thread].swap(new, SeqCst);
    if !old.is_null() {
        // SAFETY: made by `into_raw` above, and no handler of this thread is in the middle of using it now.
        let old = unsafe { Box::from_raw(old) };
        harness.operation(thread, || drop(old));
    }
}

/// Where a page of any thread's range goes is where it is, or nowhere.
fn look(random: u64) {
    let (iova, length) = range(random as usize % THREADS, (random >> 8) as usize % RANGES);
    let iova = iova.as_u64() + (random >> 16) % length;
    TRANSLATED.fetch_add(1, SeqCst);
    if domain().translate(Iova::new(iova)).is_some_and(|at| at.target.as_u64() != iova) {
        STALE.fetch_add(1, SeqCst);
    }
}

/// Returns tables that have become empty.
fn reclaim() {
    match domain().reclaim(Iova::new(0), 1 << 40) {
        Ok(invalidation) => {
            RECLAIMED.fetch_add(invalidation.table_frames(), SeqCst);
            // SAFETY: no device walks these tables.
            unsafe { invalidation.complete() };
        }
        Err(ReclaimError::InProgress) => {}
        Err(_) => drop(WRONG.fetch_add(1, SeqCst)),
    }
}

fn bulk(request: Request) {
    let mut frames = [const { None }; 5];
    if pool().alloc_bulk_exact(request, &mut frames).is_ok() {
        frames.iter().flatten().for_each(own);
        frames.iter().flatten().for_each(disown);
        pool().free_bulk(&mut frames);
    }
}

/// What a handler does: balanced, or taking more than it gives, or the reverse; from `random`.
pub fn handler(thread: usize, random: u64) {
    let place = |step: u64| &STASHES[thread][(random.wrapping_mul(step * 2 + 1) >> 33) as usize % STASH];
    match random % 10 {
        0 => take(Request::ORDINARY).map_or((), give),
        1 => (0..3).for_each(|step| exchange(place(step), take(Request::ORDINARY))),
        2 => (0..3).for_each(|step| exchange(place(step), None)),
        3 => exchange(place(0), take(Request::CRITICAL)),
        4 => bulk(Request::ORDINARY),
        5 => toggle(thread, (random >> 17) as usize % RANGES),
        6 => exchange(place(0), take_zeroed()),
        7 => exchange(place(0), draw(thread)),
        8 => exchange_charged(
            thread,
            &QUOTA_STASHES[thread][(random >> 33) as usize % STASH],
            random >> 32 & 1 == 0,
        ),
        _ => look(random >> 8),
    }
}

/// What a thread does between signals, each call marked as an operation.
pub fn work(harness: &Harness, thread: usize, random: &mut Random, held: &mut Vec<Handle<'static>>) {
    for _ in 0..64 {
        let number = random.next();
        match number % 32 {
            0 => harness.operation(thread, || toggle(thread, (number >> 8) as usize % RANGES)),
            1 => harness.operation(thread, || look(number >> 8)),
            2 => harness.operation(thread, || bulk(Request::ORDINARY)),
            3 => {
                let place = &QUOTA_STASHES[thread][(number >> 33) as usize % STASH];
                harness.operation(thread, || exchange_charged(thread, place, number >> 32 & 1 == 0));
            }
            4 if number >> 8 & 3 == 0 => reserve(harness, thread, number >> 16 & 3 != 0),
            5 if number >> 8 & 7 == 0 => harness.operation(thread, reclaim),
            6 | 7 if held.len() < HELD => held.extend(harness.operation(thread, || draw(thread))),
            8 | 9 if held.len() < HELD => held.extend(harness.operation(thread, take_zeroed)),
            10..21 if held.len() < HELD => {
                held.extend(harness.operation(thread, || take(Request::ORDINARY)));
            }
            _ if !held.is_empty() => {
                let frame = held.swap_remove((number >> 8) as usize % held.len());
                soil(frame.as_ptr(), number >> 8);
                harness.operation(thread, || give(frame));
            }
            _ => {}
        }
    }
}

/// Gives each thread a quota.
pub fn share_out() {
    for place in &QUOTAS {
        let quota = pool().quota(GUARANTEE, LIMIT).expect("the pool can promise so much");
        place.store(Box::into_raw(Box::new(quota)), SeqCst);
    }
}

/// The most that a quota has in use.
pub fn most_charged() -> u32 {
    // SAFETY: the quotas live until the threads are gone, and the caller waits for that.
    let used = QUOTAS.iter().filter_map(|place| unsafe { place.load(SeqCst).as_ref() }.map(OwnQuota::used));
    used.max().unwrap_or(0)
}

/// Gives back all that a thread and its handlers keep. Its timers have stopped.
pub fn clear(harness: &Harness, thread: usize, held: Vec<Handle<'static>>) {
    held.into_iter().for_each(give);
    reserve(harness, thread, false);
    STASHES[thread].iter().for_each(|place| exchange(place, None));
    QUOTA_STASHES[thread].iter().for_each(|place| exchange_charged(thread, place, false));
}

/// Ends the quotas. All threads are gone.
pub fn take_shares_back() {
    for place in &QUOTAS {
        let quota = place.swap(std::ptr::null_mut(), SeqCst);
        // SAFETY: made by `into_raw` in `share_out`; nobody uses it any more.
        assert_eq!(unsafe { Box::from_raw(quota) }.used(), 0, "a frame of a quota was lost");
    }
}
