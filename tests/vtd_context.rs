//! The tables that lead to a domain: what is written, in which order hardware can see it, what must be invalidated, and when
//! frames come back.
#![cfg(not(loom))]

mod common;

use common::tables::TestFrames;
use framepool::{
    PhysAddr,
    vtd::{context::*, *},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, HashMap},
    ptr::NonNull,
    sync::Mutex,
    sync::atomic::Ordering::SeqCst,
};

/// What QEMU 7.2 reports: a unit that does not snoop, with pass-through.
const LEGACY: Capabilities = Capabilities::from_registers(0x00d2_008c_222f_0606, 0x00f0_0f4a);
/// Scalable mode with both stages, nesting, PASIDs, device TLBs, page requests, supervisor requests, snoop control, snooped walks, A/D.
const SCALABLE_BITS: u64 =
    1 << 43 | 3 << 46 | 1 << 26 | 1 << 40 | 19 << 35 | 1 << 2 | 5 << 29 | 1 << 7 | 3 << 48 | 1 << 45;
const SCALABLE: Capabilities =
    Capabilities::from_registers(0x10d2_008c_222f_0e06, 0x00f0_0f4a | SCALABLE_BITS);

fn with_caching_mode(unit: Capabilities) -> Capabilities {
    let (capability, extended) = registers(unit);
    Capabilities::from_registers(capability | 1 << 7, extended)
}

fn registers(unit: Capabilities) -> (u64, u64) {
    let words: Vec<u64> = format!("{unit:?}")
        .split("0x")
        .skip(1)
        .map(|text| u64::from_str_radix(&text[..16], 16).unwrap())
        .collect();
    (words[0], words[1])
}

/// Frames whose contents reach memory only when they are flushed: what a unit that does not snoop reads.
#[derive(Default)]
struct Memory {
    frames: TestFrames,
    lines: Mutex<HashMap<u64, [u64; 8]>>,
}

// SAFETY: the frames are those of `TestFrames`.
unsafe impl TableFrames for Memory {
    fn allocate(&self) -> Option<PhysAddr> {
        let frame = self.frames.allocate()?;
        // What memory holds of a frame that was only zeroed in the cache.
        let mut lines = self.lines.lock().unwrap();
        lines.extend((0..64).map(|line| (frame.as_u64() + line * 64, [0xDEAD_BEEF_0000_0001; 8])));
        Some(frame)
    }

    unsafe fn free(&self, frame: PhysAddr) {
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
        let (start, mut lines) = (start.addr().get() as u64, self.lines.lock().unwrap());
        for line in (start & !63..start + bytes as u64).step_by(64) {
            // SAFETY: the caller says that the bytes are mapped, hence the lines.
            lines.insert(line, unsafe { (line as *const [u64; 8]).read_volatile() });
        }
    }
}

impl Memory {
    /// Words as the unit reads them.
    fn words<const N: usize>(&self, table: u64, first: u64) -> [u64; N] {
        let address = table + first * 8;
        let line = self.lines.lock().unwrap()[&(address & !63)];
        core::array::from_fn(|word| line[(address & 63) as usize / 8 + word])
    }

    /// The context entry of a device, as a unit in legacy mode finds it.
    fn legacy(&self, root: PhysAddr, source: SourceId) -> Option<ContextEntry> {
        let bus = self.words(root.as_u64(), u64::from(source.bus()) * 2);
        let table = RootEntry::decode(bus).unwrap()?.context_table.as_u64();
        ContextEntry::decode(self.words(table, u64::from(source.devfn()) * 2)).unwrap()
    }

    /// The entry of a device, as a unit in scalable mode finds it.
    fn device(&self, root: PhysAddr, source: SourceId) -> Option<ScalableContextEntry> {
        let half = u64::from(source.bus()) * 2 + u64::from(source.device() >= 16);
        let [half] = self.words(root.as_u64(), half);
        let table = ScalableRootEntry::decode(half).unwrap()?.context_table.as_u64();
        let index = u64::from(source.devfn() % 128);
        ScalableContextEntry::decode(self.words(table, index * 4)).unwrap()
    }

