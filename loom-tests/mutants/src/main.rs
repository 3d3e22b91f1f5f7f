//! Weakens one line of the crate at a time and demands that the check named beside it fails.
//!
//! The list is `mutants.toml`. As many are tried at a time as there are CPUs, each in a copy of the sources under `target/mutants`, so
//! that the crate itself carries no switches, and in target directories of its own: cargo cannot tell a package from its copy, and
//! would take what was built from a mutant for what it builds from the original later. Each workshop stays with the kinds of checks
//! for which it has built the libraries that they use, as long as there are any. A mutant that does not build, or whose check
//! passes, is an error. A check that hangs has failed: many a weakening makes a chain of links go round.

use clap::Parser;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader, Read},
    num::NonZero,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use wait_timeout::ChildExt;

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// How often a check is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the mutants whose names contain one of the given words, or all.
#[derive(Parser)]
struct Arguments {
    /// Words to look for in the names.
    words: Vec<String>,
    /// Only those whose check is not a loom model.
    #[arg(long)]
    no_loom: bool,
    /// How many at a time; as many as there are CPUs unless it is given.
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
}

#[derive(Deserialize)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
struct Mutant {
    name: String,
    file: PathBuf,
    find: String,
    replace: String,
    check: Check,
}

/// What must fail.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Check {
    /// The models in loom-tests/tests/NAME.rs.
    Loom(String),
    /// The program tests/NAME.rs of the crate itself.
    Program(String),
    /// The scenarios of the bare-metal guest whose names contain this.
    Guest(String),
    /// The sweep and the injection, each over the operations whose names contain this.
    Interrupts(String),
    /// The models of shuttle-tests whose names contain this.
    Schedules(String),
    /// A soak of so many seconds.
    Soak(u32),
    /// The threads of sanitizer-tests under this sanitizer, by a report of its.
    Sanitizer(String),
}

impl Check {
    /// The target directory, in which libraries are built for checks of this kind.
    fn target(&self) -> &'static str {
        match self {
            Self::Loom(_) => "loom",
            Self::Guest(_) => "guest",
            Self::Sanitizer(_) => "sanitizer",
            Self::Program(_) | Self::Interrupts(_) | Self::Schedules(_) | Self::Soak(_) => "program",
        }
    }
}

/// The mutants that nobody has begun with, by the target directory of their checks.
struct Waiting<'m> {
    left: BTreeMap<&'static str, Vec<&'m Mutant>>,
    /// For which some workshop has built.
    built: Vec<&'static str>,
}

