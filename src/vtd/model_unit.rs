//! Owns a model of an IOMMU, in the process, for tests: a unit that remembers whatever the specification allows a unit to remember for as
//! long as it allows, and reports every use of what it should have been told to forget (VT-d specification, sections 6.1 to 6.8). Emulators
//! forgive most of what it does not: they walk coherent memory anew, cache no paging structures and nothing that is absent.
//!
//! ```text
//!            access(iova)                         submit(descriptors)            free(frame), flush(lines)
//!                 |                                     | at the wait                     |  (allocator)
//!                 v            hit                      v                                 v
//!   translations, absences  <------------------- forget by rule             does the unit cache a pointer to it?
//!                 | miss                                ^                   lines become visible
//!                 v                                     |
//!   entries that name tables ---------------------------+
//!                 | from the lowest one on
//!                 v
//!   memory: live, or as of the last flush of each line  ------ compared, at each step, with what the processor has written
//! ```
//!
//! # What it assumes
//! * Invalidations take effect when the wait descriptor behind them is reached, and not before: a driver that does not wait cannot know.
//! * A difference between what is cached and what is written is an error when it is used. So an access to a range that is just being
//!   mapped or unmapped, or not yet invalidated, may be reported, and a [`ModelUnit::check`] belongs where the driver says that all is
//!   done.
//! * Context and PASID entries, device TLBs and nested translation are not modelled; requests come without a PASID, which is PASID 0 to a
//!   first stage.
//!
//! It locks and needs a heap: a domain over it is for threads, not for interrupts.

use super::{
    Descriptor, Domain, DomainConfig, DomainId, Format, Hardware, IotlbSelection, Iova, Pages, Stage,
    TableFrames, TooFewFrames, Wait,
};
use crate::PhysAddr;
use core::{fmt, ptr::NonNull};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    vec::Vec,
};

mod audit;
mod cache;
mod entry;
#[allow(unsafe_code, reason = "reads the frames of the allocator as hardware does")]
mod memory;
mod space;
mod translate;
mod violation;

pub use entry::EntryProblem;
pub use violation::{Fault, Violation};

use super::Permissions;
use cache::Cache;
use entry::Shape;
use memory::Memory;
use space::Space;

/// How many violations are kept; more are counted.
const KEPT: usize = 1024;

/// A unit that reports every stale use, and the allocator of table frames that it watches.
///
/// Threads only: every call takes a lock and memory from the heap. Bounded by what is cached, but for
/// [`check`](Self::check), which reads every table.
///
/// ```
/// use framepool::{AnonymousMemory, Builder, PhysAddr, vtd::*};
///
/// let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
/// let hardware = Hardware { page_selective: Some(9), ..Hardware::default() };
/// let unit = ModelUnit::new(&*pool, hardware);
/// let domain = SecondStageDomain::new(DomainConfig { hardware, ..DomainConfig::new(Levels::Four) }, &unit)?;
/// let id = DomainId::FIRST;
/// unit.attach(id, &domain);
/// let iova = Iova::new(0x5000);
/// // SAFETY: no device but the model walks these tables, and it reads no page.
/// unsafe { domain.map(iova, PhysAddr::new(0x9000), 0x1000, Permissions::all())? };
/// assert_eq!(unit.access(id, iova, true), Ok(PhysAddr::new(0x9000)));
///
/// let invalidation = domain.unmap(iova, 0x1000)?;
/// assert_eq!(unit.access(id, iova, true), Ok(PhysAddr::new(0x9000)), "the unit remembers");
/// assert!(matches!(unit.take_violations()[..], [Violation::StaleTranslation { .. }]));
///
/// unit.submit(&[
///     Descriptor::Iotlb { selection: IotlbSelection::Domain(id), drain_reads: false, drain_writes: false },
///     Descriptor::Wait(Wait::default()),
/// ]);
/// // SAFETY: the unit has waited.
/// unsafe { invalidation.complete() };
/// assert_eq!(unit.access(id, iova, true), Err(Fault::NotPresent { level: 1 }));
/// unit.check();
/// assert_eq!(unit.take_violations(), []);
/// # unit.detach(id);
/// # unit.submit(&[
/// #     Descriptor::Iotlb { selection: IotlbSelection::Domain(id), drain_reads: false, drain_writes: false },
/// #     Descriptor::Wait(Wait::default()),
/// # ]);
/// # // SAFETY: as above.
/// # unsafe { domain.close().complete() };
/// # assert_eq!(unit.take_violations(), []);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ModelUnit<A: TableFrames> {
    frames: A,
    state: Mutex<State>,
}

/// Everything that changes.
#[derive(Debug)]
struct State {
    hardware: Hardware,
    memory: Memory,
    cache: Cache,
    spaces: BTreeMap<DomainId, Space>,
    /// Requests behind which no wait descriptor was reached.
    pending: Vec<Descriptor>,
    violations: Vec<Violation>,
    found: u64,
}

impl State {
    fn report(&mut self, violation: Violation) {
        if self.violations.contains(&violation) {
            return;
        }
        self.found += 1;
        if self.violations.len() < KEPT {
            self.violations.push(violation);
        }
    }

    /// Whether the unit takes the request (section 6.5.2.3: the mask is at most MAMV).
    fn takes(&self, descriptor: &Descriptor) -> bool {
        let (Descriptor::Iotlb { selection: IotlbSelection::Pages(_, Pages { block, .. }), .. }
        | Descriptor::PasidIotlb { pages: Some(Pages { block, .. }), .. }) = descriptor
        else {
            return true;
        };
        self.hardware.page_selective.is_some_and(|largest| block.mask() <= largest)
    }
}