    /// The entry of a PASID, as a unit in scalable mode finds it.
    fn pasid(&self, root: PhysAddr, source: SourceId, pasid: Pasid) -> Option<PasidEntry> {
        let directory = self.device(root, source)?.pasid_directory.as_u64();
        let [word] = self.words(directory, u64::from(pasid.get() / 64));
        let table = PasidDirectoryEntry::decode(word).unwrap()?.pasid_table.as_u64();
        PasidEntry::decode(self.words(table, u64::from(pasid.get() % 64) * 8)).unwrap()
    }
}

fn source(bus: u8, device: u8, function: u8) -> SourceId {
    SourceId::new(bus, device, function).unwrap()
}

fn id(id: u16) -> DomainId {
    DomainId::new(id).unwrap()
}

fn translated(root: u64, levels: Levels, domain: u16) -> ContextEntry {
    let root = PhysAddr::new(root);
    ContextEntry::new(ContextTranslation::SecondStage { root, levels, device_tlb: false }, id(domain))
}

fn second_stage(root: u64) -> PasidEntry {
    let tables = SecondStageRoot { root: PhysAddr::new(root), levels: Levels::Four, accessed_dirty: false };
    PasidEntry::new(PasidTranslation::SecondStage(tables), id(3))
}

fn first_stage(root: u64) -> PasidEntry {
    let (root, levels) = (PhysAddr::new(root), Levels::Four);
    let tables = FirstStageRoot { root, levels, supervisor_requests: false, write_protect: false };
    PasidEntry::new(PasidTranslation::FirstStage(tables), id(4))
}

fn attach(
    tables: &LegacyTables<&Memory>,
    at: SourceId,
    entry: ContextEntry,
) -> Result<EntryChange, AttachError> {
    // SAFETY: no device is there to follow the entry.
    unsafe { tables.attach(at, entry) }
}

fn attach_pasid(
    tables: &ScalableTables<&Memory>,
    at: SourceId,
    pasid: u32,
    entry: PasidEntry,
) -> Result<EntryChange, AttachError> {
    // SAFETY: no device is there to follow the entry, and the test has one thread.
    unsafe { tables.attach(at, Pasid::new(pasid).unwrap(), entry) }
}

fn detach_pasid<'t, 'm>(
    tables: &'t ScalableTables<&'m Memory>,
    at: SourceId,
    pasid: u32,
) -> Result<Detached<'t, &'m Memory>, AttachError> {
    // SAFETY: the test has one thread.
    unsafe { tables.detach(at, Pasid::new(pasid).unwrap()) }
}

fn complete(detached: Detached<'_, &Memory>) {
    // SAFETY: no unit reads these tables.
    unsafe { detached.complete() }
}

fn close(memory: &Memory, closed: ClosedTables<&Memory>) {
    assert_eq!(memory.frames.live(), closed.table_frames());
    // SAFETY: no unit reads these tables.
    unsafe { closed.complete() };
    assert_eq!((memory.frames.live(), memory.frames.leaked_so_far()), (0, 0), "every frame is back");
}

fn device_cache(domain: Option<u16>, source: SourceId) -> Descriptor {
    let (domain, functions) = (domain.map(id), FunctionMask::One);
    Descriptor::ContextCache(ContextSelection::Device { domain, source, functions })
}

fn iotlb(selection: IotlbSelection) -> Descriptor {
    Descriptor::Iotlb { selection, drain_reads: true, drain_writes: true }
}

fn steps(change: EntryChange) -> Vec<Descriptor> {
    change.steps().collect()
}

