//! The threads, memory and files that the process may use, and the origin of each value.
//!
//! In a container, `/proc/meminfo` and the list of cores describe the whole machine; a process that
//! followed them would be throttled or killed. The defaults here follow the process's cgroup instead.
//! Settings always take precedence. The only limit that this module may change is the soft limit on
//! open files, which is raised to the hard limit.

pub mod background;
mod cgroup;
mod files;

use std::fmt;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use bytesize::ByteSize;

pub use self::files::{Connections, TooManyConnections, raise_file_limit};

/// Size of the KV cache without a memory limit.
pub const DEFAULT_KV_MEMORY: ByteSize = ByteSize::gib(1);

/// Memory for activations, requests and the front end, in addition to weights and KV cache (measured:
/// 390 MiB in total with the built-in model, a full KV cache of 246 MiB, and 64 requests).
pub const WORKING_MEMORY: ByteSize = ByteSize::mib(150);

/// Memory up to which the default KV cache holds a whole context window, however tight the memory limit.
pub const MIN_KV_MEMORY: ByteSize = ByteSize::mib(64);

/// The origin of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A flag, an environment variable or the configuration file.
    Setting,
    /// The built-in default.
    Default,
    /// The number of cores that the process may run on.
    Cores,
    /// The CPU quota of the process's cgroup.
    CpuQuota,
    /// The memory limit of the process's cgroup.
    CgroupMemory,
    /// The machine's memory.
    MachineMemory,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setting => "setting",
            Self::Default => "default",
            Self::Cores => "available cores",
            Self::CpuQuota => "cgroup CPU quota",
            Self::CgroupMemory => "cgroup memory limit",
            Self::MachineMemory => "machine memory",
        })
    }
}

/// A value and its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// The origin of the value.
    pub origin: Origin,
}

/// Returns the number of compute threads: the setting, or one per core that the process may use,
/// within the CPU quota of its cgroup.
///
/// A fractional quota is rounded down (2.5 CPUs: 2 threads), but not below 1. Compute threads
/// synchronize after every layer: one more thread than the quota allows would use it up before the
/// end of the period, and all threads would pause until the next one.
#[must_use]
pub fn threads(setting: Option<NonZeroUsize>) -> Sourced<NonZeroUsize> {
    if let Some(value) = setting {
        let origin = Origin::Setting;
        return Sourced { value, origin };
    }
    // The standard library reads the affinity mask and the quota (cgroup v1 and v2, ancestors
    // included), and rounds as above.
    let value = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let origin = match allowed_cores() {
        Some(cores) if value.get() < cores => Origin::CpuQuota,
        _ => Origin::Cores,
    };
    Sourced { value, origin }
}

/// Returns the number of cores in the process's affinity mask.
fn allowed_cores() -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        let mask = rustix::thread::sched_getaffinity(None).ok()?;
        Some(mask.count() as usize)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Returns the memory that the process may use: the lower of its cgroup's limit and the machine's
/// memory; `None` if neither is known.
#[must_use]
pub fn memory_limit() -> Option<Sourced<ByteSize>> {
    memory_limit_under(Path::new("/"))
}

fn memory_limit_under(root: &Path) -> Option<Sourced<ByteSize>> {
    let sourced = |origin| move |value| Sourced { value, origin };
    let machine = machine_memory(root).map(sourced(Origin::MachineMemory));
    let cgroup = cgroup::memory_limit(root).map(sourced(Origin::CgroupMemory));
    // A v1 cgroup without a limit reports one that is larger than any machine's memory.
    machine
        .into_iter()
        .chain(cgroup)
        .min_by_key(|limit| limit.value)
}

/// Reads the machine's memory.
fn machine_memory(root: &Path) -> Option<ByteSize> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(ByteSize::kib(kib))
}

