//! What there is to run: for each scenario the machine, the command line of the guest, and what the host prepares and checks.

use std::{io, path::Path, time::Duration};

/// One machine that the guest runs on, once.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// The guest's command line.
    pub(crate) command_line: String,
    /// QEMU's arguments.
    pub(crate) machine: Vec<String>,
    pub(crate) limit: Duration,
    /// A property of the emulated unit without which the scenario cannot run.
    pub(crate) needs: Option<&'static str>,
}

/// What the host prepared for a scenario.
pub(crate) struct Files {
    arguments: Vec<String>,
}

impl Files {
    /// QEMU's arguments that name the files.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Looks at what the guest left in the files, or said; what is wrong with it.
    pub(crate) fn check(&self, _output: &[String]) -> Result<(), String> {
        Ok(())
    }
}

impl Scenario {
    fn new(name: &'static str, what: &'static str, command_line: &str, machine: &str, seconds: u64) -> Self {
        let machine = machine.split_ascii_whitespace().map(str::to_owned).collect();
        Self {
            name,
            what,
            command_line: command_line.to_owned(),
            machine,
            limit: Duration::from_secs(seconds),
            needs: None,
        }
    }

    /// The same scenario, which is reported as not run where the emulated unit lacks the property `needs`.
    fn needing(self, needs: &'static str) -> Self {
        Self { needs: Some(needs), ..self }
    }

    /// Makes the files that the scenario needs in `directory`.
    pub(crate) fn prepare(&self, _directory: &Path) -> io::Result<Files> {
        Ok(Files { arguments: Vec::new() })
    }
}

/// One CPU whose clocks advance by one nanosecond an instruction.
const COUNTED: &str = "-machine q35,accel=tcg -smp 1 -icount shift=0";

/// Several CPUs, each a thread of the host.
const PARALLEL: &str = "-machine q35 -accel tcg,thread=multi -smp";

/// One CPU, and a device that does DMA between itself and memory, behind a unit to be completed.
const DEVICE: &str =
    "-machine q35,accel=tcg -device edu,addr=4,dma_mask=0xffffffffffffffff -device intel-iommu,";

/// All scenarios, the longest first.
pub(crate) fn all() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "sweep-pool",
            "an interrupt at every instruction of every operation of the pool",
            "sweep pool",
            COUNTED,
            300,
        ),
        Scenario::new(
            "sweep-builder",
            "an interrupt at every instruction of every operation of the page-table builder",
            "sweep builder",
            COUNTED,
            300,
        ),
        Scenario::new(
            "storm-4",
            "four CPUs that allocate, free, map and interrupt each other",
            "storm 4 900000",
            &format!("{PARALLEL} 4"),
            200,
        ),
        Scenario::new(
            "storm-8",
            "eight CPUs that allocate, free, map and interrupt each other",
            "storm 8 400000",
            &format!("{PARALLEL} 8"),
            200,
        ),
        Scenario::new(
            "dma-39",
            "DMA through the tables of a unit with 39 bits of address",
            "dma",
            &format!("{DEVICE}aw-bits=39"),
            120,
        ),
        Scenario::new(
            "dma-48",
            "DMA through the tables of a unit with 48 bits of address",
            "dma",
            &format!("{DEVICE}aw-bits=48"),
            120,
        ),
        Scenario::new(
            "dma-scalable",
            "DMA through the tables of a unit with scalable mode",
            "dma",
            &format!("{DEVICE}aw-bits=48,x-scalable-mode=on"),
            120,
        ),
        Scenario::new(
            "dma-first-stage",
            "DMA through the tables of a unit with a first stage",
            "dma",
            &format!("{DEVICE}aw-bits=48,x-scalable-mode=on,x-flts=on,fs1gp=on"),
            120,
        )
        .needing("x-flts"),
    ]
}
