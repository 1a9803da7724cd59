//! A cgroup, of version 1 or 2, that holds one measured program: its memory, and its CPU time where
//! the kernel counts that.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::{Change, Context as _, Journal, KernelError, Undo, read, read_number, write};

/// How long what was killed may take to go away.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// As container managers have it.
const QUOTA_PERIOD_US: u64 = 100_000;

/// A number of CPUs that a group may use, from a hundredth on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cpus(f64);

impl Cpus {
    /// How many they are.
    pub const fn count(self) -> f64 {
        self.0
    }

    fn quota_us(self) -> u64 {
        (self.0 * QUOTA_PERIOD_US as f64) as u64
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = text.parse().ok().filter(|count| (0.01..=1024.0).contains(count));
        count.map(Self).ok_or_else(|| "not a number of CPUs; write for example 1 or 0.5".into())
    }
}

/// Which of the two interfaces, whose files are named differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The memory controller has a hierarchy of its own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The place under which groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Of the memory controller.
    pub version: Version,
    parent: PathBuf,
    /// Whether the controller has to be turned on for the parent's children first.
    enable: bool,
    /// The place in the hierarchy of version 1 that counts CPU time. Version 2 counts it in each group.
    cpu_parent: Option<PathBuf>,
    /// The place in the hierarchy of version 1 that has CPU quotas, often the same.
    quota_parent: Option<PathBuf>,
}

/// CPU time of a group or of some processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuTime {
    /// In the programs.
    pub user_ns: u64,
    /// In the kernel on their behalf. Not what its own threads did: kswapd, workers that write to disks.
    pub system_ns: u64,
}

impl CpuTime {
    /// Of both kinds.
    pub fn total_ns(self) -> u64 {
        self.user_ns + self.system_ns
    }
}

impl Hierarchy {
    /// Finds the memory controller and a place in it: below this process's own group, or, in
    /// version 2, where groups with processes have no children, below the nearest ancestor that
    /// hands the controller down.
    ///
    /// # Errors
    /// [`KernelError`] if no memory controller is mounted.
    pub fn find() -> Result<Self, KernelError> {
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let own = read(Path::new("/proc/self/cgroup"))?;
        Self::choose(&mounts, &own)
    }

    fn choose(mounts: &str, own: &str) -> Result<Self, KernelError> {
        let mounted: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        let v1 = |controller| {
            let mount = mounted.iter().find(|mount| mount.is_v1(controller))?;
            let path = own_path(own, |controllers| controllers.split(',').any(|c| c == controller));
            Some(mount.directory(path.unwrap_or("/")))
        };
        if let Some(parent) = v1("memory") {
            let cpu_parent = v1("cpuacct").filter(|cpu| *cpu != parent);
            let quota_parent = v1("cpu");
            return Ok(Self {
                version: Version::V1,
                parent,
                enable: false,
                cpu_parent,
                quota_parent,
            });
        }
        let v2_at = |parent: &Path, enable| Self {
            version: Version::V2,
            parent: parent.into(),
            enable,
            cpu_parent: None,
            quota_parent: None,
        };
        let missing = || KernelError::Missing("memory cgroups".into());
        let v2 = mounted.iter().find(|mount| mount.kind == "cgroup2").ok_or_else(missing)?;
        let own = v2.directory(own_path(own, str::is_empty).unwrap_or("/"));
        let root = Path::new(v2.point);
        let above = own.ancestors().take_while(|dir| dir.starts_with(root));
        let hands_down = |dir: &&Path| lists_memory(&dir.join("cgroup.subtree_control"));
        if let Some(parent) = above.into_iter().find(hands_down) {
            return Ok(v2_at(parent, false));
        }
        if lists_memory(&root.join("cgroup.controllers")) {
            return Ok(v2_at(root, true));
        }
        Err(missing())
    }

