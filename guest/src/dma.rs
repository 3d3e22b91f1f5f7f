//! A device that does DMA through the builder's tables, behind a VT-d unit that is found and brought up by what firmware and
//! registers say: every size of leaf, number of levels and direction, what must fault, and what a missing invalidation looks like.

use crate::{
    edu::{Direction, Edu, LONGEST, start_next, wait_for},
    hand::PoolFrame,
    host::{Kernel, PhysicalMemory, Pool, Tables},
    machine::{
        acpi,
        pci::Bus,
        place::{Place, Room},
        start::StartInformation,
    },
    say,
    unit::{Fault, Unit, faults, last_fault},
};
use core::{cell::UnsafeCell, fmt::Arguments};
use framepool::{
    Builder, PhysAddr,
    vtd::{
        CacheLineFlush, Dmar, Domain, DomainConfig, DomainId, FirstStage, Format, Iova, Levels, PageSizes,
        Permissions, SecondStage, SourceId, Stage, TranslationMode, dmar::DeviceScopes,
    },
};

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
/// The fault reasons that the emulated unit reports (section 7.1.3 of the specification): for the second stage those of legacy mode,
/// whatever the mode.
mod reason {
    /// The emulated unit reports this one in scalable mode too.
    pub const CONTEXT_ABSENT: u8 = 2;
    pub const BEYOND: u8 = 4;
    pub const NO_WRITE: u8 = 5;
    pub const NO_READ: u8 = 6;
    pub const FIRST_STAGE_ABSENT: u8 = 0x71;
    pub const FIRST_STAGE_NOT_CANONICAL: u8 = 0x80;
    pub const FIRST_STAGE_NO_WRITE: u8 = 0x85;
}

static POOL: Place<Pool> = Place::new();
static BOOKKEEPING: Room<{ 256 << 10 }> = Room::new();

/// A page of 2 MiB that is not the pool's.
#[repr(C, align(0x20_0000))]
struct Aligned(UnsafeCell<[u8; LARGE as usize]>);
// SAFETY: the one thread reaches it through volatile accesses only.
unsafe impl Sync for Aligned {}
static LARGE_PAGE: Aligned = Aligned(UnsafeCell::new([0; LARGE as usize]));

