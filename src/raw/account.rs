//! Owns what an account has used and what it keeps for itself, in one word, so that neither its limit nor its guarantee is ever
//! missed.
//!
//! # The word
//! ```text
//!  63 ......... 32 | 31 .................. 0
//!  frames used     | frames kept in its cells
//! ```
//! | transition | if | before | after | the caller then |
//! |---|---|---|---|---|
//! | Claim n | used + n ≤ limit | used, kept | used + k, kept − k, k = min(n, kept) | takes k frames out of the cells |
//! | Charge n | used + n ≤ limit | used, kept | used + n, kept | hands out n frames that it already has from the pool |
//! | Discharge | used + kept > guarantee | used, kept | used − 1, kept | gives its frame to the pool |
//! | Keep | otherwise | used, kept | used − 1, kept + 1 | has put its frame into a cell before |
//!
//! # Why the guarantee is kept (INV-13)
//! used + kept is never less than the guarantee: it starts there, Claim and Keep leave it, Charge raises it, and Discharge lowers it only
//! where it is larger. So an account that uses less than its guarantee keeps at least one frame, and a Claim finds it: a frame is in the cells
//! before it counts as kept, and no longer counts before it is taken out. A frame is charged after it was taken from the pool, not
//! before: a charge for a frame that then is not there would let others Discharge against it.
//!
//! # Why a Keep finds a vacant cell
//! Count the frames in an account's cells and in the hands of its Keeps (K) and Claims (C) that are under way. A Keep begins
//! when used + kept ≤ guarantee, and all of K and C are among the used: K + C + kept ≤ guarantee. From then on a Keep's end moves one from K
//! to kept, a Claim's beginning one from kept to C, and its end lowers C. So the account never needs more cells than its
//! guarantee, and there are cells for all guarantees together.

use crate::sync::atomic::{AtomicU64, Ordering};

const USED: u32 = 32;

/// The word as a pure value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Balance(u64);

impl Balance {
    const fn new(used: u32, kept: u32) -> Self {
        Self((used as u64) << USED | kept as u64)
    }

    const fn used(self) -> u32 {
        (self.0 >> USED) as u32
    }

    const fn kept(self) -> u32 {
        self.0 as u32
    }

    fn has_room(self, frames: u32, limit: u32) -> bool {
        self.used().checked_add(frames).is_some_and(|used| used <= limit)
    }

    fn claim(self, frames: u32, limit: u32) -> Option<Self> {
        let own = frames.min(self.kept());
        self.has_room(frames, limit).then(|| Self::new(self.used() + own, self.kept() - own))
    }

    fn charge(self, frames: u32, limit: u32) -> Option<Self> {
        self.has_room(frames, limit).then(|| Self::new(self.used() + frames, self.kept()))
    }

    fn discharge(self, guarantee: u32) -> Option<Self> {
        let is_more = u64::from(self.used()) + u64::from(self.kept()) > u64::from(guarantee);
        is_more.then(|| Self::new(self.used().saturating_sub(1), self.kept()))
    }

    fn keep(self) -> Self {
        Self::new(self.used().saturating_sub(1), self.kept() + 1)
    }
}

/// What one account has used and keeps.
#[derive(Debug)]
pub struct Account {
    balance: AtomicU64,
    guarantee: u32,
    limit: u32,
}

impl Account {
    /// An account that has used nothing and keeps all of its guarantee, which is in its cells already.
    pub fn new(guarantee: u32, limit: u32) -> Self {
        Self { balance: AtomicU64::new(Balance::new(0, guarantee).0), guarantee, limit }
    }

    pub fn guarantee(&self) -> u32 {
        self.guarantee
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How many frames are used.
    pub fn used(&self) -> u32 {
        // Ordering: Relaxed; a momentary figure.
        Balance(self.balance.load(Ordering::Relaxed)).used()
    }

    /// Applies a transition where it is allowed: the balance before it. Lock-free, a retry means that another context has changed the
    /// balance.
    fn apply(&self, published: Ordering, transition: impl Fn(Balance) -> Option<Balance>) -> Option<Balance> {
        self.balance
            // Ordering: as the callers say on success; Relaxed on failure, nothing is read then.
            .fetch_update(published, Ordering::Relaxed, |word| transition(Balance(word)).map(|after| after.0))
            .ok()
            .map(Balance)
    }

    /// Claim: room for `frames` frames; how many of them the caller takes out of the cells, or nothing beyond the limit.
    pub fn claim(&self, frames: u32) -> Option<u32> {
        // Ordering: Acquire pairs with the Release in `keep`: the frames that count as kept are seen in the cells.
        let before = self.apply(Ordering::Acquire, |balance| balance.claim(frames, self.limit))?;
        Some(frames.min(before.kept()))
    }

    /// Charge: the caller hands out `frames` frames that it has from the pool; not beyond the limit.
    pub fn charge(&self, frames: u32) -> bool {
        // Ordering: Relaxed; the count limits itself, and the frames were published by whoever gave them to the pool.
        self.apply(Ordering::Relaxed, |balance| balance.charge(frames, self.limit)).is_some()
    }

    /// Discharge: whether the caller gives its frame to the pool; otherwise the account must keep it.
    pub fn discharge(&self) -> bool {
        // Ordering: Relaxed; as in `charge`.
        self.apply(Ordering::Relaxed, |balance| balance.discharge(self.guarantee)).is_some()
    }

    /// Keep: the caller has put its frame into a cell.
    pub fn keep(&self) {
        // Ordering: Release publishes the frame in the cell to the Acquire of `claim`; changes in between are read-modify-writes and
        // continue the release sequence.
        self.apply(Ordering::Release, |balance| Some(balance.keep()));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the sums themselves: a limit, a guarantee, and the frames that others leave in the pool.
        #[test]
        fn the_limit_and_the_guarantee_are_kept_by_every_sequence(
            guarantee in 0..6u32, more in 0..6u32, actions in prop::collection::vec((0..3u8, 1..4u32, any::<bool>()), 0..100)
        ) {
            let limit = guarantee + more;
            let account = Account::new(guarantee, limit);
            let (mut used, mut kept) = (0, guarantee);
            for (action, frames, pool_has) in actions {
                match action {
                    0 => match account.claim(frames) {
                        None => prop_assert!(used + frames > limit),
                        Some(own) => {
                            prop_assert_eq!(own, frames.min(kept));
                            prop_assert!(used + frames > guarantee || own == frames, "INV-13: the guarantee is there");
                            (used, kept) = (used + own, kept - own);
                            if own < frames && pool_has {
                                prop_assert!(account.charge(frames - own), "nobody else has used any");
                                used += frames - own;
                            }
                        }
                    },
                    _ if used == 0 => {}
                    _ if account.discharge() => {
                        prop_assert!(used + kept > guarantee);
                        used -= 1;
                    }
                    _ => {
                        account.keep();
                        (used, kept) = (used - 1, kept + 1);
                    }
                }
                prop_assert_eq!(account.used(), used);
                prop_assert!(used <= limit && used + kept >= guarantee && kept <= guarantee, "INV-13");
            }
        }
    }
}
