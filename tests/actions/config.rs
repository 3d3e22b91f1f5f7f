//! A pool and a domain of any numbers: refused with a reason that can be read, or built and good for use.

use crate::common::{Scripted, TestHost, assert_accounts, tables::TestFrames};
use arbitrary::{Arbitrary, Unstructured};
use framepool::{Builder, FrameSize, PhysAddr, Watermarks, vtd::*};

/// Pools with more bookkeeping than this are measured and not built.
const BYTES_MOST: usize = 1 << 20;
const FRAMES_MOST: u32 = 64;

/// Numbers of a kind that is often at a border.
fn number(bytes: &mut Unstructured<'_>) -> arbitrary::Result<u32> {
    Ok(match bytes.int_in_range(0..=3u8)? {
        0 => bytes.int_in_range(0..=FRAMES_MOST)?,
        1 => 1u32.rotate_right(bytes.int_in_range(0..=31)?),
        2 => u32::MAX - bytes.int_in_range(0..=2)?,
        _ => bytes.arbitrary()?,
    })
}

fn numbers<const N: usize>(bytes: &mut Unstructured<'_>) -> arbitrary::Result<[u32; N]> {
    let mut numbers = [0; N];
    for place in &mut numbers {
        *place = number(bytes)?;
    }
    Ok(numbers)
}

/// The numbers of a pool.
#[derive(Clone, Debug, Arbitrary)]
pub struct PoolNumbers {
    #[arbitrary(with = number)]
    capacity: u32,
    #[arbitrary(with = numbers)]
    marks: [u32; 4],
    sorted: bool,
    #[arbitrary(with = numbers)]
    others: [u32; 5],
    given: [bool; 5],
    frame_size: u8,
    limit: Option<u64>,
}

/// The numbers of a domain.
#[derive(Clone, Debug, Arbitrary)]
pub struct DomainNumbers {
    levels: u8,
    page_sizes: u8,
    widths: Option<[u8; 2]>,
    force_snoop: bool,
    concurrent_calls: u8,
    map: [u64; 3],
    permissions: u8,
}

fn builder(numbers: &PoolNumbers) -> Builder {
    let PoolNumbers {
        mut marks,
        others: [cpus, magazine_size, initial, reservations, guarantees],
        given,
        ..
    } = *numbers;
    if numbers.sorted {
        marks = marks.map(|mark| mark.min(numbers.capacity));
        marks.sort_unstable();
    }
    let [min, low, high, max] = marks;
    let sizes = [FrameSize::Size4K, FrameSize::Size64K, FrameSize::Size2M];
    let mut builder = Builder::new(numbers.capacity).watermarks(Watermarks { min, low, high, max });
    // Large frames are measured only: the source here has small ones.
    builder = builder.frame_size(sizes.get(usize::from(numbers.frame_size)).copied().unwrap_or_default());
    if given[0] {
        builder = builder.cpus(cpus as usize);
    }
    if given[1] {
        builder = builder.magazine_size(magazine_size);
    }
    if given[2] {
        builder = builder.initial(initial);
    }
    if given[3] {
        builder = builder.reservations(reservations);
    }
    if given[4] {
        builder = builder.guarantees(guarantees);
    }
    match numbers.limit {
        Some(limit) => builder.address_limit(PhysAddr::new(limit)),
        None => builder,
    }
}

/// Builds both and uses what was built.
pub fn run(pool: &PoolNumbers, domain: &DomainNumbers) {
    let builder = builder(pool);
    match builder.memory_layout() {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(layout) if layout.size() > BYTES_MOST || pool.capacity > FRAMES_MOST => {}
        Ok(_) => match builder.build(Scripted::new(FRAMES_MOST), TestHost::default()) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(pool) => {
                let frames: Vec<_> = std::iter::from_fn(|| pool.alloc().ok()).collect();
                assert_accounts(&pool, frames.len() as u64);
                drop(frames);
                assert_eq!(pool.close().unwrap().out(), 0);
            }
        },
    }
    build_domain(domain);
}

fn build_domain(numbers: &DomainNumbers) {
    let frames = TestFrames::default();
    let levels = [Levels::Three, Levels::Four, Levels::Five][usize::from(numbers.levels % 3)];
    let plain = DomainConfig::new(levels);
    let [address_width, host_address_width] =
        numbers.widths.unwrap_or([plain.address_width, plain.host_address_width]);
    let config = DomainConfig {
        page_sizes: PageSizes::from_bits_truncate(numbers.page_sizes),
        address_width,
        host_address_width,
        force_snoop: numbers.force_snoop,
        concurrent_calls: numbers.concurrent_calls,
        ..plain
    };
    let domain = match SecondStageDomain::new(config, &frames) {
        Ok(domain) => domain,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return assert_eq!(frames.live(), 0, "a domain that is refused leaves nothing");
        }
    };
    // A number of pages that would be mapped in small ones is not worth the time.
    let [iova, target, length] = numbers.map;
    let (iova, length) =
        (Iova::new(iova), if length % 2 == 0 { length % (1 << 25) } else { length | 1 << 63 });
    let permissions = Permissions::from_bits_truncate(numbers.permissions);
    let before = domain.table_frames();
    // SAFETY: no device walks these tables.
    match unsafe { domain.map(iova, PhysAddr::new(target), length, permissions) } {
        Ok(_) => {
            assert_eq!(domain.translate(iova).map(|found| found.target), Some(PhysAddr::new(target)));
            let invalidation = domain.unmap(iova, length).unwrap();
            // SAFETY: as above.
            unsafe { invalidation.complete() };
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(domain.table_frames(), before, "what is refused changes nothing");
        }
    }
    // SAFETY: as above.
    unsafe { domain.close().complete() };
    assert_eq!((frames.live(), frames.leaked_so_far()), (0, 0));
}

/// Any bytes as numbers.
pub fn bytes(bytes: &[u8]) {
    if let Ok((pool, domain)) = Unstructured::new(bytes).arbitrary() {
        run(&pool, &domain);
    }
}
