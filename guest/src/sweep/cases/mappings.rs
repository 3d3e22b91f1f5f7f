//! Looking at what is mapped.

use super::{
    BASE, Case,
    ranges::{MAPPED, PAGE, TARGET, check_empty, prepare_map},
};
use crate::{
    ledger,
    sweep::{actions::unmap, bounds::Operation, observation::observed, rig::domain},
};
use core::fmt::{self, Write};
use framepool::vtd::Iova;

/// Maps two pages with a gap between them.
fn prepare_two() {
    prepare_map(MAPPED, PAGE);
    prepare_map(MAPPED + 2 * PAGE, PAGE);
}

fn unmap_two() {
    unmap(domain(), MAPPED, PAGE);
    unmap(domain(), MAPPED + 2 * PAGE, PAGE);
    check_empty();
}

/// The bytes of a line of a dump.
const LINE: usize = 63;

/// Counts the bytes of a text.
struct Length(usize);

impl fmt::Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

pub const CASES: &[Case] = &[
    Case {
        name: "translate",
        operation: Operation::Translate,
        prepare: || prepare_map(MAPPED, PAGE),
        run: || {
            let at = observed(|| domain().translate(Iova::new(MAPPED)));
            ledger::demand(at.is_some_and(|at| at.target == TARGET), &"a translation changed");
        },
        check: || {
            unmap(domain(), MAPPED, PAGE);
            check_empty();
        },
        ..BASE
    },
    Case {
        name: "mappings: the first",
        operation: Operation::Mappings,
        in_turn: true,
        prepare: prepare_two,
        run: || {
            let first = observed(|| domain().mappings().next());
            ledger::demand(
                first.is_some_and(|first| {
                    (first.iova, first.target, first.length) == (Iova::new(MAPPED), TARGET, PAGE)
                }),
                &"a mapping that is there was not seen as it is",
            );
        },
        check: unmap_two,
        ..BASE
    },
    Case {
        name: "dump: two lines",
        operation: Operation::Dump,
        in_turn: true,
        prepare: prepare_two,
        run: || {
            let mut length = Length(0);
            let outcome = observed(|| write!(length, "{}", domain().dump()));
            ledger::demand(outcome.is_ok() && length.0 == 2 * LINE, &"a mapping that is there has no line");
        },
        check: unmap_two,
        ..BASE
    },
];
