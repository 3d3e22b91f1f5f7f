//! Drivers that nobody here wrote: the block and network drivers of the crate `virtio-drivers`, unmodified, behind a VT-d unit, each
//! buffer mapped for as long as its request takes and with the rights of its direction.

use crate::{
    dma::{build_pool, find_unit},
    edu::wait_for,
    host::{PhysicalMemory, Pool, Tables},
    machine::{
        pci::Bus,
        place::{Place, Room},
        start::StartInformation,
    },
    say,
    unit::{Fault, Unit, faults, last_fault},
};
use core::{
    cell::UnsafeCell,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};
use framepool::{
    PhysAddr,
    adapters::virtio_drivers::{PoolHal, VirtioHost},
    vtd::{
        CacheLineFlush, DmaWindow, DomainConfig, DomainId, Invalidation, Iova, Levels, Mapping, Permissions,
        SecondStage, SecondStageDomain, SourceId, Stage, TranslationMode, WindowConfig, WindowHost,
    },
};
use virtio_drivers::{
    Result,
    device::{
        blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk},
        net::VirtIONetRaw,
    },
    transport::{
        DeviceStatus, DeviceType, InterruptStatus, Transport,
        pci::{PciTransport, bus::DeviceFunction, virtio_device_type},
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

type Domain = SecondStageDomain<Tables>;
type Window = DmaWindow<'static, SecondStage, Tables, Machine>;
type Block = VirtIOBlk<PoolHal<Machine>, Translated>;
type Net = VirtIONetRaw<PoolHal<Machine>, Translated, QUEUE>;

const QUEUE: usize = 16;
/// A buffer of 64 KiB that starts anywhere in a page, and room for one more page.
const WINDOW: WindowConfig = WindowConfig { base: Iova::new(0x1_0000_0000), slots: 64, slot_pages: 18 };
const ID: DomainId = DomainId::FIRST;

static UNIT: Place<Unit> = Place::new();
static DOMAIN: Place<Domain> = Place::new();
static SHARED: Place<Window> = Place::new();
static BOOKKEEPING: Room<{ 16 << 10 }> = Room::new();
/// How often hardware was told to forget something.
static FORGOTTEN: AtomicU32 = AtomicU32::new(0);

/// This machine, as the window and the drivers see it.
struct Machine;

// SAFETY: memory is mapped at its own address; the one unit confirms before `complete` returns.
unsafe impl WindowHost<Tables> for Machine {
    fn physical(&self, pointer: NonNull<u8>) -> PhysAddr {
        PhysAddr::new(pointer.addr().get() as u64)
    }

    fn forget(&self, invalidation: Invalidation<'_, Tables>) {
        FORGOTTEN.fetch_add(1, Relaxed);
        // SAFETY: `begin` put the unit there, and only the one thread uses it, here and in `run`, never in both at a time.
        unsafe { UNIT.get_mut() }.complete(invalidation, Stage::Second, ID);
    }
}

// SAFETY: devices' registers are mapped at their own address, where nothing else is.
unsafe impl VirtioHost for Machine {
    type Format = SecondStage;
    type Frames = Tables;
    type Host = Machine;

    fn window() -> &'static Window {
        // SAFETY: `begin` put it there before there was a driver.
        unsafe { SHARED.get() }
    }

    unsafe fn mmio(address: PhysAddr, _bytes: usize) -> NonNull<u8> {
        NonNull::new(address.as_u64() as *mut u8).expect("a placed device")
    }
}

/// A PCI transport that accepts what a device behind an IOMMU demands (VIRTIO_F_ACCESS_PLATFORM, bit 33 of the features; virtio 1.2,
/// section 6): that its addresses are translated. The drivers of this version do not know the bit.
struct Translated(PciTransport);

const ACCESS_PLATFORM: u64 = 1 << 33;

impl Transport for Translated {
    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }
    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }
    fn write_driver_features(&mut self, driver_features: u64) {
        self.0.write_driver_features(driver_features | ACCESS_PLATFORM);
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }
    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }
    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.0.set_status(status);
    }
    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.0.set_guest_page_size(guest_page_size);
    }
    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }
    fn queue_set(&mut self, queue: u16, size: u32, descriptors: u64, driver_area: u64, device_area: u64) {
        self.0.queue_set(queue, size, descriptors, driver_area, device_area);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }
    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.0.read_config_space(offset)
    }
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Result<()> {
        self.0.write_config_space(offset, value)
    }
}

