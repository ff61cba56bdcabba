//! Reads the memory limit of the process's cgroup, v2 or v1.
//!
//! The kernel charges a process to its cgroup and all ancestors, so the lowest of their limits
//! applies. `/proc/self/cgroup` has the path of the cgroup from the root of the hierarchy;
//! `/proc/self/mountinfo` has the part of the hierarchy that is mounted, and its mount point. In a
//! container that is usually its own cgroup alone.
//!
//! This module only reads. A missing or unexpected file means that there is no limit.

use std::fs;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;

/// The version of the cgroup hierarchy. On a hybrid system both are mounted, and one of them has the
/// memory controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Returns the lowest memory limit of the process's cgroup and its ancestors, with files read below
/// `root`; `None` without a limit.
pub(super) fn memory_limit(root: &Path) -> Option<ByteSize> {
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let limits = cgroups.lines().filter_map(memory_cgroup);
    let limits = limits.filter_map(|(version, cgroup)| {
        let (mount, own) = locate(version, Path::new(cgroup), &mounts)?;
        let mount = root.join(mount.strip_prefix("/").ok()?);
        least_limit(version, &mount, &mount.join(own))
    });
    limits.min().map(ByteSize::b)
}

/// Parses a line of `/proc/self/cgroup` (`id:controllers:path`), and returns the cgroup if it has the
/// memory controller.
fn memory_cgroup(line: &str) -> Option<(Version, &str)> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    match controllers {
        "" => Some((Version::V2, path)),
        _ if has_memory(controllers) => Some((Version::V1, path)),
        _ => None,
    }
}

fn has_memory(list: &str) -> bool {
    list.split(',').any(|controller| controller == "memory")
}

/// Returns the mount point of the hierarchy, and the cgroup's path relative to it.
///
/// A cgroup outside the mounted part (a container that joined it from elsewhere) is replaced by the
/// root of that part.
fn locate(version: Version, cgroup: &Path, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    let mut mounts = mounts.lines().filter_map(|line| mount(version, line));
    let place = |(mounted, at): (&str, &str)| {
        let below = cgroup.strip_prefix(mounted).map(Path::to_owned);
        (PathBuf::from(at), below)
    };
    let (at, below) = place(mounts.next()?);
    let inside = match below {
        Ok(below) => Some((at.clone(), below)),
        Err(_) => mounts.map(place).find_map(|(at, b)| Some((at, b.ok()?))),
    };
    Some(inside.unwrap_or((at, PathBuf::new())))
}

/// Parses a line of `/proc/self/mountinfo` (`id parent device root point options… - type source
/// options`), and returns the root within the hierarchy and the mount point if it has the memory
/// controller.
fn mount(version: Version, line: &str) -> Option<(&str, &str)> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut file_system = file_system.split(' ');
    let (kind, options) = (file_system.next()?, file_system.nth(1)?);
    let ours = match version {
        Version::V1 => kind == "cgroup" && has_memory(options),
        Version::V2 => kind == "cgroup2",
    };
    ours.then_some((root, point))
}

/// Returns the lowest limit from a cgroup up to the mounted root, in bytes.
fn least_limit(version: Version, mount: &Path, cgroup: &Path) -> Option<u64> {
    let lineage = cgroup.ancestors().take_while(|dir| dir.starts_with(mount));
    let limits = lineage.flat_map(|dir| limits(version, dir));
    limits.min()
}

/// Returns the limits of one cgroup, in bytes.
fn limits(version: Version, dir: &Path) -> Vec<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(dir.join(file)).ok()?;
        text.trim().parse().ok() // `max` is not a number: no limit
    };
    let found = match version {
        // Above `memory.high`, the kernel throttles the process until it hardly runs.
        Version::V2 => [number("memory.max"), number("memory.high")],
        // The second value includes ancestors that are not mounted.
        Version::V1 => [number("memory.limit_in_bytes"), hierarchical(dir)],
    };
    found.into_iter().flatten().collect()
}

fn hierarchical(dir: &Path) -> Option<u64> {
    let statistics = fs::read_to_string(dir.join("memory.stat")).ok()?;
    let lines = statistics.lines();
    let mut found = lines.filter_map(|l| l.strip_prefix("hierarchical_memory_limit "));
    found.next()?.parse().ok()
}

