//! Everything that changes leaves, against an ordered map of ranges and the strict model unit: lists of pages, rights, joining, dirty bits, leaves
//! up to 1 GiB and the parts that they are split into, beside maps, unmaps and the return of empty tables. No translation is ever other
//! than it should be, with no more invalidations than the builder asks for; no write goes unnoted.
//!
//! `STRICT_SEQUENCES` says how many sequences to try for each format and level count.
#![cfg(not(loom))]

mod common;

use common::tables::TestFrames;
use framepool::{PhysAddr, vtd::*};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

const PAGE: u64 = 4096;
/// A gibibyte, and 2 MiB, in pages.
const GIB: u64 = 1 << 18;
const LARGE: u64 = 512;
/// Where everything happens, in pages: from the start on, and around the borders of 1 GiB and of 512 GiB.
const WINDOWS: [u64; 3] = [0, GIB - 768, (1 << 27) - 576];
const WINDOW: u64 = 1536;
/// The last page in front of the interrupt range.
const BEFORE_INTERRUPTS: u64 = INTERRUPT_RANGE.start / PAGE - 1;
const HOST_WIDTH: u8 = 47;
const ID: DomainId = DomainId::FIRST;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Map,
    MapPages { swapped: bool },
    Unmap,
    Protect,
    Join,
    TakeDirty,
    Reclaim,
}

#[derive(Clone, Debug)]
struct Operation {
    action: Action,
    /// From what is mapped next, and no further than it reaches.
    mapped: bool,
    window: usize,
    page: u64,
    pages: u64,
    aligned: bool,
    target: u64,
    permissions: u8,
    look: u64,
}

fn operation() -> impl Strategy<Value = Operation> {
    let action = prop_oneof![
        4 => Just(Action::Map),
        2 => any::<bool>().prop_map(|swapped| Action::MapPages { swapped }),
        3 => Just(Action::Unmap),
        3 => Just(Action::Protect),
        2 => Just(Action::Join),
        2 => Just(Action::TakeDirty),
        1 => Just(Action::Reclaim),
    ];
    let pages = prop_oneof![
        4 => 1..8u64, 2 => 1..WINDOW, 3 => Just(LARGE / 2), 3 => Just(LARGE), 1 => Just(2 * LARGE), 1 => Just(GIB)
    ];
    let place = (0..WINDOWS.len(), prop_oneof![0..16u64, 250..270u64, 500..524u64, 0..WINDOW], pages);
    (action, prop::bool::weighted(0.8), place, any::<bool>(), 0..5u64, 1..4u8, 0..WINDOW).prop_map(
        |(action, mapped, (window, page, pages), aligned, target, permissions, look)| Operation {
            action,
            mapped,
            window,
            page,
            pages,
            aligned,
            target,
            permissions,
            look,
        },
    )
}

fn hardware() -> impl Strategy<Value = Hardware> {
    let masks = prop_oneof![Just(None), Just(Some(0)), Just(Some(9)), Just(Some(18)), Just(Some(30))];
    (any::<bool>(), any::<bool>(), masks).prop_map(|(coherent, caching_mode, page_selective)| Hardware {
        coherent,
        caching_mode,
        page_selective,
        accessed_dirty: coherent,
        ..Hardware::default()
    })
}

/// Ranges of pages in order, each with its end, its target's first page, and the rights.
#[derive(Default)]
struct Model(BTreeMap<u64, (u64, u64, Permissions)>);

impl Model {
    fn at(&self, page: u64) -> Option<(u64, Permissions)> {
        let (&start, &(end, target, permissions)) = self.0.range(..=page).next_back()?;
        (page < end).then(|| (target + page - start, permissions))
    }

    /// The first range that reaches beyond `page`.
    fn next(&self, page: u64) -> Option<Range<u64>> {
        let before = self.0.range(..=page).next_back().filter(|(_, range)| range.0 > page);
        let (&start, &(end, ..)) = before.or_else(|| self.0.range(page..).next())?;
        Some(start.max(page)..end)
    }

    fn first_taken(&self, pages: &Range<u64>) -> Option<u64> {
        self.next(pages.start).map(|range| range.start).filter(|&page| page < pages.end)
    }

    fn first_hole(&self, pages: &Range<u64>) -> Option<u64> {
        let mut page = pages.start;
        while page < pages.end {
            match self.next(page) {
                Some(range) if range.start == page => page = range.end,
                _ => return Some(page),
            }
        }
        None
    }

