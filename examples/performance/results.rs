//! What `cargo bench` has left: medians by workload and implementation, and the tables of the programs beside criterion.

use super::Outcome;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// Nobody's rivals: framepool's own, and the floors.
pub(crate) fn is_rival(implementation: &str) -> bool {
    !implementation.starts_with("framepool") && !implementation.starts_with("floor")
}

/// What was measured.
pub(crate) struct Results {
    /// Medians in nanoseconds, for each pair of take and give or for each call, by workload and implementation.
    pub(crate) medians: BTreeMap<String, BTreeMap<String, f64>>,
    pub(crate) latency: Vec<Value>,
    pub(crate) survivors: Vec<Value>,
    pub(crate) memory: Vec<Value>,
    /// The medians are of a few samples.
    pub(crate) quick: bool,
}

/// Pairs in an iteration of a workload.
fn pairs(workload: &str) -> f64 {
    match workload {
        "bulk_64" => 64.0,
        "pass_4096" => 4096.0,
        batch if batch.contains("batch") => 1024.0,
        _ => 1.0,
    }
}

impl Results {
    pub(crate) fn read(target: &Path) -> Outcome<Self> {
        let left = |name: &str| -> Vec<Value> {
            let text = fs::read(target.join("tmp/performance").join(name).with_extension("json"));
            text.ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
        };
        let medians = BTreeMap::new();
        let quick = left("run").first().is_some_and(|run| run["quick"] == true);
        let [latency, survivors, memory] = ["latency", "survivors", "memory"].map(left);
        let mut results = Self { medians, latency, survivors, memory, quick };
        results.add(&target.join("criterion"))?;
        Ok(results)
    }

    /// Adds every result under `directory`.
    fn add(&mut self, directory: &Path) -> Outcome<()> {
        if directory.ends_with("new") {
            let json =
                |name| -> Outcome<Value> { Ok(serde_json::from_slice(&fs::read(directory.join(name))?)?) };
            let (names, estimates) = (json("benchmark.json")?, json("estimates.json")?);
            let name = |field: &str| names[field].as_str().map(str::to_owned);
            let median = estimates["median"]["point_estimate"].as_f64();
            if let (Some(workload), Some(implementation), Some(median)) =
                (name("function_id"), name("value_str"), median)
            {
                let pairs = pairs(&workload);
                self.medians.entry(workload).or_default().insert(implementation, median / pairs);
            }
            return Ok(());
        }
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn of(&self, workload: &str, implementation: &str) -> Option<f64> {
        self.medians.get(workload)?.get(implementation).copied()
    }

    /// The fastest rival of a workload.
    pub(crate) fn best_rival(&self, workload: &str) -> Option<(&str, f64)> {
        let rivals = self.medians.get(workload)?.iter().filter(|(name, _)| is_rival(name));
        rivals.map(|(name, &median)| (name.as_str(), median)).min_by(|one, other| one.1.total_cmp(&other.1))
    }
}
