//! Drives one VT-d unit: its registers, the tables that lead to the domains, the invalidation queue, the fault records.
//!
//! Everything that is the architecture's (what a register says, what an entry or a descriptor looks like) comes from framepool; here
//! is only who writes what where, and who waits for whom. Sections are those of the VT-d specification.

use crate::{
    host::Pool,
    machine::{
        apic::MESSAGE_ADDRESS,
        interrupts::{self, IOMMU_FAULT, Interrupted},
    },
};
use bitflags::bitflags;
use core::{
    arch::x86_64::{_mm_clflush, _mm_mfence},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use framepool::{PhysAddr, vtd::*};
use safe_mmio::{
    UniqueMmioPointer, field,
    fields::{ReadPure, ReadPureWrite, WriteOnly},
};

/// The registers that every unit has (section 11.4).
#[repr(C)]
struct Registers {
    version: ReadPure<u32>,
    _004: u32,
    capability: ReadPure<u64>,
    extended_capability: ReadPure<u64>,
    command: WriteOnly<u32>,
    status: ReadPure<u32>,
    root_table: ReadPureWrite<u64>,
    _028: [u32; 3],
    fault_status: ReadPureWrite<u32>,
    fault_control: ReadPureWrite<u32>,
    fault_data: ReadPureWrite<u32>,
    fault_address: ReadPureWrite<u32>,
    fault_upper_address: ReadPureWrite<u32>,
    _048: [u32; 14],
    queue_head: ReadPure<u64>,
    queue_tail: ReadPureWrite<u64>,
    queue_address: ReadPureWrite<u64>,
}

/// A fault record (section 11.4.14); the upper half says whether there is one.
#[repr(C)]
struct Record {
    address: ReadPure<u64>,
    cause: ReadPureWrite<u64>,
}

bitflags! {
    /// Global command and global status (sections 11.4.4).
    #[derive(Clone, Copy)]
    struct Global: u32 {
        const TRANSLATION = 1 << 31;
        const ROOT_TABLE = 1 << 30;
        const QUEUE = 1 << 26;
    }

    /// Fault status (section 11.4.9).
    #[derive(Clone, Copy)]
    struct FaultStatus: u32 {
        const OVERFLOW = 1 << 0;
        const PENDING = 1 << 1;
        const QUEUE_ERROR = 1 << 4;
        const COMPLETION_ERROR = 1 << 5;
        const TIMEOUT = 1 << 6;
    }
}

/// Bits of the status that are not written back as a command: each starts something once.
const ONE_SHOT: u32 = !0x96FF_FFFF;
/// The root table's entries are those of scalable mode.
const SCALABLE: u64 = 1 << 10;
/// The queue's descriptors have 256 bits.
const WIDE: u64 = 1 << 11;
const QUEUE_BYTES: u64 = 4096;
const RECORD_VALID: u64 = 1 << 63;
const RECORD_READ: u64 = 1 << 62;
/// The PASID with which requests without one are tagged.
const NO_PASID: Pasid = Pasid::ZERO;

/// A frame as the words that hardware reads.
fn words(pool: &Pool, frame: PhysAddr) -> &'static [AtomicU64] {
    let start = TableFrames::pointer(pool, frame).cast::<AtomicU64>();
    // SAFETY: the callers took the frame from the pool for the unit's own structures, and it is only ever reached as atomics.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), 512) }
}

/// Writes `words` so that hardware never sees a part of them: the first, which says that they are there, last.
fn publish(place: &[AtomicU64], words: &[u64]) {
    for (place, word) in place.iter().zip(words).skip(1) {
        // Ordering: Relaxed; the Release below publishes it.
        place.store(*word, Ordering::Relaxed);
    }
    flush(place);
    if let (Some(place), Some(word)) = (place.first(), words.first()) {
        // Ordering: Release, to the hardware that reads the entry.
        place.store(*word, Ordering::Release);
    }
    flush(place);
}