    /// No range lies across `page`.
    fn cut(&mut self, page: u64) {
        if let Some((&start, &(end, target, permissions))) = self.0.range(..page).next_back()
            && end > page
        {
            self.0.insert(start, (page, target, permissions));
            self.0.insert(page, (end, target + page - start, permissions));
        }
    }

    fn remove(&mut self, pages: &Range<u64>) {
        self.cut(pages.start);
        self.cut(pages.end);
        self.0.retain(|start, _| !pages.contains(start));
    }

    fn protect(&mut self, pages: &Range<u64>, permissions: Permissions) {
        self.cut(pages.start);
        self.cut(pages.end);
        self.0.range_mut(pages.clone()).for_each(|(_, range)| range.2 = permissions);
    }

    fn insert(&mut self, pages: Range<u64>, target: u64, permissions: Permissions) {
        self.0.insert(pages.start, (pages.end, target, permissions));
    }
}

type Unit<'f> = ModelUnit<&'f TestFrames>;
type Told<'f, 'u, F> = Domain<CachingMode<F>, &'u Unit<'f>>;

/// One domain with all that is known of it.
struct World<'f, 'u, F: Format> {
    unit: &'u Unit<'f>,
    domain: &'u Told<'f, 'u, F>,
    model: Model,
    /// Pages that the device has written since the bits were last taken.
    written: BTreeSet<u64>,
    notes: bool,
}

impl<F: Format> World<'_, '_, F> {
    /// Does what a change has left to be done, and no more than the builder asks for.
    fn complete(&self, invalidation: Invalidation<'_, &Unit<'_>>) {
        let wait = Some(Wait::default());
        let queue: Vec<_> = match F::STAGE {
            Stage::First => invalidation.pasid_descriptors(Pasid::default(), wait).collect(),
            Stage::Second => invalidation.descriptors(wait).collect(),
        };
        self.unit.submit(&queue);
        // SAFETY: the only device is the model, which has forgotten what it was told to forget.
        unsafe { invalidation.complete() };
    }

    /// The device accesses `page`, gets what the ordered map says, and what it writes is noted in the leaf.
    fn look(&mut self, page: u64) -> Result<(), TestCaseError> {
        for (write, needed) in [(false, Permissions::READ), (true, Permissions::WRITE)] {
            let got = self.unit.access(ID, Iova::new(page * PAGE + 0x128), write);
            match self.model.at(page) {
                Some((target, permissions)) if permissions.contains(needed) => {
                    prop_assert_eq!(got, Ok(PhysAddr::new(target * PAGE + 0x128)));
                    if write && self.notes {
                        self.note(page);
                        self.written.insert(page);
                    }
                }
                Some(_) => prop_assert_eq!(got, Err(Fault::Denied)),
                None => prop_assert!(matches!(got, Err(Fault::NotPresent { .. })), "{:?}", got),
            }
        }
        Ok(())
    }

    /// Sets D in the leaf for `page`.
    fn note(&self, page: u64) {
        let dirty = if F::STAGE == Stage::First { 1 << 6 } else { 1 << 9 };
        let (mut frame, mut level) = (self.domain.root(), self.domain.levels().count());
        loop {
            // SAFETY: tables are atomics, and nobody unmaps anything meanwhile.
            let words = unsafe { self.unit.pointer(frame).cast::<[AtomicU64; 512]>().as_ref() };
            let word = &words[(page >> (9 * (level - 1)) & 511) as usize];
            match F::decode(word.load(SeqCst), level) {
                Entry::Table(below) => (frame, level) = (below, level - 1),
                _ => {
                    word.fetch_or(dirty, SeqCst);
                    return;
                }
            }
        }
    }

    fn rest(&mut self, looks: &[u64]) -> Result<(), TestCaseError> {
        self.unit.check();
        prop_assert_eq!(self.unit.take_violations(), []);
        for &page in looks {
            self.look(page)?;
        }
        prop_assert_eq!(self.unit.take_violations(), []);
        Ok(())
    }