#[test]
fn a_unit_finds_an_entry_when_attach_returns_and_not_when_detach_returns() {
    let memory = Memory::default();
    let tables = LegacyTables::new(LEGACY, 48, &memory).unwrap();
    let (device, other) = (source(0, 4, 0), source(0, 4, 1));
    let entry = translated(0x5000, Levels::Four, 7);
    assert_eq!(memory.legacy(tables.root(), device), None);
    assert_eq!(steps(attach(&tables, device, entry).unwrap()), []);
    assert_eq!(
        (memory.legacy(tables.root(), device), memory.legacy(tables.root(), other)),
        (Some(entry), None)
    );
    assert_eq!(tables.entry(device), Ok(Some(entry)));
    assert_eq!(tables.entries().collect::<Vec<_>>(), [(device, Ok(entry))]);
    assert_eq!(tables.table_frames(), 2);
    assert_eq!(attach(&tables, device, entry), Err(AttachError::Occupied { source: device }));
    assert_eq!(tables.detach(other).unwrap_err(), AttachError::NotAttached { source: other });
    assert_eq!(
        tables.detach(source(9, 0, 0)).unwrap_err(),
        AttachError::NotAttached { source: source(9, 0, 0) }
    );
    let detached = tables.detach(device).unwrap();
    assert_eq!(memory.legacy(tables.root(), device), None, "P is clear in memory");
    assert_eq!(
        steps(detached.change()),
        [device_cache(Some(7), device), iotlb(IotlbSelection::Domain(id(7)))]
    );
    assert_eq!(attach(&tables, device, entry), Err(AttachError::Occupied { source: device }), "not yet");
    assert_eq!(tables.detach(device).unwrap_err(), AttachError::NotAttached { source: device });
    complete(detached);
    let next = translated(0x6000, Levels::Three, 8);
    assert!(attach(&tables, device, next).is_ok());
    assert_eq!(memory.legacy(tables.root(), device), Some(next));
    close(&memory, tables.close());
}

#[test]
fn every_bus_device_and_function_has_its_place() {
    let memory = Memory::default();
    let tables = LegacyTables::new(LEGACY, 48, &memory).unwrap();
    let scalable = ScalableTables::new(SCALABLE, 48, &memory).unwrap();
    let all = [(0, 0, 0), (0, 0, 1), (0, 15, 7), (0, 16, 0), (0, 31, 7), (1, 0, 0), (255, 31, 7)];
    for (number, (bus, device, function)) in (1..).zip(all) {
        let at = source(bus, device, function);
        let attached = attach(&tables, at, translated(u64::from(number) << 12, Levels::Four, number));
        assert_eq!(steps(attached.unwrap()), []);
        let config =
            DeviceConfig { default_pasid: Pasid::new(number.into()).unwrap(), ..DeviceConfig::default() };
        assert_eq!(steps(scalable.attach_device(at, config).unwrap()), []);
    }
    for (number, (bus, device, function)) in (1..).zip(all) {
        let at = source(bus, device, function);
        let entry = memory.legacy(tables.root(), at).unwrap();
        assert_eq!(entry, translated(u64::from(number) << 12, Levels::Four, number));
        let entry = memory.device(scalable.root(), at).unwrap();
        assert_eq!((entry.default_pasid.get(), entry.pasid_bits), (number.into(), 15));
    }
    assert_eq!((tables.table_frames(), scalable.table_frames()), (1 + 3, 1 + 4 + 7));
    assert_eq!(tables.entries().count(), all.len());
    // SAFETY: no unit reads these tables.
    unsafe { tables.close().complete() };
    close(&memory, scalable.close());
}

