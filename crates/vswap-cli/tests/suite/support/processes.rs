//! The processes of a job, found through /proc.
//!
//! A job's processes are known by a variable in their environment, not by their ancestry: it is
//! inherited by everything that they start, and the pager, which shares its program's memory, shows
//! the same one, whoever adopted it and whatever its session is.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The variable that marks a job's processes.
pub const MARK: &str = "VSWAP_SUITE_JOB";

/// All live processes that carry the mark, zombies not among them.
pub fn of_job(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            // A zombie's environment is empty.
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|text| text.split(|&byte| byte == 0).any(|var| var == wanted.as_bytes()))
        })
        .collect()
}

/// Ends everything that carries the mark.
pub fn kill_job(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let alive = of_job(mark);
        if alive.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in alive {
            kill(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal; a process that is gone already is not an error.
pub fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until a condition holds; `false` if it did not within the time.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A line of /proc/PID/status, without its name.
pub fn status_line(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Whether the process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    status_line(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The first child of a process; waits for one.
pub fn first_child_of(pid: u32) -> u32 {
    let mut found = None;
    let path = format!("/proc/{pid}/task/{pid}/children");
    wait_until(Duration::from_secs(10), || {
        let children = fs::read_to_string(&path).unwrap_or_default();
        found = children.split_whitespace().next().and_then(|child| child.parse().ok());
        found.is_some()
    });
    found.expect("a child")
}

/// The program's command line, for messages.
pub fn command_line(pid: u32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).replace('\0', " ")
}

/// Whether two processes share one memory, as a pager and its program do.
pub fn share_memory(first: u32, second: u32) -> bool {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: kcmp takes numbers only and changes nothing.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, first, second, KCMP_VM, 0, 0) };
    order == 0
}

/// The processes that share the memory of `pid`, itself not among them: its pager, if it has one.
pub fn sharing_memory_with(mark: &str, pid: u32) -> Vec<u32> {
    of_job(mark).into_iter().filter(|&other| other != pid && share_memory(pid, other)).collect()
}

/// What the processes of a job keep resident, in KiB.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Process, its Pss_Anon and its Pss_Shmem.
    shares: Vec<(u32, u64, u64)>,
    /// The sum of RssAnon at one moment before the shares were read, and at one after it.
    sets: [u64; 2],
}

impl Reading {
    /// Anonymous and shared memory that was resident, in bytes: each memory once, pages that several
    /// processes share by their share. None of the jobs that are measured use shared memory of their
    /// own, so it counts as well: a pool cannot hide in it.
    ///
    /// The kernel adds up a process's shares mapping by mapping, and waits for its CPU in between.
    /// What is evicted at an address that it has passed and filled at one that it comes to counts
    /// twice: 131 MiB were seen of a process that had 94 before and 93 after the 15 ms that the
    /// reading took. Processes are read one after the other, so what one gives up and another takes
    /// counts twice as well. A share is never more than the resident set, which the kernel keeps as
    /// one number for each process. Their sum at one moment bounds the reading: it may miss what came
    /// and went between two moments, and never says more than there was at one.
    pub fn bytes(&self) -> u64 {
        let anon: u64 = self.shares.iter().map(|share| share.1).sum();
        let shared: u64 = self.shares.iter().map(|share| share.2).sum();
        (anon.min(self.sets[0].max(self.sets[1])) + shared) << 10
    }
}

/// Reads it once; nothing if the machine was too busy to tell one moment from another.
///
/// Which of them share a memory is asked before any of it is read. A program that ends in between
/// leaves its memory to its pager for a while: if it had been read by then, its pager, which shares
/// nothing with a zombie, would be taken for another one.
pub fn resident_anon(mark: &str) -> Option<Reading> {
    let mut processes: Vec<u32> = Vec::new();
    for pid in of_job(mark) {
        if !processes.iter().any(|&other| share_memory(other, pid)) {
            processes.push(pid);
        }
    }
    let before = resident_sets(&processes)?;
    let shares = processes.iter().filter_map(|&pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let kib = |key| text.lines().find_map(|line| number(line.strip_prefix(key)?)).unwrap_or(0);
        Some((pid, kib("Pss_Anon:"), kib("Pss_Shmem:")))
    });
    let shares = shares.collect();
    let after = resident_sets(&processes)?;
    Some(Reading { shares, sets: [before, after] })
}

/// Anonymous memory of processes in KiB, pages that they share in full, at one moment: they are read
/// one after the other, so again if that took so long that much can have gone from one to another.
fn resident_sets(processes: &[u32]) -> Option<u64> {
    const MOMENT: Duration = Duration::from_millis(2);
    (0..5).find_map(|_| {
        let started = Instant::now();
        let sets = processes.iter().filter_map(|&pid| number(&status_line(pid, "RssAnon")?));
        let sum = sets.sum();
        (started.elapsed() < MOMENT).then_some(sum)
    })
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// What each thread of the job does, and how long it ran and waited for a CPU, for the report of a
/// job that hangs: on a busy machine it may only have been slow.
pub fn describe(mark: &str) -> String {
    let mut lines = Vec::new();
    for pid in of_job(mark) {
        lines.push(format!("{pid} {}", command_line(pid)));
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let fields: HashMap<_, _> = ["comm", "schedstat", "wchan", "syscall"]
                .map(|name| (name, read(name).trim().to_owned()))
                .into();
            let state = status_line(pid, "State").unwrap_or_default();
            let nanoseconds = fields["schedstat"].split(' ').filter_map(|text| text.parse().ok());
            let times: Vec<_> = nanoseconds.take(2).map(Duration::from_nanos).collect();
            lines.push(format!(
                "  {} {state} {} ran, waited for a CPU {times:.1?} wchan {} syscall {}",
                thread.file_name().display(),
                fields["comm"],
                fields["wchan"],
                fields["syscall"]
            ));
        }
    }
    lines.join("\n")
}
