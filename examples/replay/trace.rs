//! Owns the trace format: lines of text in, events out; every malformed line is named by its number.
//!
//! The format is described in `examples/traces/README.md`. A file may be plain text or compressed with zstd, which its first
//! bytes tell.

use framepool::vtd::Permissions;
use ruzstd::decoding::StreamingDecoder;
use std::{
    error::Error,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
const PAGE: u64 = 4096;
/// The longest line that is read before it is called malformed.
const LINE_LIMIT: u64 = 1024;
/// Numbers of CPUs and domains beyond these are called malformed: each costs a thread, or a root table.
const CPUS: u16 = 64;
const DOMAINS: u16 = 1024;
/// Bits of address of what is replayed: IOVA as four levels translate them, physical addresses as entries hold them.
const IOVA_BITS: u32 = 48;
const TARGET_BITS: u32 = 52;
/// The largest range of one event: every page of it is looked at.
const LENGTH_LIMIT: u64 = 1 << 32;

/// What a driver asked of the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Map the range to physical memory from `target` on.
    Map { target: u64, permissions: Permissions },
    /// Unmap the range.
    Unmap,
    /// Invalidate the range, apart from its unmap.
    Sync,
    /// Invalidate the whole domain.
    Flush,
    /// Attach a device to the domain.
    Attach,
}

/// One line.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub line: u32,
    pub cpu: u16,
    pub domain: u16,
    pub iova: u64,
    /// In bytes; 0 if the operation has no range.
    pub length: u64,
    pub operation: Operation,
}

impl Event {
    /// The numbers of the pages in the range.
    pub fn pages(&self) -> std::ops::Range<u64> {
        self.iova / PAGE..(self.iova + self.length) / PAGE
    }
}

/// A trace that cannot be replayed, and where it goes wrong.
#[derive(Debug)]
pub struct TraceError {
    pub line: u32,
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Debug)]
pub enum Fault {
    Read(io::Error),
    Cut,
    NotText,
    TooLong,
    Missing(&'static str),
    Number(&'static str),
    Operation,
    Surplus,
    Misaligned,
    Empty,
    TooLarge,
    Range,
    Permissions,
    TimeGoesBack,
    TooManyCpus,
    TooManyDomains,
    /// The model has the page mapped already.
    MappedTwice {
        iova: u64,
    },
    /// The model does not have the page mapped.
    NotMapped {
        iova: u64,
    },
    /// The page was unmapped, and its flush has not come yet.
    NotFlushed {
        iova: u64,
    },
}

impl fmt::Display for TraceError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: ", self.line)?;
        match &self.fault {
            Fault::Read(error) => {
                write!(formatter, "cannot be read, the file is cut off or damaged: {error}")
            }
            Fault::Cut => write!(formatter, "ends without a line feed: the file is cut off"),
            Fault::NotText => write!(formatter, "is not text"),
            Fault::TooLong => write!(formatter, "is longer than {LINE_LIMIT} bytes"),
            Fault::Missing(field) => write!(formatter, "has no {field}"),
            Fault::Number(field) => write!(formatter, "the {field} is not a number in its range"),
            Fault::Operation => write!(formatter, "the operation is none of M, U, S, G, A"),
            Fault::Surplus => write!(formatter, "has more fields than its operation takes"),
            Fault::Misaligned => write!(formatter, "an address or the size is not a multiple of {PAGE}"),
            Fault::Empty => write!(formatter, "the size is zero"),
            Fault::TooLarge => write!(formatter, "the size is above {LENGTH_LIMIT} bytes"),
            Fault::Range => {
                write!(
                    formatter,
                    "the range ends beyond {IOVA_BITS} bits of IOVA or {TARGET_BITS} of physical address"
                )
            }
            Fault::Permissions => {
                write!(formatter, "the rights must contain read (1) or write (2) and be below 8")
            }
            Fault::TimeGoesBack => write!(formatter, "is earlier than the line before it"),
            Fault::TooManyCpus => write!(formatter, "the CPU number is above {}", CPUS - 1),
            Fault::TooManyDomains => write!(formatter, "the domain number is above {}", DOMAINS - 1),
            Fault::MappedTwice { iova } => write!(formatter, "maps {iova:#x}, which is mapped"),
            Fault::NotMapped { iova } => write!(formatter, "unmaps {iova:#x}, which is not mapped"),
            Fault::NotFlushed { iova } => write!(formatter, "maps {iova:#x}, whose unmap is not flushed yet"),
        }
    }
}

impl Error for TraceError {}