#[test]
fn pasids_are_attached_one_by_one_and_go_with_their_device() {
    let memory = Memory::default();
    let tables = ScalableTables::new(SCALABLE, 48, &memory).unwrap();
    let device = source(0, 20, 3);
    let not_attached = AttachError::NotAttached { source: device };
    assert_eq!(attach_pasid(&tables, device, 0, first_stage(0x5000)), Err(not_attached));
    let config =
        DeviceConfig { pasids: true, device_tlb: true, page_requests: true, ..DeviceConfig::default() };
    assert_eq!(steps(tables.attach_device(device, config).unwrap()), []);
    assert_eq!(tables.attach_device(device, config), Err(AttachError::Occupied { source: device }));
    for (pasid, entry) in [
        (0, first_stage(0x5000)),
        (63, second_stage(0x6000)),
        (64, first_stage(0x7000)),
        (0x7FFF, second_stage(0x8000)),
    ] {
        assert_eq!(steps(attach_pasid(&tables, device, pasid, entry).unwrap()), []);
        let number = Pasid::new(pasid).unwrap();
        assert_eq!(memory.pasid(tables.root(), device, number), Some(entry));
        // SAFETY: the test has one thread.
        assert_eq!(unsafe { tables.entry(device, number) }, Ok(Some(entry)));
        let occupied = AttachError::PasidOccupied { source: device, pasid: number };
        assert_eq!(attach_pasid(&tables, device, pasid, entry), Err(occupied));
    }
    let beyond = Pasid::new(0x8000).unwrap();
    let error = AttachError::PasidBeyondDirectory { pasid: beyond };
    assert_eq!(attach_pasid(&tables, device, 0x8000, first_stage(0x5000)), Err(error));
    assert_eq!(tables.table_frames(), 1 + 1 + 1 + 3, "root, half a bus, directory, three PASID tables");
    let detached = detach_pasid(&tables, device, 64).unwrap();
    assert_eq!(memory.pasid(tables.root(), device, Pasid::new(64).unwrap()), None);
    let error = AttachError::PasidNotAttached { source: device, pasid: Pasid::new(64).unwrap() };
    assert_eq!(detach_pasid(&tables, device, 64).unwrap_err(), error);
    complete(detached);
    assert!(attach_pasid(&tables, device, 64, second_stage(0x9000)).is_ok());
    // SAFETY: the test has one thread.
    let detached = unsafe { tables.detach_device(device) }.unwrap();
    assert_eq!(memory.device(tables.root(), device), None);
    let all = Descriptor::PasidCache(PasidSelection::All);
    assert_eq!(steps(detached.change()), [device_cache(None, device), all, iotlb(IotlbSelection::All)]);
    assert_eq!(attach_pasid(&tables, device, 64, first_stage(0x5000)), Err(not_attached));
    assert_eq!(
        tables.attach_device(device, config),
        Err(AttachError::Occupied { source: device }),
        "not yet"
    );
    complete(detached);
    assert_eq!(tables.table_frames(), 2, "directory and PASID tables are back");
    assert!(tables.attach_device(device, config).is_ok());
    close(&memory, tables.close());
}

#[test]
fn what_was_found_by_a_pasid_entry_is_invalidated_after_it() {
    let memory = Memory::default();
    for unit in [SCALABLE, with_caching_mode(SCALABLE)] {
        let tables = ScalableTables::new(unit, 48, &memory).unwrap();
        let device = source(2, 0, 0);
        let pasid = Pasid::new(5).unwrap();
        let attached = tables.attach_device(device, DeviceConfig::default()).unwrap();
        let remembers = unit.caching_mode();
        assert_eq!(steps(attached), if remembers { vec![device_cache(None, device)] } else { vec![] });
        let through = PasidEntry::new(PasidTranslation::PassThrough { most_levels: Levels::Five }, id(5));
        let (first, second) = (first_stage(0x5000), second_stage(0x6000));
        let (PasidTranslation::FirstStage(one), PasidTranslation::SecondStage(two)) =
            (first.translation, second.translation)
        else {
            panic!()
        };
        let nested = PasidEntry::new(PasidTranslation::Nested(one, two), id(6));
        let in_pasid = |domain| Descriptor::PasidIotlb { domain: id(domain), pasid, pages: None };
        let in_domain = |domain| iotlb(IotlbSelection::Domain(id(domain)));
        for (entry, domain, found) in [
            (first, 4, vec![in_pasid(4)]),
            (second, 3, vec![in_domain(3)]),
            (through, 5, vec![in_pasid(5), in_domain(5)]),
            (nested, 6, vec![in_pasid(6), in_domain(6)]),
        ] {
            let attached = steps(attach_pasid(&tables, device, 5, entry).unwrap());
            let all = [vec![Descriptor::PasidCache(PasidSelection::All)], found.clone()].concat();
            assert_eq!(attached, if remembers { all } else { vec![] });
            let detached = detach_pasid(&tables, device, 5).unwrap();
            let one = Descriptor::PasidCache(PasidSelection::Pasid(id(domain), pasid));
            assert_eq!(steps(detached.change()), [vec![one], found].concat());
            complete(detached);
        }
        close(&memory, tables.close());
    }
}

