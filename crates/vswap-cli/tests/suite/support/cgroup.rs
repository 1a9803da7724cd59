//! A cgroup with a hard limit, of memory or of tasks, version 1 or 2, removed when it goes out of
//! scope.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::processes;

/// One cgroup below the root of the hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    version: u8,
}

impl Cgroup {
    /// Makes a cgroup with this limit and no kernel swap, or says why it cannot be had.
    pub fn with_limit(bytes: u64) -> Result<Self, String> {
        let cgroup = Self::make("memory")?;
        cgroup.set_limit(bytes).map_err(|error| format!("memory limit: {error}"))?;
        Ok(cgroup)
    }

    /// Makes a cgroup for so many tasks, or says why it cannot be had.
    pub fn with_tasks(max: u64) -> Result<Self, String> {
        let cgroup = Self::make("pids")?;
        fs::write(cgroup.pids_max(), max.to_string()).map_err(|error| format!("pids: {error}"))?;
        Ok(cgroup)
    }

    fn make(controller: &str) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (parent, version) = Self::hierarchy(controller)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("vswap-suite-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, version })
    }

    fn hierarchy(controller: &str) -> Result<(PathBuf, u8), String> {
        let v2 = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
        let v1 = v2.join(controller);
        if controllers.is_empty() && v1.join("cgroup.procs").exists() {
            return Ok((v1, 1));
        }
        if !controllers.split_whitespace().any(|name| name == controller) {
            return Err(format!("no {controller} controller at /sys/fs/cgroup"));
        }
        // Left on: other cgroups may have come to depend on it meanwhile.
        fs::write(v2.join("cgroup.subtree_control"), format!("+{controller}"))
            .map_err(|error| format!("enabling the {controller} controller: {error}"))?;
        Ok((v2.to_owned(), 2))
    }

    fn set_limit(&self, bytes: u64) -> io::Result<()> {
        let write = |file: &str, value: &str| fs::write(self.path.join(file), value);
        let bytes = bytes.to_string();
        if self.version == 1 {
            write("memory.limit_in_bytes", &bytes)?;
            // Where the kernel accounts swap: memory and swap together are no more than memory.
            let _ = write("memory.memsw.limit_in_bytes", &bytes);
            return Ok(());
        }
        write("memory.max", &bytes)?;
        let _ = write("memory.swap.max", "0");
        Ok(())
    }

    /// The file that processes are added through.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The file that holds the limit of tasks; the number of them is beside it.
    pub fn pids_max(&self) -> PathBuf {
        self.path.join("pids.max")
    }

    /// How often the kernel's OOM killer acted here.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.version == 1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.path.join(file)).expect("the cgroup's events");
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .expect("a kernel that counts oom_kill")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = processes::wait_until(Duration::from_secs(5), || {
            let members = fs::read_to_string(self.procs()).unwrap_or_default();
            for pid in members.lines().filter_map(|line| line.parse().ok()) {
                processes::kill(pid, rustix::process::Signal::KILL);
            }
            fs::remove_dir(&self.path).is_ok()
        });
        if !removed {
            super::skipped("cgroup", &format!("{} could not be removed", self.path.display()));
        }
    }
}