/// Brings lines to where a unit that does not snoop reads them.
fn flush(words: &[AtomicU64]) {
    for line in words.chunks(8) {
        // SAFETY: the line is mapped, and flushing it changes nothing.
        unsafe { _mm_clflush(line.as_ptr().cast()) };
    }
    // SAFETY: every processor with SSE2 has the instruction.
    unsafe { _mm_mfence() };
}

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub reason: u8,
    pub source: SourceId,
    /// The page.
    pub address: u64,
    pub read: bool,
}

/// What a device is translated by.
#[derive(Clone, Copy)]
pub enum Root {
    Second(PhysAddr, Levels),
    First(PhysAddr, Levels),
}

/// One unit.
pub struct Unit {
    registers: UniqueMmioPointer<'static, Registers>,
    pub capabilities: Capabilities,
    pub mode: TranslationMode,
    pool: &'static Pool,
    root: &'static [AtomicU64],
    queue: PhysAddr,
    tail: u64,
    done: &'static [AtomicU64],
    done_address: PhysAddr,
    waits: u32,
}

impl Unit {
    fn registers_at(address: PhysAddr) -> UniqueMmioPointer<'static, Registers> {
        let registers =
            NonNull::new(address.as_u64() as *mut Registers).expect("the DMAR table names an address");
        // SAFETY: the DMAR table says that a unit's registers are there. The handler of its faults makes such a pointer too, and
        // touches only those of the faults.
        unsafe { UniqueMmioPointer::new(registers) }
    }

    /// Reads the capabilities of the unit at `address`.
    pub fn capabilities_at(address: PhysAddr) -> Capabilities {
        let mut registers = Self::registers_at(address);
        Capabilities::from_registers(
            field!(registers, capability).read(),
            field!(registers, extended_capability).read(),
        )
    }

    /// Brings the unit at `address` up: queue first, then an empty root table, then what may be cached is forgotten, faults raise
    /// interrupts, and from there on nothing passes that is not mapped.
    pub fn bring_up(address: PhysAddr, mode: TranslationMode, pool: &'static Pool) -> Self {
        let frame = || TableFrames::allocate(pool).expect("a frame for the unit");
        let (root, queue, done) = (frame(), frame(), frame());
        let mut unit = Self {
            registers: Self::registers_at(address),
            capabilities: Self::capabilities_at(address),
            mode,
            pool,
            root: words(pool, root),
            queue,
            tail: 0,
            done: words(pool, done),
            done_address: done,
            waits: 0,
        };
        let scalable = mode == TranslationMode::Scalable;
        flush(unit.root);
        unit.end(Global::TRANSLATION);
        unit.end(Global::QUEUE);
        field!(unit.registers, queue_tail).write(0);
        field!(unit.registers, queue_address).write(queue.as_u64() | if scalable { WIDE } else { 0 });
        unit.begin(Global::QUEUE);
        field!(unit.registers, root_table).write(root.as_u64() | if scalable { SCALABLE } else { 0 });
        unit.begin(Global::ROOT_TABLE);
        unit.forget_all();
        unit.report_faults(address);
        unit.begin(Global::TRANSLATION);
        unit
    }

    /// Switches the unit off, and gives its frames back.
    pub fn shut_down(mut self) {
        self.end(Global::TRANSLATION);
        self.end(Global::QUEUE);
        let mut frames = [None; 64];
        let mut count = 0;
        let mut note = |frame| {
            frames[count] = Some(frame);
            count += 1;
        };
        for root in self.root.iter().map(|word| word.load(Ordering::Relaxed)).filter(|word| word & 1 != 0) {
            let table = PhysAddr::new(root & !0xFFF);
            note(table);
            if self.mode == TranslationMode::Scalable {
                for word in words(self.pool, table)
                    .chunks(4)
                    .map(|entry| entry[0].load(Ordering::Relaxed))
                    .filter(|word| word & 1 != 0)
                {
                    let directory = PhysAddr::new(word & !0xFFF);
                    note(PhysAddr::new(words(self.pool, directory)[0].load(Ordering::Relaxed) & !0xFFF));
                    note(directory);
                }
            }
        }
        note(self.queue);
        note(self.done_address);
        note(PhysAddr::new(self.root.as_ptr().addr() as u64));
        for frame in frames.into_iter().flatten() {
            // SAFETY: the unit is off and walks nothing; each frame is in one place of its structures.
            unsafe { TableFrames::free(self.pool, frame) };
        }
    }

    fn status(&mut self) -> u32 {
        field!(self.registers, status).read()
    }

    fn command(&mut self, bits: u32) {
        let kept = self.status() & !ONE_SHOT;
        field!(self.registers, command).write(kept & !Global::all().bits() | bits);
    }

    /// Starts something and waits until the status says so.
    fn begin(&mut self, what: Global) {
        let running = self.status() & (Global::TRANSLATION | Global::QUEUE).bits();
        self.command(running | what.bits());
        while self.status() & what.bits() == 0 {
            core::hint::spin_loop();
        }
    }

    /// Ends something and waits until the status says so.
    fn end(&mut self, what: Global) {
        let running = self.status() & (Global::TRANSLATION | Global::QUEUE).bits();
        self.command(running & !what.bits());
        while self.status() & what.bits() != 0 {
            core::hint::spin_loop();
        }
    }

    /// Submits descriptors and waits until hardware has done what they say (section 6.5.2).
    pub fn submit(&mut self, descriptors: impl IntoIterator<Item = Descriptor>) {
        self.waits += 1;
        let status = StatusWrite::new(self.done_address, self.waits);
        for descriptor in descriptors {
            self.enqueue(descriptor);
        }
        self.enqueue(Descriptor::Wait(Wait { status, fence: true, ..Wait::default() }));
        field!(self.registers, queue_tail).write(self.tail);
        // Ordering: Acquire: what hardware did before it wrote the word is done.
        while self.done[0].load(Ordering::Acquire) as u32 != self.waits {
            let status = FaultStatus::from_bits_retain(field!(self.registers, fault_status).read());
            if status.contains(FaultStatus::QUEUE_ERROR) {
                panic!("the unit refuses a descriptor, at {:#x}", field!(self.registers, queue_head).read());
            }
            core::hint::spin_loop();
        }
    }

    fn enqueue(&mut self, descriptor: Descriptor) {
        let place = &words(self.pool, self.queue)[self.tail as usize / 8..];
        let length = if self.mode == TranslationMode::Scalable {
            publish(&place[..4], &descriptor.encode());
            32
        } else {
            let narrow = descriptor.encode_narrow().expect("legacy mode has no wide descriptors");
            publish(&place[..2], &narrow);
            16
        };
        self.tail = (self.tail + length) % QUEUE_BYTES;
    }

    fn iotlb(&self, selection: IotlbSelection) -> Descriptor {
        let (drain_reads, drain_writes) =
            (self.capabilities.drains_reads(), self.capabilities.drains_writes());
        Descriptor::Iotlb { selection, drain_reads, drain_writes }
    }

    /// Forgets everything, in the order of section 6.5.2.
    fn forget_all(&mut self) {
        self.submit([Descriptor::ContextCache(ContextSelection::All)]);
        if self.mode == TranslationMode::Scalable {
            self.submit([Descriptor::PasidCache(PasidSelection::All)]);
        }
        let all = self.iotlb(IotlbSelection::All);
        self.submit([all]);
    }

    /// Translates the requests of `source` by the tables of a domain, which `id` tags, from now on.
    pub fn attach(&mut self, source: SourceId, root: Root, id: DomainId) {
        match self.mode {
            TranslationMode::Legacy => self.attach_legacy(source, root, id),
            TranslationMode::Scalable => self.attach_scalable(source, root, id),
        }
        self.forget_all();
    }

    /// The table that `entry` names, made if it names none.
    fn below(&self, entry: &[AtomicU64], encode: impl Fn(PhysAddr) -> u64) -> &'static [AtomicU64] {
        let known = entry[0].load(Ordering::Relaxed);
        if known & 1 != 0 {
            return words(self.pool, PhysAddr::new(known & !0xFFF));
        }
        let table = TableFrames::allocate(self.pool).expect("a frame for the unit");
        flush(words(self.pool, table));
        publish(&entry[..1], &[encode(table)]);
        words(self.pool, table)
    }

    fn attach_legacy(&mut self, source: SourceId, root: Root, id: DomainId) {
        let Root::Second(root, levels) = root else { panic!("legacy mode has no first stage") };
        let at = usize::from(source.bus()) * 2;
        let contexts = self
            .below(&self.root[at..at + 2], |context_table| RootEntry { context_table }.encode().unwrap()[0]);
        let translation = ContextTranslation::SecondStage { root, levels, device_tlb: false };
        let at = usize::from(source.devfn()) * 2;
        publish(&contexts[at..at + 2], &ContextEntry::new(translation, id).encode().unwrap());
    }

    fn attach_scalable(&mut self, source: SourceId, root: Root, id: DomainId) {
        use framepool::vtd::context::*;
        let upper = usize::from(source.devfn() >> 7);
        let at = usize::from(source.bus()) * 2 + upper;
        let contexts = self.below(&self.root[at..=at], |table| table.as_u64() | 1);
        let at = usize::from(source.devfn() & 0x7F) * 4;
        let directory = self.below(&contexts[at..at + 4], |table| table.as_u64() | 1);
        let pasids = self.below(&directory[..1], |table| table.as_u64() | 1);
        let translation = match root {
            Root::Second(root, levels) => {
                PasidTranslation::SecondStage(SecondStageRoot { root, levels, accessed_dirty: false })
            }
            Root::First(root, levels) => PasidTranslation::FirstStage(FirstStageRoot {
                root,
                levels,
                supervisor_requests: false,
                write_protect: false,
            }),
        };
        let at = NO_PASID.get() as usize * 8;
        // Clear what another domain left first, as the specification demands of an entry that changes.
        publish(&pasids[at..at + 8], &[0; 8]);
        publish(&pasids[at..at + 8], &PasidEntry::new(translation, id).encode().unwrap());
    }

    /// Takes a device's translation away: from now on its requests are refused.
    pub fn detach(&mut self, source: SourceId) {
        let at = usize::from(source.bus()) * 2;
        let entry = match self.mode {
            TranslationMode::Legacy => {
                let contexts =
                    words(self.pool, PhysAddr::new(self.root[at].load(Ordering::Relaxed) & !0xFFF));
                &contexts[usize::from(source.devfn()) * 2]
            }
            TranslationMode::Scalable => {
                let half = &self.root[at + usize::from(source.devfn() >> 7)];
                let contexts = words(self.pool, PhysAddr::new(half.load(Ordering::Relaxed) & !0xFFF));
                let context = &contexts[usize::from(source.devfn() & 0x7F) * 4];
                let directory = words(self.pool, PhysAddr::new(context.load(Ordering::Relaxed) & !0xFFF));
                let pasids = words(self.pool, PhysAddr::new(directory[0].load(Ordering::Relaxed) & !0xFFF));
                &pasids[NO_PASID.get() as usize * 8]
            }
        };
        publish(core::slice::from_ref(entry), &[0]);
        self.forget_all();
    }

    /// Makes hardware forget what `invalidation` of a domain of the stage `stage` says, and only then gives the table frames back.
    pub fn complete<A: TableFrames>(
        &mut self,
        invalidation: Invalidation<'_, A>,
        stage: Stage,
        id: DomainId,
    ) {
        /// The address mask of the largest leaf that can be in a range.
        const LARGEST_LEAF: u8 = 18;
        /// Descriptors that are worth it before the whole domain is forgotten.
        const MOST: usize = 8;
        let leaf_only = invalidation.leaf_only();
        if invalidation.is_whole_domain() {
            self.forget(stage, id, None);
        } else {
            for range in invalidation.ranges() {
                match Selection::of(range, self.capabilities.page_selective(), LARGEST_LEAF, MOST) {
                    Selection::Pages(blocks) => {
                        blocks.for_each(|block| self.forget(stage, id, Some(Pages { block, leaf_only })));
                    }
                    Selection::Domain => self.forget(stage, id, None),
                }
            }
        }
        // SAFETY: the unit has confirmed every descriptor, and it is the only one.
        unsafe { invalidation.complete() };
    }

    /// Forgets some pages of a domain, or all of it.
    fn forget(&mut self, stage: Stage, id: DomainId, pages: Option<Pages>) {
        let descriptor = match (stage, pages) {
            (Stage::First, pages) => Descriptor::PasidIotlb { domain: id, pasid: NO_PASID, pages },
            (Stage::Second, Some(pages)) => self.iotlb(IotlbSelection::Pages(id, pages)),
            (Stage::Second, None) => self.iotlb(IotlbSelection::Domain(id)),
        };
        self.submit([descriptor]);
    }

    /// Lets faults raise an interrupt, after those that are recorded are gone.
    fn report_faults(&mut self, address: PhysAddr) {
        let records = address.as_u64() + self.capabilities.fault_records_offset();
        // Ordering: Relaxed; the handler runs on this CPU, later.
        UNIT.store(address.as_u64(), Ordering::Relaxed);
        RECORDS.store(records, Ordering::Relaxed);
        RECORD_COUNT.store(self.capabilities.fault_records(), Ordering::Relaxed);
        interrupts::handle(IOMMU_FAULT, on_fault);
        drain_records();
        field!(self.registers, fault_data).write(u32::from(IOMMU_FAULT));
        field!(self.registers, fault_address).write(MESSAGE_ADDRESS);
        field!(self.registers, fault_upper_address).write(0);
        field!(self.registers, fault_control).write(0);
    }
}

