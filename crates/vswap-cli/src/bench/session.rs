//! A run of the stepped workload under a peer, which the bench drives, and looks at between two steps.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use super::contents::Mix;
use super::kernel::cgroup::MemoryGroup;
use super::kernel::{Change, set_page_cluster, swap_file};
use super::rows::{Bench, Row, Swap};
use super::workload::stepped::{Done, Step};

/// How often somebody who waits for a step looks whether to go on waiting.
const LOOK_UP: Duration = Duration::from_millis(100);

/// After this the gauges of a run are those of its last step: pagers publish them every 10 ms.
const SETTLED: Duration = Duration::from_millis(60);

/// Each page of a step may take so long on average, far more than a disk needs: only a hang reaches it.
const PAGE_LIMIT: Duration = Duration::from_millis(2);

/// And a step of no pages so long.
const SHORTEST_LIMIT: Duration = Duration::from_secs(60);

/// What is run, and under what.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The peer.
    pub row: Row,
    /// The cgroup's limit of a kernel row, `--ram` of a vswap row.
    pub ram: u64,
    /// Further options of `vswap run`.
    pub options: Vec<OsString>,
    /// Bytes that the workload touches.
    pub bytes: u64,
    /// What they hold.
    pub contents: Mix,
    /// Of each random step.
    pub accesses: u64,
}

/// A workload that waits for its next step; killed when dropped. The fields are dropped in their order.
pub struct Session<'b, 'j> {
    child: Running,
    to: Option<ChildStdin>,
    from: ChildStdout,
    received: Vec<u8>,
    group: Option<MemoryGroup<'j>>,
    _read_ahead: Option<Change<'j>>,
    swap: Swap<'j>,
    bench: &'b Bench<'j>,
    limit: Duration,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, its id may be another's.
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

impl<'b, 'j> Session<'b, 'j> {
    /// Sets up what the peer needs and starts the workload.
    ///
    /// # Errors
    /// A [`KernelError`](super::kernel::KernelError) if the peer cannot be set up.
    pub fn start(bench: &'b Bench<'j>, subject: &Subject) -> anyhow::Result<Self> {
        let swap = bench.swap(subject.row)?;
        let (mut group, mut read_ahead) = (None, None);
        if let Some((journal, hierarchy)) = &bench.kernel {
            if subject.row.is_kernel() {
                read_ahead = Some(set_page_cluster(journal, 3)?);
            }
            group = Some(hierarchy.create(journal, bench.cpus)?);
        }
        if let (Some(group), true) = (&group, subject.row.is_kernel()) {
            group.set_limit(subject.ram)?;
        }
        let mut child = Running(spawn(bench, subject, group.as_ref())?);
        let to = child.0.stdin.take().context("its input is gone")?;
        let from = child.0.stdout.take().context("its output is gone")?;
        rustix::io::ioctl_fionbio(&from, true)?;
        let pages = subject.bytes.max(subject.accesses << 12) >> 12;
        Ok(Self {
            child,
            to: Some(to),
            from,
            received: Vec::new(),
            group,
            _read_ahead: read_ahead,
            swap,
            bench,
            limit: bench.under_quota(SHORTEST_LIMIT + PAGE_LIMIT * u32::try_from(pages)?),
        })
    }

