//! Owns the picture of a replay: where the pool's frames were over time, between its watermarks.

use framepool::{Stats, Watermarks};
use plotters::prelude::{
    BLACK, ChartBuilder, Color, Cross, DashedLineSeries, IntoDrawingArea, IntoFont, IntoLogRange, LineSeries,
    PathElement, RGBColor, SVGBackend, TRANSPARENT, Text, TriangleMarker, WHITE,
};
use std::{error::Error, fs, path::Path, time::Duration};

const SIZE: (u32, u32) = (1200, 560);
/// The widths of the strip that says what is what, and of the names of the watermarks beside the plot.
const LEGEND: u32 = 230;
const WATERMARK_LABELS: u32 = 76;

const BLUE: RGBColor = RGBColor(31, 119, 180);
const GREEN: RGBColor = RGBColor(44, 160, 44);
const PURPLE: RGBColor = RGBColor(148, 103, 189);
const RED: RGBColor = RGBColor(214, 39, 40);

/// Where the axis of time starts, in milliseconds. It is logarithmic: tables are made at first, and seldom later.
const EARLIEST: f64 = 0.5;

/// One figure of the pool.
type Figure = fn(&Stats) -> u64;

/// The pool at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: Duration,
    pub stats: Stats,
}

impl Sample {
    /// The time on the axis, which has no zero.
    fn milliseconds(&self) -> f64 {
        (self.at.as_secs_f64() * 1e3).max(EARLIEST)
    }
}

/// Draws the samples into an SVG file.
pub fn draw(
    path: &Path,
    title: &str,
    samples: &[Sample],
    watermarks: Watermarks,
) -> Result<(), Box<dyn Error>> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let end = samples.last().map_or(1.0, Sample::milliseconds).max(2.0 * EARLIEST);
    let highest = samples
        .iter()
        .map(|sample| sample.stats.in_use.max(sample.stats.stock))
        .chain([watermarks.max.into()])
        .max()
        .unwrap_or(1);
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(SIZE.0 - LEGEND);
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 22))
        .margin(14)
        .margin_right(WATERMARK_LABELS)
        .x_label_area_size(42)
        .y_label_area_size(58)
        .build_cartesian_2d((EARLIEST..end).log_scale(), 0.0..highest as f64 * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("time since the first event, ms, logarithmic")
        .y_desc("frames")
        .x_label_formatter(&|value| format!("{value}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.08))
        .label_style(("sans-serif", 14))
        .draw()?;

    let text = |weight: f64| ("sans-serif", 14).into_font().color(&BLACK.mix(weight));
    // In the colour of the stock, which is what they are compared with.
    let Watermarks { min, low, high, max } = watermarks;
    for (name, frames) in [("min", min), ("low", low), ("high", high), ("max", max)] {
        let height = f64::from(frames);
        let style = GREEN.mix(0.6).stroke_width(1);
        chart.draw_series(DashedLineSeries::new([(EARLIEST, height), (end, height)], 6, 5, style))?;
        let (x, y) = chart.backend_coord(&(end, height));
        let label = ("sans-serif", 14).into_font().color(&GREEN);
        area.draw(&Text::new(format!("{name} {frames}"), (x + 8, y - 6), label))?;
    }

    let mut places = (0..).map(|row| (10, 80 + 28 * row));
    let lines: [(&str, RGBColor, Figure); 3] = [
        ("table frames in use", BLUE, |stats| stats.in_use),
        ("stock: depot and reserve", GREEN, |stats| stats.stock),
        ("in the caches of the CPUs", PURPLE, |stats| stats.cached),
    ];
    for ((name, colour, figure), (x, y)) in lines.into_iter().zip(&mut places) {
        chart.draw_series(LineSeries::new(steps(samples, figure), colour.stroke_width(2)))?;
        right.draw(&PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)))?;
        right.draw(&Text::new(name, (x + 32, y - 7), text(1.0)))?;
    }
    let refills = events(samples, |stats| stats.refills, |stats| stats.stock);
    chart.draw_series(refills.map(|at| TriangleMarker::new(at, 7, GREEN.filled())))?;
    let fallbacks =
        events(samples, |stats| stats.fallback_taken + stats.fallback_failed, |stats| stats.in_use);
    chart.draw_series(fallbacks.map(|at| Cross::new(at, 5, RED.stroke_width(2))))?;
    if let (Some(refill), Some(fallback)) = (places.next(), places.next()) {
        right.draw(&TriangleMarker::new((refill.0 + 11, refill.1), 7, GREEN.filled()))?;
        right.draw(&Text::new("refill by the worker", (refill.0 + 32, refill.1 - 7), text(1.0)))?;
        right.draw(&Cross::new((fallback.0 + 11, fallback.1), 5, RED.stroke_width(2)))?;
        right.draw(&Text::new("fallback to the host", (fallback.0 + 32, fallback.1 - 7), text(1.0)))?;
    }
    area.present()?;
    Ok(())
}

/// A figure as steps: it keeps its value until the sample that has another. No points but the corners, and the end.
fn steps(samples: &[Sample], figure: Figure) -> impl Iterator<Item = (f64, f64)> + '_ {
    samples.iter().enumerate().flat_map(move |(index, sample)| {
        let before = figure(&samples[index.saturating_sub(1)].stats);
        let now = figure(&sample.stats);
        let is_corner = index == 0 || before != now || index + 1 == samples.len();
        let at = |value| (sample.milliseconds(), value as f64);
        [before, now].map(at).into_iter().take(if is_corner { 2 } else { 0 })
    })
}

/// The samples in which a counter has grown, at the height of another figure.
fn events(samples: &[Sample], counter: Figure, height: Figure) -> impl Iterator<Item = (f64, f64)> + '_ {
    samples
        .windows(2)
        .filter(move |pair| counter(&pair[1].stats) > counter(&pair[0].stats))
        .map(move |pair| (pair[1].milliseconds(), height(&pair[1].stats) as f64))
}
