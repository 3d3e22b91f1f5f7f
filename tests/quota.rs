//! Quotas: shares that are there, limits that hold, frames that go back where they are needed, and tables charged to a domain.
#![cfg(not(loom))]

mod common;

use common::{Scripted, TestHost, assert_accounts, pool};
use framepool::{
    AllocError, BuildError, Builder, FallbackPolicy, PhysAddr, Quota, QuotaError, QuotaFrame, Request,
    Watermarks, vtd::*,
};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

type Account<'p> = Quota<'p, Scripted, TestHost>;

/// Two CPUs, magazines of four, all frames in the depot; everything may be guaranteed.
fn shape(frames: u32) -> Builder {
    let marks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(marks).cpus(2).magazine_size(4).guarantees(frames);
    builder.fallback(FallbackPolicy::Never)
}

fn all<'q>(account: &'q Account<'_>) -> Vec<QuotaFrame<'q, Scripted, TestHost>> {
    std::iter::from_fn(|| account.alloc().ok()).collect()
}

#[test]
fn shares_are_set_aside_and_limits_hold() {
    let pool = pool(shape(32), 32);
    let (first, second) = (pool.quota(8, 20).unwrap(), pool.quota(4, 32).unwrap());
    assert_accounts(&pool, 12);
    let greedy = all(&second);
    assert_eq!((greedy.len(), second.used()), (4 + 20, 24), "its share and all that is nobody's");
    assert_eq!(second.alloc().unwrap_err(), AllocError::Exhausted);
    let share = all(&first);
    assert_eq!(share.len(), 8, "INV-13: the share is there");
    assert_eq!(first.alloc().unwrap_err(), AllocError::Exhausted);
    drop(greedy);
    assert_accounts(&pool, 8 + 4);
    let more = all(&first);
    assert_eq!((more.len(), first.used()), (12, 20));
    assert_eq!(first.alloc().unwrap_err(), AllocError::OverQuota);
    drop((share, more));
    assert_eq!((first.used(), second.used()), (0, 0));
    assert_accounts(&pool, 12);
    drop((first, second));
    assert_accounts(&pool, 0);
}

#[test]
fn what_an_account_frees_stays_with_it_until_it_has_its_share_again() {
    let pool = pool(shape(16), 16);
    let account = pool.quota(3, 8).unwrap();
    let mut frames = all(&account);
    assert_eq!(frames.len(), 8);
    for (left, out) in [(7, 7), (6, 6), (3, 3), (2, 3), (0, 3)] {
        frames.truncate(left);
        assert_accounts(&pool, out);
    }
    let others: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    assert_eq!((others.len(), all(&account).len()), (13, 3));
}

#[test]
fn zeroed_frames_are_zero_and_clean_ones_are_remembered() {
    let pool = pool(shape(8), 8);
    let account = pool.quota(2, 4).unwrap();
    let frame = account.alloc().unwrap();
    // SAFETY: the frame is ours.
    unsafe { frame.as_ptr().write_bytes(0xAA, 4096) };
    drop(frame);
    let frames: Vec<_> = (0..4).map(|_| account.alloc_with(Request::ORDINARY.zeroed()).unwrap()).collect();
    for frame in &frames {
        // SAFETY: the frame is ours.
        assert!(unsafe { frame.as_ptr().cast::<[u64; 512]>().read() } == [0; 512], "INV-9");
    }
    drop(frames);
    let cleared = pool.stats().cleared_inline;
    let table = TableFrames::allocate(&account).unwrap();
    // SAFETY: it came from `allocate`, and is still zero.
    unsafe { account.free_zeroed(table) };
    let again = TableFrames::allocate(&account).unwrap();
    assert_eq!((again, pool.stats().cleared_inline), (table, cleared + 1), "cleared the first time only");
    // SAFETY: as above.
    unsafe { account.free(again) };
}

#[test]
fn what_cannot_be_promised_is_refused() {
    let pool = pool(shape(16).guarantees(8).initial(6), 16);
    assert_eq!(pool.quota(5, 4).unwrap_err(), QuotaError::AboveLimit { guarantee: 5, limit: 4 });
    assert_eq!(pool.quota(9, 9).unwrap_err(), QuotaError::TooMuchGuaranteed { guarantee: 9, left: 8 });
    assert!(matches!(pool.quota(7, 9).unwrap_err(), QuotaError::Frames(error) if error.missing() == 1));
    let first = pool.quota(5, 5).unwrap();
    assert_eq!(pool.quota(4, 4).unwrap_err(), QuotaError::TooMuchGuaranteed { guarantee: 4, left: 3 });
    let second = pool.quota(0, 1).unwrap();
    assert_eq!((first.guarantee(), second.limit()), (5, 1));
    drop((first, second));
    assert!(pool.quota(6, 6).is_ok(), "what was promised can be promised again");
    assert_accounts(&pool, 0);
    let marks = Watermarks { min: 3, low: 3, high: 8, max: 8 };
    let refused = shape(8).watermarks(marks).guarantees(6).memory_layout().unwrap_err();
    assert_eq!(refused, BuildError::Guarantees { guarantees: 6, most: 5 });
}