/// Creates a directory with files that stands in for the root of a file system.
#[cfg(test)]
pub(super) fn fixture(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit that a v1 memory controller reports if there is none.
    const UNLIMITED: &str = "9223372036854771712\n";

    fn limit_of(files: &[(&str, &str)]) -> Option<u64> {
        memory_limit(fixture(files).path()).map(|limit| limit.as_u64())
    }

    #[test]
    fn a_v2_container_reads_its_own_cgroup() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            (
                "proc/self/mountinfo",
                "612 611 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
            ),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
            ("sys/fs/cgroup/memory.high", "max\n"),
        ];
        assert_eq!(limit_of(&files), Some(536_870_912));
    }

    #[test]
    fn the_lower_limit_of_a_v2_ancestor_applies() {
        let mut files = vec![
            ("proc/self/cgroup", "0::/a.slice/b.service\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/a.slice/memory.max", "1000\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "2000\n"),
        ];
        assert_eq!(limit_of(&files), Some(1000));
        files.push(("sys/fs/cgroup/a.slice/b.service/memory.high", "600\n"));
        assert_eq!(limit_of(&files), Some(600));
    }

    #[test]
    fn a_v2_cgroup_may_have_no_limit() {
        let files = [
            ("proc/self/cgroup", "0::/user.slice\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ];
        assert_eq!(limit_of(&files), None);
    }

    #[test]
    fn a_v1_container_reads_its_own_cgroup_where_it_is_mounted() {
        let files = [
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n1:name=systemd:/docker/1f\n",
            ),
            (
                "proc/self/mountinfo",
                "90 80 0:29 /docker/1f /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
                 91 80 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n"),
        ];
        assert_eq!(limit_of(&files), Some(268_435_456));
    }

    #[test]
    fn the_limit_of_an_unmounted_v1_ancestor_applies() {
        let files = [
            ("proc/self/cgroup", "4:memory:/pod/1f\n"),
            (
                "proc/self/mountinfo",
                "91 80 0:32 /pod/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "cache 7\nhierarchical_memory_limit 4096\nhierarchical_memsw_limit 1\n",
            ),
        ];
        assert_eq!(limit_of(&files), Some(4096));
    }

    #[test]
    fn a_hybrid_system_has_the_memory_controller_in_v1() {
        let files = [
            ("proc/self/cgroup", "4:memory:/box\n0::/box\n"),
            (
                "proc/self/mountinfo",
                "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED),
            ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "77\n"),
            ("sys/fs/cgroup/unified/box/cgroup.procs", "1\n"),
        ];
        assert_eq!(limit_of(&files), Some(77));
    }

    #[test]
    fn a_cgroup_outside_the_mounted_part_is_read_at_the_mount_point() {
        let mounted = "91 80 0:32 /docker/1f /mnt/memory ro - cgroup cgroup rw,memory\n";
        let mut files = vec![
            ("proc/self/cgroup", "4:memory:/elsewhere\n"),
            ("proc/self/mountinfo", mounted),
            ("mnt/memory/memory.limit_in_bytes", "11\n"),
        ];
        assert_eq!(limit_of(&files), Some(11));
        // A mount that has the cgroup takes precedence over one that does not.
        let both = format!("{mounted}92 80 0:32 / /mnt/all ro - cgroup cgroup rw,memory\n");
        files[1].1 = &both;
        files.push(("mnt/all/elsewhere/memory.limit_in_bytes", "22\n"));
        assert_eq!(limit_of(&files), Some(22));
    }

    #[test]
    fn missing_or_damaged_files_set_no_limit() {
        assert_eq!(limit_of(&[]), None);
        let files = [
            ("proc/self/cgroup", "4\n::\n0::/a\n"),
            (
                "proc/self/mountinfo",
                "1 2 - cgroup2\n\n3 4 0:1 / /cg rw - cgroup2 c rw\n",
            ),
            ("cg/a/memory.max", "many\n"),
        ];
        assert_eq!(limit_of(&files), None);
    }
}
