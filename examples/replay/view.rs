//! Owns what is seen while a replay runs: how far it is, and with `--live` how many frames each tier of the pool has and has served.

use framepool::{Stats, Watermarks};
use indicatif::{InMemoryTerm, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};

/// The size of the terminal in the memory, where there is no other.
const ROWS: u16 = 16;
const COLUMNS: u16 = 110;

/// A tier: its name, its frames, and what is said of it.
struct Tier {
    bar: ProgressBar,
    frames: fn(&Stats) -> u64,
    note: fn(&Stats, Watermarks) -> String,
}

/// The view of one replay.
pub struct View {
    progress: ProgressBar,
    tiers: Vec<Tier>,
    watermarks: Watermarks,
    /// Where the view is drawn when nobody looks.
    memory: Option<InMemoryTerm>,
}

impl View {
    /// A view of `events` events, and if it is `live` of the tiers.
    pub fn new(name: &str, events: u64, live: bool, watermarks: Watermarks) -> Self {
        let memory = (live && !stderr().is_terminal()).then(|| InMemoryTerm::new(ROWS, COLUMNS));
        let target = match &memory {
            Some(memory) => ProgressDrawTarget::term_like(Box::new(memory.clone())),
            None => ProgressDrawTarget::stderr(),
        };
        let all = MultiProgress::with_draw_target(target);
        let add = |length, template| {
            let style = ProgressStyle::with_template(template);
            let bar =
                ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            all.add(bar)
        };
        let progress = add(events, "{prefix:>16} {bar:40} {pos:>7}/{len} events {elapsed} {msg}");
        progress.set_prefix(name.to_owned());
        let tier = |(name, colour, frames, note): (&'static str, _, _, _)| {
            let bar = add(1, colour);
            bar.set_prefix(name);
            Tier { bar, frames, note }
        };
        let tiers = if live { TIERS.into_iter().map(tier).collect() } else { Vec::new() };
        Self { progress, tiers, watermarks, memory }
    }

    /// Shows the pool as it is after `settled` events.
    pub fn show(&self, settled: u64, stats: &Stats) {
        self.progress.set_position(settled);
        self.progress.set_message(format!("{} tables", stats.in_use));
        for Tier { bar, frames, note } in &self.tiers {
            bar.set_length(stats.owned.max(1));
            bar.set_position(frames(stats));
            bar.set_message(note(stats, self.watermarks));
        }
    }

    /// What is in the memory now, if the view is drawn there.
    pub fn text(&self) -> Option<String> {
        self.memory.as_ref().map(InMemoryTerm::contents)
    }

    pub fn finish(&self) {
        self.progress.finish();
        self.tiers.iter().for_each(|tier| tier.bar.finish());
    }
}

/// What a tier's bar is made of: name, template, frames, note. The bars are parts of what the pool owns.
type Row = (&'static str, &'static str, fn(&Stats) -> u64, fn(&Stats, Watermarks) -> String);

const TIERS: [Row; 5] = [
    (
        "in use",
        "{prefix:>16} {bar:40.blue} {pos:>4} of {len} frames owned{msg}",
        |stats| stats.in_use,
        |stats, _| format!(", at most {}", stats.in_use_peak),
    ),
    (
        "caches",
        "{prefix:>16} {bar:40.magenta} {pos:>4} {msg}",
        |stats| stats.cached,
        |stats, _| format!("  served {:>8}, and {} to other CPUs", stats.cache_hits, stats.steals),
    ),
    (
        "depot",
        "{prefix:>16} {bar:40.green} {pos:>4} {msg}",
        |stats| stats.stock - stats.reserve.min(stats.stock),
        |stats, Watermarks { low, high, .. }| {
            format!("  served {:>8}, {} refills, below {low} up to {high}", stats.depot_hits, stats.refills)
        },
    ),
    (
        "reserve",
        "{prefix:>16} {bar:40.yellow} {pos:>4} {msg}",
        |stats| stats.reserve,
        |stats, Watermarks { min, .. }| format!("  served {:>8}, keeps {min}", stats.reserve_hits),
    ),
    (
        "fallback",
        "{prefix:>16} {bar:40.red}      {msg}",
        |_| 0,
        |stats, _| format!("  served {:>8}, failed {}", stats.fallback_taken, stats.fallback_failed),
    ),
];
