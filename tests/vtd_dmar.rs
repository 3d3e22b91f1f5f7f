//! The DMAR table: real ones, each structure, what is refused, and bytes that were made to break a parser.
#![cfg(not(loom))]

mod actions;
mod common;

use actions::dmar::{HEADER, check_bounds, sealed};
use common::tables::TestFrames;
use framepool::{PhysAddr, vtd::dmar::*, vtd::*};
use proptest::prelude::*;

const REAL: [&[u8]; 2] =
    [include_bytes!("../examples/traces/DMAR.bin"), include_bytes!("../examples/traces/DMAR-net.bin")];
/// A table with these structures, whose lengths are filled in.
fn table(structures: &[(u16, &[u8])]) -> Vec<u8> {
    let mut table = REAL[0][..HEADER].to_vec();
    for (kind, body) in structures {
        table.extend(kind.to_le_bytes());
        table.extend((body.len() as u16 + 4).to_le_bytes());
        table.extend(*body);
    }
    sealed(table)
}

/// An endpoint on a bus, behind the bridges of `path`.
fn endpoint(bus: u8, path: &[u8]) -> Vec<u8> {
    [&[1, 6 + path.len() as u8, 0, 0, 0, bus], path].concat()
}

fn reserved(base: u64, limit: u64) -> Vec<u8> {
    [&[0, 0, 0, 0][..], &base.to_le_bytes(), &limit.to_le_bytes(), &endpoint(0, &[2, 0])].concat()
}

#[test]
fn real_tables_are_read_in_full() {
    for (bytes, devices) in REAL.into_iter().zip([10, 11]) {
        let table = Dmar::parse(bytes).unwrap();
        assert_eq!((table.revision(), table.host_address_width()), (1, 48));
        assert!(table.interrupt_remapping() && !table.x2apic_opt_out() && !table.dma_control_opt_in());
        assert_eq!(table.structures().count(), 1);
        let unit = table.hardware_units().next().unwrap();
        assert_eq!((unit.registers, unit.registers_size), (PhysAddr::new(0xFED9_0000), 4096));
        assert_eq!((unit.includes_all, unit.segment), (false, 0));
        let mut scopes = unit.scopes;
        let io_apic = scopes.next().unwrap();
        assert_eq!((io_apic.kind, io_apic.enumeration_id, io_apic.start_bus), (ScopeKind::IoApic, 0, 0xFF));
        let endpoints: Vec<SourceId> = scopes.map(|scope| scope.source_id().unwrap()).collect();
        assert_eq!(endpoints.len(), devices);
        assert_eq!(endpoints.last().unwrap().to_string(), "00:1f.3");
        assert_eq!(table.reserved_memory().count(), 0);
    }
}

#[test]
fn every_structure_is_decoded_and_unknown_ones_are_skipped() {
    let unit = [&[1, 0x32, 7, 0][..], &0xFED9_1000u64.to_le_bytes(), &endpoint(3, &[0x1C, 1, 0, 0])].concat();
    let ports = [&[1, 0, 2, 0][..], &endpoint(0, &[1, 0])].concat();
    let affinity = [&[0; 4][..], &0xFED9_1000u64.to_le_bytes(), &5u32.to_le_bytes()].concat();
    let namespace = b"\0\0\0\x09\\_SB.I2C0\0\0\0".to_vec();
    let soc = [&[1, 0, 0, 0][..], &endpoint(0, &[6, 0])].concat();
    let bytes = table(&[
        (0, &unit),
        (0xABCD, b"whatever"),
        (1, &reserved(0x7D00_0000, 0x7D0F_FFFF)),
        (2, &ports),
        (3, &affinity),
        (4, &namespace),
        (5, &soc),
        (6, &[]),
    ]);
    let found: Vec<Structure<'_>> = Dmar::parse(&bytes).unwrap().structures().collect();
    let [
        Structure::HardwareUnit(unit),
        Structure::ReservedMemory(region),
        Structure::DeviceTlbPorts(ports),
        Structure::Affinity(affinity),
        Structure::NamespaceDevice(device),
        Structure::SocDeviceTlb(soc),
    ] = found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!((unit.includes_all, unit.segment, unit.registers_size), (true, 7, 16 << 10));
    let mut scopes = unit.scopes;
    let behind_a_bridge = scopes.next().unwrap();
    assert_eq!(behind_a_bridge.path().collect::<Vec<_>>(), [(0x1C, 1), (0, 0)]);
    assert_eq!((behind_a_bridge.start_bus, behind_a_bridge.source_id()), (3, None));
    assert_eq!((region.base(), region.length()), (PhysAddr::new(0x7D00_0000), 1 << 20));
    assert_eq!((ports.all_ports, ports.segment, ports.scopes.count()), (true, 2, 1));
    assert_eq!(affinity, Affinity { registers: PhysAddr::new(0xFED9_1000), proximity_domain: 5 });
    assert_eq!(device, NamespaceDevice { number: 9, object_name: b"\\_SB.I2C0" });
    assert_eq!((soc.required, soc.scopes.count()), (true, 1));
}

