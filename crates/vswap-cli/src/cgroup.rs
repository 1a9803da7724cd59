//! The memory that is there for a program: the limits of its memory cgroups, or the machine.
//!
//! A limit anywhere on the path from the process's cgroup to the root binds, in either version of
//! the interface. In a container the path in /proc/self/cgroup may begin above what is mounted;
//! then the mount's root is the nearest thing there is.

use std::fs;
use std::path::{Path, PathBuf};

use crate::args::MIN_RAM;
use crate::refusal::Refusal;
use crate::size::Size;

/// A bound on the memory of this process and its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Where it comes from, for people.
    pub source: String,
    /// The bound in bytes.
    pub bytes: u64,
    /// What others hold of it already and will not give back.
    pub held: u64,
}

impl Limit {
    /// What the program's budget must leave: the overshoot that the budget allows itself (5 % and
    /// 8 MiB), page tables (1/512 of all data, swapped out or not: 1 % covers five times the
    /// limit), kernel stacks, and the page cache that code and files need.
    pub fn reserve(&self) -> u64 {
        self.bytes / 16 + (16 << 20)
    }

    /// The budget under this limit.
    pub fn budget(&self) -> u64 {
        let budget = self.bytes.saturating_sub(self.held).saturating_sub(self.reserve());
        budget & !0xfff
    }

    /// The decision in one line.
    pub fn explain(&self) -> String {
        format!(
            "ram {}: {} allows {}, others hold {}, and {} is left for page tables, kernel stacks and page cache",
            Size(self.budget()),
            self.source,
            Size(self.bytes),
            Size(self.held),
            Size(self.reserve()),
        )
    }

    /// Refuses a limit in which no program can live.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.budget() >= MIN_RAM {
            return Ok(());
        }
        let least = Size(MIN_RAM + self.reserve() + self.held);
        Err(Refusal::usage(
            format!("{} allows {}, which is too little to live in", self.source, Size(self.bytes)),
            format!("raise it to at least {least}, or give --ram"),
        ))
    }
}

/// The limit that leaves the smallest budget.
pub fn tightest() -> Option<Limit> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let limits = directories(&cgroups, &mounts).into_iter().filter_map(|d| d.limit());
    limits.chain(physical()).min_by_key(Limit::budget)
}

/// The limit of the memory cgroups alone, if there is one below the machine's memory.
pub fn tightest_cgroup() -> Option<Limit> {
    let machine = physical()?;
    tightest().filter(|limit| limit.source != machine.source)
}

fn physical() -> Option<Limit> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = field(&text, "MemTotal:")? << 10;
    let available = field(&text, "MemAvailable:")? << 10;
    let source = "the machine".to_owned();
    Some(Limit { source, bytes: total, held: total.saturating_sub(available) })
}

/// The number after a key at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A directory of the memory controller.
#[derive(Debug, PartialEq, Eq)]
struct Directory {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Directory {
    fn limit(&self) -> Option<Limit> {
        let number =
            |name| fs::read_to_string(self.path.join(name)).ok()?.trim().parse::<u64>().ok();
        let stat = fs::read_to_string(self.path.join("memory.stat")).unwrap_or_default();
        let total = |keys: &[&str]| keys.iter().filter_map(|key| field(&stat, key)).sum();
        // In v2 the word "max", which is no number, stands for no limit. A group that stays below
        // memory.high is not throttled by the kernel, so that is a limit too.
        let (bytes, held) = match self.version {
            Version::One => {
                let held = total(&["total_rss", "total_shmem"]);
                (number("memory.limit_in_bytes"), held)
            }
            Version::Two => {
                let held =
                    total(&["anon", "shmem", "kernel_stack", "pagetables", "slab_unreclaimable"]);
                (number("memory.max").into_iter().chain(number("memory.high")).min(), held)
            }
        };
        // v1 says "no limit" with a number close to 2^63.
        let bytes = bytes.filter(|&bytes| bytes < 1 << 62)?;
        let source = format!("the memory cgroup {}", self.path.display());
        Some(Limit { source, bytes, held })
    }
}

/// Every memory cgroup directory from the process's own up to the root of the mount.
fn directories(cgroups: &str, mounts: &str) -> Vec<Directory> {
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let Some(path) = cgroups.lines().find_map(|line| mount.version.path_in(line)) else {
            continue;
        };
        let below = Path::new(path).strip_prefix(mount.root).unwrap_or(Path::new(""));
        // Above a cgroup namespace's root the path begins with "..", which leads out of the mount.
        let below = if below.starts_with("..") { Path::new("") } else { below };
        let own: PathBuf = Path::new(mount.point).components().chain(below.components()).collect();
        let upwards = own.ancestors().take_while(|path| path.starts_with(mount.point));
        found.extend(
            upwards.map(|path| Directory { path: path.to_owned(), version: mount.version }),
        );
    }
    found
}

