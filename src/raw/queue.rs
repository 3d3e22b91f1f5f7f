//! Owns the queue of those who wait, first come first served: two lists, of those who still wait and of those who are done and must be
//! told, through entries that live in the waiting tasks themselves. So it needs no memory of its own and has no limit.
//!
//! Tasks alone come here, one at a time: the queue lies behind a lock, and whoever has `&mut Queue` has the lock. Everything in an
//! entry is reached through its queue. So a task may be polled, woken and dropped anywhere, and its entry leaves in constant time from
//! any place in either list.

use crate::sync::cell::UnsafeCell;
use core::{marker::PhantomPinned, pin::Pin, ptr::NonNull};

/// One who waits, as part of the task that does.
#[derive(Debug)]
pub struct Entry<T> {
    inside: UnsafeCell<Inside<T>>,
    /// Others in the list point here.
    _pinned: PhantomPinned,
}

#[derive(Debug)]
struct Inside<T> {
    value: T,
    place: Place,
    previous: Link<T>,
    next: Link<T>,
}

type Link<T> = Option<NonNull<Entry<T>>>;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Waiting,
    Done,
}

// SAFETY: what is inside is reached only by the holder of the queue's lock, from whatever thread: a `T` is sent there and back.
unsafe impl<T: Send> Send for Entry<T> {}
// SAFETY: a shared entry offers nothing without the lock; with it, as for `Send`.
unsafe impl<T: Send> Sync for Entry<T> {}

impl<T> Entry<T> {
    /// An entry that is in no queue.
    pub fn new(value: T) -> Self {
        let inside = Inside { value, place: Place::Nowhere, previous: None, next: None };
        Self { inside: UnsafeCell::new(inside), _pinned: PhantomPinned }
    }
}

/// Runs `work` on what is inside `entry`.
///
/// # Safety
/// `entry` is alive, the caller has the lock of its queue, and `work` does not come back here with the same entry.
unsafe fn inside<T, R>(entry: NonNull<Entry<T>>, work: impl FnOnce(&mut Inside<T>) -> R) -> R {
    // SAFETY: the entry is alive, says the caller.
    let entry = unsafe { entry.as_ref() };
    // SAFETY: only the holder of the lock gets here, and not twice at a time for one entry.
    entry.inside.with_mut(|inside| work(unsafe { &mut *inside }))
}

/// One of the two lists.
#[derive(Debug)]
struct List<T> {
    first: Link<T>,
    last: Link<T>,
}

impl<T> List<T> {
    const EMPTY: Self = Self { first: None, last: None };

    /// Puts an entry at the end.
    ///
    /// # Safety
    /// As for [`inside`], for this entry and all in the list. It is in no list, and stays where it is and alive until it leaves this one.
    unsafe fn push(&mut self, entry: NonNull<Entry<T>>, place: Place) {
        let last = self.last.replace(entry);
        // SAFETY: the caller's.
        unsafe {
            inside(entry, |inside| (inside.place, inside.previous, inside.next) = (place, last, None));
            match last {
                Some(last) => inside(last, |inside| inside.next = Some(entry)),
                None => self.first = Some(entry),
            }
        }
    }

    /// Takes an entry out.
    ///
    /// # Safety
    /// As for [`inside`], for this entry and all in the list. It is in this list.
    unsafe fn remove(&mut self, entry: NonNull<Entry<T>>) {
        // SAFETY: the caller's; its neighbours are other entries of the list.
        unsafe {
            let (previous, next) = inside(entry, |inside| {
                inside.place = Place::Nowhere;
                (inside.previous.take(), inside.next.take())
            });
            match previous {
                Some(previous) => inside(previous, |inside| inside.next = next),
                None => self.first = next,
            }
            match next {
                Some(next) => inside(next, |inside| inside.previous = previous),
                None => self.last = previous,
            }
        }
    }
}

/// Those who wait, and those who are done.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: List<T>,
    done: List<T>,
}

// SAFETY: the queue reaches the values in its entries, and nothing else that belongs to a thread.
unsafe impl<T: Send> Send for Queue<T> {}

impl<T> Queue<T> {
    pub fn new() -> Self {
        Self { waiting: List::EMPTY, done: List::EMPTY }
    }