    /// Makes a group without a limit of its memory, and with so many CPUs if that is said.
    ///
    /// # Errors
    /// [`KernelError`] if this user may not, or there are no quotas here.
    pub fn create<'j>(
        &self,
        journal: &'j Journal,
        cpus: Option<Cpus>,
    ) -> Result<MemoryGroup<'j>, KernelError> {
        let control = self.parent.join("cgroup.subtree_control");
        let enabled = if self.enable {
            let value = "-memory".into();
            let change = journal.record(Undo::Write { path: control.clone(), value })?;
            write(&control, "+memory")?;
            Some(change)
        } else {
            None
        };
        let (dir, group) = make_group(journal, &self.parent)?;
        // Where that is refused, there is CPU time from /proc.
        let cpu = self.cpu_parent.as_ref().and_then(|parent| make_group(journal, parent).ok());
        let quota = match cpus {
            Some(cpus) => self.limit_cpus(journal, cpu.as_ref().map(|(dir, _)| dir), cpus)?,
            None => None,
        };
        Ok(MemoryGroup { version: self.version, dir, _group: group, cpu, quota, _enabled: enabled })
    }

    /// Gives the group that counts CPU time its quota, or makes one beside it that has it.
    fn limit_cpus<'j>(
        &self,
        journal: &'j Journal,
        counting: Option<&PathBuf>,
        cpus: Cpus,
    ) -> Result<Option<(PathBuf, Change<'j>)>, KernelError> {
        let missing = || KernelError::Missing("CPU quotas (a cpu cgroup of version 1)".into());
        let parent = self.quota_parent.as_ref().ok_or_else(missing)?;
        let both = counting.filter(|dir| dir.parent() == Some(parent));
        let (dir, own) = match both {
            Some(dir) => (dir.clone(), None),
            None => make_group(journal, parent)
                .map(|(dir, change)| (dir.clone(), Some((dir, change))))?,
        };
        let quota = dir.join("cpu.cfs_quota_us");
        if !quota.exists() {
            return Err(missing());
        }
        write(&dir.join("cpu.cfs_period_us"), &QUOTA_PERIOD_US.to_string())?;
        write(&quota, &cpus.quota_us().to_string())?;
        Ok(own)
    }
}

fn make_group<'j>(
    journal: &'j Journal,
    parent: &Path,
) -> Result<(PathBuf, Change<'j>), KernelError> {
    let dir = parent.join(format!("vswap-bench-{}", std::process::id()));
    let change = journal.record(Undo::Group(dir.clone()))?;
    std::fs::create_dir(&dir).context("making", &dir)?;
    Ok((dir, change))
}