/// A cgroup mount that can hold memory limits, as a line of mountinfo gives it.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    version: Version,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        let version = match filesystem.next()? {
            "cgroup2" => Version::Two,
            "cgroup" if filesystem.next_back()?.split(',').any(|option| option == "memory") => {
                Version::One
            }
            _ => return None,
        };
        Some(Self { root, point, version })
    }
}

impl Version {
    /// The path in a line of /proc/self/cgroup, if the line is of this hierarchy.
    fn path_in(self, line: &str) -> Option<&str> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let fits = match self {
            Self::One => controllers.split(',').any(|name| name == "memory"),
            Self::Two => controllers.is_empty(),
        };
        fits.then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const V2: &str = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw";

    fn paths(cgroups: &str, mounts: &str) -> Vec<String> {
        let found = directories(cgroups, mounts);
        found.into_iter().map(|directory| directory.path.display().to_string()).collect()
    }

    #[test]
    fn every_ancestor_counts_in_both_versions() {
        let v1 = paths("4:cpu,memory:/a/b\n0::/c", V1);
        assert_eq!(
            v1,
            ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(paths("0::/a", V2), ["/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        assert_eq!(paths("4:cpu:/a", V1), Vec::<String>::new());
    }

    #[test]
    fn a_container_sees_part_of_the_path() {
        let bind = "35 31 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        assert_eq!(
            paths("4:memory:/docker/x/y", bind),
            ["/sys/fs/cgroup/memory/y", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(paths("4:memory:/elsewhere", bind), ["/sys/fs/cgroup/memory"]);
        assert_eq!(paths("0::/../above", V2), ["/sys/fs/cgroup"]);
    }

    #[test]
    fn limits_are_read_as_each_version_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
        let limit = |version| Directory { path: path.clone(), version }.limit();

        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.max", "max\n");
        assert_eq!((limit(Version::One), limit(Version::Two)), (None, None));

        write("memory.limit_in_bytes", "134217728\n");
        write("memory.max", "268435456\n");
        write("memory.high", "201326592\n");
        write("memory.stat", "anon 4096\nshmem 4096\ninactive_file 1000000\ntotal_rss 12288\n");
        let one = limit(Version::One).unwrap();
        assert_eq!((one.bytes, one.held), (128 << 20, 12288));
        let two = limit(Version::Two).unwrap();
        assert_eq!((two.bytes, two.held), (192 << 20, 8192));
        assert_eq!(two.budget(), ((192 - 12 - 16) << 20) - 8192);
    }

    #[test]
    fn a_limit_too_small_to_live_in_says_how_much_it_takes() {
        let limit = |bytes| Limit { source: "it".into(), bytes, held: 0 };
        assert!(limit(64 << 20).check().is_ok());
        let error = limit(24 << 20).check().unwrap_err().to_string();
        assert!(error.contains("at least 33.5M"), "{error}");
    }
}
