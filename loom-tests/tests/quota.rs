//! Quotas: charge and uncharge at once, beside others who take everything (INV-13).
#![cfg(loom)]
#![allow(missing_docs)]

use framepool::{AllocError, Builder, FallbackPolicy, Quota, Watermarks};
use loom::sync::Arc;
use loom_tests::{Host, Source, UNBOUNDED, Watched, forever, on_cpu, watched};

type Account = Quota<'static, Source, Host>;

/// A pool in which all frames but a magazine's may be guaranteed, and an account on it.
///
/// # Safety
/// The account goes before the pool.
unsafe fn account(frames: u32, guarantee: u32, limit: u32) -> (Arc<Watched>, Arc<Account>) {
    let watermarks = Watermarks { min: 0, low: 0, high: frames, max: frames };
    let builder = Builder::new(frames).watermarks(watermarks).cpus(2).magazine_size(1).guarantees(guarantee);
    let watched = watched(builder.fallback(FallbackPolicy::Never), frames);
    // SAFETY: the caller's.
    let shared = unsafe { forever(&watched) };
    let account = Arc::new(shared.pool.quota(guarantee, limit).unwrap());
    (watched, account)
}

/// Takes a frame, uses it, and gives it back.
fn take_and_give(watched: &Watched, account: &Account) -> Result<(), AllocError> {
    let frame = account.alloc()?;
    watched.touch_at(frame.phys_addr());
    Ok(())
}

#[test]
fn two_callers_of_one_account_never_pass_its_limit() {
    loom_tests::model(UNBOUNDED, || {
        // SAFETY: both threads are done, and the account is dropped, before the pool goes.
        let (watched, account) = unsafe { account(2, 1, 1) };
        let other = {
            let (watched, account) = (Arc::clone(&watched), Arc::clone(&account));
            on_cpu(1, move || {
                let frame = account.alloc();
                assert!(account.used() <= 1, "INV-13: the limit");
                frame.map(|frame| watched.touch_at(frame.phys_addr()))
            })
        };
        let mine = account.alloc();
        assert!(account.used() <= 1, "INV-13: the limit");
        let mine = mine.map(|frame| watched.touch_at(frame.phys_addr()));
        let theirs = other.join().unwrap();
        assert!(mine.is_ok() || theirs.is_ok(), "there was room for one");
        assert_eq!(account.used(), 0);
        drop(account);
        watched.assert_complete(2);
    });
}

#[test]
fn the_guarantee_is_met_while_another_takes_all_that_there_is() {
    loom_tests::model(3, || {
        // SAFETY: as above.
        let (watched, account) = unsafe { account(2, 1, 2) };
        let other = {
            let watched = Arc::clone(&watched);
            on_cpu(1, move || watched.pool.alloc().map(|frame| watched.touch(&frame)).is_ok())
        };
        let first = account.alloc().expect("INV-13: the guarantee");
        // What is beyond it is there or not.
        drop((account.alloc(), first));
        take_and_give(&watched, &account).expect("INV-13: the guarantee");
        other.join().unwrap();
        drop(account);
        watched.assert_complete(2);
    });
}

/// What one gives back while the other takes beyond the guarantee: the account has its guarantee again, and the pool the rest.
#[test]
fn a_frame_that_comes_back_while_another_is_charged_goes_where_it_is_needed() {
    loom_tests::model(UNBOUNDED, || {
        // SAFETY: as above.
        let (watched, account) = unsafe { account(2, 1, 2) };
        let first = account.alloc().unwrap().into_raw();
        let other = {
            let (watched, account) = (Arc::clone(&watched), Arc::clone(&account));
            on_cpu(1, move || {
                // SAFETY: what is borrowed ends before the account does.
                let shared = unsafe { &*Arc::as_ptr(&account) };
                // SAFETY: the frame was laid down as this address, once.
                let frame = unsafe { framepool::QuotaFrame::from_raw(shared, first) };
                watched.touch_at(frame.phys_addr());
            })
        };
        if let Ok(frame) = account.alloc() {
            watched.touch_at(frame.phys_addr());
        }
        other.join().unwrap();
        // Somebody takes what is in the pool; the guarantee is there all the same.
        let rest: Vec<_> = core::iter::from_fn(|| watched.pool.alloc().ok()).collect();
        take_and_give(&watched, &account).expect("INV-13: the guarantee");
        drop((rest, account));
        watched.assert_complete(2);
    });
}