/// Returns the size of the KV cache: the setting, or the least of [`DEFAULT_KV_MEMORY`], half of the
/// memory that `limit` leaves after the `weights`, and all of that memory except [`WORKING_MEMORY`].
///
/// The default is at least one context `window` of up to [`MIN_KV_MEMORY`]: so small a part of a model with
/// a long context is worth its memory even where the limit is tight.
#[must_use]
pub fn kv_memory(
    setting: Option<ByteSize>,
    limit: Option<Sourced<ByteSize>>,
    weights: ByteSize,
    window: ByteSize,
) -> Sourced<ByteSize> {
    if let Some(value) = setting {
        let origin = Origin::Setting;
        return Sourced { value, origin };
    }
    let default = Sourced {
        value: DEFAULT_KV_MEMORY,
        origin: Origin::Default,
    };
    let Some(limit) = limit else { return default };
    let rest = limit.value.as_u64().saturating_sub(weights.as_u64());
    let fitting = (rest / 2).min(rest.saturating_sub(WORKING_MEMORY.as_u64()));
    let fitting = ByteSize::b(fitting);
    if fitting >= DEFAULT_KV_MEMORY {
        return default;
    }
    Sourced {
        value: fitting.max(window.min(MIN_KV_MEMORY)),
        origin: limit.origin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: ByteSize = ByteSize::mib(1);

    fn limit(mib: u64) -> Sourced<ByteSize> {
        Sourced {
            value: ByteSize::mib(mib),
            origin: Origin::CgroupMemory,
        }
    }

    fn fitted(limit_mib: impl Into<Option<u64>>, weights_mib: u64) -> (u64, Origin) {
        let limit = limit_mib.into().map(limit);
        let sourced = kv_memory(None, limit, ByteSize::mib(weights_mib), ByteSize::mib(16));
        (sourced.value.as_u64() / MIB.as_u64(), sourced.origin)
    }

    #[test]
    fn the_kv_cache_gets_half_of_the_memory_left_after_the_weights() {
        assert_eq!(fitted(512, 40), (236, Origin::CgroupMemory));
        assert_eq!(fitted(240, 40), (50, Origin::CgroupMemory));
        assert_eq!(fitted(2048, 500), (774, Origin::CgroupMemory));
        assert_eq!(fitted(2089, 41), (1024, Origin::Default));
        assert_eq!(fitted(65_536, 500), (1024, Origin::Default));
        assert_eq!(fitted(None, 40), (1024, Origin::Default));
    }

    #[test]
    fn the_kv_cache_holds_at_least_one_window() {
        assert_eq!(fitted(60, 40), (16, Origin::CgroupMemory));
        assert_eq!(fitted(60, 4000), (16, Origin::CgroupMemory));
        let (limit, window) = (Some(limit(60)), ByteSize::gib(4));
        let long = kv_memory(None, limit, ByteSize::mib(40), window);
        assert_eq!(long.value, MIN_KV_MEMORY);
    }

    #[test]
    fn settings_take_precedence_over_limits() {
        let set = kv_memory(Some(ByteSize::gib(3)), Some(limit(512)), MIB, MIB);
        assert_eq!((set.value, set.origin), (ByteSize::gib(3), Origin::Setting));
        let many = NonZeroUsize::new(999).unwrap();
        let set = threads(Some(many));
        assert_eq!((set.value, set.origin), (many, Origin::Setting));
    }

    #[test]
    fn threads_never_exceed_the_available_cores() {
        let found = threads(None);
        if let Some(cores) = allowed_cores() {
            assert!(found.value.get() <= cores);
            assert_eq!(found.origin == Origin::Cores, found.value.get() == cores);
        }
    }

    #[test]
    fn the_memory_limit_is_the_lower_of_cgroup_and_machine() {
        let root = cgroup::fixture(&[
            ("proc/meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\n"),
            ("proc/self/cgroup", "0::/\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
            ),
            ("sys/fs/cgroup/memory.max", "1048576\n"),
        ]);
        let found = memory_limit_under(root.path()).unwrap();
        assert_eq!((found.value, found.origin), (MIB, Origin::CgroupMemory));
        fs::write(root.path().join("sys/fs/cgroup/memory.max"), "max\n").unwrap();
        let found = memory_limit_under(root.path()).unwrap();
        let machine = (ByteSize::mib(2), Origin::MachineMemory);
        assert_eq!((found.value, found.origin), machine);
        assert!(memory_limit_under(&root.path().join("nowhere")).is_none());
    }
}