impl<A: TableFrames> ModelUnit<A> {
    /// A unit with the properties `hardware`, which has nothing cached, over `frames`, which has handed nothing out that the unit will
    /// walk. Domains take `&unit` as their allocator.
    pub fn new(frames: A, hardware: Hardware) -> Self {
        let state = State {
            hardware,
            memory: Memory::new(hardware.coherent),
            cache: Cache::default(),
            spaces: BTreeMap::new(),
            pending: Vec::new(),
            violations: Vec::new(),
            found: 0,
        };
        Self { frames, state: Mutex::new(state) }
    }

    /// Sends the requests of `id` through the tables of `domain`, made over this unit. What is cached for the id stays cached.
    pub fn attach<F: Format, B: TableFrames>(&self, id: DomainId, domain: &Domain<F, B>) {
        self.attach_tables(id, F::STAGE, domain.root(), domain.config());
    }

    /// The same, for tables that no [`Domain`] has made.
    pub fn attach_tables(&self, id: DomainId, stage: Stage, root: PhysAddr, config: DomainConfig) {
        let mut state = self.lock();
        let shape = Shape::new(stage, &config, state.hardware.snoop_control);
        state.spaces.insert(id, Space { domain: id, root, shape });
    }

    /// Lets no more requests of `id` through. What is cached for the id stays cached until the domain is invalidated, and is stale.
    pub fn detach(&self, id: DomainId) {
        self.lock().spaces.remove(&id);
    }

    /// A device of the domain `id` reads or writes at `iova`.
    ///
    /// # Errors
    /// [`Fault`] says why it may not. A fault is no violation by itself.
    pub fn access(&self, id: DomainId, iova: Iova, write: bool) -> Result<PhysAddr, Fault> {
        let mut state = self.lock();
        let space = *state.spaces.get(&id).ok_or(Fault::NoDomain)?;
        if iova.as_u64().checked_shr(space.shape.address_width.into()).is_some_and(|beyond| beyond != 0) {
            return Err(Fault::BeyondWidth);
        }
        let translation = state.translate(&self.frames, &space, iova.as_u64())?;
        let needed = if write { Permissions::WRITE } else { Permissions::READ };
        if translation.permissions.contains(needed) { Ok(translation.target) } else { Err(Fault::Denied) }
    }

    /// Works off descriptors of an invalidation queue, in order. Requests take effect with the next wait descriptor, which may be in a
    /// later call. Returns the waits that were reached: writing their status words is left to the caller.
    pub fn submit(&self, descriptors: &[Descriptor]) -> Vec<Wait> {
        let mut state = self.lock();
        let mut reached = Vec::new();
        for &descriptor in descriptors {
            match descriptor {
                Descriptor::Wait(wait) => {
                    for pending in core::mem::take(&mut state.pending) {
                        state.cache.forget(pending);
                    }
                    reached.push(wait);
                }
                _ if state.takes(&descriptor) => state.pending.push(descriptor),
                _ => state.report(Violation::RefusedInvalidation { descriptor }),
            }
        }
        reached
    }

    /// Looks at all that is cached and at every entry of the attached tables, where the driver says that all invalidations are complete
    /// and no call is in progress.
    pub fn check(&self) {
        self.lock().check(&self.frames);
    }

    /// The violations found since they were last taken, each once, the first 1024 of them.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// The same, to begin anew.
    pub fn take_violations(&self) -> Vec<Violation> {
        core::mem::take(&mut self.lock().violations)
    }

    /// How many violations were found in all.
    pub fn found(&self) -> u64 {
        self.lock().found
    }

    /// How many entries the unit has cached: translations and absences, and entries above them.
    pub fn cached(&self) -> (usize, usize) {
        let state = self.lock();
        (state.cache.translations.len(), state.cache.structures.len())
    }

    /// The allocator.
    pub fn frames(&self) -> &A {
        &self.frames
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No call panics with the lock held, and whatever is in there is complete at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(unsafe_code, reason = "passes the contract on")]
// SAFETY: the allocator keeps the contract, but for the lock, by which the unit is for threads only, as its documentation says.
unsafe impl<A: TableFrames> TableFrames for ModelUnit<A> {
    fn allocate(&self) -> Option<PhysAddr> {
        let frame = self.frames.allocate()?;
        self.lock().memory.allocated(&self.frames, frame);
        Some(frame)
    }

    fn allocate_all(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        self.frames.allocate_all(count, &mut |frame| {
            self.lock().memory.allocated(&self.frames, frame);
            each(frame);
        })
    }

    fn allocate_any(&self, count: u64, each: &mut dyn FnMut(PhysAddr)) -> Result<(), TooFewFrames> {
        self.frames.allocate_any(count, &mut |frame| {
            let mut state = self.lock();
            state.memory.allocated(&self.frames, frame);
            // Nobody may rely on what is in it.
            state.memory.poison(&self.frames, frame);
            drop(state);
            each(frame);
        })
    }

    unsafe fn free(&self, frame: PhysAddr) {
        let mut state = self.lock();
        state.check_free(frame);
        state.memory.freed(&self.frames, frame);
        drop(state);
        // SAFETY: the caller's.
        unsafe { self.frames.free(frame) }
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        self.frames.pointer(frame)
    }

    fn leaked(&self, frames: u64) {
        self.frames.leaked(frames);
    }

    fn can_flush(&self) -> bool {
        true
    }

    unsafe fn flush(&self, start: NonNull<u8>, bytes: usize) {
        self.lock().memory.flush(&self.frames, start.addr().get(), bytes);
        if self.frames.can_flush() {
            // SAFETY: the caller's.
            unsafe { self.frames.flush(start, bytes) }
        }
    }
}

impl<A: TableFrames> fmt::Debug for ModelUnit<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ModelUnit").field("state", &*self.lock()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