/// A pool of this kernel, for tables and buffers of a device scenario.
pub fn build_pool(memory: &'static PhysicalMemory) -> &'static Pool {
    // SAFETY: the one scenario that runs builds its pool once.
    unsafe {
        let pool =
            Builder::new(4096).cpus(1).magazine_size(32).build_in(BOOKKEEPING.all(), memory, Kernel::new());
        POOL.put(pool.expect("a pool"))
    }
}

/// The registers of the unit that `source` is behind, and the width of host addresses, as the DMAR table says.
pub fn find_unit(start: &StartInformation, source: SourceId) -> Option<(PhysAddr, u8)> {
    let table = Dmar::parse(acpi::table(start, b"DMAR")?).inspect_err(|error| say!("FAIL {error}")).ok()?;
    let names = |scopes: DeviceScopes<'_>| scopes.into_iter().any(|scope| scope.source_id() == Some(source));
    let named = table.hardware_units().find(|unit| names(unit.scopes));
    let unit = named.or_else(|| table.hardware_units().find(|unit| unit.includes_all))?;
    Some((unit.registers, table.host_address_width()))
}

/// A row of a table of results; whether it is as expected.
struct Table {
    good: bool,
    rows: u32,
}

impl Table {
    fn row(&mut self, what: Arguments<'_>, expected: bool) {
        self.rows += 1;
        self.good &= expected;
        say!("{what:<78} {}", if expected { "as expected" } else { "FAIL" });
    }
}

/// Memory that the device reaches and the CPU looks at.
#[derive(Clone, Copy)]
struct Memory(u64);

impl Memory {
    fn of(frame: &PoolFrame) -> Self {
        Self(frame.phys_addr().as_u64())
    }

    fn set(self, offset: u64, byte: u8) {
        // SAFETY: the callers own the memory, the identity map covers it, and the device may reach it too, hence volatile.
        unsafe { ((self.0 + offset) as *mut u8).write_volatile(byte) }
    }

    fn get(self, offset: u64) -> u8 {
        // SAFETY: as above.
        unsafe { ((self.0 + offset) as *const u8).read_volatile() }
    }

    fn fill(self, from: u64, length: u64, byte: impl Fn(u64) -> u8) {
        (0..length).for_each(|offset| self.set(from + offset, byte(offset)));
    }

    fn holds(self, from: u64, length: u64, byte: impl Fn(u64) -> u8) -> bool {
        (0..length).all(|offset| self.get(from + offset) == byte(offset))
    }
}

/// Bytes that tell places apart.
fn pattern(seed: u64) -> impl Fn(u64) -> u8 {
    move |offset| (offset.wrapping_mul(31).wrapping_add(seed) >> 1) as u8 ^ offset as u8
}

/// Runs everything in each mode and stage that the unit has, and each number of levels that it walks.
pub fn run(memory: &'static PhysicalMemory, start: &StartInformation) -> bool {
    let pool = build_pool(memory);
    let mut bus = Bus::find(start).expect("a PCI bus");
    let mut edu = Edu::find(&mut bus).expect("the educational device");
    let (address, host_width) = find_unit(start, edu.source).expect("a unit in the DMAR table");
    let capabilities = Unit::capabilities_at(address);
    say!("unit at {address}, device {}: {capabilities:x?}", edu.source);
    let mut table = Table { good: true, rows: 0 };
    for mode in [TranslationMode::Legacy, TranslationMode::Scalable] {
        if mode == TranslationMode::Scalable && !capabilities.scalable_mode() {
            continue;
        }
        let before = pool.stats().in_use;
        let mut unit = Unit::bring_up(address, host_width, mode, Tables::new(pool, CacheLineFlush));
        for levels in [Levels::Three, Levels::Four, Levels::Five] {
            let units = &[capabilities];
            if let Ok(config) =
                DomainConfig::from_capabilities::<SecondStage>(levels, mode, host_width, units)
            {
                Bench::<SecondStage>::run(pool, &mut unit, &mut edu, config, &mut table);
            }
            if let Ok(config) = DomainConfig::from_capabilities::<FirstStage>(levels, mode, host_width, units)
            {
                Bench::<FirstStage>::run(pool, &mut unit, &mut edu, config, &mut table);
            }
        }
        unit.shut_down();
        table.row(format_args!("{mode:?}: every frame is back"), pool.stats().in_use == before);
    }
    if !capabilities.has_first_stage() {
        say!("first stage: not run, this unit has none");
    }
    say!("{} rows as expected, {} faults recorded", table.rows, faults());
    table.good && table.rows > 0
}

/// One domain, the device behind it, and all that is tried on both.
struct Bench<'b, F: Format> {
    pool: &'static Pool,
    unit: &'b mut Unit,
    edu: &'b mut Edu,
    domain: &'b Domain<F, Tables>,
    id: DomainId,
    /// A page from which the device fetches what it writes elsewhere, and one to which it brings what it has read.
    loader: PoolFrame,
    checker: PoolFrame,
}

/// Where the pages of the bench are mapped: each in a table of its own.
const LOADER: u64 = 0x10_0000_0000;
const CHECKER: u64 = 0x11_0000_0000;
const TESTED: u64 = 0x12_0000_0000;
const ABSENT: u64 = 0x14_0000_0000;
const READ_ONLY: u64 = 0x16_0000_0000;
const WRITE_ONLY: u64 = 0x17_0000_0000;
const CHAIN: u64 = 0x15_0000_0000;
/// Transfers in a row, each started by the interrupt of the one before.
const LINKS: usize = 6;