    /// Runs `work` on the value of an entry, whether it is in the queue or not. `work` does not come back here.
    ///
    /// # Safety
    /// `entry` is used with this queue only.
    pub unsafe fn with_value<R>(&mut self, entry: &Entry<T>, work: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: the reference says that the entry is alive, and `&mut self` that we have its queue's lock.
        unsafe { inside(NonNull::from(entry), |inside| work(&mut inside.value)) }
    }

    /// Puts an entry that is not in the queue behind all that wait.
    ///
    /// # Safety
    /// `entry` is used with this queue only, is in neither list, and leaves before its memory is used for anything else.
    pub unsafe fn join(&mut self, entry: Pin<&Entry<T>>) {
        // SAFETY: the entry is pinned: it stays where it is until it is dropped, and leaves before, says the caller. That holds for
        // those in the list too.
        unsafe { self.waiting.push(NonNull::from(entry.get_ref()), Place::Waiting) }
    }

    /// Takes an entry out of the list in which it is, if it is in one.
    ///
    /// # Safety
    /// `entry` is used with this queue only.
    pub unsafe fn leave(&mut self, entry: &Entry<T>) {
        let entry = NonNull::from(entry);
        // SAFETY: the reference says that the entry is alive, and `join` that those in the lists are.
        unsafe {
            match inside(entry, |inside| inside.place) {
                Place::Nowhere => {}
                Place::Waiting => self.waiting.remove(entry),
                Place::Done => self.done.remove(entry),
            }
        }
    }

    /// Runs `work` on the value of the first who waits. `work` does not come back here.
    pub fn with_first<R>(&mut self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        // SAFETY: what is in a list is alive, and `&mut self` says that we have the lock.
        self.waiting.first.map(|first| unsafe { inside(first, |inside| work(&mut inside.value)) })
    }

    /// The first who waits is done.
    pub fn finish_first(&mut self) {
        if let Some(first) = self.waiting.first {
            // SAFETY: what is in a list is alive, and stays so until it leaves, whichever list it is in.
            unsafe {
                self.waiting.remove(first);
                self.done.push(first, Place::Done);
            }
        }
    }

    /// Takes out the first of those who are done, and runs `work` on its value. `work` does not come back here.
    pub fn take_done<R>(&mut self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        let first = self.done.first?;
        // SAFETY: what is in a list is alive, and `&mut self` says that we have the lock.
        unsafe {
            self.done.remove(first);
            Some(inside(first, |inside| work(&mut inside.value)))
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{boxed::Box, collections::VecDeque, vec::Vec};

    proptest! {
        /// Against two plain queues of numbers: any sequence of joining, leaving from anywhere, finishing and being told.
        #[test]
        fn first_come_first_served(actions in prop::collection::vec((0..4u8, 0..8usize), 0..300)) {
            let entries: Vec<_> = (0..8usize).map(|number| Box::pin(Entry::new(number))).collect();
            let mut queue = Queue::new();
            let (mut waiting, mut done) = (VecDeque::new(), VecDeque::new());
            for (action, number) in actions {
                match action {
                    0 if !waiting.contains(&number) && !done.contains(&number) => {
                        // SAFETY: the entry is in no list, and the entries outlive the queue.
                        unsafe { queue.join(entries[number].as_ref()) };
                        waiting.push_back(number);
                    }
                    0 => {}
                    1 => {
                        // SAFETY: the entries are used with this queue only.
                        unsafe { queue.leave(&entries[number]) };
                        waiting.retain(|&other| other != number);
                        done.retain(|&other| other != number);
                    }
                    2 => {
                        queue.finish_first();
                        done.extend(waiting.pop_front());
                    }
                    _ => prop_assert_eq!(queue.take_done(|&mut number| number), done.pop_front()),
                }
                prop_assert_eq!(queue.with_first(|&mut number| number), waiting.front().copied());
            }
            while !waiting.is_empty() {
                queue.finish_first();
                done.extend(waiting.pop_front());
            }
            while let Some(expected) = done.pop_front() {
                prop_assert_eq!(queue.take_done(|&mut number| number), Some(expected));
            }
            prop_assert_eq!(queue.take_done(|&mut number| number), None);
        }
    }
}
