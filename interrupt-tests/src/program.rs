//! The command: which operations are swept, and in which processes.

use crate::{
    interrupts::{
        operations::{self, Operation},
        sweep::Depth,
    },
    report,
};
use clap::Parser;
use std::{
    env,
    io::{self, Write},
    process::{Command, ExitCode, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

/// Sweeps the operations whose names contain one of the given words, or all.
#[derive(Parser)]
struct Arguments {
    /// Words to look for in the names.
    words: Vec<String>,
    /// Try each moment with every so-manyth of the operations that may interrupt there, in turn; with 1, with all.
    #[arg(long, default_value_t = 1)]
    every: usize,
    /// Passes through a loop in which it is interrupted.
    #[arg(long, default_value_t = 1)]
    passes: usize,
    /// Pairs of nested interrupts that are tried in each state.
    #[arg(long, default_value_t = 3)]
    pairs: u64,
    /// Only build this program.
    #[arg(long)]
    no_run: bool,
    /// Sweep the one operation of this name, in this process.
    #[arg(long)]
    alone: Option<String>,
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let passed = match &arguments.alone {
        Some(name) => named(name).is_some_and(|operation| report::sweep(operation, arguments.depth())),
        None if arguments.no_run => true,
        None => arguments.sweep_all().unwrap_or_else(|error| {
            eprintln!("a sweep could not be run: {error}");
            false
        }),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn named(name: &str) -> Option<&'static Operation> {
    operations::all().find(|operation| operation.name == name)
}

impl Arguments {
    fn depth(&self) -> Depth {
        Depth { every: self.every.max(1), passes: self.passes, pairs: self.pairs }
    }

    fn chooses(&self, operation: &Operation) -> bool {
        let named =
            self.words.is_empty() || self.words.iter().any(|word| operation.name.contains(word.as_str()));
        operation.role.is_interrupted() && named
    }

    fn sweep_all(&self) -> io::Result<bool> {
        let chosen: Vec<_> = operations::all().filter(|operation| self.chooses(operation)).collect();
        let outputs: Vec<Mutex<Option<io::Result<Output>>>> =
            chosen.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    let work = || chosen.iter().zip(&outputs).nth(next.fetch_add(1, SeqCst));
                    while let Some((operation, output)) = work() {
                        *output.lock().unwrap() = Some(self.sweep_apart(operation));
                    }
                });
            }
        });
        println!("{}", report::HEADER);
        let mut passed = 0;
        for output in outputs.into_iter().filter_map(|output| output.into_inner().unwrap()) {
            let output = output?;
            io::stdout().write_all(&output.stdout)?;
            passed += usize::from(output.status.success());
        }
        println!("{passed} of {} operations passed", chosen.len());
        Ok(passed == chosen.len() && passed > 0)
    }

    /// Sweeps one operation in a process of its own.
    fn sweep_apart(&self, operation: &Operation) -> io::Result<Output> {
        let numbers =
            [("--every", self.every as u64), ("--passes", self.passes as u64), ("--pairs", self.pairs)];
        let numbers = numbers.into_iter().flat_map(|(name, number)| [name.into(), number.to_string()]);
        Command::new(env::current_exe()?)
            .args(["--alone", operation.name])
            .args(numbers)
            .stderr(Stdio::inherit())
            .output()
    }
}
