//! The Linux process as a host: the kernel's CPU number, and a futex to wake the worker thread.

use super::Platform;
use crate::raw::{claim::Claim, doorbell::Doorbell};

/// A pool's host in a Linux process.
#[derive(Debug)]
pub struct LinuxPlatform {
    doorbell: Doorbell,
}

impl Default for LinuxPlatform {
    fn default() -> Self {
        Self::new()
    }
}

impl LinuxPlatform {
    /// A platform whose doorbell nobody has rung.
    pub fn new() -> Self {
        // The first call looks the function up in the kernel's shared object; a signal handler must not be the one to
        // make it.
        let _ = rustix::thread::sched_getcpu();
        Self { doorbell: Doorbell::new() }
    }

    /// The bell that the pool rings and that the worker answers.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// How many CPUs this machine may ever have: the number of slots that a pool needs so that no two share one.
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
    type Ownership = Claim;

    #[inline(always)]
    fn ownership(&self) -> &Claim {
        &Claim
    }

    #[inline(always)]
    fn current_cpu(&self) -> usize {
        rustix::thread::sched_getcpu()
    }

    fn ring(&self) {
        self.doorbell.ring();
    }
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