impl<'m> Waiting<'m> {
    fn new(chosen: &[&'m Mutant]) -> Self {
        let mut left: BTreeMap<_, Vec<_>> = BTreeMap::new();
        // The last is the next.
        for mutant in chosen.iter().rev() {
            left.entry(mutant.check.target()).or_default().push(*mutant);
        }
        Self { left, built: Vec::new() }
    }

    /// The next one for a workshop that has built for checks of some kinds: of these, or of those for which nobody has, or of those of
    /// which most are left.
    fn next(&mut self, own: &mut Vec<&'static str>) -> Option<&'m Mutant> {
        let left = self.left.iter_mut().filter(|(_, mutants)| !mutants.is_empty());
        let (target, mutants) = left.max_by_key(|(target, mutants)| {
            (own.contains(target), !self.built.contains(target), mutants.len())
        })?;
        for built in [own, &mut self.built] {
            if !built.contains(target) {
                built.push(target);
            }
        }
        mutants.pop()
    }
}

/// What came of a mutant.
#[derive(PartialEq)]
enum Fate {
    Caught,
    Survived,
    DoesNotBuild(String),
}

/// What is copied; everything else (examples, recordings) is left out.
const SOURCES: [&str; 16] = [
    ".ci/sanitizers",
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "src",
    "tests",
    "benches",
    "loom-tests",
    "interrupt-tests",
    "sanitizer-tests",
    "shuttle-tests",
    "guest",
    "examples/replay",
    "examples/soak",
    "examples/traces/DMAR.bin",
    "examples/traces/DMAR-net.bin",
];

/// Where one mutant after the other is built and run: a copy of the sources, and target directories.
struct Workshop {
    root: PathBuf,
    directory: PathBuf,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let list: List = toml::from_str(&fs::read_to_string(root.join("loom-tests/mutants/mutants.toml"))?)?;
    let chosen: Vec<&Mutant> = list.mutant.iter().filter(|mutant| arguments.choose(mutant)).collect();
    let jobs = arguments.jobs.map_or_else(thread::available_parallelism, Ok)?.get().min(chosen.len());
    let (waiting, caught) = (Mutex::new(Waiting::new(&chosen)), AtomicUsize::new(0));
    let work = |number: usize| -> Result<(), String> {
        let workshop = Workshop::new(&root, number).map_err(|error| error.to_string())?;
        let mut own = Vec::new();
        let mut next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next(&mut own);
        while let Some(mutant) = next() {
            let start = Instant::now();
            let fate = workshop.try_out(mutant).map_err(|error| error.to_string())?;
            caught.fetch_add(usize::from(fate == Fate::Caught), Relaxed);
            let word = match &fate {
                Fate::Caught => "caught".into(),
                Fate::Survived => "SURVIVED".into(),
                Fate::DoesNotBuild(errors) => format!("DOES NOT BUILD\n{errors}"),
            };
            println!("{:<64} {:>5.1} s  {word}", mutant.name, start.elapsed().as_secs_f32());
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|number| scope.spawn(move || work(number))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;
    let (run, caught) = (chosen.len(), caught.into_inner());
    println!("{caught} of {run} mutants caught");
    Ok(if caught == run && run > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    fn choose(&self, mutant: &Mutant) -> bool {
        let named = self.words.is_empty() || self.words.iter().any(|word| mutant.name.contains(word));
        named && !(self.no_loom && matches!(mutant.check, Check::Loom(_)))
    }
}

impl Workshop {
    fn new(root: &Path, number: usize) -> std::io::Result<Self> {
        let workshop = Self { root: root.into(), directory: root.join(format!("target/mutants/{number}")) };
        let tree = workshop.tree();
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        for source in SOURCES.iter().filter(|source| root.join(source).exists()) {
            copy(&root.join(source), &tree.join(source))?;
        }
        Ok(workshop)
    }

    fn tree(&self) -> PathBuf {
        self.directory.join("tree")
    }

    fn try_out(&self, mutant: &Mutant) -> Result<Fate, Box<dyn Error>> {
        let original = fs::read_to_string(self.root.join(&mutant.file))?;
        let (find, replace) = (mutant.find.trim_matches('\n'), mutant.replace.trim_matches('\n'));
        if original.matches(find).count() != 1 {
            return Err(
                format!("{}: `{find}` must stand once in {}", mutant.name, mutant.file.display()).into()
            );
        }
        let path = self.tree().join(&mutant.file);
        fs::write(&path, original.replace(find, replace))?;
        let fate = self.check(&mutant.check);
        fs::write(&path, original)?;
        fate
    }

    fn check(&self, check: &Check) -> Result<Fate, Box<dyn Error>> {
        let mut fate = Fate::Caught;
        for command in self.commands(check) {
            if let Some(errors) = command_built(&command)? {
                return Ok(Fate::DoesNotBuild(errors));
            }
            if passes(command, check)? {
                fate = Fate::Survived;
            }
        }
        Ok(fate)
    }

    /// What must fail, all of it.
    fn commands(&self, check: &Check) -> Vec<Command> {
        let cargo = |arguments: &[&str], target: &str| {
            let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command.current_dir(self.tree()).args(arguments);
            command.env("CARGO_TARGET_DIR", self.directory.join(target));
            // Each mutant differs from the one before by two lines.
            command.env("CARGO_INCREMENTAL", "1");
            command
        };
        let test = ["test", "--quiet", "--release", "-p"];
        match check {
            Check::Loom(name) => {
                let flags = env::var("RUSTFLAGS").unwrap_or_default();
                let mut command = cargo(&[&test[..], &["loom-tests", "--test", name]].concat(), "loom");
                command.env("RUST_TEST_NOCAPTURE", "1");
                command.env("RUSTFLAGS", format!("{flags} --cfg loom"));
                vec![command]
            }
            Check::Program(name) => {
                let mut command = cargo(&[&test[..], &["framepool", "--test", name]].concat(), "program");
                // Some of what is weakened is rare in the few sequences that the tests try by themselves.
                command.env("STRICT_SEQUENCES", "3000");
                // The same sequences on every machine, so that what one has caught another does too.
                command.env("PROPTEST_RNG_SEED", "2007");
                vec![command]
            }
            Check::Guest(name) => {
                let mut command =
                    cargo(&["run", "--quiet", "--release", "-p", "guest-runner", "--", name], "program");
                command.env("GUEST_TARGET_DIR", self.directory.join("guest"));
                // The limits of instructions are not for incremental builds.
                command.env("CARGO_INCREMENTAL", "0");
                vec![command]
            }
            Check::Interrupts(name) => {
                let run = ["run", "--quiet", "--release", "-p", "interrupt-tests", "--", name];
                let mut sweep = cargo(&run, "program");
                // The limits of instructions are not for incremental builds.
                sweep.env("CARGO_INCREMENTAL", "0");
                let mut injection =
                    cargo(&[&test[..], &["injection-tests", "--test", "injection"]].concat(), "program");
                injection.env("FRAMEPOOL_INJECTION_OPERATION", name);
                vec![sweep, injection]
            }
            Check::Schedules(name) => {
                let models = ["test", "--quiet", "-p", "shuttle-tests", "--test", "schedules", name];
                vec![cargo(&models, "program")]
            }
            Check::Soak(seconds) => {
                let seconds = seconds.to_string();
                let soak = ["run", "--quiet", "--release", "--example", "soak", "--", "--seconds", &seconds];
                vec![cargo(&soak, "program")]
            }
            Check::Sanitizer(name) => {
                let mut command = Command::new(self.tree().join(".ci/sanitizers"));
                command.arg(name).current_dir(self.tree());
                command.env("CARGO_TARGET_DIR", &self.directory).env("CARGO_INCREMENTAL", "1");
                // The threads may notice the mutant too; that is not the question.
                command.env("SANITIZER_REPORT", "1").env("SANITIZER_SECONDS", "4");
                vec![command]
            }
        }
    }
}

/// Whether `command` ends in time and with success. Whatever it has started ends with it, and at once when a line says that a test
/// has failed: the others of a program may take long, or never end, under a mutant.
fn passes(mut command: Command, check: &Check) -> Result<bool, Box<dyn Error>> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
    let group = Pid::from_raw(child.id() as i32);
    let failed = Arc::new(AtomicBool::new(false));
    if let Some(stdout) = child.stdout.take() {
        watch(stdout, |line| line.ends_with("... FAILED"), &failed);
    }
    if let Some(stderr) = child.stderr.take() {
        // No model catches a panic; a test of another kind may.
        let is_model = matches!(check, Check::Loom(_));
        watch(stderr, move |line| is_model && line.contains("panicked at"), &failed);
    }
    let start = Instant::now();
    while start.elapsed() < PATIENCE && !failed.load(Relaxed) {
        if let Some(status) = child.wait_timeout(LOOK)? {
            return Ok(status.success());
        }
    }
    killpg(group, Signal::SIGKILL)?;
    child.wait()?;
    Ok(false)
}

/// Reads `output` until it ends, and says so when one of its lines is one of a failure.
fn watch(
    output: impl Read + Send + 'static,
    is_failure: impl Fn(&str) -> bool + Send + 'static,
    failed: &Arc<AtomicBool>,
) {
    let failed = Arc::clone(failed);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if is_failure(&line) {
                failed.store(true, Relaxed);
            }
        }
    });
}

/// Builds what `command` would run, as each of them does with `--no-run`; the compiler's words if that fails.
fn command_built(command: &Command) -> Result<Option<String>, Box<dyn Error>> {
    let mut build = Command::new(command.get_program());
    build.args(command.get_args()).arg("--no-run");
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            build.env(key, value);
        }
    }
    if let Some(directory) = command.get_current_dir() {
        build.current_dir(directory);
    }
    let output = build.output()?;
    Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).map(drop)
}
