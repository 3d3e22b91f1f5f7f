//! What a caller asks for, and why it may not get it.

use crate::raw::magazine::Kind;
use core::{error::Error, fmt};

/// How far down a caller may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Stops at the `min` watermark: everybody but the path that frees memory.
    Ordinary,
    /// May take the reserve below `min` too: for the path that frees memory (swap, write-back), which must go on.
    Critical,
}

/// One caller's wish: a class, whether the host may be asked for a frame when the pool has none, and whether the frame must be
/// zeroed.
///
/// ```
/// use framepool::{Class, Request};
/// let request = Request::CRITICAL.without_fallback();
/// assert_eq!(request.class(), Class::Critical);
/// assert!(!request.allows_fallback());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    class: Class,
    fallback: bool,
    zeroed: bool,
}

impl Request {
    /// An ordinary caller, who takes the fallback if the pool's policy allows it.
    pub const ORDINARY: Self = Self { class: Class::Ordinary, fallback: true, zeroed: false };
    /// A caller on the path that frees memory, who takes the fallback if the pool's policy allows it.
    pub const CRITICAL: Self = Self { class: Class::Critical, fallback: true, zeroed: false };

    /// The same wish, but the host is not asked.
    pub const fn without_fallback(self) -> Self {
        Self { fallback: false, ..self }
    }

    /// The same wish, for frames that are zero in every byte; see [`alloc_zeroed`](crate::FramePool::alloc_zeroed).
    pub const fn zeroed(self) -> Self {
        Self { zeroed: true, ..self }
    }

    /// Whether the frame must be zero in every byte.
    pub const fn is_zeroed(self) -> bool {
        self.zeroed
    }

    /// From which side the frame comes, if it has one.
    pub(crate) const fn kind(self) -> Kind {
        if self.zeroed { Kind::Clean } else { Kind::Dirty }
    }

    /// How far down the caller may go.
    pub const fn class(self) -> Class {
        self.class
    }

    /// Whether the host may be asked, as far as the pool's policy goes.
    pub const fn allows_fallback(self) -> bool {
        self.fallback
    }
}

/// Why there is no frame. Nothing was changed; the pool works again as soon as a frame comes back.
///
/// ```
/// # #[cfg(feature = "std")] {
/// # use framepool::{AllocError, AnonymousMemory, Builder, FallbackPolicy, Watermarks};
/// # let marks = Watermarks { min: 0, low: 0, high: 1, max: 1 };
/// # let pool = Builder::new(1).watermarks(marks).fallback(FallbackPolicy::Never).start(AnonymousMemory::new(1)?)?;
/// let only = pool.alloc()?;
/// let error = pool.alloc().err();
/// assert_eq!(error, Some(AllocError::Exhausted));
/// drop(only);
/// assert!(pool.alloc().is_ok(), "a frame came back");
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)] // As wide as a frame number: a result of either is two plain values, which stay in registers.
pub enum AllocError {
    /// Caches, depot and reserve hold nothing that this caller may take, and the host was not to be asked.
    Exhausted,
    /// As `Exhausted`, but the reserve still holds frames, for [`Class::Critical`] only.
    ReserveOnly,
    /// The pool holds nothing and the host had nothing either, or the fallback's budget is used up.
    FallbackFailed,
    /// More reservations are alive than the pool was built for, and this one needs a magazine of its own.
    TooManyReservations,
    /// More than the pool can ever have for ordinary callers: its capacity without the reserve. Waiting would not help.
    BeyondCapacity,
    /// The account has used all that its limit allows.
    OverQuota,
    /// Nothing came while the caller was willing to wait.
    TimedOut,
    /// The pool is being closed.
    Closed,
}

impl fmt::Display for AllocError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Exhausted => "the pool is empty: free a frame, wait for the worker, or allow the fallback",
            Self::ReserveOnly => {
                "only the reserve is left: free a frame, or ask as Critical on the path that frees memory"
            }
            Self::FallbackFailed => {
                "the pool is empty and the host had no frame at once: free a frame or wait for the worker"
            }
            Self::TooManyReservations => {
                "no magazine is free for another reservation: drop some, or give Builder::reservations more"
            }
            Self::BeyondCapacity => {
                "the pool can never have so many: ask for fewer, or build it with a larger capacity"
            }
            Self::OverQuota => "the account is at its limit: free some of its frames, or raise the limit",
            Self::TimedOut => "no frame came back in time: wait longer, or find out who holds them",
            Self::Closed => "the pool is being closed: take frames from another one",
        })
    }
}

impl Error for AllocError {}