/// What is demanded of a run, row by row.
struct Checks {
    good: bool,
}

impl Checks {
    fn demand(&mut self, what: core::fmt::Arguments<'_>, holds: bool) {
        self.good &= holds;
        say!("{what:<78} {}", if holds { "as expected" } else { "FAIL" });
    }
}

/// Finds the device, the unit that it is behind, and puts it into a domain of its own.
fn begin(
    memory: &'static PhysicalMemory,
    start: &StartInformation,
    bus: &mut Bus,
    kind: DeviceType,
) -> (&'static Pool, DeviceFunction, SourceId) {
    let pool = build_pool(memory);
    let device = bus.device(|found| virtio_device_type(found) == Some(kind)).expect("a virtio device");
    let source = SourceId::new(device.bus, device.device, device.function).expect("a device on bus 0");
    let (address, host_width) = find_unit(start, source).expect("a unit in the DMAR table");
    let units = &[Unit::capabilities_at(address)];
    let mode = TranslationMode::Legacy;
    let config = DomainConfig::from_capabilities::<SecondStage>(Levels::Four, mode, host_width, units);
    let frames = Tables::new(pool, CacheLineFlush);
    // SAFETY: the one scenario that runs puts each of these there once, and the device is detached before the domain goes.
    unsafe {
        let unit = Unit::bring_up(address, host_width, mode, frames);
        let domain = DOMAIN.put(Domain::new(config.expect("four levels"), frames).expect("a domain"));
        UNIT.put(unit);
        UNIT.get_mut().attach(source, domain, ID).expect("an entry for the device");
        SHARED.put(Window::new_in(BOOKKEEPING.all(), domain, Machine, WINDOW).expect("a window"));
    }
    (pool, device, source)
}

/// Detaches the device and demands that every frame is back.
fn end(checks: &mut Checks, pool: &'static Pool, source: SourceId) {
    // SAFETY: the driver is gone, and with it every use of the window and of the domain.
    let (mut unit, domain) = unsafe {
        let _ = SHARED.take();
        (UNIT.take(), DOMAIN.take())
    };
    checks.demand(format_args!("nothing is mapped when the driver is gone"), domain.mappings().count() == 0);
    unit.detach(source).expect("an attached device");
    // SAFETY: the unit has forgotten the device, and is the only one.
    unsafe { domain.close().complete() };
    unit.shut_down();
    let stats = pool.stats();
    checks.demand(format_args!("every frame is back"), stats.in_use == 0 && stats.table_frames_leaked == 0);
}

fn domain() -> &'static Domain {
    Machine::window().domain()
}

fn mappings(rights: Permissions) -> usize {
    domain().mappings().filter(|mapping| mapping.permissions == rights).count()
}

/// The transport of a device, whose interrupts stay off: the drivers poll.
fn transport(bus: &mut Bus, device: DeviceFunction) -> Translated {
    Translated(PciTransport::new::<PoolHal<Machine>, _>(&mut bus.root, device).expect("a virtio device"))
}

/// The bytes that are written and read back.
const BYTES: usize = 64 << 20;
/// The longest request.
const REQUEST: usize = 64 << 10;

/// Room for requests at every offset in a page.
#[repr(C, align(4096))]
struct Buffer(UnsafeCell<[u8; REQUEST + 2 * 4096]>);
// SAFETY: the one thread borrows it once.
unsafe impl Sync for Buffer {}
static BUFFER: Buffer = Buffer(UnsafeCell::new([0; REQUEST + 2 * 4096]));

/// What stands at a place of the disk, in words of eight bytes: the runner knows the same function.
fn word(place: usize) -> u64 {
    (place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

fn fill(bytes: &mut [u8], offset: usize) {
    for (number, bytes) in bytes.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(offset / 8 + number).to_le_bytes());
    }
}

fn holds(bytes: &[u8], offset: usize) -> bool {
    bytes.chunks_exact(8).enumerate().all(|(number, bytes)| bytes == word(offset / 8 + number).to_le_bytes())
}

