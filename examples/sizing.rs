//! A calculator: how many table frames something takes, and which watermarks follow.
//!
//! ```sh
//! cargo run --example sizing -- range --mib 256                       # one range
//! cargo run --example sizing -- queues --depth 128 --segments 32      # all requests of a device's queues at once
//! cargo run --example sizing -- memory --gib 64 --devices 4           # all of memory, for each device
//! ```

use clap::{Args, Parser, Subcommand};
use framepool::{
    Watermarks,
    vtd::{DomainConfig, Levels, PageSizes, RangeError},
};
use std::{error::Error, fmt};

/// How many table frames something takes, and which watermarks follow.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Subcommand)]
enum What {
    /// One range of addresses, wherever it lies.
    Range {
        /// Its length in MiB.
        #[arg(long)]
        mib: u64,
    },
    /// The requests of a device's queues, all mapped at once.
    Queues {
        /// Requests in all queues together.
        #[arg(long)]
        depth: u32,
        /// Separate pieces of memory in a request.
        #[arg(long)]
        segments: u32,
        /// KiB in each piece, at most.
        #[arg(long, default_value_t = 4)]
        kib: u64,
    },
    /// All of memory one to one, in a domain for each device.
    Memory {
        /// Its size in GiB.
        #[arg(long)]
        gib: u64,
        /// How many devices.
        #[arg(long, default_value_t = 1)]
        devices: u32,
    },
}

#[derive(Args)]
struct Shape {
    /// Levels of tables.
    #[arg(long, global = true, default_value_t = 4, value_parser = clap::value_parser!(u8).range(3..=5))]
    levels: u8,
    /// No leaves of 2 MiB and 1 GiB.
    #[arg(long, global = true)]
    small_pages: bool,
    /// Contexts at once on the path that frees memory.
    #[arg(long, global = true, default_value_t = 0)]
    holders: u32,
    /// Frames that each of them takes before it gives any back.
    #[arg(long, global = true, default_value_t = 4)]
    frames_each: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { what, shape } = Arguments::parse();
    let levels = [Levels::Three, Levels::Four, Levels::Five][usize::from(shape.levels - 3)];
    let page_sizes = if shape.small_pages { PageSizes::empty() } else { PageSizes::all() };
    let config = DomainConfig { page_sizes, ..DomainConfig::new(levels) };
    let (tables, watermarks) = size(&config, what)?;
    println!("table frames, at most: {}", Frames(tables));
    let Watermarks { min, low, high, max } = watermarks.with_reserve(shape.holders, shape.frames_each);
    for (name, frames, why) in [
        ("min", min, "the reserve: for the path that frees memory"),
        ("low", low, "refill from here: the longest burst, and the reserve"),
        ("high", high, "and at most up to here"),
        ("max", max, "what is above goes back to the host; the least capacity"),
    ] {
        println!("{name:>6} {:<26} {why}", Frames(frames.into()).to_string());
    }
    println!("Watermarks {{ min: {min}, low: {low}, high: {high}, max: {max} }}");
    Ok(())
}

/// The table frames, and watermarks without a reserve.
fn size(config: &DomainConfig, what: What) -> Result<(u64, Watermarks), RangeError> {
    match what {
        What::Range { mib } => {
            let tables = config.tables_at_most(mib << 20)?;
            Ok((tables, Watermarks::for_burst(tables.try_into().unwrap_or(u32::MAX))))
        }
        What::Queues { depth, segments, kib } => Ok((
            config.tables_for_queues(depth, segments, kib << 10)?,
            Watermarks::for_queues(config, depth, segments, kib << 10)?,
        )),
        What::Memory { gib, devices } => {
            Ok((config.tables_for_memory(gib << 30, devices)?, Watermarks::for_memory(config, gib << 30)?))
        }
    }
}

/// A number of frames of 4 KiB, and what that is in bytes.
struct Frames(u64);

impl fmt::Display for Frames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({:.1} MiB)", self.0, self.0 as f64 / 256.0)
    }
}