static UNIT: AtomicU64 = AtomicU64::new(0);
static RECORDS: AtomicU64 = AtomicU64::new(0);
static RECORD_COUNT: AtomicU32 = AtomicU32::new(0);
/// Faults since the machine started, and the last one: its address and its cause, as recorded.
static FAULTS: AtomicU32 = AtomicU32::new(0);
static LAST_ADDRESS: AtomicU64 = AtomicU64::new(0);
static LAST_CAUSE: AtomicU64 = AtomicU64::new(0);

/// How many faults were recorded since the machine started.
pub fn faults() -> u32 {
    // Ordering: Acquire pairs with the Release in `drain_records`.
    FAULTS.load(Ordering::Acquire)
}

/// The last fault.
pub fn last_fault() -> Fault {
    let cause = LAST_CAUSE.load(Ordering::Relaxed);
    Fault {
        reason: (cause >> 32) as u8,
        source: SourceId::from_bits(cause as u16),
        address: LAST_ADDRESS.load(Ordering::Relaxed),
        read: cause & RECORD_READ != 0,
    }
}

fn on_fault(_: &mut Interrupted) {
    crate::machine::apic::LocalApic::this().end_of_interrupt();
    drain_records();
}

/// Reads all fault records and makes room for others (section 7.3).
fn drain_records() {
    for number in 0..RECORD_COUNT.load(Ordering::Relaxed) {
        let place = RECORDS.load(Ordering::Relaxed) as usize + number as usize * size_of::<Record>();
        // SAFETY: the capability register says that the record is there.
        let mut record = unsafe { UniqueMmioPointer::new(NonNull::new(place as *mut Record).unwrap()) };
        let cause = field!(record, cause).read();
        if cause & RECORD_VALID != 0 {
            LAST_ADDRESS.store(field!(record, address).read(), Ordering::Relaxed);
            LAST_CAUSE.store(cause, Ordering::Relaxed);
            // Ordering: Release, to the Acquire in `faults`.
            FAULTS.fetch_add(1, Ordering::Release);
            field!(record, cause).write(RECORD_VALID);
        }
    }
    let mut registers = Unit::registers_at(PhysAddr::new(UNIT.load(Ordering::Relaxed)));
    field!(registers, fault_status).write(FaultStatus::OVERFLOW.bits());
}
