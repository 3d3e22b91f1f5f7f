//! Owns the order of a replay: which event must wait for which, and what an ordered map says that each must leave behind.
//!
//! The trace has one order; a replay needs only part of it. Events on the same pages must stay in order, whichever CPUs they are
//! on, and in a lazy trace a page is reusable only after its flush. Everything else may overlap, and should.

use crate::trace::{Event, Fault, Operation, TraceError};
use framepool::vtd::Permissions;
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

const PAGE: u64 = 4096;

/// When an unmapped page may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushing {
    /// At once: each unmap ends with its own invalidation.
    Strict,
    /// After the next flush of the domain.
    Lazy,
}

/// Numbers of events for each event, in one array.
#[derive(Debug, Default)]
pub struct Lists {
    starts: Vec<u32>,
    numbers: Vec<u32>,
}

impl Lists {
    fn push(&mut self, numbers: &mut Vec<u32>) {
        numbers.sort_unstable();
        numbers.dedup();
        self.starts.push(self.numbers.len() as u32);
        self.numbers.append(numbers);
    }

    /// The list of the event `event`.
    pub fn of(&self, event: u32) -> &[u32] {
        let start = self.starts[event as usize] as usize;
        let end = self.starts.get(event as usize + 1).map_or(self.numbers.len(), |&end| end as usize);
        &self.numbers[start..end]
    }
}

/// A trace made ready for a replay.
#[derive(Debug)]
pub struct Plan {
    pub events: Vec<Event>,
    pub flushing: Flushing,
    /// The events that each event must wait for.
    pub waits_for: Lists,
    /// The unmaps that each flush completes.
    pub completes: Lists,
    /// The events of each CPU, in order.
    pub lanes: Vec<Vec<u32>>,
    pub domains: u16,
    pub maps: u64,
    pub unmaps: u64,
}

impl Plan {
    /// Makes a plan; the trace is checked against the model on the way.
    pub fn new(events: Vec<Event>) -> Result<Self, TraceError> {
        let flushing = flushing(&events);
        let domains = events.iter().map(|event| event.domain + 1).max().unwrap_or(0);
        let cpus = events.iter().map(|event| event.cpu + 1).max().unwrap_or(0);
        let mut plan = Self {
            flushing,
            waits_for: Lists::default(),
            completes: Lists::default(),
            lanes: vec![Vec::new(); cpus.into()],
            domains,
            maps: 0,
            unmaps: 0,
            events: Vec::new(),
        };
        let mut history = History::new(domains, flushing);
        let (mut waits_for, mut completes) = (Vec::new(), Vec::new());
        for (number, event) in (0..).zip(&events) {
            history
                .follow(number, event, &mut waits_for, &mut completes)
                .map_err(|fault| TraceError { line: event.line, fault })?;
            plan.waits_for.push(&mut waits_for);
            plan.completes.push(&mut completes);
            plan.lanes[usize::from(event.cpu)].push(number);
            match event.operation {
                Operation::Map { .. } => plan.maps += 1,
                Operation::Unmap => plan.unmaps += 1,
                Operation::Sync | Operation::Flush | Operation::Attach => {}
            }
        }
        plan.events = events;
        Ok(plan)
    }
}

/// A trace is lazy if it flushes a domain in which something was unmapped before; strict traces leave out their flushes.
fn flushing(events: &[Event]) -> Flushing {
    let mut unmapped = HashSet::new();
    for event in events {
        match event.operation {
            Operation::Unmap => {
                unmapped.insert(event.domain);
            }
            Operation::Flush if unmapped.contains(&event.domain) => return Flushing::Lazy,
            _ => {}
        }
    }
    Flushing::Strict
}

/// What is known of a page: the last event on it, and what it left.
#[derive(Clone, Copy, Debug)]
struct Page {
    last: u32,
    state: PageState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageState {
    Mapped,
    Unflushed,
    Free,
}

/// The pages of all domains, as the trace goes on.
struct History {
    pages: BTreeMap<(u16, u64), Page>,
    /// The unmaps of each domain since its last flush, and their pages.
    unflushed: Vec<Vec<(u32, Range<u64>)>>,
    flushing: Flushing,
}

impl History {
    fn new(domains: u16, flushing: Flushing) -> Self {
        Self { pages: BTreeMap::new(), unflushed: vec![Vec::new(); domains.into()], flushing }
    }

    fn follow(
        &mut self,
        number: u32,
        event: &Event,
        waits_for: &mut Vec<u32>,
        completes: &mut Vec<u32>,
    ) -> Result<(), Fault> {
        let unflushed = &mut self.unflushed[usize::from(event.domain)];
        let state = match (event.operation, self.flushing) {
            (Operation::Map { .. }, _) => PageState::Mapped,
            (Operation::Unmap, Flushing::Strict) => PageState::Free,
            (Operation::Unmap, Flushing::Lazy) => {
                unflushed.push((number, event.pages()));
                PageState::Unflushed
            }
            (Operation::Flush, _) => {
                for (unmap, pages) in unflushed.drain(..) {
                    completes.push(unmap);
                    waits_for.push(unmap);
                    for page in pages {
                        self.pages
                            .insert((event.domain, page), Page { last: number, state: PageState::Free });
                    }
                }
                return Ok(());
            }
            (Operation::Sync | Operation::Attach, _) => return Ok(()),
        };
        for number_of_page in event.pages() {
            let iova = number_of_page * PAGE;
            let page = self.pages.get(&(event.domain, number_of_page));
            match (event.operation, page.map(|page| page.state)) {
                (Operation::Unmap, Some(PageState::Mapped)) => {}
                (Operation::Unmap, _) => return Err(Fault::NotMapped { iova }),
                (_, Some(PageState::Mapped)) => return Err(Fault::MappedTwice { iova }),
                (_, Some(PageState::Unflushed)) => return Err(Fault::NotFlushed { iova }),
                (_, Some(PageState::Free) | None) => {}
            }
            waits_for.extend(page.map(|page| page.last));
            self.pages.insert((event.domain, number_of_page), Page { last: number, state });
        }
        Ok(())
    }
}

/// The independent model: what every page of every domain translates to.
#[derive(Debug, Default)]
pub struct Model(BTreeMap<(u16, u64), (u64, Permissions)>);

impl Model {
    /// Does what the event says.
    pub fn apply(&mut self, event: &Event) {
        for (index, page) in (0..).zip(event.pages()) {
            match event.operation {
                Operation::Map { target, permissions } => {
                    self.0.insert((event.domain, page), (target + index * PAGE, permissions));
                }
                Operation::Unmap => {
                    self.0.remove(&(event.domain, page));
                }
                Operation::Sync | Operation::Flush | Operation::Attach => {}
            }
        }
    }

    /// The mapped pages of a domain in ascending order: number, target, rights.
    pub fn pages(&self, domain: u16) -> impl Iterator<Item = (u64, u64, Permissions)> + '_ {
        self.0
            .range((domain, 0)..=(domain, u64::MAX))
            .map(|(&(_, page), &(target, permissions))| (page, target, permissions))
    }
}
