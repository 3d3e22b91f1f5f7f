//! Weakens one line of the crate at a time and demands that the check named beside it fails.
//!
//! The list is `mutants.toml`. Each mutant is built in a copy of the sources under `target/mutants`, so that the crate
//! itself carries no switches, into target directories of its own: cargo cannot tell a package from its copy, and would take what
//! was built from a mutant for what it builds from the original later. A mutant that does not build, or whose check passes, is an
//! error. A check that hangs has failed: many a weakening makes a chain of links go round.

use clap::Parser;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::Deserialize;
use std::{
    env,
    error::Error,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};
use wait_timeout::ChildExt;

/// How long a check may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs the mutants whose names contain one of the given words, or all.
#[derive(Parser)]
struct Arguments {
    /// Words to look for in the names.
    words: Vec<String>,
    /// Only those whose check is not a loom model.
    #[arg(long)]
    no_loom: bool,
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
}

/// What came of a mutant.
#[derive(PartialEq)]
enum Fate {
    Caught,
    Survived,
    DoesNotBuild(String),
}

/// What is copied; everything else (examples, recordings) is left out.
const SOURCES: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "src",
    "tests",
    "loom-tests",
    "guest",
    "examples/replay",
    "examples/traces/DMAR.bin",
    "examples/traces/DMAR-net.bin",
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let tree = root.join("target/mutants/tree");
    let list: List = toml::from_str(&fs::read_to_string(root.join("loom-tests/mutants/mutants.toml"))?)?;
    let chosen = list.mutant.iter().filter(|mutant| {
        let named =
            arguments.words.is_empty() || arguments.words.iter().any(|word| mutant.name.contains(word));
        named && !(arguments.no_loom && matches!(mutant.check, Check::Loom(_)))
    });
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    for source in SOURCES.iter().filter(|source| root.join(source).exists()) {
        copy(&root.join(source), &tree.join(source))?;
    }
    let (mut run, mut caught) = (0, 0);
    for mutant in chosen {
        let start = Instant::now();
        let fate = run_one(mutant, &root, &tree)?;
        run += 1;
        caught += usize::from(fate == Fate::Caught);
        let word = match &fate {
            Fate::Caught => "caught".into(),
            Fate::Survived => "SURVIVED".into(),
            Fate::DoesNotBuild(errors) => format!("DOES NOT BUILD\n{errors}"),
        };
        println!("{:<64} {:>5.1} s  {word}", mutant.name, start.elapsed().as_secs_f32());
    }
    println!("{caught} of {run} mutants caught");
    Ok(if caught == run && run > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_one(mutant: &Mutant, root: &Path, tree: &Path) -> Result<Fate, Box<dyn Error>> {
    let original = fs::read_to_string(root.join(&mutant.file))?;
    let (find, replace) = (mutant.find.trim_matches('\n'), mutant.replace.trim_matches('\n'));
    if original.matches(find).count() != 1 {
        return Err(format!("{}: `{find}` must stand once in {}", mutant.name, mutant.file.display()).into());
    }
    let path = tree.join(&mutant.file);
    fs::write(&path, original.replace(find, replace))?;
    let fate = check(&mutant.check, root, tree);
    fs::write(&path, original)?;
    fate
}

fn check(check: &Check, root: &Path, tree: &Path) -> Result<Fate, Box<dyn Error>> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree).env("CARGO_TARGET_DIR", root.join("target/mutants/program"));
    let test = ["test", "--quiet", "--release"];
    match check {
        Check::Loom(name) => {
            let flags = env::var("RUSTFLAGS").unwrap_or_default();
            command.args(test).args(["-p", "loom-tests", "--test", name]);
            command.env("RUSTFLAGS", format!("{flags} --cfg loom"));
            command.env("CARGO_TARGET_DIR", root.join("target/mutants/loom"));
        }
        Check::Program(name) => {
            command.args(test).args(["-p", "framepool", "--test", name]);
        }
        Check::Guest(name) => {
            command.args(["run", "--quiet", "--release", "-p", "guest-runner", "--", name]);
            command.env("GUEST_TARGET_DIR", root.join("target/mutants/guest"));
        }
    }
    let built = command_built(&command)?;
    if let Some(errors) = built {
        return Ok(Fate::DoesNotBuild(errors));
    }
    Ok(if passes(command)? { Fate::Survived } else { Fate::Caught })
}

/// Whether `command` ends in time and with success. Whatever it has started ends with it.
fn passes(mut command: Command) -> Result<bool, Box<dyn Error>> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?;
    let group = Pid::from_raw(child.id() as i32);
    let status = child.wait_timeout(PATIENCE)?;
    if status.is_none() {
        killpg(group, Signal::SIGKILL)?;
        child.wait()?;
    }
    Ok(status.is_some_and(|status| status.success()))
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
