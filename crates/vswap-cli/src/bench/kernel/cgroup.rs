//! A memory cgroup, of version 1 or 2, that holds one measured program.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Change, Context as _, Journal, KernelError, Undo, read, read_number, write};

/// How long what was killed may take to go away.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

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
        if let Some(v1) = mounted.iter().find(|mount| mount.is_v1_memory()) {
            let path = own_path(own, |controllers| controllers.split(',').any(|c| c == "memory"));
            let parent = v1.directory(path.unwrap_or("/"));
            return Ok(Self { version: Version::V1, parent, enable: false });
        }
        let missing = || KernelError::Missing("memory cgroups".into());
        let v2 = mounted.iter().find(|mount| mount.kind == "cgroup2").ok_or_else(missing)?;
        let own = v2.directory(own_path(own, str::is_empty).unwrap_or("/"));
        let root = Path::new(v2.point);
        let above = own.ancestors().take_while(|dir| dir.starts_with(root));
        let hands_down = |dir: &&Path| lists_memory(&dir.join("cgroup.subtree_control"));
        if let Some(parent) = above.into_iter().find(hands_down) {
            return Ok(Self { version: Version::V2, parent: parent.into(), enable: false });
        }
        if lists_memory(&root.join("cgroup.controllers")) {
            return Ok(Self { version: Version::V2, parent: root.into(), enable: true });
        }
        Err(missing())
    }

    /// Makes a group without a limit.
    ///
    /// # Errors
    /// [`KernelError`] if this user may not.
    pub fn create<'j>(&self, journal: &'j Journal) -> Result<MemoryGroup<'j>, KernelError> {
        let control = self.parent.join("cgroup.subtree_control");
        let enabled = if self.enable {
            let value = "-memory".into();
            let change = journal.record(Undo::Write { path: control.clone(), value })?;
            write(&control, "+memory")?;
            Some(change)
        } else {
            None
        };
        let dir = self.parent.join(format!("vswap-bench-{}", std::process::id()));
        let change = journal.record(Undo::Group(dir.clone()))?;
        std::fs::create_dir(&dir).context("making", &dir)?;
        Ok(MemoryGroup { version: self.version, dir, _group: change, _enabled: enabled })
    }
}

/// A memory cgroup; what is left in it is killed when it is dropped.
pub struct MemoryGroup<'j> {
    version: Version,
    dir: PathBuf,
    _group: Change<'j>,
    _enabled: Option<Change<'j>>,
}

impl MemoryGroup<'_> {
    /// The file that a process writes its id to, to enter the group.
    pub fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
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

    fn is_v1_memory(&self) -> bool {
        self.kind == "cgroup" && self.options.split(',').any(|option| option == "memory")
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
        let own = "4:memory:/a/b\n0::/\n";
        let parent = "/cg/memory/a/b".into();
        assert_eq!(
            Hierarchy::choose(mounts, own).unwrap(),
            Hierarchy { version: Version::V1, parent, enable: false }
        );
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
        };
        assert_eq!(choose().unwrap(), at(&root, true));
        std::fs::write(root.join("cgroup.subtree_control"), "memory\n").unwrap();
        assert_eq!(choose().unwrap(), at(&root, false));
        std::fs::write(root.join("slice/cgroup.subtree_control"), "cpu memory\n").unwrap();
        assert_eq!(choose().unwrap(), at(&root.join("slice"), false));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