#[test]
fn caching_mode_and_write_buffers_want_to_be_told_of_new_entries() {
    let memory = Memory::default();
    let device = source(0, 1, 0);
    let change = |unit| {
        let tables = LegacyTables::new(unit, 48, &memory).unwrap();
        let change = attach(&tables, device, translated(0x5000, Levels::Three, 7)).unwrap();
        let detached = tables.detach(device).unwrap();
        assert!(!detached.change().needs_write_buffer_flush(), "an invalidation flushes it too");
        complete(detached);
        // SAFETY: no unit reads these tables.
        unsafe { tables.close().complete() };
        change
    };
    let plain = change(LEGACY);
    assert_eq!((steps(plain), plain.needs_write_buffer_flush()), (vec![], false));
    let caching = change(with_caching_mode(LEGACY));
    assert_eq!(steps(caching), [device_cache(None, device), iotlb(IotlbSelection::Domain(id(7)))]);
    let (capability, extended) = registers(LEGACY);
    let buffered = change(Capabilities::from_registers(capability | 1 << 4, extended));
    assert_eq!((steps(buffered), buffered.needs_write_buffer_flush()), (vec![], true));
    let both = change(Capabilities::from_registers(capability | 1 << 4 | 1 << 7, extended));
    assert_eq!((steps(both).len(), both.needs_write_buffer_flush()), (2, false));
}

#[test]
fn what_the_unit_does_not_have_is_refused_and_changes_nothing() {
    let memory = Memory::default();
    let (capability, extended) = registers(LEGACY);
    let unit = |capability, extended| {
        LegacyTables::new(Capabilities::from_registers(capability, extended), 47, &memory).unwrap()
    };
    let device = source(0, 1, 0);
    let root = PhysAddr::new(0x5000);
    let through = |most_levels| ContextEntry::new(ContextTranslation::PassThrough { most_levels }, id(1));
    let with_tlb = ContextTranslation::SecondStage { root, levels: Levels::Four, device_tlb: true };
    let far = PhysAddr::new(1 << 47);
    for (capability, extended, entry, error) in [
        (
            capability,
            extended,
            translated(0x5000, Levels::Five, 1),
            AttachError::Unsupported(Feature::Levels(Levels::Five)),
        ),
        (
            capability & !7,
            extended,
            translated(0x5000, Levels::Four, 16),
            AttachError::Unsupported(Feature::DomainId(id(16))),
        ),
        (
            capability,
            extended,
            ContextEntry::new(with_tlb, id(1)),
            AttachError::Unsupported(Feature::DeviceTlb),
        ),
        (capability, extended & !0x40, through(Levels::Four), AttachError::Unsupported(Feature::PassThrough)),
        (
            capability,
            extended,
            through(Levels::Three),
            AttachError::Unsupported(Feature::Levels(Levels::Three)),
        ),
        (
            capability,
            extended,
            translated(1 << 47, Levels::Four, 1),
            AttachError::TableBeyondWidth { table: far, width: 47 },
        ),
        (
            capability,
            extended,
            translated(0x5008, Levels::Four, 1),
            AttachError::Entry(EntryError::Misaligned { table: PhysAddr::new(0x5008) }),
        ),
    ] {
        let tables = unit(capability, extended);
        let before = memory.frames.words(tables.root());
        assert_eq!(attach(&tables, device, entry), Err(error), "{error}");
        assert_eq!((memory.frames.words(tables.root()), tables.table_frames()), (before, 1));
        close(&memory, tables.close());
    }
    for fine in [through(Levels::Four), translated(0x5000, Levels::Four, 15)] {
        let tables = unit(capability & !7, extended);
        assert!(attach(&tables, device, fine).is_ok());
        close(&memory, tables.close());
    }
}

