//! Owns which thread of a process has a cache of its own: a number for each, in a table of the thread's.
//!
//! # Why a number is its thread's alone
//! It is taken out of a stock, and written into the thread's table beside a key that no other stock ever has had; it goes back to the
//! stock after it was wiped from there. So two threads never find the same number under one key, also when a thread ends without
//! giving it back: then it is lost to the stock. Who takes a number that came back sees what was done under it before (Release and
//! Acquire of the stock).
//!
//! # Why a signal handler may look at any time
//! Handlers nest on their thread. The table is constant at first and has no destructor, so nothing is set up by the first look and
//! nothing is gone at the last. An entry is there from the moment in which its key is: the key is written last, and wiped first.

use super::{
    arena::{Arena, Measure, Memory},
    numbers::Numbers,
    pinned::PinnedContext,
};
use crate::sync::{
    atomic::{AtomicU32, AtomicU64, Ordering},
    nesting,
};

/// Of how many stocks a thread can have a number at a time.
pub(crate) const STOCKS_LIMIT: usize = 4;

/// No stock has this key.
const VACANT: u64 = 0;

/// The key of the next stock.
static NEXT_KEY: AtomicU64 = AtomicU64::new(VACANT + 1);

/// A number that this thread has.
struct Place {
    key: AtomicU64,
    number: AtomicU32,
}

std::thread_local! {
    static PLACES: [Place; STOCKS_LIMIT] =
        const { [const { Place { key: AtomicU64::new(VACANT), number: AtomicU32::new(0) } }; STOCKS_LIMIT] };
}

/// A stock of numbers for threads.
#[derive(Debug)]
pub struct ThreadNumbers {
    key: u64,
    numbers: Numbers,
    _memory: Memory,
}

/// Why a thread got no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoNumber {
    /// All are in use.
    AllInUse,
    /// The thread has one of this stock.
    HasOne,
    /// The thread has one of each of as many stocks as it can.
    TableFull,
}

impl ThreadNumbers {
    /// No thread has this number.
    pub(crate) const NONE: u32 = u32::MAX;

    /// The numbers below `threads`; nothing if the heap has no room.
    pub(crate) fn new(threads: u32) -> Option<Self> {
        let layout = Measure::new().array::<AtomicU32>(threads as usize).finish()?;
        let (mut arena, memory) = Arena::on_heap(layout)?;
        let links = arena.carve(threads as usize, |_| AtomicU32::new(0))?;
        // Ordering: Relaxed; a key is only compared.
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        Some(Self { key, numbers: Numbers::new(threads, links), _memory: memory })
    }

    /// This thread's number, or [`NONE`](Self::NONE), which is that of no cache.
    #[inline(always)]
    pub(crate) fn number(&self) -> u32 {
        PLACES.with(|places| {
            let [first, ..] = places;
            // Ordering: Relaxed, like the next; written by this thread only, the key last.
            if first.key.load(Ordering::Relaxed) == self.key {
                return first.number.load(Ordering::Relaxed);
            }
            number_elsewhere(places, self.key)
        })
    }

    /// Gives this thread a number. Thread context.
    pub(crate) fn take(&self) -> Result<u32, NoNumber> {
        PLACES.with(|places| {
            if self.number() != Self::NONE {
                return Err(NoNumber::HasOne);
            }
            let place = place_of(places, VACANT).ok_or(NoNumber::TableFull)?;
            let number = self.numbers.take().ok_or(NoNumber::AllInUse)?;
            // Ordering: Relaxed; read by this thread and its handlers only. The fence keeps the key the last.
            place.number.store(number, Ordering::Relaxed);
            nesting::fence();
            // Ordering: Relaxed; as above.
            place.key.store(self.key, Ordering::Relaxed);
            Ok(number)
        })
    }

    /// Takes this thread's number away. Thread context.
    pub(crate) fn give_back(&self) {
        PLACES.with(|places| {
            if let Some(place) = place_of(places, self.key) {
                // Ordering: Relaxed, like the next; read by this thread and its handlers only. The fence keeps what they do under
                // the number before it goes back, and the key wiped by then.
                let number = place.number.load(Ordering::Relaxed);
                place.key.store(VACANT, Ordering::Relaxed);
                nesting::fence();
                self.numbers.give(number);
            }
        });
    }
}

fn place_of(places: &[Place; STOCKS_LIMIT], key: u64) -> Option<&Place> {
    // Ordering: Relaxed; written by this thread only.
    places.iter().find(|place| place.key.load(Ordering::Relaxed) == key)
}

/// The number of a thread that has some of several stocks; apart, so that the way of most is short.
#[cold]
#[inline(never)]
fn number_elsewhere(places: &[Place; STOCKS_LIMIT], key: u64) -> u32 {
    number_under(places, key).unwrap_or(ThreadNumbers::NONE)
}

fn number_under(places: &[Place; STOCKS_LIMIT], key: u64) -> Option<u32> {
    // Ordering: Relaxed; written by this thread only, the key last.
    place_of(places, key).map(|place| place.number.load(Ordering::Relaxed))
}

// SAFETY: as the header says, no two threads have the same number of one stock at a time, code that runs on a thread and is not its
// own are handlers of signals, which end before it goes on, and a thread's number does not change while it is in the pool.
unsafe impl PinnedContext for ThreadNumbers {
    #[inline(always)]
    fn slot(&self) -> Option<usize> {
        Some(self.number() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: u32 = ThreadNumbers::NONE;

    #[test]
    fn a_thread_has_one_number_of_each_of_a_few_stocks() {
        let stocks: std::vec::Vec<_> = (0..=STOCKS_LIMIT).map(|_| ThreadNumbers::new(1).unwrap()).collect();
        let first = &stocks[0];
        assert_eq!(first.number(), NONE);
        assert_eq!((first.take(), first.take()), (Ok(0), Err(NoNumber::HasOne)));
        assert_eq!((first.number(), stocks[1].number()), (0, NONE));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| (first.number(), first.take()));
            assert_eq!(other.join().unwrap(), (NONE, Err(NoNumber::AllInUse)));
        });
        let (last, others) = stocks.split_last().unwrap();
        assert!(others.iter().skip(1).all(|stock| stock.take() == Ok(0)));
        assert_eq!(last.take(), Err(NoNumber::TableFull));
        first.give_back();
        assert_eq!((first.number(), last.take(), last.number()), (NONE, Ok(0), 0));
        std::thread::scope(|scope| {
            assert_eq!(scope.spawn(|| first.take()).join().unwrap(), Ok(0), "it came back");
        });
        last.give_back();
        assert_eq!(first.take(), Err(NoNumber::AllInUse), "a thread that ends with its number keeps it");
        others.iter().for_each(ThreadNumbers::give_back);
    }
}