/// Reads a whole trace.
pub fn read(path: &Path) -> Result<Vec<Event>, TraceError> {
    let at_start = |error| TraceError { line: 1, fault: Fault::Read(error) };
    let mut file = BufReader::new(File::open(path).map_err(at_start)?);
    let compressed = file.fill_buf().map_err(at_start)?.starts_with(&ZSTD_MAGIC);
    if compressed {
        let decoder = StreamingDecoder::new(file).map_err(|error| at_start(io::Error::other(error)))?;
        parse(BufReader::new(decoder))
    } else {
        parse(file)
    }
}

/// Reads events from text.
pub fn parse(mut text: impl BufRead) -> Result<Vec<Event>, TraceError> {
    let mut events = Vec::new();
    let mut bytes = Vec::new();
    let mut earliest = 0;
    for line in 1.. {
        let wrong = |fault| TraceError { line, fault };
        bytes.clear();
        let read = (&mut text)
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| wrong(Fault::Read(error)))?;
        if read == 0 {
            break;
        }
        if bytes.pop() != Some(b'\n') {
            return Err(wrong(if read as u64 == LINE_LIMIT { Fault::TooLong } else { Fault::Cut }));
        }
        let content = std::str::from_utf8(&bytes).map_err(|_| wrong(Fault::NotText))?;
        if content.starts_with('#') {
            continue;
        }
        let (time, event) = parse_line(line, content).map_err(wrong)?;
        if time < earliest {
            return Err(wrong(Fault::TimeGoesBack));
        }
        earliest = time;
        events.push(event);
    }
    Ok(events)
}

fn parse_line(line: u32, content: &str) -> Result<(u64, Event), Fault> {
    let mut fields = content.split(' ');
    let mut field = |name| fields.next().filter(|field| !field.is_empty()).ok_or(Fault::Missing(name));
    let time: u64 = field("time")?.parse().map_err(|_| Fault::Number("time"))?;
    let cpu: u16 = field("CPU")?.parse().map_err(|_| Fault::Number("CPU"))?;
    let domain: u16 = field("domain")?.parse().map_err(|_| Fault::Number("domain"))?;
    let operation = field("operation")?;
    let mut event = Event { line, cpu, domain, iova: 0, length: 0, operation: Operation::Attach };
    match operation {
        "M" | "U" | "S" => {
            event.iova = hexadecimal(field("iova")?, "iova")?;
            let target = field("paddr")?;
            event.length = field("size")?.parse().map_err(|_| Fault::Number("size"))?;
            event.operation = match operation {
                "M" => Operation::Map {
                    target: hexadecimal(target, "paddr")?,
                    permissions: permissions(field("prot")?)?,
                },
                "U" => Operation::Unmap,
                _ => Operation::Sync,
            };
            check_range(&event)?;
        }
        "G" => {
            for name in ["iova", "paddr", "size"] {
                field(name)?;
            }
            event.operation = Operation::Flush;
        }
        "A" => {
            field("device")?;
        }
        _ => return Err(Fault::Operation),
    }
    if fields.next().is_some() {
        return Err(Fault::Surplus);
    }
    if cpu >= CPUS {
        return Err(Fault::TooManyCpus);
    }
    if domain >= DOMAINS {
        return Err(Fault::TooManyDomains);
    }
    Ok((time, event))
}

fn hexadecimal(text: &str, name: &'static str) -> Result<u64, Fault> {
    u64::from_str_radix(text, 16).map_err(|_| Fault::Number(name))
}

/// Read 1 and write 2, as the builder has them; 4 (coherent) is not a right.
fn permissions(text: &str) -> Result<Permissions, Fault> {
    let bits: u8 = text.parse().map_err(|_| Fault::Number("prot"))?;
    let permissions = Permissions::from_bits_truncate(bits);
    if bits > 7 || permissions.is_empty() { Err(Fault::Permissions) } else { Ok(permissions) }
}

fn check_range(event: &Event) -> Result<(), Fault> {
    let target = if let Operation::Map { target, .. } = event.operation { target } else { 0 };
    if event.length == 0 {
        return Err(Fault::Empty);
    }
    if !(event.iova | event.length | target).is_multiple_of(PAGE) {
        return Err(Fault::Misaligned);
    }
    if event.length > LENGTH_LIMIT {
        return Err(Fault::TooLarge);
    }
    let beyond = |start: u64, bits| start.checked_add(event.length).is_none_or(|end| end > 1u64 << bits);
    if beyond(event.iova, IOVA_BITS) || beyond(target, TARGET_BITS) { Err(Fault::Range) } else { Ok(()) }
}
