//! What there is to run: for each scenario the machine, the command line of the guest, and what the host prepares and checks.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

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
    /// Whether caches are claimed there, instead of held by their CPUs.
    pub(crate) claims: bool,
    /// Whether it has a disk.
    disk: bool,
}

/// The disk of a scenario, as the host sees it.
pub(crate) struct Disk(PathBuf);

/// The bytes that the guest writes to its disk.
const DISK_BYTES: usize = 64 << 20;

impl Disk {
    /// QEMU's arguments that give the guest the disk, behind the unit.
    pub(crate) fn arguments(&self) -> [String; 4] {
        [
            "-drive".into(),
            format!("if=none,id=disk,format=raw,cache=unsafe,file={}", self.0.display()),
            "-device".into(),
            "virtio-blk-pci,drive=disk,addr=5,iommu_platform=on,disable-legacy=on".into(),
        ]
    }

    /// Demands that the guest has written what it should have, every byte; what is wrong otherwise.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bytes = fs::read(&self.0).map_err(|error| error.to_string())?;
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        // What stands at a place of the disk: the guest knows the same function.
        let expected = |place: u64| (place + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        if bytes.len() != DISK_BYTES {
            return Err(format!("the image has {} bytes", bytes.len()));
        }
        match words.zip(0..).position(|(word, place)| word != expected(place)) {
            Some(place) => Err(format!("the image is not what the guest wrote, from byte {} on", place * 8)),
            None => Ok(()),
        }
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
            claims: false,
            disk: false,
        }
    }

    /// The same scenario, which is reported as not run where the emulated unit lacks the property `needs`.
    fn needing(self, needs: &'static str) -> Self {
        Self { needs: Some(needs), ..self }
    }

    /// The same scenario with caches that are claimed.
    fn claiming(self) -> Self {
        Self { claims: true, ..self }
    }

    /// The same scenario with a disk.
    fn with_disk(self) -> Self {
        Self { disk: true, ..self }
    }

    /// Makes the disk of the scenario in `directory`, all zeros, if it has one.
    pub(crate) fn prepare(&self, directory: &Path) -> io::Result<Option<Disk>> {
        if !self.disk {
            return Ok(None);
        }
        let path = directory.join("disk.img");
        File::create(&path)?.set_len(DISK_BYTES as u64)?;
        Ok(Some(Disk(path)))
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
            "sweep-builder",
            "an interrupt at every instruction of every operation of the page-table builder",
            "sweep builder",
            COUNTED,
            600,
        ),
        Scenario::new(
            "sweep-pool-held",
            "an interrupt at every instruction of every operation of the pool, whose caches are held by their CPUs",
            "sweep pool",
            COUNTED,
            600,
        ),
        Scenario::new(
            "sweep-pool-claimed",
            "an interrupt at every instruction of every operation of the pool, whose caches are claimed",
            "sweep pool",
            COUNTED,
            600,
        )
        .claiming(),
        Scenario::new(
            "storm-4",
            "four CPUs that allocate, free, map and interrupt each other",
            "storm 4 900000",
            &format!("{PARALLEL} 4"),
            200,
        ),
        Scenario::new(
            "storm-4-claimed",
            "the same, with caches that are claimed",
            "storm 4 900000",
            &format!("{PARALLEL} 4"),
            200,
        )
        .claiming(),
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
        Scenario::new(
            "virtio-blk",
            "an unmodified block driver behind the unit: 64 MiB out and back, and a ring that is taken away",
            "block",
            "-machine q35,accel=tcg -device intel-iommu,aw-bits=48",
            120,
        )
        .with_disk(),
        Scenario::new(
            "virtio-net",
            "an unmodified network driver behind the unit: ARP and ping of the gateway",
            "network",
            "-machine q35,accel=tcg -device intel-iommu,aw-bits=48 -netdev user,id=net \
             -device virtio-net-pci,netdev=net,addr=6,iommu_platform=on,disable-legacy=on,romfile=",
            60,
        ),
    ]
}
