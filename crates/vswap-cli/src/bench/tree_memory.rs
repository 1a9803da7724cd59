//! The memory of a process tree, looked at from outside: what a vswap row is held to.

use std::fs;

use rustix::process::Pid;

/// Bytes of resident anonymous memory of some processes. Processes that share their memory, as a
/// pager does with its program, are counted once.
pub fn anonymous_bytes(processes: &[Pid]) -> u64 {
    // Before anything is read: a program that ends shares nothing with its pager any more, and would be
    // counted once more with that.
    let mut distinct: Vec<Pid> = Vec::new();
    for &process in processes {
        if !distinct.iter().any(|&other| share_memory(process, other)) {
            distinct.push(process);
        }
    }
    // A process that ended in between has none.
    let read = |process| fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok();
    distinct.into_iter().filter_map(read).map(|rollup| pss_anon(&rollup)).sum()
}

/// A process and its descendants, as far as they still have their parents.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let process = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            Some((Pid::from_raw(process)?, parent(&stat)?))
        })
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&process) = tree.get(next) {
        next += 1;
        tree.extend(
            parents.iter().filter(|(_, parent)| *parent == process).map(|(child, _)| child),
        );
    }
    tree
}

/// The parent in /proc/PID/stat: the second field after the name, which may hold anything.
fn parent(stat: &str) -> Option<Pid> {
    Pid::from_raw(stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?)
}

fn pss_anon(rollup: &str) -> u64 {
    let kib = rollup.lines().find_map(|line| {
        line.strip_prefix("Pss_Anon:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kib.unwrap_or(0) << 10
}

/// Where the kernel cannot compare them they count as different: too much, never too little.
fn share_memory(one: Pid, other: Pid) -> bool {
    const KCMP_VM: libc::c_long = 1;
    let (one, other) = (one.as_raw_nonzero().get(), other.as_raw_nonzero().get());
    // SAFETY: kcmp takes five numbers and touches no memory.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) };
    order == 0
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::getpid;

    use super::*;

    #[test]
    fn memory_is_counted_once_per_address_space() {
        // What a forked child of another test shares would be counted half.
        let _no_forks = super::super::workload::FORKS.lock();
        let own = getpid();
        // Large beside whatever the other tests hold meanwhile.
        let memory = vec![1u8; 96 << 20];
        let bytes = anonymous_bytes(&[own, own]);
        assert!((memory.len()..2 * memory.len()).contains(&(bytes as usize)), "{bytes}");
    }

    #[test]
    fn grandchildren_are_found() {
        // What a shell starts with & reads /dev/null unless it is told otherwise.
        let mut shell = Command::new("sh")
            .args(["-c", "exec 3<&0; cat <&3 & echo; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let tree = descendants(Pid::from_child(&shell));
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(tree.len(), 2, "{tree:?}");
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_hides_no_parent() {
        assert_eq!(parent("7 (a) b (c)) S 42 7 7 0"), Pid::from_raw(42));
        assert_eq!(parent("7"), None);
    }

    #[test]
    fn the_rollup_is_read() {
        assert_eq!(pss_anon("Rss: 9 kB\nPss_Anon:           12 kB\nPss_File: 3 kB\n"), 12 << 10);
    }
}