    /// Has the workload do something, and waits for that.
    ///
    /// # Errors
    /// It failed, found wrong bytes or took too long, or the bench was asked to stop.
    pub fn step(&mut self, step: Step) -> anyhow::Result<Done> {
        let word = step.word() + "\n";
        let to = self.to.as_mut().context("it takes no more steps")?;
        // A workload that is gone says why by its status.
        let _ = to.write_all(word.as_bytes());
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            self.go_on_waiting(deadline)?;
            let mut ready = [PollFd::new(&self.from, PollFlags::IN)];
            poll(&mut ready, Some(&Timespec::try_from(LOOK_UP)?))?;
            let mut part = [0; 4096];
            match self.from.read(&mut part) {
                Ok(0) => {
                    let status = self.child.0.wait()?;
                    bail!("it ended in the step {:?} with {status}", step.word());
                }
                Ok(len) => self.received.extend(&part[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets the workload check all that it holds and end.
    ///
    /// # Errors
    /// It found wrong bytes, or one of the reasons of [`step`](Self::step).
    pub fn finish(mut self) -> anyhow::Result<()> {
        drop(self.to.take());
        let deadline = Instant::now() + self.limit;
        let status = loop {
            if let Some(status) = self.child.0.try_wait()? {
                break status;
            }
            self.go_on_waiting(deadline)?;
            std::thread::sleep(LOOK_UP / 10);
        };
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn go_on_waiting(&self, deadline: Instant) -> anyhow::Result<()> {
        let signal = self.bench.stop.load(Ordering::Relaxed);
        ensure!(signal == 0, "stopped by signal {signal}");
        ensure!(Instant::now() < deadline, "it ran longer than its time limit");
        Ok(())
    }

    /// How the `vswap run` is now.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> anyhow::Result<Status> {
        std::thread::sleep(SETTLED);
        let pid = self.child.0.id().to_string();
        let output = self.ask(&["status", &pid, "--json"])?;
        Ok(Status(serde_json::from_slice(&output)?))
    }

    /// Evicts so much of it by `vswap reclaim`; gives how long that took.
    ///
    /// # Errors
    /// Not all of it could be evicted.
    pub fn reclaim(&self, bytes: u64) -> anyhow::Result<Duration> {
        let pid = self.child.0.id().to_string();
        let started = Instant::now();
        self.ask(&["reclaim", &pid, &bytes.to_string()])?;
        Ok(started.elapsed())
    }

    fn ask(&self, words: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new(&self.bench.program);
        let output = command.args(words).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "vswap {}: {}", words[0], said.trim_end());
        Ok(output.stdout)
    }

    /// Bytes that its processes have had written to disks, if they can be told.
    pub fn written_bytes(&self) -> Option<u64> {
        let processes = self.group.as_ref()?.processes().ok()?;
        // The pager is a process of its own, and what it shares with the program are not its counts.
        let written = |process: &Pid| {
            let io = fs::read_to_string(format!("/proc/{}/io", process.as_raw_nonzero())).ok()?;
            write_bytes(&io)
        };
        Some(processes.iter().filter_map(written).sum())
    }

    /// Bytes of the kernel's swap that it has in use; for a kernel row.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn kernel_swap_used(&self) -> anyhow::Result<u64> {
        let mut used = 0;
        for area in self.swap.areas() {
            used += swap_file::used(area)?;
        }
        Ok(used)
    }

    /// Bytes of its pages that are in the kernel's swap.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn kernel_swapped(&self) -> anyhow::Result<u64> {
        let group = self.group.as_ref().context("it has no cgroup")?;
        Ok(group.swapped()?)
    }
}

fn spawn(
    bench: &Bench<'_>,
    subject: &Subject,
    group: Option<&MemoryGroup<'_>>,
) -> anyhow::Result<Child> {
    let mut command = Command::new(&bench.program);
    if let Some(group) = group {
        command.args(["bench", "enter"]).args(group.procs()).arg("--").arg(&bench.program);
    }
    if let Some(engine) = subject.row.engine() {
        command.args(["run", "--engine", engine, "--ram", &subject.ram.to_string()]);
        command.args(&subject.options).arg("--").arg(&bench.program);
    }
    command.args(["bench", "workload", "--stepped", "--threads", "1"]);
    command.arg("--bytes").arg(subject.bytes.to_string());
    command.arg("--contents").arg(subject.contents.argument());
    command.arg("--accesses").arg(subject.accesses.to_string());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", bench.program.display()))
}

/// What the kernel counts as written on behalf of a process, in /proc/PID/io.
fn write_bytes(io: &str) -> Option<u64> {
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

/// What `vswap status --json` says.
#[derive(Debug)]
pub struct Status(Value);

impl Status {
    /// A gauge, in bytes.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn now(&self, gauge: &str) -> anyhow::Result<u64> {
        self.0["now"][gauge].as_u64().with_context(|| format!("no gauge {gauge}"))
    }

    /// A counter.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn counter(&self, name: &str) -> anyhow::Result<u64> {
        self.0["counters"][name].as_u64().with_context(|| format!("no counter {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_from_proc() {
        let io =
            "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 40960\ncancelled_write_bytes: 5\n";
        assert_eq!(write_bytes(io), Some(40_960));
        assert_eq!(write_bytes(""), None);
    }

    #[test]
    fn a_status_names_what_it_does_not_have() {
        let status = Status(serde_json::json!({"now": {"pool_bytes": 7}, "counters": {}}));
        assert_eq!(status.now("pool_bytes").unwrap(), 7);
        assert!(status.counter("zswpout").unwrap_err().to_string().contains("zswpout"));
    }
}