#[test]
fn every_missing_feature_of_scalable_mode_is_named() {
    let memory = Memory::default();
    let (capability, extended) = registers(SCALABLE);
    let device = source(0, 1, 0);
    let first = |levels, supervisor_requests| {
        let tables =
            FirstStageRoot { root: PhysAddr::new(0x5000), levels, supervisor_requests, write_protect: false };
        PasidEntry::new(PasidTranslation::FirstStage(tables), id(1))
    };
    let second = |levels, accessed_dirty| {
        let tables = SecondStageRoot { root: PhysAddr::new(0x6000), levels, accessed_dirty };
        PasidEntry::new(PasidTranslation::SecondStage(tables), id(1))
    };
    let (four, plain) = (first(Levels::Four, false), second(Levels::Four, false));
    let (PasidTranslation::FirstStage(one), PasidTranslation::SecondStage(two)) =
        (four.translation, plain.translation)
    else {
        panic!()
    };
    let nested = PasidEntry::new(PasidTranslation::Nested(one, two), id(1));
    let through = |most_levels| PasidEntry::new(PasidTranslation::PassThrough { most_levels }, id(1));
    // Without these bits, this entry is refused for want of this feature.
    let cases = [
        (0, 1 << 47, four, Feature::FirstStage),
        (1 << 60, 0, first(Levels::Five, false), Feature::Levels(Levels::Five)),
        (0, 1 << 31, first(Levels::Four, true), Feature::SupervisorRequests),
        (0, 1 << 46, plain, Feature::SecondStage),
        (1 << 11, 0, second(Levels::Five, false), Feature::Levels(Levels::Five)),
        (0, 1 << 45, second(Levels::Four, true), Feature::AccessedDirty),
        (0, 1 << 26, nested, Feature::Nesting),
        (0, 1 << 6, through(Levels::Five), Feature::PassThrough),
        (1 << 11, 0, through(Levels::Five), Feature::Levels(Levels::Five)),
        (0, 1 << 7, PasidEntry { force_snoop: true, ..plain }, Feature::SnoopControl),
        (0, 1 << 48, PasidEntry { snooped_walks: true, ..plain }, Feature::SnoopedWalks),
        (7, 0, PasidEntry { domain_id: id(16), ..plain }, Feature::DomainId(id(16))),
    ];
    for (missing, missing_extended, entry, feature) in cases {
        for (capability, extended, expected) in [
            (capability, extended, None),
            (capability & !missing, extended & !missing_extended, Some(AttachError::Unsupported(feature))),
        ] {
            let unit = Capabilities::from_registers(capability, extended);
            let tables = ScalableTables::new(unit, 48, &memory).unwrap();
            assert!(tables.attach_device(device, DeviceConfig::default()).is_ok());
            assert_eq!(attach_pasid(&tables, device, 1, entry).err(), expected, "{entry:?}");
            assert_eq!(tables.table_frames(), 3 + u64::from(expected.is_none()));
            close(&memory, tables.close());
        }
    }
    for (missing, config, feature) in [
        (1 << 40, DeviceConfig { pasids: true, ..DeviceConfig::default() }, Feature::Pasids),
        (
            1 << 49,
            DeviceConfig { default_pasid: Pasid::new(1).unwrap(), ..DeviceConfig::default() },
            Feature::DefaultPasid,
        ),
        (1 << 2, DeviceConfig { device_tlb: true, ..DeviceConfig::default() }, Feature::DeviceTlb),
        (1 << 29, DeviceConfig { page_requests: true, ..DeviceConfig::default() }, Feature::PageRequests),
    ] {
        let unit = Capabilities::from_registers(capability, extended & !missing);
        let tables = ScalableTables::new(unit, 48, &memory).unwrap();
        assert_eq!(tables.attach_device(device, config), Err(AttachError::Unsupported(feature)));
        close(&memory, tables.close());
    }
    // PSS 5: PASIDs of 6 bits.
    let short = Capabilities::from_registers(capability, extended & !(0x1F << 35) | 5 << 35);
    let tables = ScalableTables::new(short, 48, &memory).unwrap();
    assert!(tables.attach_device(device, DeviceConfig::default()).is_ok());
    assert_eq!(attach_pasid(&tables, device, 64, four), Err(AttachError::Unsupported(Feature::Pasids)));
    assert!(attach_pasid(&tables, device, 63, four).is_ok());
    close(&memory, tables.close());
    let error = AttachError::Unsupported(Feature::Mode(TranslationMode::Scalable));
    assert_eq!(ScalableTables::new(LEGACY, 48, &memory).err(), Some(error));
}

