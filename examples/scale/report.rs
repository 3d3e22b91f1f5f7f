//! What the runs came to: tables, and pictures of them.

use crate::{
    machine::{Class, Measured},
    workload::Workload,
};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use plotters::prelude::*;
use std::{error::Error, path::Path};

/// One way to build the pool and the machine, with what each number of CPUs came to.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(usize, Measured)>,
}

/// One row for each number of CPUs.
pub(crate) fn table(series: &Series) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header([
        "CPUs",
        "ns a pair",
        "million pairs/s",
        "depot: queued",
        "depot: travel",
        "entries",
        "rest",
        "lines a pair",
        "busiest line",
        "wanted in",
    ]);
    for (cpus, measured) in &series.points {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let both = |class| {
            let (queued, moved) = measured.shares(*cpus, class);
            percent(queued + moved)
        };
        let (queued, moved) = measured.shares(*cpus, Class::Depot);
        let lines =
            measured.lines(Class::Depot) + measured.lines(Class::Entries) + measured.lines(Class::Other);
        table.add_row([
            cpus.to_string(),
            format!("{:.1}", measured.pair(*cpus)),
            format!("{:.1}", measured.throughput()),
            percent(queued),
            percent(moved),
            both(Class::Entries),
            both(Class::Other),
            format!("{lines:.3}"),
            percent(measured.busiest as f64 / measured.time as f64),
            measured.wanted_by.map_or(String::new(), |site| {
                format!("{}:{}", site.file().rsplit('/').next().unwrap_or_default(), site.line())
            }),
        ]);
    }
    table
}

/// The depot's part of the time.
fn depot_share(cpus: usize, measured: &Measured) -> f64 {
    let (queued, moved) = measured.shares(cpus, Class::Depot);
    100.0 * (queued + moved)
}

/// Draws throughput and the depot's share of the time over the number of CPUs.
pub(crate) fn plot(path: &Path, workload: Workload, all: &[Series]) -> Result<(), Box<dyn Error>> {
    let most =
        all.iter().flat_map(|series| &series.points).map(|point| point.0).max().unwrap_or(2).max(2) as f64;
    let throughput = |measured: &Measured| measured.throughput().max(f64::MIN_POSITIVE);
    let values = || all.iter().flat_map(|series| &series.points).map(|point| throughput(&point.1));
    let (least, highest) = (values().fold(f64::MAX, f64::min), values().fold(1.0, f64::max));
    let area = SVGBackend::new(path, (940, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(470);
    let title = |what: &str| format!("{}: {what}", workload.name());
    let style = |index: usize| Palette99::pick(index).stroke_width(2);
    let mut chart = ChartBuilder::on(&left)
        .caption(title("million pairs a second, all CPUs"), ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d((1.0..most).log_scale(), (least / 2.0..highest * 2.0).log_scale())?;
    chart.configure_mesh().x_desc("CPUs").x_label_formatter(&|cpus| format!("{cpus:.0}")).draw()?;
    for (index, series) in all.iter().enumerate() {
        let points = series.points.iter().map(|(cpus, measured)| (*cpus as f64, throughput(measured)));
        chart.draw_series(LineSeries::new(points, style(index)))?;
    }
    let mut chart = ChartBuilder::on(&right)
        .caption(title("% of the time at the depot"), ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(40)
        .build_cartesian_2d((1.0..most).log_scale(), 0.0..100.0)?;
    chart.configure_mesh().x_desc("CPUs").x_label_formatter(&|cpus| format!("{cpus:.0}")).draw()?;
    for (index, series) in all.iter().enumerate() {
        let points =
            series.points.iter().map(|(cpus, measured)| (*cpus as f64, depot_share(*cpus, measured)));
        chart
            .draw_series(LineSeries::new(points, style(index)))?
            .label(series.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style(index)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}
