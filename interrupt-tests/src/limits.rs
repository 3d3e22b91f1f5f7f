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
    ("free", 370),
    ("free_zeroed", 380),
    ("alloc_bulk of 2", 4500),
    ("alloc_bulk_exact of 4", 8700),
    ("alloc_bulk of 2, zeroed", 4900),
    ("free_bulk of 2", 760),
    ("stats", 640),
    ("from_raw, into_raw", 30),
    ("reserve 4", 8600),
    ("reserve 4, zeroed", 2700),
    ("draw", 160),
    ("draw, zeroed", 100),
    ("drop a reservation", 1200),
    ("maintain", 13100),
    ("shrink_to 6", 5200),
    ("drain_cpu 0", 980),
    ("vacate", 870),
    ("serve_waiters", 140),
    ("alloc_async, given up", 2500),
    ("Quota::alloc", 920),
    ("Quota::alloc, zeroed", 1100),
    ("free of a quota's frame", 240),
    ("StaticPool::get, alloc, free", 360),
    ("map a page", 2700),
    ("map over two tables", 3000),
    ("map a table", 5600),
    ("map a large leaf", 2200),
    ("unmap a page", 420),
    ("unmap over two tables", 1500),
    ("unmap a table", 3400),
    ("unmap a large leaf", 1100),
    ("unmap part of a large leaf", 5300),
    ("complete", 810),
    ("maintain a domain", 100),
    ("translate", 560),
    ("protect a page", 1200),
    ("protect part of a large leaf", 5300),
    ("preallocate, release", 6100),
    ("reclaim", 34100),
    ("translate another's page", 470),
    ("map_pages of 3", 3100),
    ("join", 9000),
    ("take_accessed of a table", 7300),
    ("take_dirty of a table", 7400),
    ("mappings", 263_900),
    ("dump", 276_700),
    ("attach a device, legacy", 1100),
    ("detach a device, legacy", 470),
    ("attach a device", 1100),
    ("detach a device", 8400),
    ("attach a PASID", 1400),
    ("detach a PASID", 1200),
    ("look up devices", 1100),
    ("DomainIds::take", 50),
    ("DomainIds::give", 30),
];