#[test]
fn without_frames_or_a_way_to_flush_nothing_changes() {
    let memory = Memory::default();
    let frames = &memory.frames;
    assert_eq!(LegacyTables::new(LEGACY, 48, frames).err(), Some(AttachError::NoFlush));
    frames.allow(0);
    assert_eq!(LegacyTables::new(LEGACY, 48, &memory).err(), Some(AttachError::OutOfFrames));
    frames.allow(u64::MAX);
    assert!(matches!(
        LegacyTables::new(LEGACY, 13, &memory),
        Err(AttachError::TableBeyondWidth { width: 13, .. })
    ));
    assert_eq!(frames.live(), 0);
    let (legacy, scalable) = (
        LegacyTables::new(LEGACY, 48, &memory).unwrap(),
        ScalableTables::new(SCALABLE, 48, &memory).unwrap(),
    );
    let device = source(0, 1, 0);
    let before = [legacy.root(), scalable.root()].map(|root| frames.words(root));
    for allowed in 0..2 {
        frames.allow(allowed);
        assert_eq!(scalable.attach_device(device, DeviceConfig::default()), Err(AttachError::OutOfFrames));
        frames.allow(0);
        let refused = attach(&legacy, device, translated(0x5000, Levels::Four, 1));
        assert_eq!(refused, Err(AttachError::OutOfFrames));
        assert_eq!([legacy.root(), scalable.root()].map(|root| frames.words(root)), before, "INV-11");
        assert_eq!(frames.live(), 2);
    }
    frames.allow(2);
    assert!(scalable.attach_device(device, DeviceConfig::default()).is_ok());
    assert_eq!(attach_pasid(&scalable, device, 7, first_stage(0x5000)), Err(AttachError::OutOfFrames));
    assert_eq!(frames.live(), 4);
    frames.allow(u64::MAX);
    // Dropped without being closed: hardware may read them.
    drop((legacy, scalable));
    assert_eq!(frames.leaked.load(SeqCst), 4);
}

#[derive(Clone, Debug)]
enum Step {
    Attach(usize, u16, bool),
    Detach(usize),
    Complete(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6usize, 1..50u16, any::<bool>()).prop_map(|(at, domain, through)| Step::Attach(at, domain, through)),
        2 => (0..6usize).prop_map(Step::Detach),
        2 => (0..6usize).prop_map(Step::Complete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_sequence_agrees_with_an_ordered_map(steps in prop::collection::vec(step(), 0..60)) {
        let memory = Memory::default();
        let tables = LegacyTables::new(LEGACY, 48, &memory).unwrap();
        let places = [(0, 0, 0), (0, 3, 1), (0, 31, 7), (1, 0, 0), (200, 16, 0), (200, 16, 1)]
            .map(|(bus, device, function)| source(bus, device, function));
        let mut model = BTreeMap::new();
        let mut removed = HashMap::new();
        for step in steps {
            match step {
                Step::Attach(at, domain, through) => {
                    let entry = if through {
                        ContextEntry::new(ContextTranslation::PassThrough { most_levels: Levels::Four }, id(domain))
                    } else {
                        translated(u64::from(domain) << 12, Levels::Three, domain)
                    };
                    let free = !model.contains_key(&places[at]) && !removed.contains_key(&at);
                    let outcome = attach(&tables, places[at], entry);
                    prop_assert_eq!(outcome.is_ok(), free);
                    if free {
                        model.insert(places[at], entry);
                    }
                }
                Step::Detach(at) => match tables.detach(places[at]) {
                    Ok(detached) => {
                        prop_assert!(model.remove(&places[at]).is_some());
                        removed.insert(at, detached);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, AttachError::NotAttached { source: places[at] });
                        prop_assert!(!model.contains_key(&places[at]));
                    }
                },
                Step::Complete(at) => removed.remove(&at).into_iter().for_each(complete),
            }
            for at in places {
                let entry = model.get(&at).copied();
                prop_assert_eq!(tables.entry(at), Ok(entry));
                prop_assert_eq!(memory.legacy(tables.root(), at), entry, "in memory too");
            }
        }
        let all: Vec<_> = model.into_iter().map(|(at, entry)| (at, Ok(entry))).collect();
        prop_assert_eq!(tables.entries().collect::<Vec<_>>(), all);
        drop(removed);
        close(&memory, tables.close());
    }
}