/// A memory cgroup; what is left in it is killed when it is dropped.
pub struct MemoryGroup<'j> {
    version: Version,
    dir: PathBuf,
    _group: Change<'j>,
    /// The group that counts CPU time, where that is another one.
    cpu: Option<(PathBuf, Change<'j>)>,
    /// The group that has a CPU quota, where that is one more.
    quota: Option<(PathBuf, Change<'j>)>,
    _enabled: Option<Change<'j>>,
}

impl MemoryGroup<'_> {
    /// The files that a process writes its id to, to enter the group.
    pub fn procs(&self) -> Vec<PathBuf> {
        let others = self.cpu.iter().chain(&self.quota).map(|(dir, _)| dir);
        let dirs = std::iter::once(&self.dir).chain(others);
        dirs.map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// What the group's processes used, those that ended included, or `None` if nobody counts it here.
    pub fn cpu_time(&self) -> Option<CpuTime> {
        match (self.version, &self.cpu) {
            (Version::V1, None) => None,
            (Version::V1, Some((dir, _))) => {
                let number = |name| read_number(&dir.join(name)).ok();
                let parts = number("cpuacct.usage_user").zip(number("cpuacct.usage_sys"));
                Some(divide(number("cpuacct.usage")?, parts?))
            }
            (Version::V2, _) => {
                let stat = read(&self.dir.join("cpu.stat")).ok()?;
                let ns = |name| Some(stat_field(&stat, name)? * 1000);
                Some(CpuTime { user_ns: ns("user_usec")?, system_ns: ns("system_usec")? })
            }
        }
    }

    /// Limits the group's RAM.
    ///
    /// # Errors
    /// [`KernelError`] if the limit cannot be written.
    pub fn set_limit(&self, bytes: u64) -> Result<(), KernelError> {
        write(&self.file("memory.limit_in_bytes", "memory.max"), &bytes.to_string())
    }

    /// Bytes charged to the group now.
    ///
    /// # Errors
    /// [`KernelError`] if they cannot be read.
    pub fn usage(&self) -> Result<u64, KernelError> {
        read_number(&self.file("memory.usage_in_bytes", "memory.current"))
    }

    /// Most bytes that were ever charged to the group.
    ///
    /// # Errors
    /// [`KernelError`] if they cannot be read.
    pub fn peak(&self) -> Result<u64, KernelError> {
        read_number(&self.file("memory.max_usage_in_bytes", "memory.peak"))
    }

    /// Bytes charged to the group that are pages of files, which the kernel can drop or write back.
    ///
    /// # Errors
    /// [`KernelError`] if they cannot be read.
    pub fn file_pages(&self) -> Result<u64, KernelError> {
        let stat = read(&self.dir.join("memory.stat"))?;
        let field = |name| stat_field(&stat, name).unwrap_or(0);
        Ok(field("inactive_file") + field("active_file"))
    }

    /// Bytes of swap that the group's pages take, also of those that are back in memory with their
    /// slots kept.
    ///
    /// # Errors
    /// [`KernelError`] if they cannot be read.
    pub fn swapped(&self) -> Result<u64, KernelError> {
        let path = self.dir.join("memory.stat");
        let stat = read(&path)?;
        let cached = stat_field(&stat, "swapcached");
        let out = match self.version {
            Version::V1 => stat_field(&stat, "swap"),
            Version::V2 => Some(read_number(&self.dir.join("memory.swap.current"))?),
        };
        out.map(|out| out + cached.unwrap_or(0)).ok_or(KernelError::Malformed { path, text: stat })
    }

    /// The processes in the group.
    ///
    /// # Errors
    /// [`KernelError`] if they cannot be read.
    pub fn processes(&self) -> Result<Vec<Pid>, KernelError> {
        processes(&self.dir)
    }

    fn file(&self, v1: &str, v2: &str) -> PathBuf {
        self.dir.join(if self.version == Version::V1 { v1 } else { v2 })
    }
}

/// Version 1 has an exact sum, and its parts as the timer's ticks found them.
fn divide(total_ns: u64, (user, system): (u64, u64)) -> CpuTime {
    let ticks = (user + system).max(1);
    let user_ns = (u128::from(total_ns) * u128::from(user) / u128::from(ticks)) as u64;
    CpuTime { user_ns, system_ns: total_ns - user_ns }
}

fn processes(dir: &Path) -> Result<Vec<Pid>, KernelError> {
    let text = read(&dir.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
}

fn stat_field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Kills what is in a group and removes it; one that is gone is success.
pub fn remove(dir: &Path) -> Result<(), KernelError> {
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    loop {
        if !dir.exists() {
            return Ok(());
        }
        for pid in processes(dir)? {
            // It may have ended by itself in between.
            let _ = kill_process(pid, Signal::KILL);
        }
        match std::fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error).context("removing", dir),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A line of /proc/self/mountinfo.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        Some(Self { root, point, kind, options })
    }

    fn is_v1(&self, controller: &str) -> bool {
        self.kind == "cgroup" && self.options.split(',').any(|option| option == controller)
    }

    /// Where a group is found. In a container the mount may show only part of the hierarchy; a
    /// group outside it is replaced by the mount's top, which is as near as one gets.
    fn directory(&self, group: &str) -> PathBuf {
        let inside = Path::new(group).strip_prefix(self.root).unwrap_or(Path::new(""));
        Path::new(self.point).join(inside)
    }
}

/// The path in the line of /proc/self/cgroup (`id:controllers:path`) whose controllers fit.
fn own_path(own: &str, fits: impl Fn(&str) -> bool) -> Option<&str> {
    own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        fits(controllers).then_some(path)
    })
}

