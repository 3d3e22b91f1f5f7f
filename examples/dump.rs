//! What is in a domain: its mappings, its tables as an indented tree, and the same as a picture.
//!
//! `cargo run --example dump -- [--picture FILE]`

use clap::Parser;
use framepool::{
    AnonymousMemory, Builder, PhysAddr,
    vtd::{
        Domain, DomainConfig, Format, Iova, LeafRun, Levels, PageSizes, Permissions, SecondStageDomain,
        TableFrames,
    },
};
use plotters::{
    coord::Shift,
    prelude::{
        BLACK, Color, DrawingArea, IntoDrawingArea, IntoFont, RGBColor, Rectangle, SVGBackend, Text, WHITE,
    },
};
use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Shows what is in a domain.
#[derive(Parser)]
struct Arguments {
    /// Where the picture goes.
    #[arg(long, value_name = "FILE", default_value = "target/pictures/tables.svg")]
    picture: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let pool = Builder::new(256).start(AnonymousMemory::new(256)?)?;
    let config = DomainConfig { page_sizes: PageSizes::all(), ..DomainConfig::new(Levels::Four) };
    let domain = SecondStageDomain::new(config, &*pool)?;
    fill(&domain)?;

    println!("the mappings:\n{}", domain.dump());
    println!("the tables:\n{:#}", domain.dump());
    draw(&domain, &arguments.picture)?;
    println!("the same as a picture: {}", arguments.picture.display());
    // SAFETY: no device walks this domain.
    unsafe { domain.close().complete() };
    Ok(())
}

/// What a machine with a guest, a disk and a network card could have mapped.
fn fill<F: Format, A: TableFrames>(domain: &Domain<F, A>) -> Result<(), Box<dyn Error>> {
    let both = Permissions::all();
    for (iova, target, length, rights) in [
        // A queue of the disk, what it reads, and what it writes.
        (0x10_0000, 0x7f3_4000, 16 * KIB, both),
        (0x10_8000, 0x1_2345_6000, 64 * KIB, Permissions::READ),
        (0x11_8000, 0x1_0a00_0000, 4 * KIB, Permissions::WRITE),
        // Receive buffers in huge pages.
        (0x4000_0000, 0x8_0000_0000, 16 * MIB, Permissions::WRITE),
        // Memory of a guest: three leaves of 1 GiB, and a rest.
        (0x1_0000_0000, 0x10_0000_0000, 3 * GIB + 6 * MIB + 8 * KIB, both),
        // Far above, so that even the second table from the top is another.
        (0x80_0000_0000, 0x2000_0000, 2 * MIB, Permissions::READ),
    ] {
        // SAFETY: no device walks this domain, so any physical range will do.
        unsafe { domain.map(Iova::new(iova), PhysAddr::new(target), length, rights)? };
    }
    // One page out of the middle of a large leaf, which is split for it.
    let invalidation = domain.unmap(Iova::new(0x4060_0000), 4 * KIB)?;
    // SAFETY: as above.
    unsafe { invalidation.complete() };
    Ok(())
}

/// Columns for the levels, rows for the runs of leaves; what is left and right of it.
const COLUMN: i32 = 150;
const ROW: i32 = 30;
const MARGIN: i32 = 20;
const HEAD: i32 = 66;
const WIDTH: i32 = 1200;

const TABLE: RGBColor = RGBColor(225, 228, 234);
/// Leaves of 4 KiB, 2 MiB and 1 GiB.
const LEAVES: [RGBColor; 3] = [RGBColor(158, 202, 225), RGBColor(161, 217, 155), RGBColor(253, 190, 133)];

const TITLE: &str = "One domain: its tables, grey, with the first address that each translates, and its leaves: blue 4 KiB, green 2 MiB, \
                     orange 1 GiB";

type Canvas<'p> = DrawingArea<SVGBackend<'p>, Shift>;

/// Draws the tables from the left to the right, each as high as all that is in it.
fn draw<F: Format, A: TableFrames>(domain: &Domain<F, A>, path: &Path) -> Result<(), Box<dyn Error>> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let runs: Vec<LeafRun> = domain.leaf_runs().collect();
    let levels = domain.levels().count();
    let height = HEAD + ROW * runs.len() as i32 + MARGIN;
    let canvas = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let title = ("sans-serif", 17).into_font().color(&BLACK);
    canvas.draw(&Text::new(TITLE, (MARGIN, 12), title))?;
    let left_of = |level: u32| MARGIN + COLUMN * (levels - level) as i32;
    for level in 1..=levels {
        let name = if level == levels { format!("root: level {level}") } else { format!("level {level}") };
        write(&canvas, &name, (left_of(level) + 8, HEAD - 22))?;
    }
    for level in (1..=levels).rev() {
        // Rows in a row that go through the same table of this level.
        let mut row = 0;
        for group in runs
            .chunk_by(|one, next| table(*one, level).is_some() && table(*one, level) == table(*next, level))
        {
            if let Some(start) = table(group[0], level) {
                let (top, bottom) = (HEAD + ROW * row, HEAD + ROW * (row + group.len() as i32));
                cell(&canvas, (left_of(level), top), (left_of(level) + COLUMN, bottom), TABLE)?;
                write(&canvas, &format!("{start:#x}"), (left_of(level) + 8, top + 9))?;
            }
            row += group.len() as i32;
        }
    }
    for (row, run) in (0..).zip(&runs) {
        let top = HEAD + ROW * row;
        let (left, level) = (left_of(level_of(*run)) + COLUMN, level_of(*run));
        cell(&canvas, (left, top), (WIDTH - MARGIN, top + ROW), LEAVES[level as usize - 1])?;
        write(&canvas, &describe(*run), (left + 8, top + 9))?;
    }
    canvas.present()?;
    Ok(())
}

/// The level of the table in which leaves are.
fn level_of(run: LeafRun) -> u32 {
    1 + (run.page_size / (4 * KIB)).ilog2() / 9
}

/// The first address of the table of `level` through which leaves are reached, if they are.
fn table(run: LeafRun, level: u32) -> Option<u64> {
    let covers = (4 * KIB) << (9 * level);
    (level_of(run) <= level).then_some(run.mapping.iova.as_u64() & !(covers - 1))
}

fn describe(run: LeafRun) -> String {
    let sizes = ["4 KiB", "2 MiB", "1 GiB"];
    let mapping = run.mapping;
    let rights = match (
        mapping.permissions.contains(Permissions::READ),
        mapping.permissions.contains(Permissions::WRITE),
    ) {
        (true, true) => "read and write",
        (true, false) => "read",
        _ => "write",
    };
    let size = sizes[level_of(run) as usize - 1];
    let (iova, target) = (mapping.iova.as_u64(), mapping.target.as_u64());
    format!("{iova:#x}: {} × {size} to {target:#x}, {rights}", run.leaves())
}

fn cell(
    canvas: &Canvas<'_>,
    start: (i32, i32),
    end: (i32, i32),
    colour: RGBColor,
) -> Result<(), Box<dyn Error>> {
    canvas.draw(&Rectangle::new([start, end], colour.filled()))?;
    canvas.draw(&Rectangle::new([start, end], WHITE.stroke_width(2)))?;
    Ok(())
}

fn write(canvas: &Canvas<'_>, text: &str, at: (i32, i32)) -> Result<(), Box<dyn Error>> {
    canvas.draw(&Text::new(text, at, ("sans-serif", 14).into_font().color(&BLACK)))?;
    Ok(())
}
