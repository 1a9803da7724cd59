//! The CPU time of a process tree where no cgroup counts it: sampled from /proc.
//!
//! `wait4` would miss vswap's pager, which nobody waits for. What a process used between its last
//! sample and its end is missed here, so the sum is a little too small.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::Pid;

use super::kernel::cgroup::CpuTime;
use super::tree_memory;

/// The last that was seen of each process.
#[derive(Debug, Default)]
pub struct TreeCpu(BTreeMap<Process, Ticks>);

/// An ID alone may come again.
type Process = (i32, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    user: u64,
    system: u64,
}

impl TreeCpu {
    /// Looks at a process, at its descendants, and at all that were ever found among them.
    pub fn sample(&mut self, root: Pid) {
        let known = self.0.keys().map(|(id, _)| *id);
        let found =
            tree_memory::descendants(root).into_iter().map(|pid| pid.as_raw_nonzero().get());
        let processes: Vec<i32> = known.chain(found).collect();
        for id in processes {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            if let Some((start, ticks)) = parse(&stat) {
                self.0.insert((id, start), ticks);
            }
        }
    }

    /// Of all processes together.
    pub fn total(&self) -> CpuTime {
        let ns_per_tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let sum = |part: fn(&Ticks) -> u64| self.0.values().map(part).sum::<u64>() * ns_per_tick;
        CpuTime { user_ns: sum(|ticks| ticks.user), system_ns: sum(|ticks| ticks.system) }
    }
}

/// The time of its start and its CPU time, from /proc/PID/stat: the name before the state may hold
/// anything.
fn parse(stat: &str) -> Option<(u64, Ticks)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some((number(19)?, Ticks { user: number(11)?, system: number(12)? }))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::process::getpid;

    use super::*;

    #[test]
    fn fields_are_counted_from_the_end_of_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 11 12 0 0 20 0 1 0 555 1 1";
        assert_eq!(parse(stat), Some((555, Ticks { user: 11, system: 12 })));
        assert_eq!(parse("7 (a) S 1"), None);
    }

    #[test]
    fn a_busy_process_is_seen_using_the_cpu() {
        let mut cpu = TreeCpu::default();
        let deadline = Instant::now() + Duration::from_secs(60);
        while cpu.total().user_ns < 50_000_000 {
            assert!(Instant::now() < deadline, "{cpu:?}");
            cpu.sample(getpid());
        }
    }
}
