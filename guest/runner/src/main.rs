//! Builds the guest, runs its scenarios in QEMU, two at a time, and prints what came of each.
//!
//! A scenario has passed if the guest ended the machine with its word for success, no line of its output says FAIL, it kept its
//! time limit, and the host's own check of it holds.

mod scenario;

use clap::Parser;
use scenario::{Disk, Scenario, all};
use std::{
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const QEMU: &str = "qemu-system-x86_64";
/// What QEMU returns when the guest writes 0x10 to the debug exit.
const SUCCESS: i32 = 0x10 << 1 | 1;
/// Machines that run at the same time.
const MACHINES: usize = 2;

/// Runs the scenarios whose names contain one of the given words, or all.
#[derive(Parser)]
struct Arguments {
    /// Words to look for in the names.
    words: Vec<String>,
    /// Only say what there is.
    #[arg(long)]
    list: bool,
    /// Only build the guest, and see that QEMU is there.
    #[arg(long)]
    no_run: bool,
}

/// What came of a scenario.
struct Report {
    output: Vec<String>,
    outcome: Outcome,
    time: Duration,
}

enum Outcome {
    Passed,
    /// This QEMU lacks something that the scenario needs.
    NotRun(String),
    Failed(String),
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let chosen = |scenario: &Scenario| {
        arguments.words.is_empty() || arguments.words.iter().any(|word| scenario.name.contains(word))
    };
    let scenarios: Vec<Scenario> = all().into_iter().filter(chosen).collect();
    if scenarios.is_empty() {
        return Err("no scenario has such a name; --list shows them all".into());
    }
    if arguments.list {
        for scenario in &scenarios {
            println!("{:<16} {}", scenario.name, scenario.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kernels = Kernels::build(&guest, &scenarios)?;
    let found = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err(format!("{QEMU} is missing; guest/run installs it, or says how").into());
    }
    if arguments.no_run {
        return Ok(ExitCode::SUCCESS);
    }
    let reports = run_all(&scenarios, &kernels);
    println!("\n{:<16} {:>7}  result", "scenario", "seconds");
    for (scenario, report) in scenarios.iter().zip(&reports) {
        let (word, result) = match &report.outcome {
            Outcome::Passed => ("passed", report.output.last().map_or("", String::as_str)),
            Outcome::NotRun(reason) => ("not run", reason.as_str()),
            Outcome::Failed(reason) => ("FAILED", reason.as_str()),
        };
        println!("{:<16} {:>7.1}  {word}: {result}", scenario.name, report.time.as_secs_f32());
    }
    let count =
        |wanted: fn(&Outcome) -> bool| reports.iter().filter(|report| wanted(&report.outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let passed = count(|outcome| matches!(outcome, Outcome::Passed));
    println!("{passed} passed, {failed} failed, {} skipped", reports.len() - passed - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The guest, in one build for each way to own a cache.
struct Kernels {
    directory: PathBuf,
}

impl Kernels {
    /// Builds those that the scenarios need.
    fn build(guest: &Path, scenarios: &[Scenario]) -> Result<Self, Box<dyn Error>> {
        let target =
            env::var_os("GUEST_TARGET_DIR").map_or_else(|| guest.join("../target/guest"), PathBuf::from);
        let kernels = Self { directory: target.join("guest-files") };
        fs::create_dir_all(&kernels.directory)?;
        for claims in [false, true] {
            if scenarios.iter().any(|scenario| scenario.claims == claims) {
                fs::copy(build(guest, &target, claims)?, kernels.path(claims))?;
            }
        }
        Ok(kernels)
    }

    fn path(&self, claims: bool) -> PathBuf {
        self.directory.join(if claims { "guest-claimed" } else { "guest-held" })
    }
}

/// Builds the guest; where it is.
fn build(guest: &Path, target: &Path, claims: bool) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The flags of the guest stand in its own configuration, which the variables of another build would override.
    let status = Command::new(cargo)
        .current_dir(guest)
        .args(["build", "--quiet", "--release", "--locked", "--target-dir"])
        .arg(target)
        .args(claims.then_some("--features=claim"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()?;
    if !status.success() {
        return Err("the guest does not build".into());
    }
    Ok(target.join("x86_64-unknown-linux-gnu/release/guest"))
}

/// Runs all scenarios and prints the output of each as a whole, in their order.
fn run_all(scenarios: &[Scenario], kernels: &Kernels) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(scenarios.iter().map(|_| None).collect::<Vec<Option<Report>>>());
    thread::scope(|scope| {
        for _ in 0..MACHINES {
            scope.spawn(|| {
                loop {
                    // Ordering: Relaxed; each number is given out once, and publishes nothing.
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = scenarios.get(index) else { return };
                    let start = Instant::now();
                    let report = run(scenario, kernels).unwrap_or_else(|error| Report {
                        output: Vec::new(),
                        outcome: Outcome::Failed(error.to_string()),
                        time: start.elapsed(),
                    });
                    println!("\n== {}: {}", scenario.name, scenario.what);
                    report.output.iter().for_each(|line| println!("{line}"));
                    match &report.outcome {
                        Outcome::Passed => {}
                        Outcome::NotRun(reason) => println!("not run: {reason}"),
                        Outcome::Failed(reason) => println!("FAILED: {reason}"),
                    }
                    reports.lock().expect("no thread panics with it")[index] = Some(report);
                }
            });
        }
    });
    reports.into_inner().expect("no thread panics with it").into_iter().flatten().collect()
}

fn run(scenario: &Scenario, kernels: &Kernels) -> Result<Report, Box<dyn Error>> {
    let start = Instant::now();
    if let Some(property) = scenario.needs {
        let help = Command::new(QEMU).args(["-device", "intel-iommu,help"]).output()?;
        if !String::from_utf8_lossy(&help.stdout).contains(property) {
            let outcome = Outcome::NotRun(format!("the unit of this QEMU has no {property}"));
            return Ok(Report { output: Vec::new(), outcome, time: start.elapsed() });
        }
    }
    let disk = scenario.prepare(&kernels.directory)?;
    let mut command = Command::new(QEMU);
    command
        .args(["-cpu", "max", "-m", "256M", "-display", "none", "-nodefaults", "-no-reboot"])
        .args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .args(&scenario.machine)
        .args(disk.iter().flat_map(Disk::arguments))
        .arg("-kernel")
        .arg(kernels.path(scenario.claims))
        .args(["-append", &scenario.command_line])
        .stdin(Stdio::null())
        // Here QEMU tells of each fault that the guest provokes.
        .stderr(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = command.spawn().map_err(|error| format!("{QEMU} does not start: {error}"))?;
    let output = machine.stdout.take().ok_or("no output")?;
    let over = AtomicBool::new(false);
    let (lines, status, in_time) = thread::scope(|scope| {
        let lines = scope.spawn(|| {
            let lines: Vec<String> = BufReader::new(output).lines().map_while(Result::ok).collect();
            // Ordering: Relaxed; the lines themselves come with the end of the thread.
            over.store(true, Ordering::Relaxed);
            lines
        });
        let mut in_time = true;
        // Ordering: Relaxed; as above.
        while !over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
            if start.elapsed() > scenario.limit && in_time {
                in_time = false;
                // It may just have ended by itself.
                let _ = machine.kill();
            }
        }
        (lines.join().unwrap_or_default(), machine.wait(), in_time)
    });
    let code = status?.code();
    // What the firmware prints before the guest starts is not ours.
    let output: Vec<String> = lines.into_iter().map(|line| line.trim_end().to_owned()).collect();
    let complaint = output.iter().find(|line| line.contains("FAIL")).cloned();
    let outcome = if !in_time {
        Outcome::Failed(format!("not over within {} s", scenario.limit.as_secs()))
    } else if let Some(complaint) = complaint {
        Outcome::Failed(complaint)
    } else if code != Some(SUCCESS) {
        Outcome::Failed(format!("the machine ended with {code:?}"))
    } else {
        disk.map_or(Ok(()), |disk| disk.check()).map_or_else(Outcome::Failed, |()| Outcome::Passed)
    };
    Ok(Report { output, outcome, time: start.elapsed() })
}
