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

/// Anonymous and shared memory that the job's processes keep resident, in bytes: each memory once,
/// pages that several of them share by their share. None of the jobs that are measured use shared
/// memory of their own, so it counts as well: a pool cannot hide in it.
///
/// The kernel reads mapping by mapping and waits for its CPU in between. What is evicted at an
/// address that it has passed and filled at one that it comes to counts twice: 131 MiB were seen of a
/// process that had 94 before and 93 after the 15 ms that the reading took. A share is never more
/// than the resident set, which the kernel keeps as one number, so that bounds each reading.
pub fn resident_anon(mark: &str) -> u64 {
    let mut seen: Vec<u32> = Vec::new();
    let mut total = 0;
    for pid in of_job(mark) {
        if seen.iter().any(|&other| share_memory(other, pid)) {
            continue;
        }
        seen.push(pid);
        let before = resident_set(pid);
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let most = before.max(resident_set(pid));
        let kib = |key| text.lines().find_map(|line| number(line.strip_prefix(key)?)).unwrap_or(0);
        total += kib("Pss_Anon:").min(most) + kib("Pss_Shmem:");
    }
    total * 1024
}

/// Anonymous memory of a process in KiB, pages shared with others in full.
fn resident_set(pid: u32) -> u64 {
    status_line(pid, "RssAnon").and_then(|text| number(&text)).unwrap_or(0)
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// What each thread of the job does, for the report of a job that hangs.
pub fn describe(mark: &str) -> String {
    let mut lines = Vec::new();
    for pid in of_job(mark) {
        lines.push(format!("{pid} {}", command_line(pid)));
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let fields: HashMap<_, _> = ["comm", "wchan", "syscall"]
                .map(|name| (name, read(name).trim().to_owned()))
                .into();
            let state = status_line(pid, "State").unwrap_or_default();
            lines.push(format!(
                "  {} {state} {} wchan {} syscall {}",
                thread.file_name().display(),
                fields["comm"],
                fields["wchan"],
                fields["syscall"]
            ));
        }
    }
    lines.join("\n")
}