/// Four pages apart enough that each needs a table of its own.
fn map_apart(domain: &SecondStageDomain<&Account<'_>>, pages: u64) -> Result<(), MapError> {
    (0..pages).try_for_each(|page| {
        // SAFETY: no device walks these tables.
        unsafe { domain.map(Iova::new(page << 21), PhysAddr::new(0), 4096, Permissions::all()) }
    })
}

#[test]
fn a_domain_cannot_take_more_tables_than_its_quota_and_always_gets_its_share() {
    let pool = pool(shape(64), 64);
    let (greedy, modest) = (pool.quota(0, 40).unwrap(), pool.quota(10, 12).unwrap());
    let config = DomainConfig::new(Levels::Three);
    let domain = SecondStageDomain::new(config, &greedy).unwrap();
    assert_eq!(
        map_apart(&domain, 60),
        Err(MapError::OutOfFrames { missing: 1 }),
        "a root, one of level 2, 38 of level 1"
    );
    assert_eq!((domain.table_frames(), greedy.used()), (40, 40));
    let everything: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    assert_eq!(everything.len(), 14);
    let other = SecondStageDomain::new(config, &modest).unwrap();
    map_apart(&other, 8).expect("INV-13: ten tables are guaranteed");
    // SAFETY: no device walks these tables.
    let beyond = || unsafe { other.map(Iova::new(1 << 30), PhysAddr::new(0), 3 << 21, Permissions::all()) };
    assert_eq!(
        beyond(),
        Err(MapError::OutOfFrames { missing: 4 }),
        "four more tables, for which there is no frame"
    );
    drop(everything);
    assert_eq!(beyond(), Err(MapError::OutOfFrames { missing: 2 }), "four more tables, two beyond the limit");
    assert_eq!((other.table_frames(), modest.used()), (10, 10), "INV-11");
    // SAFETY: no device walks these tables.
    unsafe {
        domain.close().complete();
        other.close().complete();
    }
    assert_eq!((greedy.used(), modest.used()), (0, 0));
    drop((greedy, modest));
    assert_accounts(&pool, 0);
}

#[test]
fn accounts_used_from_several_threads_never_pass_their_limits() {
    let pool = framepool::Builder::new(64)
        .watermarks(Watermarks { min: 0, low: 0, high: 64, max: 64 })
        .guarantees(12)
        .fallback(FallbackPolicy::Never)
        .start(framepool::AnonymousMemory::new(64).unwrap())
        .unwrap();
    let accounts = [pool.quota(4, 10).unwrap(), pool.quota(8, 30).unwrap()];
    let held = [const { AtomicU32::new(0) }; 2];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (account, held) = (&accounts[thread % 2], &held[thread % 2]);
            scope.spawn(move || {
                let mut frames = Vec::new();
                for step in 0..20_000_u32 {
                    if (step * 7 + thread as u32 * 3) % 5 < 3 {
                        if let Ok(frame) = account.alloc() {
                            let others = held.fetch_add(1, SeqCst);
                            assert!(others < account.limit(), "INV-13: the limit");
                            frames.push(frame);
                        }
                    } else if let Some(frame) = frames.pop() {
                        held.fetch_sub(1, SeqCst);
                        drop(frame);
                    }
                }
                held.fetch_sub(frames.len() as u32, SeqCst);
            });
        }
    });
    assert_eq!([accounts[0].used(), accounts[1].used()], [0, 0]);
    let everything: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
    assert_eq!(everything.len(), 52);
    for account in &accounts {
        let share: Vec<_> = std::iter::from_fn(|| account.alloc().ok()).collect();
        assert_eq!(share.len() as u32, account.guarantee(), "INV-13: the guarantee");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Two accounts and callers without one, against plain sums.
    #[test]
    fn guarantees_and_limits_hold_in_every_sequence(
        shares in prop::array::uniform2((0..8u32, 0..12u32)), actions in prop::collection::vec((0..6u8, any::<usize>()), 0..200)
    ) {
        let pool = pool(shape(32), 32);
        let accounts = shares.map(|(guarantee, more)| pool.quota(guarantee, guarantee + more).unwrap());
        let mut held = [const { Vec::new() }; 2];
        let mut others = Vec::new();
        for (action, which) in actions {
            let account = which % 2;
            match action {
                0 | 1 => match accounts[account].alloc() {
                    Ok(frame) => held[account].push(frame),
                    Err(error) => {
                        let used = held[account].len() as u32;
                        prop_assert!(used >= accounts[account].guarantee(), "INV-13: the guarantee");
                        prop_assert_eq!(error == AllocError::OverQuota, used == accounts[account].limit());
                    }
                },
                2 if !held[account].is_empty() => {
                    let which = which % held[account].len();
                    drop(held[account].swap_remove(which));
                }
                3 | 4 => others.extend(pool.alloc()),
                _ if !others.is_empty() => drop(others.swap_remove(which % others.len())),
                _ => {}
            }
            let mut out = others.len() as u64;
            for (account, held) in accounts.iter().zip(&held) {
                prop_assert_eq!(account.used() as usize, held.len());
                prop_assert!(account.used() <= account.limit(), "INV-13: the limit");
                out += u64::from(account.used().max(account.guarantee()));
            }
            assert_accounts(&pool, out);
        }
        drop((held, others));
        drop(accounts);
        assert_accounts(&pool, 0);
    }
}
