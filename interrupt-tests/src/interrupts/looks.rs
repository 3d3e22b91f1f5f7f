//! The operations of the builder that look at everything: all mappings, and the text of them.

use super::{
    operations::{Of, Operation, Role},
    tables::{DONE, Range, WRONG, check, has_space},
    world::{Hand, World},
};
use std::{
    fmt::{self, Write},
    sync::atomic::Ordering::SeqCst,
};

/// These operations.
pub static LOOKS: &[Operation] = &[
    Operation::new("mappings", Role::Any, mappings).needs(has_space).settled_by(check).of(Of::Mappings),
    Operation::new("dump", Role::Any, dump).needs(has_space).settled_by(check).of(Of::Mappings),
];

/// All mappings: in ascending order, and of a context's own table all or nothing, whatever others map and unmap meanwhile.
extern "C" fn mappings(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let own = Range::Table.iova(hand.level)..Range::Table.iova(hand.level) + Range::Table.length();
    let (mut reached, mut found, mut ascending) = (0, 0, true);
    for mapping in space.domain.mappings() {
        let (start, end) = (mapping.iova.as_u64(), mapping.iova.as_u64() + mapping.length);
        ascending &= reached <= start && start < end;
        reached = end;
        found += end.min(own.end).saturating_sub(start.max(own.start));
    }
    let expected = if space.is_mapped(hand.level, Range::Table) { Range::Table.length() } else { 0 };
    hand.outcome.store(if ascending && found == expected { DONE } else { WRONG }, SeqCst);
}

/// Where a text goes of which only the length is wanted.
struct Length(usize);

impl Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

extern "C" fn dump(world: &World<'_>, hand: &Hand) {
    let Some(space) = &world.space else { return };
    let mut text = Length(0);
    let written = write!(text, "{}", space.domain.dump()).is_ok();
    let mapped = space.is_mapped(hand.level, Range::Table);
    hand.outcome.store(if written && (text.0 > 0 || !mapped) { DONE } else { WRONG }, SeqCst);
}