/// Requests of random sizes at random places in memory, which together cover the disk.
fn requests(seed: u64, mut each: impl FnMut(usize, &mut [u8])) -> u32 {
    // SAFETY: the thread is alone, and the last borrow has ended.
    let buffer = unsafe { &mut *BUFFER.0.get() };
    let (mut random, mut offset, mut count) = (seed, 0, 0);
    while offset < BYTES {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let sectors = 1 + (random >> 33) as usize % (REQUEST / SECTOR_SIZE);
        let length = (sectors * SECTOR_SIZE).min(BYTES - offset);
        // Every fourth one starts at a page, so that all of it is mapped in place.
        let start = if random >> 60 & 3 == 0 { 0 } else { (random >> 20) as usize % 4096 };
        each(offset / SECTOR_SIZE, &mut buffer[start..start + length]);
        offset += length;
        count += 1;
    }
    count
}

/// The block driver: 64 MiB out and back, then a ring that is taken away.
pub fn block(memory: &'static PhysicalMemory, start: &StartInformation) -> bool {
    let mut checks = Checks { good: true };
    let mut bus = Bus::find(start).expect("a PCI bus");
    let (pool, device, source) = begin(memory, start, &mut bus, DeviceType::Block);
    let mut disk = Block::new(transport(&mut bus, device)).expect("a block device");
    checks.demand(format_args!("the disk has its size"), disk.capacity() as usize * SECTOR_SIZE == BYTES);
    let rings = (mappings(Permissions::READ), mappings(Permissions::WRITE), mappings(Permissions::all()));
    checks.demand(
        format_args!("the rings are mapped, what the device reads and what it writes apart"),
        rings == (1, 1, 0),
    );
    let idle: u64 = domain().mappings().map(|mapping| mapping.length).sum();
    let mut good = true;
    let written = requests(1, |sector, bytes| {
        fill(bytes, sector * SECTOR_SIZE);
        good &= disk.write_blocks(sector, bytes).is_ok();
    });
    checks.demand(format_args!("64 MiB written in {written} requests"), good);
    let read = requests(2, |sector, bytes| {
        bytes.fill(0);
        good &= disk.read_blocks(sector, bytes).is_ok() && holds(bytes, sector * SECTOR_SIZE);
    });
    checks.demand(format_args!("64 MiB read back in {read} requests, every byte as written"), good);
    good &= disk.flush().is_ok();
    checks.demand(format_args!("flushed"), good);
    rights(&mut checks, &mut disk);
    let mapped: u64 = domain().mappings().map(|mapping| mapping.length).sum();
    checks.demand(format_args!("only the rings are mapped between requests"), mapped == idle);
    // A request is three buffers: header, data, status; a flush two. The unit is told about each when it is done.
    let shared = 3 * (written + read + 1) + 2;
    let told = FORGOTTEN.load(Relaxed);
    checks.demand(format_args!("{told} buffers shared and withdrawn"), told == shared);
    checks.demand(format_args!("no fault"), faults() == 0);
    without_ring(&mut checks, &mut disk, source);
    drop(disk);
    let left = withdraw_leftovers();
    checks.demand(format_args!("{left} buffers of the request that failed"), left == 3);
    end(&mut checks, pool, source);
    let megabytes = BYTES >> 20;
    say!(
        "{megabytes} MiB written in {written} requests and read in {read}, {told} buffers shared and withdrawn, 0 faults before the ring went"
    );
    checks.good
}

/// A request that is under way: what the device may do with each of its buffers.
fn rights(checks: &mut Checks, disk: &mut Block) {
    let idle = (mappings(Permissions::READ), mappings(Permissions::WRITE));
    // SAFETY: the thread is alone, and the last borrow has ended.
    let buffer = &mut unsafe { &mut *BUFFER.0.get() }[100..100 + SECTOR_SIZE];
    let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
    // SAFETY: the three are left alone until the request is complete.
    unsafe {
        let token = disk.read_blocks_nb(0, &mut request, buffer, &mut response).expect("a place in the ring");
        let under_way = (mappings(Permissions::READ), mappings(Permissions::WRITE));
        let expected = (idle.0 + 1, idle.1 + 2);
        checks.demand(
            format_args!("while a read is under way: one more to read, two more to write"),
            under_way == expected,
        );
        while disk.peek_used().is_none() {
            core::hint::spin_loop();
        }
        let done = disk.complete_read_blocks(token, &request, buffer, &mut response);
        checks.demand(format_args!("the read is complete"), done.is_ok() && holds(buffer, 0));
    }
    let nothing = (mappings(Permissions::READ), mappings(Permissions::WRITE)) == idle;
    checks.demand(
        format_args!("and everything of it is unmapped"),
        nothing && mappings(Permissions::all()) == 0,
    );
}