    fn map(&mut self, operation: &Operation, pages: Range<u64>) -> Result<(), TestCaseError> {
        let length = pages.end - pages.start;
        let target = match operation.target {
            0 => 1,
            // Sometimes into the interrupt range.
            4 => BEFORE_INTERRUPTS - length.min(8) / 2,
            number => (number << 18) + (pages.start & 511),
        };
        let permissions = Permissions::from_bits_truncate(operation.permissions);
        let iova = Iova::new(pages.start * PAGE);
        let mut list: Vec<_> = (target..target + length).map(|page| PhysAddr::new(page * PAGE)).collect();
        let mut swapped = None;
        let outcome = match operation.action {
            // SAFETY: the model unit reads no page.
            Action::Map => unsafe {
                self.domain.map(iova, PhysAddr::new(target * PAGE), length * PAGE, permissions)
            },
            _ => {
                if operation.action == (Action::MapPages { swapped: true }) && length > 1 {
                    let last = list.len() - 1;
                    list.swap(0, last);
                    swapped = Some(());
                }
                // SAFETY: as above.
                unsafe { self.domain.map_pages(iova, &list, permissions) }
            }
        };
        let to_interrupts = list.iter().any(|page| INTERRUPT_RANGE.contains(&page.as_u64()));
        let taken = self.model.first_taken(&pages);
        match outcome {
            Ok(told) => {
                let write_only = F::STAGE == Stage::First && permissions == Permissions::WRITE;
                prop_assert_eq!((taken, write_only, to_interrupts), (None, false, false));
                if swapped.is_some() {
                    let (first, last) = (pages.start, pages.end - 1);
                    self.model.insert(first..first + 1, target + length - 1, permissions);
                    self.model.insert(last..last + 1, target, permissions);
                    if length > 2 {
                        self.model.insert(first + 1..last, target + 1, permissions);
                    }
                } else {
                    self.model.insert(pages, target, permissions);
                }
                self.complete(told);
            }
            Err(MapError::WriteOnly) => {
                prop_assert!(F::STAGE == Stage::First && permissions == Permissions::WRITE);
            }
            Err(MapError::InterruptTarget { .. }) => prop_assert!(to_interrupts),
            Err(error) => prop_assert_eq!(
                Some(error),
                taken.map(|page| MapError::AlreadyMapped { iova: Iova::new(page * PAGE) })
            ),
        }
        Ok(())
    }

    fn protect(&mut self, operation: &Operation, pages: &Range<u64>) -> Result<(), TestCaseError> {
        let permissions = Permissions::from_bits_truncate(operation.permissions);
        let hole = self.model.first_hole(pages);
        let (iova, length) = (Iova::new(pages.start * PAGE), (pages.end - pages.start) * PAGE);
        // SAFETY: the model unit writes no page.
        match unsafe { self.domain.protect(iova, length, permissions) } {
            Ok(told) => {
                prop_assert_eq!(hole, None);
                self.model.protect(pages, permissions);
                self.complete(told);
            }
            Err(ProtectError::WriteOnly) => {
                prop_assert!(F::STAGE == Stage::First && permissions == Permissions::WRITE);
            }
            Err(error) => prop_assert_eq!(
                Some(error),
                hole.map(|page| ProtectError::NotMapped { iova: Iova::new(page * PAGE) })
            ),
        }
        Ok(())
    }

    fn take_dirty(&mut self, pages: &Range<u64>) -> Result<(), TestCaseError> {
        let length = pages.end - pages.start;
        let mut bitmap = vec![0_u64; length.div_ceil(64) as usize];
        let outcome = self.domain.take_dirty(Iova::new(pages.start * PAGE), length * PAGE, &mut bitmap);
        let told = match outcome {
            Ok(told) => told,
            Err(error) => {
                prop_assert_eq!((error, self.notes), (AccessedDirtyError::NotNoted, false));
                return Ok(());
            }
        };
        self.complete(told);
        let is_set = |page: u64| {
            let bit = page - pages.start;
            bitmap[(bit / 64) as usize] >> (bit % 64) & 1 != 0
        };
        for &page in self.written.range(pages.clone()) {
            prop_assert!(is_set(page), "the write to page {page:#x} is lost");
        }
        let mut unmapped = pages.clone().take(4096).filter(|&page| self.model.at(page).is_none());
        prop_assert!(!unmapped.any(is_set));
        self.written.retain(|page| !pages.contains(page));
        Ok(())
    }