impl<F: Format> Bench<'_, F> {
    fn run(pool: &'static Pool, unit: &mut Unit, edu: &mut Edu, config: DomainConfig, table: &mut Table) {
        let before = pool.stats().in_use - unit.table_frames();
        let source = edu.source;
        let domain = Domain::<F, _>::new(config, Tables::new(pool, CacheLineFlush)).expect("a domain");
        // SAFETY: the domain lives until the device is detached, below.
        unsafe { unit.attach(source, &domain, DomainId::FIRST) }.expect("an entry for the device");
        let frame = || pool.alloc().expect("a frame");
        let id = DomainId::FIRST;
        let mut bench = Bench { pool, unit, edu, domain: &domain, id, loader: frame(), checker: frame() };
        bench.map(LOADER, bench.loader.phys_addr(), PAGE, Permissions::READ);
        bench.map(CHECKER, bench.checker.phys_addr(), PAGE, bench.writable());
        for (size, flag) in
            [(PAGE, PageSizes::empty()), (LARGE, PageSizes::SIZE_2M), (HUGE, PageSizes::SIZE_1G)]
        {
            if config.page_sizes.contains(flag) {
                bench.moves(table, size);
            }
        }
        bench.faults(table);
        bench.invalidations(table);
        bench.handler_maps(table);
        bench.unmap(LOADER, PAGE);
        bench.unmap(CHECKER, PAGE);
        let place = bench.place();
        bench.unit.detach(source).expect("an attached device");
        let what = format_args!("{place}, device detached");
        bench.refused(table, what, Direction::ToMemory, TESTED, reason::CONTEXT_ABSENT);
        drop(bench);
        // SAFETY: the unit has forgotten the device's entry and all translations; nothing else walks the tables.
        unsafe { domain.close().complete() };
        let after = pool.stats().in_use - unit.table_frames();
        table.row(format_args!("{place}, every table is back"), after == before);
    }

    /// Which domain this is, for the rows.
    fn place(&self) -> &'static str {
        match (self.unit.mode, F::STAGE, self.domain.levels()) {
            (TranslationMode::Legacy, _, Levels::Three) => "legacy, 3 levels",
            (TranslationMode::Legacy, _, Levels::Four) => "legacy, 4 levels",
            (TranslationMode::Legacy, _, Levels::Five) => "legacy, 5 levels",
            (_, Stage::Second, Levels::Three) => "scalable, 3 levels",
            (_, Stage::Second, Levels::Four) => "scalable, 4 levels",
            (_, Stage::Second, Levels::Five) => "scalable, 5 levels",
            (_, Stage::First, Levels::Five) => "first stage, 5 levels",
            (_, Stage::First, _) => "first stage, 4 levels",
        }
    }

    /// The narrowest right to write: the first stage has none without reading.
    fn writable(&self) -> Permissions {
        if F::STAGE == Stage::First { Permissions::all() } else { Permissions::WRITE }
    }

    fn map(&mut self, iova: u64, target: PhysAddr, length: u64, permissions: Permissions) {
        // SAFETY: the memory is the bench's or nobody's, and stays so until it is unmapped and forgotten.
        unsafe { self.domain.map(Iova::new(iova), target, length, permissions) }.expect("room in the domain");
    }

    fn unmap(&mut self, iova: u64, length: u64) {
        let invalidation = self.domain.unmap(Iova::new(iova), length).expect("a mapping");
        self.unit.complete(invalidation, F::STAGE, self.id);
    }

    /// Lets the device fetch `LONGEST` bytes of the pattern `seed` into its buffer.
    fn load(&mut self, seed: u64) {
        Memory::of(&self.loader).fill(0, LONGEST as u64, pattern(seed));
        self.edu.transfer(Direction::FromMemory, LOADER, LONGEST);
    }

    /// DMA both ways through leaves of `size`, with the narrowest rights.
    fn moves(&mut self, table: &mut Table, size: u64) {
        const BEFORE: u64 = 0x800;
        let length = LONGEST as u64;
        let place = self.place();
        let frames = [(); 2].map(|()| self.pool.alloc().expect("a frame"));
        let large = LARGE_PAGE.0.get().addr() as u64;
        // Two frames in a row of addresses, with the transfer over the border; or a place in a large page.
        // Each size has a gibibyte for itself: a large leaf takes no place where smaller ones have left a table.
        let (name, tested, offset) = match size {
            PAGE => ("4 KiB", TESTED, PAGE - BEFORE),
            LARGE => ("2 MiB", TESTED + HUGE, LARGE - 8 * PAGE + 0x123),
            _ => ("1 GiB", TESTED + 2 * HUGE, large + 5 * PAGE + 0x321),
        };
        let memory = |at: u64| match size {
            PAGE if at < PAGE => Memory(Memory::of(&frames[0]).0 + at),
            PAGE => Memory(Memory::of(&frames[1]).0 + at - PAGE),
            LARGE => Memory(large + at),
            _ => Memory(at),
        };
        for (direction, rights, seed) in [
            (Direction::ToMemory, self.writable(), size ^ 1),
            (Direction::FromMemory, Permissions::READ, size ^ 2),
        ] {
            match size {
                PAGE => {
                    self.map(tested, frames[0].phys_addr(), PAGE, rights);
                    self.map(tested + PAGE, frames[1].phys_addr(), PAGE, rights);
                }
                LARGE => self.map(tested, PhysAddr::new(large), LARGE, rights),
                _ => self.map(tested, PhysAddr::new(0), HUGE, rights),
            }
            let leaf = self.domain.translate(Iova::new(tested + offset)).map(|at| at.page_size);
            let faults_before = faults();
            let moved = match direction {
                Direction::ToMemory => {
                    (offset - 1..=offset + length).for_each(|at| memory(at).set(0, 0xA5));
                    self.load(seed);
                    self.edu.transfer(direction, tested + offset, LONGEST);
                    (0..length).all(|at| memory(offset + at).get(0) == pattern(seed)(at))
                        && memory(offset - 1).get(0) == 0xA5
                        && memory(offset + length).get(0) == 0xA5
                }
                Direction::FromMemory => {
                    (0..length).for_each(|at| memory(offset + at).set(0, pattern(seed)(at)));
                    self.edu.transfer(direction, tested + offset, LONGEST);
                    Memory::of(&self.checker).fill(0, PAGE, |_| 0x5A);
                    self.edu.transfer(Direction::ToMemory, CHECKER, LONGEST);
                    Memory::of(&self.checker).holds(0, length, pattern(seed))
                }
            };
            let expected = moved && leaf == Some(size) && faults() == faults_before;
            table.row(format_args!("{place}, leaf of {name}, {direction:?}"), expected);
            self.unmap(tested, if size == PAGE { 2 * PAGE } else { size });
        }
    }

    /// One transfer that must be refused, with this reason, for this device and page.
    fn refused(
        &mut self,
        table: &mut Table,
        what: Arguments<'_>,
        direction: Direction,
        iova: u64,
        reason: u8,
    ) {
        let before = faults();
        self.edu.transfer(direction, iova, 16);
        wait_for(|| faults() > before);
        let read = direction == Direction::FromMemory;
        let found = last_fault();
        let expected = Fault { reason, source: self.edu.source, address: iova & !(PAGE - 1), read };
        let same = faults() > before && found == expected;
        let kind = if read { "read" } else { "write" };
        table.row(
            format_args!(
                "{what}, {kind}: fault {:#x} of {} at {:#x}",
                found.reason, found.source, found.address
            ),
            same,
        );
    }

    /// What must be refused, with nothing in memory changed.
    fn faults(&mut self, table: &mut Table) {
        let place = self.place();
        let first = F::STAGE == Stage::First;
        let (absent_write, absent_read, no_write) = if first {
            (reason::FIRST_STAGE_ABSENT, reason::FIRST_STAGE_ABSENT, reason::FIRST_STAGE_NO_WRITE)
        } else {
            (reason::NO_WRITE, reason::NO_READ, reason::NO_WRITE)
        };
        self.refused(table, format_args!("{place}, not mapped"), Direction::ToMemory, ABSENT, absent_write);
        self.refused(table, format_args!("{place}, not mapped"), Direction::FromMemory, ABSENT, absent_read);
        // Pages that the unit has never looked up: of one that it remembers, the emulated unit refuses without a record.
        let frame = self.pool.alloc().expect("a frame");
        self.map(READ_ONLY, frame.phys_addr(), PAGE, Permissions::READ);
        Memory::of(&frame).fill(0, PAGE, |_| 0x11);
        let what = format_args!("{place}, mapped for reading");
        self.refused(table, what, Direction::ToMemory, READ_ONLY, no_write);
        let unchanged = Memory::of(&frame).holds(0, PAGE, |_| 0x11);
        table.row(format_args!("{place}, memory is unchanged"), unchanged);
        self.unmap(READ_ONLY, PAGE);
        if !first {
            self.map(WRITE_ONLY, frame.phys_addr(), PAGE, Permissions::WRITE);
            let what = format_args!("{place}, mapped for writing");
            self.refused(table, what, Direction::FromMemory, WRITE_ONLY, reason::NO_READ);
            self.unmap(WRITE_ONLY, PAGE);
        }
        let beyond = if first { reason::FIRST_STAGE_NOT_CANONICAL } else { reason::BEYOND };
        let width = self.domain.config().address_width;
        self.refused(
            table,
            format_args!("{place}, beyond {width} bits"),
            Direction::ToMemory,
            1 << width,
            beyond,
        );
    }

    /// Whether the device can write the page at `TESTED`, which is `memory`.
    fn reaches(&mut self, memory: Memory, seed: u64) -> bool {
        memory.fill(0, PAGE, |_| 0);
        self.load(seed);
        self.edu.transfer(Direction::ToMemory, TESTED, LONGEST);
        memory.holds(0, LONGEST as u64, pattern(seed))
    }

    /// What a unit remembers until it is told to forget.
    fn invalidations(&mut self, table: &mut Table) {
        let place = self.place();
        let absent = if F::STAGE == Stage::First { reason::FIRST_STAGE_ABSENT } else { reason::NO_WRITE };
        let frame = self.pool.alloc().expect("a frame");
        let memory = Memory::of(&frame);
        self.map(TESTED, frame.phys_addr(), PAGE, self.writable());
        table.row(format_args!("{place}, mapped: the write lands"), self.reaches(memory, 3));
        let invalidation = self.domain.unmap(Iova::new(TESTED), PAGE).expect("a mapping");
        let stale = self.reaches(memory, 5);
        table.row(format_args!("{place}, unmapped, NOT invalidated: the write still lands"), stale);
        self.unit.complete(invalidation, F::STAGE, self.id);
        self.refused(table, format_args!("{place}, invalidated"), Direction::ToMemory, TESTED, absent);
        // A whole table of pages, each the same frame; gone, told, and its frame used again at once.
        for page in 0..512 {
            self.map(TESTED + page * PAGE, frame.phys_addr(), PAGE, self.writable());
        }
        let landed = self.reaches(memory, 7);
        let invalidation = self.domain.unmap(Iova::new(TESTED), LARGE).expect("a mapping");
        let detached = invalidation.table_frames();
        self.unit.complete(invalidation, F::STAGE, self.id);
        let garbage = self.pool.alloc().expect("the frame that was a table");
        // Everything would be readable and writable, if the unit still walked this.
        let words = frame.phys_addr().as_u64() | 0x7;
        Memory::of(&garbage).fill(0, PAGE, |at| (words >> (at % 8 * 8)) as u8);
        let what = format_args!("{place}, {detached} table frame used again");
        self.refused(table, what, Direction::ToMemory, TESTED, absent);
        table.row(format_args!("{place}, the table was walked before"), landed && detached == 1);
    }

    /// The device's interrupt handler unmaps the last page, maps the next one, and starts the next transfer.
    fn handler_maps(&mut self, table: &mut Table) {
        let place = self.place();
        let frames = [(); LINKS].map(|()| self.pool.alloc().expect("a frame"));
        frames.iter().for_each(|frame| Memory::of(frame).fill(0, PAGE, |_| 0));
        self.load(9);
        let before = faults();
        let rights = self.writable();
        let iova = |link: usize| CHAIN + link as u64 * PAGE;
        self.map(iova(0), frames[0].phys_addr(), PAGE, rights);
        let Self { unit, edu, domain, id, .. } = self;
        let mut next = 0;
        let mut link = || {
            next += 1;
            if let Ok(invalidation) = domain.unmap(Iova::new(iova(next - 1)), PAGE) {
                unit.complete(invalidation, F::STAGE, *id);
            }
            let Some(frame) = frames.get(next) else { return false };
            // SAFETY: the frame is the bench's until the page is unmapped by the next link.
            let mapped = unsafe { domain.map(Iova::new(iova(next)), frame.phys_addr(), PAGE, rights) };
            if mapped.is_ok() {
                start_next(iova(next), LONGEST);
            }
            mapped.is_ok()
        };
        edu.transfer_chain(&mut link, iova(0), LONGEST);
        let landed = frames.iter().all(|frame| Memory::of(frame).holds(0, LONGEST as u64, pattern(9)));
        let expected = landed && next == LINKS && faults() == before;
        table.row(
            format_args!("{place}, mapped and unmapped by the device's own interrupt, {LINKS} times"),
            expected,
        );
    }
}
