//! Processor time and memory of the whole process.

use std::fs;
use std::time::Duration;

/// What there was when an input began.
pub struct Measured {
    kib: u64,
    time: Duration,
}

/// Begins to measure.
pub fn begin() -> Measured {
    // Linux forgets the most memory there ever was.
    let _ = fs::write("/proc/self/clear_refs", "5");
    Measured {
        kib: status("VmRSS:"),
        time: processor_time(),
    }
}

impl Measured {
    /// Returns milliseconds, and the most memory in MiB beyond that of the beginning.
    pub fn end(self) -> (u64, u64) {
        let time = processor_time().saturating_sub(self.time);
        let kib = status("VmHWM:").saturating_sub(self.kib);
        (time.as_millis() as u64, kib >> 10)
    }
}

/// A line of the process's status, in KiB; 0 where the system has none.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: it writes to what it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