fn lists_memory(file: &Path) -> bool {
    read(file).is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_groups_go_below_our_own() {
        let mounts = "25 20 0:22 / /cg/memory rw - cgroup cgroup rw,memory\n\
                      26 20 0:23 / /cg/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/a/b\n5:cpu,cpuacct:/c\n0::/\n";
        let choose = |mounts| Hierarchy::choose(mounts, own).unwrap();
        let parent = PathBuf::from("/cg/memory/a/b");
        let expected = Hierarchy {
            version: Version::V1,
            parent,
            enable: false,
            cpu_parent: None,
            quota_parent: None,
        };
        assert_eq!(choose(mounts), expected);
        let with_cpu = format!("{mounts}27 20 0:24 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n");
        let cpu = Some(PathBuf::from("/cg/cpu/c"));
        let expected = Hierarchy { cpu_parent: cpu.clone(), quota_parent: cpu, ..expected };
        assert_eq!(choose(&with_cpu), expected);
    }

    #[test]
    fn a_quota_is_a_part_of_its_period() {
        assert_eq!(Cpus::from_str("0.5").unwrap().quota_us(), QUOTA_PERIOD_US / 2);
        assert_eq!(Cpus::from_str("2").unwrap().quota_us(), 2 * QUOTA_PERIOD_US);
        for wrong in ["0", "-1", "nan", "inf", "one", ""] {
            Cpus::from_str(wrong).unwrap_err();
        }
    }

    #[test]
    fn the_sum_is_kept_when_it_is_divided_by_ticks() {
        assert_eq!(divide(1001, (30, 10)), CpuTime { user_ns: 750, system_ns: 251 });
        assert_eq!(divide(5, (0, 0)), CpuTime { user_ns: 0, system_ns: 5 });
    }

    #[test]
    fn a_field_is_not_taken_for_one_that_it_begins() {
        let stat = "swapcached 4096\nswap 8192\ntotal_swap 12288\n";
        assert_eq!(stat_field(stat, "swap"), Some(8192));
        assert_eq!(stat_field(stat, "swapcached"), Some(4096));
        assert_eq!(stat_field(stat, "swa"), None);
    }

    #[test]
    fn a_mount_of_part_of_the_hierarchy_is_followed() {
        let mounts = "25 20 0:22 /docker/x /cg rw - cgroup cgroup rw,memory\n";
        let find = |own| Hierarchy::choose(mounts, own).unwrap().parent;
        assert_eq!(find("4:memory:/docker/x/y\n"), Path::new("/cg/y"));
        assert_eq!(find("4:memory:/elsewhere\n"), Path::new("/cg/"));
    }

    #[test]
    fn version_2_groups_go_where_the_controller_is_handed_down() {
        let root = std::env::temp_dir().join(format!("vswap-bench-cgroup-{}", std::process::id()));
        let own = root.join("slice/scope");
        std::fs::create_dir_all(&own).unwrap();
        let mounts = format!("26 20 0:23 / {} rw - cgroup2 cgroup2 rw\n", root.display());
        let choose = || Hierarchy::choose(&mounts, "0::/slice/scope\n");
        assert!(choose().unwrap_err().is_unavailable());
        std::fs::write(root.join("cgroup.controllers"), "cpu memory\n").unwrap();
        let at = |parent: &Path, enable| Hierarchy {
            version: Version::V2,
            parent: parent.into(),
            enable,
            cpu_parent: None,
            quota_parent: None,
        };
        assert_eq!(choose().unwrap(), at(&root, true));
        std::fs::write(root.join("cgroup.subtree_control"), "memory\n").unwrap();
        assert_eq!(choose().unwrap(), at(&root, false));
        std::fs::write(root.join("slice/cgroup.subtree_control"), "cpu memory\n").unwrap();
        assert_eq!(choose().unwrap(), at(&root.join("slice"), false));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
