//! Everything that changes leaves, against an ordered map of ranges and the strict model unit: lists of pages, rights, joining, dirty bits, leaves
//! up to 1 GiB and the parts that they are split into, beside maps, unmaps and the return of empty tables. No translation is ever other
//! than it should be, with no more invalidations than the builder asks for; no write goes unnoted.

use super::unit::*;
use crate::common::tables::TestFrames;
use arbitrary::{Arbitrary, Unstructured};
use framepool::{PhysAddr, vtd::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// The last page in front of the interrupt range.
const BEFORE_INTERRUPTS: u64 = INTERRUPT_RANGE.start / PAGE - 1;

#[derive(Clone, Copy, Debug, PartialEq, Arbitrary)]
pub enum Action {
    Map,
    MapPages { swapped: bool },
    Unmap,
    Protect,
    Join,
    TakeDirty,
    Reclaim,
}

#[derive(Clone, Debug, Arbitrary)]
pub struct Operation {
    pub action: Action,
    /// From what is mapped next, and no further than it reaches.
    pub mapped: bool,
    #[arbitrary(with = any_window)]
    pub window: usize,
    #[arbitrary(with = page)]
    pub page: u64,
    #[arbitrary(with = pages_or_gibibyte)]
    pub pages: u64,
    pub aligned: bool,
    #[arbitrary(with = target)]
    pub target: u64,
    #[arbitrary(with = rights)]
    pub permissions: u8,
    #[arbitrary(with = anywhere)]
    pub look: u64,
}

/// A number of pages, sometimes those of the largest leaf.
fn pages_or_gibibyte(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    if bytes.ratio(1, 8)? { Ok(GIB) } else { pages(bytes) }
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
    fn complete(&self, invalidation: Invalidation<'_, &Unit<'_>>) {
        complete(self.unit, F::STAGE, invalidation);
    }

    /// The device accesses `page`, gets what the ordered map says, and what it writes is noted in the leaf.
    fn look(&mut self, page: u64) {
        for (write, needed) in [(false, Permissions::READ), (true, Permissions::WRITE)] {
            let got = self.unit.access(ID, Iova::new(page * PAGE + 0x128), write);
            match self.model.at(page) {
                Some((target, permissions)) if permissions.contains(needed) => {
                    assert_eq!(got, Ok(PhysAddr::new(target * PAGE + 0x128)));
                    if write && self.notes {
                        self.note(page);
                        self.written.insert(page);
                    }
                }
                Some(_) => assert_eq!(got, Err(Fault::Denied)),
                None => assert!(matches!(got, Err(Fault::NotPresent { .. })), "{:?}", got),
            }
        }
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

    fn rest(&mut self, looks: &[u64]) {
        self.unit.check();
        assert_eq!(self.unit.take_violations(), []);
        for &page in looks {
            self.look(page);
        }
        assert_eq!(self.unit.take_violations(), []);
    }

    fn map(&mut self, operation: &Operation, pages: Range<u64>) {
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
                assert_eq!((taken, write_only, to_interrupts), (None, false, false));
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
                assert!(F::STAGE == Stage::First && permissions == Permissions::WRITE);
            }
            Err(MapError::InterruptTarget { .. }) => assert!(to_interrupts),
            Err(error) => assert_eq!(
                Some(error),
                taken.map(|page| MapError::AlreadyMapped { iova: Iova::new(page * PAGE) })
            ),
        }
    }

    fn protect(&mut self, operation: &Operation, pages: &Range<u64>) {
        let permissions = Permissions::from_bits_truncate(operation.permissions);
        let hole = self.model.first_hole(pages);
        let (iova, length) = (Iova::new(pages.start * PAGE), (pages.end - pages.start) * PAGE);
        // SAFETY: the model unit writes no page.
        match unsafe { self.domain.protect(iova, length, permissions) } {
            Ok(told) => {
                assert_eq!(hole, None);
                self.model.protect(pages, permissions);
                self.complete(told);
            }
            Err(ProtectError::WriteOnly) => {
                assert!(F::STAGE == Stage::First && permissions == Permissions::WRITE);
            }
            Err(error) => assert_eq!(
                Some(error),
                hole.map(|page| ProtectError::NotMapped { iova: Iova::new(page * PAGE) })
            ),
        }
    }

    fn take_dirty(&mut self, pages: &Range<u64>) {
        let length = pages.end - pages.start;
        let mut bitmap = vec![0_u64; length.div_ceil(64) as usize];
        let outcome = self.domain.take_dirty(Iova::new(pages.start * PAGE), length * PAGE, &mut bitmap);
        let told = match outcome {
            Ok(told) => told,
            Err(error) => {
                assert_eq!((error, self.notes), (AccessedDirtyError::NotNoted, false));
                return;
            }
        };
        self.complete(told);
        let is_set = |page: u64| {
            let bit = page - pages.start;
            bitmap[(bit / 64) as usize] >> (bit % 64) & 1 != 0
        };
        for &page in self.written.range(pages.clone()) {
            assert!(is_set(page), "the write to page {page:#x} is lost");
        }
        let mut unmapped = pages.clone().take(4096).filter(|&page| self.model.at(page).is_none());
        assert!(!unmapped.any(is_set));
        self.written.retain(|page| !pages.contains(page));
    }

    fn act(&mut self, operation: &Operation, window: u64, pages: Range<u64>) {
        let (iova, length) = (Iova::new(pages.start * PAGE), (pages.end - pages.start) * PAGE);
        match operation.action {
            Action::Map | Action::MapPages { .. } => self.map(operation, pages),
            Action::Unmap => {
                let hole = self.model.first_hole(&pages);
                match self.domain.unmap(iova, length) {
                    Ok(told) => {
                        assert_eq!(hole, None);
                        self.model.remove(&pages);
                        self.written.retain(|page| !pages.contains(page));
                        self.complete(told);
                    }
                    Err(error) => assert_eq!(
                        Some(error),
                        hole.map(|page| UnmapError::NotMapped { iova: Iova::new(page * PAGE) })
                    ),
                }
            }
            Action::Protect => self.protect(operation, &pages),
            Action::Join => {
                // All that may have become uniform.
                let (start, length) = if operation.aligned { (0, 1 << 38) } else { (iova.as_u64(), length) };
                // SAFETY: nobody else uses the domain.
                let told = unsafe { self.domain.join(Iova::new(start), length).unwrap() };
                self.complete(told);
            }
            Action::TakeDirty => self.take_dirty(&pages),
            Action::Reclaim => {
                let told = self.domain.reclaim(Iova::new(window * PAGE), WINDOW * PAGE).unwrap();
                self.complete(told);
            }
        }
    }
}

/// Does it all in a domain with these leaves, behind a unit with these properties.
pub fn run<F: Format>(
    config: DomainConfig,
    (page_sizes, hardware): (u8, Hardware),
    operations: &[Operation],
) {
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
        notes: if F::STAGE == Stage::First { hardware.coherent } else { accessed_dirty },
    };
    for operation in operations {
        let window = window(config.levels, operation.window);
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
            world.look(page);
        }
        world.act(operation, window, first..first + pages);
        world.rest(&looks);
    }
    close(&unit, domain);
}
