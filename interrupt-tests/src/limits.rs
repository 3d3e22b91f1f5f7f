//! The most instructions that each operation may take, in any context and in any state of the small pool.
//!
//! What is measured with one compiler, and a quarter more for others. Where an operation goes through several tiers in vain, the
//! longest way counts: for an allocation that of the host's frame through the door, which looks twice at each of the 64 positions
//! where the frame could be known already; for a bulk call and a reservation as many of them as frames; for `maintain` a refill of
//! the whole stock; for `unmap` of a table the 512 entries of the one above, for a split those of the new one, and for `reclaim` the
//! entries of all tables, twice.

/// The limit of an operation, in instructions.
pub(crate) fn of(operation: &str) -> Option<usize> {
    LIMITS.iter().find(|(name, _)| *name == operation).map(|&(_, most)| most)
}

const LIMITS: &[(&str, usize)] = &[
    ("alloc", 2000),
    ("alloc, critical", 2000),
    ("alloc, no fallback", 880),
    ("alloc_zeroed", 2200),
    ("free", 350),
    ("free_zeroed", 350),
    ("alloc_bulk of 2", 4500),
    ("alloc_bulk_exact of 4", 8700),
    ("alloc_bulk of 2, zeroed", 4900),
    ("free_bulk of 2", 660),
    ("stats", 610),
    ("from_raw, into_raw", 30),
    ("reserve 4", 8500),
    ("draw", 160),
    ("drop a reservation", 1100),
    ("maintain", 13100),
    ("shrink_to 6", 5100),
    ("drain_cpu 0", 980),
    ("vacate", 870),
    ("map a page", 2600),
    ("map over two tables", 2900),
    ("map a table", 10400),
    ("map a large leaf", 2100),
    ("unmap a page", 1600),
    ("unmap over two tables", 2000),
    ("unmap a table", 6200),
    ("unmap a large leaf", 1500),
    ("unmap part of a large leaf", 5200),
    ("complete", 790),
    ("maintain a domain", 100),
    ("translate", 490),
    ("protect a page", 1800),
    ("protect part of a large leaf", 5400),
    ("preallocate, release", 8300),
    ("reclaim", 70900),
    ("translate another's page", 470),
];
