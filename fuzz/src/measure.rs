//! Measures the processor time and memory of the process.

use std::fs;
use std::time::Duration;

/// The state at the start of an input.
pub struct Measured {
    kib: u64,
    time: Duration,
}

/// Starts a measurement.
pub fn begin() -> Measured {
    // Resets the peak memory on Linux.
    let _ = fs::write("/proc/self/clear_refs", "5");
    Measured {
        kib: status("VmRSS:"),
        time: processor_time(),
    }
}

impl Measured {
    /// Returns the milliseconds used, and the peak memory above that at the start, in MiB.
    pub fn end(self) -> (u64, u64) {
        let time = processor_time().saturating_sub(self.time);
        let kib = status("VmHWM:").saturating_sub(self.kib);
        (time.as_millis() as u64, kib >> 10)
    }
}

/// Returns a line of the process's status in KiB; 0 if the system has none.
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
    // SAFETY: `time` is valid for writes of a `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
