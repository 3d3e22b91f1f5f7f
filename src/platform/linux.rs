//! The Linux process as a host: the kernel's CPU number, and a futex to wake the worker thread.

use super::{DoorbellPlatform, Platform};
use crate::raw::doorbell::Doorbell;

#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64")))]
use crate::raw::claim::Claim as Ownership;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
use crate::raw::rseq::Rseq as Ownership;

/// A pool's host in a Linux process.
///
/// On x86-64 a CPU's cache is owned by restartable sequences if the C library has registered them (glibc 2.35 or later, unless it
/// was told not to) and the kernel can end those of another CPU (Linux 5.10 or later), and by [`Claim`](crate::Claim) otherwise:
/// found once, when the platform is made. Children of `vfork`, or of `clone` with `CLONE_VM` and without `CLONE_THREAD`, must not
/// use a pool of their parent.
///
/// ```
/// use framepool::{AnonymousMemory, Builder, LinuxPlatform};
///
/// let platform = LinuxPlatform::claiming(); // instead of `new`
/// assert!(!platform.uses_restartable_sequences());
/// let pool = Builder::new(64).start_on(platform, AnonymousMemory::new(64)?)?;
/// assert!(pool.alloc().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LinuxPlatform {
    ownership: Ownership,
    doorbell: Doorbell,
}

impl Default for LinuxPlatform {
    fn default() -> Self {
        Self::new()
    }
}

impl LinuxPlatform {
    /// A platform that uses restartable sequences if this process has them, and whose doorbell nobody has rung.
    ///
    /// Thread context: a few system calls, none of which sleeps.
    pub fn new() -> Self {
        Self::with(Ownership::find())
    }

    /// A platform that never uses restartable sequences.
    pub fn claiming() -> Self {
        Self::with(Ownership::off())
    }

    fn with(ownership: Ownership) -> Self {
        Self { ownership, doorbell: Doorbell::new() }
    }

    /// Whether the caches of pools on this platform are owned by restartable sequences.
    pub fn uses_restartable_sequences(&self) -> bool {
        self.ownership.is_on()
    }

    /// The bell that the pool rings and that the worker answers.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// How many CPUs this machine may ever have: each of them needs a slot so that no two share one.
    ///
    /// Thread context: reads a file of the system.
    pub fn possible_cpus() -> usize {
        std::fs::read_to_string("/sys/devices/system/cpu/possible")
            .ok()
            .and_then(|ranges| last_cpu(&ranges))
            .map(|last| last + 1)
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
    }
}

/// The highest number in a list of ranges such as `0-3,8-11`.
fn last_cpu(ranges: &str) -> Option<usize> {
    ranges.trim().rsplit([',', '-']).next()?.parse().ok()
}

impl Platform for LinuxPlatform {
    type Ownership = Ownership;

    #[inline(always)]
    fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// As the kernel keeps it for restartable sequences, where these are registered; otherwise as the C library says.
    #[inline(always)]
    fn current_cpu(&self) -> usize {
        #[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
        if let Some(cpu) = self.ownership.cpu_hint() {
            return cpu;
        }
        cpu_by_call()
    }

    fn ring(&self) {
        self.doorbell.ring();
    }
}

impl DoorbellPlatform for LinuxPlatform {
    fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// One that threads without a registration share.
    fn extra_caches(&self) -> usize {
        self.uses_restartable_sequences().into()
    }
}

/// The C library's number, which asks nobody where it has registered restartable sequences; rustix looks for the kernel's shared
/// object on the first call, which a signal handler must not be the one to make, and which is not there under valgrind.
#[cold]
#[inline(never)]
#[allow(unsafe_code, reason = "a function of the C library")]
fn cpu_by_call() -> usize {
    // SAFETY: takes nothing, changes nothing, and is async-signal-safe in every C library.
    let cpu = unsafe { libc::sched_getcpu() };
    // Negative where the kernel does not say; then any is as good.
    usize::try_from(cpu).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_possible_cpu_is_the_end_of_the_last_range() {
        assert_eq!(last_cpu("0\n"), Some(0));
        assert_eq!(last_cpu("0-127\n"), Some(127));
        assert_eq!(last_cpu("0-3,8-11"), Some(11));
        assert_eq!(last_cpu(""), None);
        assert!(LinuxPlatform::possible_cpus() > LinuxPlatform::new().current_cpu());
    }
}
