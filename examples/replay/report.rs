//! Owns what a replay is said to have come to: a table for people, an object for programs.

use crate::plan::{Flushing, Plan};
use comfy_table::{CellAlignment, Table, presets::UTF8_BORDERS_ONLY};
use framepool::Stats;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, time::Duration};

/// The outcome of one trace.
#[derive(Debug)]
pub struct Outcome {
    pub name: String,
    pub flushing: Flushing,
    pub cpus: u64,
    pub domains: u64,
    pub events: u64,
    pub maps: u64,
    pub unmaps: u64,
    pub signals: u64,
    pub inside: u64,
    pub by_handlers: u64,
    pub refused: u64,
    pub pages_checked: u64,
    pub mismatches: u64,
    pub first_mismatch: Option<u32>,
    /// What the strict unit reports, if there was one.
    pub stale_uses: Option<u64>,
    pub table_frames_peak: u64,
    pub time: Duration,
    pub stats: Stats,
}

impl Outcome {
    /// What is known before the replay.
    pub fn planned(name: String, plan: &Plan) -> Self {
        Self {
            name,
            flushing: plan.flushing,
            cpus: plan.lanes.len() as u64,
            domains: plan.domains.into(),
            events: plan.events.len() as u64,
            maps: plan.maps,
            unmaps: plan.unmaps,
            signals: 0,
            inside: 0,
            by_handlers: 0,
            refused: 0,
            pages_checked: 0,
            mismatches: 0,
            first_mismatch: None,
            stale_uses: None,
            table_frames_peak: 0,
            time: Duration::ZERO,
            stats: Stats::default(),
        }
    }

    /// Whether something was not as the model or the unit has it.
    pub fn is_different(&self) -> bool {
        self.mismatches > 0 || self.stale_uses.is_some_and(|uses| uses > 0)
    }

    fn rate(&self) -> f64 {
        self.events as f64 / self.time.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let stats = &self.stats;
        let flushing = match self.flushing {
            Flushing::Strict => "strict",
            Flushing::Lazy => "lazy",
        };
        vec![
            ("flushing", flushing.into()),
            ("CPUs, domains", format!("{}, {}", self.cpus, self.domains)),
            ("events", grouped(self.events)),
            ("  maps", grouped(self.maps)),
            ("  unmaps", grouped(self.unmaps)),
            ("  run by interrupt handlers", grouped(self.by_handlers)),
            ("interrupts", grouped(self.signals)),
            ("  inside a map or unmap", grouped(self.inside)),
            ("pages checked", grouped(self.pages_checked)),
            ("mismatches", grouped(self.mismatches)),
            ("stale uses", self.stale_uses.map_or("no unit".into(), grouped)),
            ("table frames at the peak", grouped(self.table_frames_peak)),
            ("hits: cache", grouped(stats.cache_hits)),
            ("  depot", grouped(stats.depot_hits)),
            ("  stolen from another CPU", grouped(stats.steals)),
            ("  reserve", grouped(stats.reserve_hits)),
            ("fallback taken", grouped(stats.fallback_taken)),
            ("  failed", grouped(stats.fallback_failed)),
            ("refused for want of frames, made later", grouped(self.refused)),
            ("refills", grouped(stats.refills)),
            ("  frames fetched", grouped(stats.refilled)),
            ("  frames given back", grouped(stats.trimmed)),
            ("time", format!("{:.2} s", self.time.as_secs_f64())),
            ("rate, every page checked", format!("{} events/s", grouped(self.rate() as u64))),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "trace": self.name,
            "lazy": self.flushing == Flushing::Lazy,
            "events": self.events,
            "maps": self.maps,
            "unmaps": self.unmaps,
            "signals": self.signals,
            "signals_inside": self.inside,
            "by_handlers": self.by_handlers,
            "refused": self.refused,
            "pages_checked": self.pages_checked,
            "mismatches": self.mismatches,
            "stale_uses": self.stale_uses,
            "first_mismatch_line": self.first_mismatch,
            "table_frames_peak": self.table_frames_peak,
            "seconds": self.time.as_secs_f64(),
            "events_per_second": self.rate(),
            "pool": self.stats.figures().into_iter().map(|(name, value)| (name.into(), value.into())).collect::<Map<_, _>>(),
        })
    }
}

/// A table with a column for each trace.
pub fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY);
    table.set_header(std::iter::once("").chain(outcomes.iter().map(|outcome| outcome.name.as_str())));
    let columns: Vec<_> = outcomes.iter().map(Outcome::rows).collect();
    for (index, (name, _)) in columns.first().into_iter().flatten().enumerate() {
        let values = columns.iter().map(|column| column[index].1.as_str());
        table.add_row(std::iter::once(*name).chain(values));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// One object: the sums over all traces (the peak is the largest), and each trace.
pub fn json(outcomes: &[Outcome]) -> Value {
    let sum = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
    let mut pool: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in outcomes.iter().flat_map(|outcome| outcome.stats.figures()) {
        *pool.entry(name).or_default() += value;
    }
    json!({
        "events": sum(|outcome| outcome.events),
        "maps": sum(|outcome| outcome.maps),
        "unmaps": sum(|outcome| outcome.unmaps),
        "mismatches": sum(|outcome| outcome.mismatches),
        "stale_uses": outcomes.iter().map(|outcome| outcome.stale_uses).sum::<Option<u64>>(),
        "table_frames_peak": outcomes.iter().map(|outcome| outcome.table_frames_peak).max(),
        "by_handlers": sum(|outcome| outcome.by_handlers),
        "pool": pool,
        "traces": outcomes.iter().map(Outcome::json).collect::<Vec<_>>(),
    })
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits are text"))
        .collect();
    groups.join(" ")
}
