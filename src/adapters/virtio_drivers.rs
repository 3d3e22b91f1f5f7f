//! The `Hal` of the crate [`virtio-drivers`](https://docs.rs/virtio-drivers) 0.13 over a [`DmaWindow`]: unmodified virtio drivers
//! behind a VT-d unit, each buffer mapped with the narrowest rights and for no longer than its request takes.
//!
//! The functions of `Hal` have no `self`, so what they work on is in statics, which the host names by [`VirtioHost`].
//!
//! ```
//! use core::{mem::MaybeUninit, ptr::NonNull, sync::atomic::AtomicU32};
//! use framepool::{AnonymousMemory, Builder, FramePool, LinuxPlatform, PhysAddr, vtd::*};
//! use framepool::adapters::virtio_drivers::{PoolHal, VirtioHost};
//! use std::sync::LazyLock;
//! use virtio_drivers::{BufferDirection, Hal};
//!
//! type Pool = FramePool<AnonymousMemory, LinuxPlatform>;
//! type Frames = &'static Pool;
//!
//! struct Machine;
//! // SAFETY: this machine has no unit that could remember anything, and no device that reads physical addresses.
//! unsafe impl WindowHost<Frames> for Machine {
//!     fn physical(&self, pointer: NonNull<u8>) -> PhysAddr {
//!         PhysAddr::new(pointer.addr().get() as u64)
//!     }
//!     fn forget(&self, invalidation: Invalidation<'_, Frames>) {
//!         // A kernel submits the descriptors and waits, then:
//!         unsafe { invalidation.complete() }
//!     }
//! }
//!
//! static POOL: LazyLock<Pool> = LazyLock::new(|| {
//!     Builder::new(64).build(AnonymousMemory::new(64).unwrap(), LinuxPlatform::new()).unwrap()
//! });
//! static DOMAIN: LazyLock<SecondStageDomain<Frames>> =
//!     LazyLock::new(|| SecondStageDomain::new(DomainConfig::new(Levels::Three), &*POOL).unwrap());
//! static WINDOW: LazyLock<DmaWindow<'static, SecondStage, Frames, Machine>> = LazyLock::new(|| {
//!     let memory = Box::leak(Box::new([MaybeUninit::uninit(); 4096]));
//!     let config = WindowConfig { base: Iova::new(0x10_0000), slots: 64, slot_pages: 17 };
//!     DmaWindow::new_in(memory, &*DOMAIN, Machine, config).unwrap()
//! });
//!
//! /// What a kernel maps at the physical address of the device's registers. The first says "virt".
//! static REGISTERS: [AtomicU32; 64] = [const { AtomicU32::new(0x7472_6976) }; 64];
//! const DEVICE: u64 = 0xFEB0_0000;
//!
//! // SAFETY: what is asked for lies in the registers, which allow reads and writes, as a driver makes them.
//! unsafe impl VirtioHost for Machine {
//!     type Format = SecondStage;
//!     type Frames = Frames;
//!     type Host = Machine;
//!     fn window() -> &'static DmaWindow<'static, SecondStage, Frames, Machine> {
//!         &WINDOW
//!     }
//!     unsafe fn mmio(address: PhysAddr, _bytes: usize) -> NonNull<u8> {
//!         // SAFETY: the caller asks for the registers of a device, and this is the only one.
//!         unsafe { NonNull::from(&REGISTERS).cast().byte_add((address.as_u64() - DEVICE) as usize) }
//!     }
//! }
//!
//! // What a transport and a driver do, here by hand: `VirtIOBlk::<PoolHal<Machine>, _>::new(transport)` and so on.
//! let registers = unsafe { PoolHal::<Machine>::mmio_phys_to_virt(DEVICE, 256) };
//! assert_eq!(unsafe { registers.cast::<[u8; 4]>().read_volatile() }, *b"virt");
//! let mut request = *b"a request that shares its page with other data";
//! let buffer = NonNull::from(&mut request[..]);
//! let address = unsafe { PoolHal::<Machine>::share(buffer, BufferDirection::DriverToDevice) };
//! let at = DOMAIN.translate(Iova::new(address)).unwrap();
//! assert_eq!(at.permissions, Permissions::READ);
//! assert_ne!(at.target.as_u64(), request.as_ptr() as u64, "bounced, so that the other data is not exposed");
//! unsafe { PoolHal::<Machine>::unshare(address, buffer, BufferDirection::DriverToDevice) };
//! assert_eq!(DOMAIN.translate(Iova::new(address)), None);
//! ```