/// The ring is unmapped behind the driver's back: the device must fault at its address, and get no further.
fn without_ring(checks: &mut Checks, disk: &mut Block, source: SourceId) {
    let ring: Mapping =
        domain().mappings().find(|mapping| mapping.permissions == Permissions::READ).expect("a ring");
    Machine.forget(domain().unmap(ring.iova, ring.length).expect("a mapped ring"));
    // SAFETY: the thread is alone, and the last borrow has ended.
    let buffer = &mut unsafe { &mut *BUFFER.0.get() }[..SECTOR_SIZE];
    buffer.fill(0x33);
    let (mut request, mut response) = (BlkReq::default(), BlkResp::default());
    let before = faults();
    // SAFETY: the three are left alone; the device is reset before they go.
    let token = unsafe { disk.read_blocks_nb(0, &mut request, buffer, &mut response) };
    wait_for(|| faults() > before);
    let found = last_fault();
    let in_ring = (ring.iova.as_u64()..ring.iova.as_u64() + ring.length).contains(&found.address);
    let expected = Fault { reason: found.reason, source, address: found.address, read: true };
    checks.demand(
        format_args!(
            "an unmapped ring: fault {:#x} of {} at {:#x}",
            found.reason, found.source, found.address
        ),
        faults() > before && found == expected && in_ring,
    );
    let untouched = buffer.iter().all(|&byte| byte == 0x33) && disk.peek_used().is_none();
    checks.demand(format_args!("and the device does nothing"), token.is_ok() && untouched);
    // SAFETY: the ring is what it was, and the driver still owns it.
    unsafe { domain().map(ring.iova, ring.target, ring.length, ring.permissions) }
        .expect("room in the domain");
}

/// Takes back what a driver that is gone has shared and never taken back; the device was reset.
fn withdraw_leftovers() -> usize {
    let nothing = NonNull::slice_from_raw_parts(NonNull::dangling(), 0);
    let mut left = 0;
    while let Some(mapping) = domain().mappings().next() {
        // SAFETY: the device is done with it; nothing is copied for one that only reads.
        unsafe { Machine::window().withdraw(mapping.iova, nothing, Permissions::READ) };
        left += 1;
    }
    left
}

mod frame;

/// The network driver: who has the gateway's address, and does it answer.
pub fn network(memory: &'static PhysicalMemory, start: &StartInformation) -> bool {
    let mut checks = Checks { good: true };
    let mut bus = Bus::find(start).expect("a PCI bus");
    let (pool, device, source) = begin(memory, start, &mut bus, DeviceType::Network);
    let mut net = Net::new(transport(&mut bus, device)).expect("a network device");
    let own = net.mac_address();
    let idle = domain().mappings().count();
    let found = exchange(&mut net, &frame::arp_request(own), frame::arp_answer);
    checks.demand(format_args!("the gateway answers who has its address: {found:02x?}"), found.is_some());
    let gateway = found.unwrap_or_default();
    let mut answered = 0;
    for number in 1..=PINGS {
        let ping = frame::echo_request(own, gateway, number);
        let answer = exchange(&mut net, &ping, |frame| frame::is_echo_answer(frame, &ping).then_some(()));
        answered += u16::from(answer.is_some());
    }
    checks.demand(
        format_args!("{answered} of {PINGS} pings of the gateway answered, payload as sent"),
        answered == PINGS,
    );
    checks.demand(
        format_args!("only the rings are mapped between frames"),
        domain().mappings().count() == idle,
    );
    checks.demand(format_args!("no fault"), faults() == 0);
    drop(net);
    end(&mut checks, pool, source);
    let told = FORGOTTEN.load(Relaxed);
    say!("ARP and {answered} pings answered, {told} buffers shared and withdrawn, {} faults", faults());
    checks.good
}

const PINGS: u16 = 64;

/// Sends a frame and waits for one that `wanted` takes something from.
fn exchange<T>(net: &mut Net, message: &[u8], wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    /// Frames of others that come in between.
    const OTHERS: usize = 8;
    net.send(message).ok()?;
    (0..OTHERS).find_map(|_| {
        let mut received = [0; 2048];
        let (header, length) = net.receive_wait(&mut received).ok()?;
        wanted(&received[header..header + length])
    })
}