#[test]
fn what_is_wrong_is_named() {
    let real = REAL[0];
    let changed = |at: usize, value: u8| {
        let mut bytes = real.to_vec();
        bytes[at] = value;
        bytes
    };
    let resealed = |at: usize, value: u8| sealed(changed(at, value));
    let cases = [
        (real[..47].to_vec(), DmarError::TooShort { available: 47 }),
        (changed(0, b'X'), DmarError::Signature { signature: *b"XMAR" }),
        (changed(4, 0x99), DmarError::Length { length: 0x99, available: 152 }),
        (changed(4, 47), DmarError::Length { length: 47, available: 152 }),
        (changed(60, 1), DmarError::Checksum { sum: 1 }),
        (resealed(36, 10), DmarError::HostAddressWidth { width: 11 }),
        (resealed(36, 0xFF), DmarError::HostAddressWidth { width: 256 }),
        (resealed(50, 3), DmarError::StructureLength { offset: 48 }),
        (resealed(50, 0x69), DmarError::StructureLength { offset: 48 }),
        (sealed(real[..51].to_vec()), DmarError::StructureLength { offset: 48 }),
        (resealed(65, 5), DmarError::ScopeLength { offset: 48 }),
        (resealed(65, 6), DmarError::ScopeLength { offset: 48 }),
        (resealed(65, 9), DmarError::ScopeLength { offset: 48 }),
        (resealed(65, 0x60), DmarError::ScopeLength { offset: 48 }),
        (table(&[(0, &[0; 11])]), DmarError::StructureTooShort { offset: 48, kind: 0 }),
        (table(&[(9, &[]), (3, &[0; 15])]), DmarError::StructureTooShort { offset: 52, kind: 3 }),
        (
            table(&[(1, &reserved(0x2000, 0x1FFF))]),
            DmarError::Region { offset: 48, base: 0x2000, limit: 0x1FFF },
        ),
        (table(&[(1, &reserved(0, u64::MAX))]), DmarError::Region { offset: 48, base: 0, limit: u64::MAX }),
    ];
    for (bytes, error) in cases {
        assert_eq!(Dmar::parse(&bytes).unwrap_err(), error, "{error}");
    }
}

#[test]
fn reserved_memory_maps_to_itself_once() {
    let bytes = table(&[
        (1, &reserved(0x7D00_0000, 0x7D20_0FFF)),
        (1, &reserved(0x7D00_0000, 0x7D20_0FFF)),
        (1, &reserved(0x7D20_0000, 0x7D20_1FFF)),
        (1, &reserved(0x9000, 0x9FFE)),
        (1, &reserved(1 << 48, 1 << 49)),
    ]);
    let regions: Vec<_> = Dmar::parse(&bytes).unwrap().reserved_memory().collect();
    let frames = TestFrames::default();
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &frames).unwrap();
    // SAFETY: no device walks these tables.
    let map = |region| unsafe { domain.map_reserved_memory(&regions[region]) };
    assert_eq!(map(0), Ok(()));
    assert_eq!(map(1), Ok(()), "the same again");
    assert_eq!(map(2), Err(MapError::AlreadyMapped { iova: Iova::new(0x7D20_0000) }), "only partly the same");
    assert!(matches!(map(3), Err(MapError::Range(RangeError::Misaligned { .. }))));
    assert!(matches!(map(4), Err(MapError::Range(_))));
    assert_eq!(domain.dump().to_string(), "0x00007d000000..0x00007d201000 -> 0x00007d000000  2052 KiB  rw\n");
    // SAFETY: as above.
    unsafe { domain.close().complete() };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn random_bytes_are_refused_or_read_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_bounds(&bytes);
    }

    #[test]
    fn truncated_tables_are_refused_or_read_within_bounds(which in 0..2usize, length in 0..160usize, seal in any::<bool>()) {
        let bytes = &REAL[which][..length.min(REAL[which].len())];
        check_bounds(bytes);
        if seal && bytes.len() >= HEADER {
            check_bounds(&sealed(bytes.to_vec()));
        }
    }

    #[test]
    fn mutated_tables_are_refused_or_read_within_bounds(
        which in 0..2usize,
        changes in prop::collection::vec((HEADER..160usize, prop_oneof![any::<u8>(), 0..16u8]), 1..6),
    ) {
        let mut bytes = REAL[which].to_vec();
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        check_bounds(&bytes);
        // With a checksum that fits, so that what is behind it is reached.
        check_bounds(&sealed(bytes));
    }

    #[test]
    fn random_structures_are_refused_or_read_within_bounds(
        structures in prop::collection::vec(
            (0..8u16, prop_oneof![
                prop::collection::vec(any::<u8>(), 0..64),
                prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(8), any::<u8>()], 0..64),
            ]),
            0..6,
        ),
    ) {
        let structures: Vec<(u16, &[u8])> = structures.iter().map(|(kind, body)| (*kind, body.as_slice())).collect();
        check_bounds(&table(&structures));
    }
}
