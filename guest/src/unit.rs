//! Drives one VT-d unit: its registers, the tables that lead to the domains, the invalidation queue, the fault records.
//!
//! Everything that is the architecture's (what a register says, what an entry or a descriptor looks like) comes from framepool; here
//! is only who writes what where, and who waits for whom. Sections are those of the VT-d specification.

use crate::{
    host::Tables,
    machine::{
        apic::MESSAGE_ADDRESS,
        interrupts::{self, IOMMU_FAULT, Interrupted},
    },
};
use bitflags::bitflags;
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use framepool::{
    PhysAddr,
    vtd::{context::*, *},
};
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
        const WRITE_BUFFER = 1 << 27;
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
/// A frame of the queue, or the word that a wait descriptor writes.
fn words(frames: Tables, frame: PhysAddr) -> &'static [AtomicU64] {
    let start = frames.pointer(frame).cast::<AtomicU64>();
    // SAFETY: the unit took the frame for this, and only ever reaches it as atomics.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), 512) }
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

/// The tables by which the unit finds its way to the domain of a device.
enum Way {
    Legacy(LegacyTables<Tables>),
    Scalable(ScalableTables<Tables>),
}

/// One unit.
pub struct Unit {
    registers: UniqueMmioPointer<'static, Registers>,
    pub capabilities: Capabilities,
    pub mode: TranslationMode,
    frames: Tables,
    way: Option<Way>,
    queue: PhysAddr,
    tail: u64,
    /// Where a wait descriptor writes how many there were.
    done: PhysAddr,
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
    pub fn bring_up(address: PhysAddr, host_width: u8, mode: TranslationMode, frames: Tables) -> Self {
        let capabilities = Self::capabilities_at(address);
        assert!(
            capabilities.queued_invalidation(),
            "a unit that only takes registers refuses them in scalable mode"
        );
        let (way, root) = match mode {
            TranslationMode::Legacy => {
                let tables =
                    LegacyTables::new(capabilities, host_width, frames).expect("frames for the unit");
                let root = tables.root().as_u64();
                (Way::Legacy(tables), root)
            }
            TranslationMode::Scalable => {
                let tables =
                    ScalableTables::new(capabilities, host_width, frames).expect("frames for the unit");
                let root = tables.root().as_u64() | SCALABLE;
                (Way::Scalable(tables), root)
            }
        };
        let frame = || frames.allocate().expect("a frame for the unit");
        let mut unit = Self {
            registers: Self::registers_at(address),
            capabilities,
            mode,
            frames,
            way: Some(way),
            queue: frame(),
            tail: 0,
            done: frame(),
            waits: 0,
        };
        let wide = if mode == TranslationMode::Scalable { WIDE } else { 0 };
        unit.end(Global::TRANSLATION);
        unit.end(Global::QUEUE);
        field!(unit.registers, queue_tail).write(0);
        field!(unit.registers, queue_address).write(unit.queue.as_u64() | wide);
        unit.begin(Global::QUEUE);
        field!(unit.registers, root_table).write(root);
        unit.begin(Global::ROOT_TABLE);
        unit.forget_all();
        unit.report_faults(address);
        unit.begin(Global::TRANSLATION);
        unit
    }

    /// Switches the unit off, and gives its frames back.
    pub fn shut_down(mut self) {
        self.end(Global::TRANSLATION);
        self.forget_all();
        self.end(Global::QUEUE);
        // SAFETY: the unit translates nothing any more and has forgotten everything; its queue is off, so it reads and writes
        // neither of the two frames.
        unsafe {
            match self.way.take() {
                Some(Way::Legacy(tables)) => tables.close().complete(),
                Some(Way::Scalable(tables)) => tables.close().complete(),
                None => {}
            }
            self.frames.free(self.queue);
            self.frames.free(self.done);
        }
    }

