//! A breakpoint on every instruction of every restartable sequence, with the handler using the same pool on the same CPU, or
//! moving the thread to another one.
//!
//! The kernel must abort whatever is interrupted between the first instruction of a sequence and its commit, and nothing else; and
//! however that goes, every frame is afterwards in one place, and every operation was counted once. Deterministic, in this
//! process: the breakpoint is patched into the program's own text, and the delivery of its signal is what the kernel sees.
//!
//! The same for every pair of sequences of which the second is reached only if the first is aborted, and with a trap after every
//! instruction, when no sequence ever succeeds: the longest operation is then the bound on steps.
#![cfg(not(loom))]

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod sequences;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod sweep;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod trap;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
mod world;

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
fn main() {
    sweep::run();
}

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
fn main() {
    println!("breakpoints: this architecture has no restartable sequences, and every cache is claimed");
}
