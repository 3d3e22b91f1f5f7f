//! Interrupts every public operation at every instruction that it executes, with every operation that an interrupt may make there,
//! in every state of a small pool; counts the instructions on the way, and holds them to their limits.
//!
//! What is interrupted is the release build, since that is what users run: `cargo run --release -p interrupt-tests`. Each
//! operation is swept by a process of its own, as many at a time as there are processors.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod interrupts;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod limits;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod machine;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod program;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod report;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> std::process::ExitCode {
    program::main()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "the trap flag and the breakpoints are those of x86-64 Linux; the injection interrupts before every atomic"
    );
    eprintln!("operation on any architecture: cargo test -p injection-tests");
    std::process::ExitCode::FAILURE
}