    /// How many frames the tables take that lead to the domains.
    pub fn table_frames(&self) -> u64 {
        match &self.way {
            Some(Way::Legacy(tables)) => tables.table_frames(),
            Some(Way::Scalable(tables)) => tables.table_frames(),
            None => 0,
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
        let status = StatusWrite::new(self.done, self.waits);
        for descriptor in descriptors {
            self.enqueue(descriptor);
        }
        self.enqueue(Descriptor::Wait(Wait { status, fence: true, ..Wait::default() }));
        field!(self.registers, queue_tail).write(self.tail);
        // Ordering: Acquire: what hardware did before it wrote the word is done.
        while words(self.frames, self.done)[0].load(Ordering::Acquire) as u32 != self.waits {
            let status = FaultStatus::from_bits_retain(field!(self.registers, fault_status).read());
            if status.contains(FaultStatus::QUEUE_ERROR) {
                panic!("the unit refuses a descriptor, at {:#x}", field!(self.registers, queue_head).read());
            }
            core::hint::spin_loop();
        }
    }

    fn enqueue(&mut self, descriptor: Descriptor) {
        let (words_used, descriptor) = match self.mode {
            TranslationMode::Scalable => (4, descriptor.encode()),
            TranslationMode::Legacy => {
                let [low, high] = descriptor.encode_narrow().expect("legacy mode has no wide descriptors");
                (2, [low, high, 0, 0])
            }
        };
        let place = &words(self.frames, self.queue)[self.tail as usize / 8..][..words_used];
        for (place, word) in place.iter().zip(descriptor) {
            // Ordering: Release, to the hardware that reads the descriptor after the tail has moved.
            place.store(word, Ordering::Release);
        }
        // SAFETY: the words are in the queue's frame.
        unsafe { self.frames.flush(NonNull::from(place).cast(), words_used * 8) };
        self.tail = (self.tail + words_used as u64 * 8) % QUEUE_BYTES;
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

    /// Tells the unit what a change of its tables demands, step by step.
    fn tell(&mut self, change: EntryChange) {
        for step in change.steps() {
            self.submit([step]);
        }
        if change.needs_write_buffer_flush() {
            let running = self.status() & (Global::TRANSLATION | Global::QUEUE).bits();
            self.command(running | Global::WRITE_BUFFER.bits());
            while self.status() & Global::WRITE_BUFFER.bits() != 0 {
                core::hint::spin_loop();
            }
        }
    }

    /// Translates the requests of `source` by the tables of `domain`, which `id` tags, from now on.
    ///
    /// # Safety
    /// The domain lives until the device is detached.
    pub unsafe fn attach<F: Format>(
        &mut self,
        source: SourceId,
        domain: &Domain<F, Tables>,
        id: DomainId,
    ) -> Result<(), AttachError> {
        let (root, levels) = (domain.root(), domain.levels());
        let change = match self.way.as_ref() {
            Some(Way::Legacy(tables)) => {
                let translation = ContextTranslation::SecondStage { root, levels, device_tlb: false };
                // SAFETY: the caller's.
                unsafe { tables.attach(source, ContextEntry::new(translation, id))? }
            }
            Some(Way::Scalable(tables)) => {
                let translation = match F::STAGE {
                    Stage::Second => {
                        PasidTranslation::SecondStage(SecondStageRoot { root, levels, accessed_dirty: false })
                    }
                    Stage::First => PasidTranslation::FirstStage(FirstStageRoot {
                        root,
                        levels,
                        supervisor_requests: false,
                        write_protect: false,
                    }),
                };
                let change = tables.attach_device(source, DeviceConfig::default())?;
                // SAFETY: the caller's; one thread attaches and detaches.
                let second = unsafe { tables.attach(source, Pasid::ZERO, PasidEntry::new(translation, id))? };
                self.tell(change);
                second
            }
            None => return Ok(()),
        };
        self.tell(change);
        Ok(())
    }

    /// Takes a device's translation away: from now on its requests are refused.
    pub fn detach(&mut self, source: SourceId) -> Result<(), AttachError> {
        let Some(way) = self.way.take() else { return Ok(()) };
        match &way {
            Way::Legacy(tables) => self.let_go(tables.detach(source)?),
            // SAFETY: one thread attaches and detaches.
            Way::Scalable(tables) => unsafe {
                self.let_go(tables.detach(source, Pasid::ZERO)?);
                self.let_go(tables.detach_device(source)?);
            },
        }
        self.way = Some(way);
        Ok(())
    }

    fn let_go(&mut self, detached: Detached<'_, Tables>) {
        self.tell(detached.change());
        // SAFETY: the unit has confirmed every step.
        unsafe { detached.complete() };
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
            (Stage::First, pages) => Descriptor::PasidIotlb { domain: id, pasid: Pasid::ZERO, pages },
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