use crate::{
    PhysAddr,
    vtd::{DmaWindow, Format, Iova, Permissions, TableFrames, WindowHost},
};
use core::{marker::PhantomData, ptr::NonNull};
use virtio_drivers::{BufferDirection, Hal};

/// The statics of a host.
///
/// # Safety
/// `mmio` maps what it is asked for: valid for reads and writes of that many bytes, aliased by no other memory.
pub unsafe trait VirtioHost: 'static {
    /// The format of the domain's tables.
    type Format: Format;
    /// The allocator of its table frames, and of the frames of queues and bounced buffers.
    type Frames: TableFrames + 'static;
    /// What the window asks of the host.
    type Host: WindowHost<Self::Frames> + 'static;

    /// The window in which buffers are shared. The device must be attached to its domain.
    ///
    /// From the contexts in which drivers send requests; a static that was initialised before will do.
    fn window() -> &'static DmaWindow<'static, Self::Format, Self::Frames, Self::Host>;

    /// Where the CPU reaches `bytes` bytes of a device's registers at `address`.
    ///
    /// Thread context, while a driver is set up.
    ///
    /// # Safety
    /// The range is one of a device's registers.
    unsafe fn mmio(address: PhysAddr, bytes: usize) -> NonNull<u8>;
}

/// The `Hal` of the host `H`.
///
/// | function of `Hal` | does | fails by |
/// |---|---|---|
/// | `dma_alloc` | takes a frame filled with zeros and maps it; one page: queues of up to 128 entries | address 0, which the drivers report as `DmaError` |
/// | `share` | [`DmaWindow::share`] | an address at which nothing is ever mapped: the device's access faults, and reaches nothing |
/// | `unshare` | [`DmaWindow::withdraw`] | |
///
/// Contexts: those of `map` and `unmap`. The device reads what goes to it, and writes what comes from it; nothing else.
#[derive(Debug)]
pub struct PoolHal<H>(PhantomData<H>);

/// Where nothing is ever mapped: a window does not start at 0.
const NOWHERE: virtio_drivers::PhysAddr = 0;

fn access(direction: BufferDirection) -> Permissions {
    match direction {
        BufferDirection::DriverToDevice => Permissions::READ,
        BufferDirection::DeviceToDriver => Permissions::WRITE,
        BufferDirection::Both => Permissions::all(),
    }
}

// SAFETY: pages that are handed out are frames of their own, filled with zeros, until they are given back; the host answers for
// registers and physical addresses.
unsafe impl<H: VirtioHost> Hal for PoolHal<H> {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (virtio_drivers::PhysAddr, NonNull<u8>) {
        if pages != 1 {
            return (NOWHERE, NonNull::dangling());
        }
        match H::window().allocate_page(access(direction)) {
            Ok((iova, page)) => (iova.as_u64(), page),
            Err(_) => (NOWHERE, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(paddr: virtio_drivers::PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        // SAFETY: the driver says that the page is its own and that it is done with it.
        unsafe { H::window().free_page(Iova::new(paddr)) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: virtio_drivers::PhysAddr, size: usize) -> NonNull<u8> {
        // SAFETY: the caller's.
        unsafe { H::mmio(PhysAddr::new(paddr), size) }
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> virtio_drivers::PhysAddr {
        // SAFETY: the driver keeps the buffer to itself until it unshares it.
        unsafe { H::window().share(buffer, access(direction)) }.map_or(NOWHERE, Iova::as_u64)
    }

    unsafe fn unshare(paddr: virtio_drivers::PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        // SAFETY: the driver names the buffer that it shared at this address; an address that was none is ignored.
        unsafe { H::window().withdraw(Iova::new(paddr), buffer, access(direction)) }
    }
}