    fn act(&mut self, operation: &Operation, window: u64, pages: Range<u64>) -> Result<(), TestCaseError> {
        let (iova, length) = (Iova::new(pages.start * PAGE), (pages.end - pages.start) * PAGE);
        match operation.action {
            Action::Map | Action::MapPages { .. } => self.map(operation, pages)?,
            Action::Unmap => {
                let hole = self.model.first_hole(&pages);
                match self.domain.unmap(iova, length) {
                    Ok(told) => {
                        prop_assert_eq!(hole, None);
                        self.model.remove(&pages);
                        self.written.retain(|page| !pages.contains(page));
                        self.complete(told);
                    }
                    Err(error) => prop_assert_eq!(
                        Some(error),
                        hole.map(|page| UnmapError::NotMapped { iova: Iova::new(page * PAGE) })
                    ),
                }
            }
            Action::Protect => self.protect(operation, &pages)?,
            Action::Join => {
                // All that may have become uniform.
                let (start, length) = if operation.aligned { (0, 1 << 38) } else { (iova.as_u64(), length) };
                // SAFETY: nobody else uses the domain.
                let told = unsafe { self.domain.join(Iova::new(start), length).unwrap() };
                self.complete(told);
            }
            Action::TakeDirty => self.take_dirty(&pages)?,
            Action::Reclaim => {
                let told = self.domain.reclaim(Iova::new(window * PAGE), WINDOW * PAGE).unwrap();
                self.complete(told);
            }
        }
        Ok(())
    }
}

fn check<F: Format>(
    config: DomainConfig,
    (page_sizes, hardware): (u8, Hardware),
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    let page_sizes = PageSizes::from_bits_truncate(page_sizes);
    let accessed_dirty = F::STAGE == Stage::Second && hardware.accessed_dirty;
    let host_address_width = HOST_WIDTH;
    let domain_id = Some(ID);
    let config =
        DomainConfig { page_sizes, hardware, accessed_dirty, domain_id, host_address_width, ..config };
    let frames = TestFrames::default();
    let unit = ModelUnit::new(&frames, hardware);
    let domain = Domain::<CachingMode<F>, _>::new(config, &unit).unwrap();
    unit.attach(ID, &domain);
    let mut world = World {
        unit: &unit,
        domain: &domain,
        model: Model::default(),
        written: BTreeSet::new(),
        notes: hardware.coherent,
    };
    for operation in operations {
        // 512 GiB is where three levels end.
        let window =
            WINDOWS[if config.levels == Levels::Three { operation.window % 2 } else { operation.window }];
        let (mut first, mut pages) = (window + operation.page, operation.pages);
        let maps = matches!(operation.action, Action::Map | Action::MapPages { .. });
        if pages == GIB {
            // One leaf, or, where hardware has none so large, not so many.
            first = first.next_multiple_of(GIB);
            if maps
                && (page_sizes != PageSizes::all()
                    || operation.action != Action::Map
                    || operation.target % 4 == 0)
            {
                pages = 2 * LARGE;
            }
        } else if operation.aligned {
            first &= !(LARGE / 2 - 1);
        }
        if !maps && operation.mapped && operation.action != Action::Join {
            let next = world.model.next(first).unwrap_or(first..first + pages);
            (first, pages) = (next.start, pages.min(next.end - next.start));
        }
        if operation.action == Action::TakeDirty {
            pages = pages.min(4 * LARGE);
        }
        let looks = [
            first.saturating_sub(1),
            first,
            first + pages / 2,
            first + pages - 1,
            first + pages,
            window + operation.look,
        ];
        for page in looks {
            world.look(page)?;
        }
        world.act(operation, window, first..first + pages)?;
        world.rest(&looks)?;
    }
    unit.detach(ID);
    let all =
        Descriptor::Iotlb { selection: IotlbSelection::Domain(ID), drain_reads: false, drain_writes: false };
    unit.submit(&[all, Descriptor::Wait(Wait::default())]);
    // SAFETY: the model has forgotten the domain.
    unsafe { domain.close().complete() };
    unit.check();
    prop_assert_eq!(unit.take_violations(), []);
    prop_assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
    Ok(())
}

fn sequences() -> ProptestConfig {
    let cases = env::var("STRICT_SEQUENCES").ok().and_then(|number| number.parse().ok()).unwrap_or(24);
    ProptestConfig { failure_persistence: None, max_shrink_iters: 256, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(sequences())]

    #[test]
    fn second_stage_of_three_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Three), unit, &operations)?;
    }

    #[test]
    fn second_stage_of_four_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Four), unit, &operations)?;
    }

    #[test]
    fn second_stage_of_five_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<SecondStage>(DomainConfig::new(Levels::Five), unit, &operations)?;
    }

    #[test]
    fn first_stage_of_four_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<FirstStage>(DomainConfig::first_stage(Levels::Four), unit, &operations)?;
    }

    #[test]
    fn first_stage_of_five_levels_leaves_nothing_stale(
        unit in (0..4u8, hardware()),
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        check::<FirstStage>(DomainConfig::first_stage(Levels::Five), unit, &operations)?;
    }
}
