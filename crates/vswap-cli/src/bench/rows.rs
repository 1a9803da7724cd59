//! The peers, one row of the table each, and how the workload is run under one of them.
//!
//! A run sets up what its row needs (a memory cgroup, a swap device), starts the workload inside,
//! and watches from outside until it ends: for a signal to the bench, for the time limit, and for
//! the memory that the row takes. Dropping the set-up puts the machine back, so that each run
//! starts from the same state, whatever ran before.

use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;

use super::contents::Mix;
use super::kernel::cgroup::{CpuTime, Cpus, Hierarchy, MemoryGroup, Version};
use super::kernel::swap_file::{Priority, SwapFile};
use super::kernel::zram::{ZramDevice, ZramSwap};
use super::kernel::zswap::{self, PoolLimit, ZswapSwap};
use super::kernel::{Change, Journal, KernelError, set_page_cluster, swap_file};
use super::moved::Moved;
use super::tree_cpu::TreeCpu;
use super::tree_memory;
use super::workload::{Output, Phase, PhaseTime};

/// How often the memory of a running row is looked at.
const SAMPLE: Duration = Duration::from_millis(10);

/// It reads all of /proc.
const SAMPLES_PER_CPU_SAMPLE: u64 = 5;

/// What a swap area is made larger than twice the data.
const SPARE_AREA: u64 = 512 << 20;

/// Extents that are in use in part.
const SPARE_DEVICE: u64 = 32 << 20;

/// A peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// No limit at all: the upper bound.
    Plain,
    /// Kernel swap on zram with lz4.
    ZramLz4,
    /// Kernel zswap with lz4 before a swap file.
    ZswapLz4,
    /// Kernel zswap with lzo, its usual default, before a swap file.
    ZswapLzo,
    /// A kernel swap file with nothing before it.
    SwapFile,
    /// `vswap run --engine handoff`.
    Handoff,
    /// `vswap run --engine inline`.
    Inline,
    /// `vswap run --engine handoff` without a pool, with a zram device to swap to.
    HandoffZram,
    /// `vswap run --engine inline` without a pool, with a zram device to swap to.
    InlineZram,
}

/// What a row needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Nothing,
    Zram(&'static str),
    Zswap(&'static str),
    SwapFile,
    Vswap(&'static str),
    /// An engine, and zram's compressor.
    VswapOnZram(&'static str, &'static str),
}

impl Row {
    const fn peer(self) -> Peer {
        match self {
            Self::Plain => Peer::Nothing,
            Self::ZramLz4 => Peer::Zram("lz4"),
            Self::ZswapLz4 => Peer::Zswap("lz4"),
            Self::ZswapLzo => Peer::Zswap("lzo"),
            Self::SwapFile => Peer::SwapFile,
            Self::Handoff => Peer::Vswap("handoff"),
            Self::Inline => Peer::Vswap("inline"),
            Self::HandoffZram => Peer::VswapOnZram("handoff", "lz4"),
            Self::InlineZram => Peer::VswapOnZram("inline", "lz4"),
        }
    }

    /// True for the rows that the others are compared with.
    pub const fn is_kernel(self) -> bool {
        matches!(self.peer(), Peer::Zram(_) | Peer::Zswap(_) | Peer::SwapFile)
    }

    /// True for the rows of vswap that swap to zram.
    pub const fn is_on_zram(self) -> bool {
        matches!(self.peer(), Peer::VswapOnZram(..))
    }

    /// Of a vswap row.
    pub const fn engine(self) -> Option<&'static str> {
        match self.peer() {
            Peer::Vswap(engine) | Peer::VswapOnZram(engine, _) => Some(engine),
            _ => None,
        }
    }

    /// Rows that a disk makes too slow for a first look.
    pub const fn is_slow(self) -> bool {
        matches!(self, Self::SwapFile)
    }

    /// Name for people.
    pub fn title(self) -> String {
        match self.peer() {
            Peer::Nothing => "plain, no limit".into(),
            Peer::Zram(codec) => format!("kernel zram {codec}"),
            Peer::Zswap(codec) => format!("kernel zswap {codec}"),
            Peer::SwapFile => "kernel swap file".into(),
            Peer::Vswap(engine) => format!("vswap {engine}"),
            Peer::VswapOnZram(engine, codec) => format!("{engine} on zram {codec}"),
        }
    }
}

/// What is run: a row, and how.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The peer.
    pub row: Row,
    /// For kernel rows, the read-ahead (2 to this power pages).
    pub page_cluster: Option<u8>,
    /// Of the workload.
    pub threads: usize,
    /// Of the workload.
    pub phases: Vec<Phase>,
    /// For kernel rows, the limit of the cgroup; for vswap rows, `--ram`.
    pub limit: u64,
    /// Sample Pss_Anon too. It walks the page tables, so only unmeasured runs do it.
    pub sample_pss: bool,
}

impl Setting {
    /// What of the bench's bytes the workload touches. A fork takes three quarters: each side may come to hold
    /// what it reads once more, and a peer that is short of room for that is measured at that alone.
    fn bytes_of(&self, bytes: u64) -> u64 {
        if self.phases.contains(&Phase::ForkReread) { bytes / 4 * 3 } else { bytes }
    }

    /// Whether pages of files that the row's group is charged for are left out of each sample of what it
    /// takes: what programs write and read stays in the page cache of a group that has no limit. Where what
    /// counts is the group's own peak, they are left out of that.
    fn keeps_files_apart(&self) -> bool {
        let programs = self.phases.iter().any(|phase| phase.is_program());
        !self.row.is_kernel() && (programs || self.row.is_on_zram())
    }
}

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub struct Measurement {
    /// What the workload printed.
    pub phases: Vec<PhaseTime>,
    /// Wall time from its start to its end.
    pub real_ns: u64,
    /// Of the workload, all phases and checks together.
    pub accesses: u64,
    /// Of the whole tree, all phases and checks together, vswap's processes included.
    pub cpu: CpuTime,
    /// Pages that the peer moved out of memory and into it, by its own counters.
    pub moved_pages: Option<u64>,
    /// Those of them that went out.
    pub pages_out: Option<u64>,
    /// Most RAM taken, all told, if it could be seen.
    pub peak: Option<u64>,
    /// The largest pool of compressed pages that the cgroup's charge did not include.
    pub uncharged_pool: u64,
    /// Most anonymous memory of the process tree, if it was sampled.
    pub peak_pss: Option<u64>,
    /// Most bytes that other programs had in the row's swap area.
    pub foreign_swap: u64,
}

/// What runs share.
pub struct Bench<'j> {
    /// `None` without the right to change the machine; then there are no kernel rows.
    pub kernel: Option<(&'j Journal, Hierarchy)>,
    /// This program, which is also the workload and `vswap run`.
    pub program: PathBuf,
    /// Bytes that the workload touches.
    pub bytes: u64,
    /// That the workload runs, in their order.
    pub phases: Vec<Phase>,
    /// Of each random phase.
    pub accesses: u64,
    /// RAM of each row, all told.
    pub ram: u64,
    /// What the workload's memory holds.
    pub contents: Mix,
    /// Whether each limited row gets a swap file, besides those that are about one.
    pub swap_file: bool,
    /// Where swap files go.
    pub swap_dir: PathBuf,
    /// Where whole programs write.
    pub scratch: Option<PathBuf>,
    /// An unpacked kernel, to be built.
    pub kernel_source: Option<PathBuf>,
    /// What each row may use of the CPUs, if that is limited.
    pub cpus: Option<Cpus>,
    /// The number of the signal that asked the bench to stop, or 0.
    pub stop: Arc<AtomicUsize>,
}

/// The kernel swap of a row, while it is in use.
pub enum Swap<'j> {
    None,
    // The file's pages come back, or go to the device, before that goes.
    Zram(Option<SwapFile<'j>>, ZramSwap<'j>),
    Zswap(ZswapSwap<'j>, Version),
    /// The kernel does not know of it; vswap swaps there.
    Device(ZramDevice<'j>),
    // A zswap that is on would stand before the file.
    File {
        file: SwapFile<'j>,
        _zswap_off: Option<Change<'j>>,
    },
}

impl Swap<'_> {
    /// As /proc/swaps names them.
    pub fn areas(&self) -> Vec<&Path> {
        match self {
            Self::None | Self::Device(_) => vec![],
            Self::Zram(file, zram) => {
                file.iter().map(SwapFile::path).chain([zram.area()]).collect()
            }
            Self::Zswap(zswap, _) => vec![zswap.area()],
            Self::File { file, .. } => vec![file.path()],
        }
    }

    /// Bytes of the pool that no cgroup is charged for. Version 1 leaves zswap's out: the kernel
    /// charges it in the unified hierarchy only.
    fn uncharged_pool(&self) -> Result<u64, KernelError> {
        match self {
            Self::None | Self::File { .. } | Self::Zswap(_, Version::V2) => Ok(0),
            Self::Zram(_, zram) => zram.pool_bytes(),
            Self::Device(zram) => zram.pool_bytes(),
            Self::Zswap(_, Version::V1) => zswap::pool_bytes(),
        }
    }
}

impl<'j> Bench<'j> {
    /// Runs the workload once.
    ///
    /// # Errors
    /// A [`KernelError`] if the row could not be set up; otherwise the workload failed, found wrong
    /// bytes, or took too long, or the bench was asked to stop.
    pub fn run(&self, setting: &Setting) -> anyhow::Result<Measurement> {
        // In the order of set-up; dropped the other way round, so that the workload is dead
        // before its swap is turned off.
        let swap = self.swap(setting.row)?;
        let _read_ahead = match (&self.kernel, setting.page_cluster) {
            (Some((journal, _)), Some(value)) => Some(set_page_cluster(journal, value)?),
            _ => None,
        };
        let group = match &self.kernel {
            Some((journal, hierarchy)) => Some(hierarchy.create(journal, self.cpus)?),
            None => None,
        };
        if let (Some(group), true) = (&group, setting.row.is_kernel()) {
            group.set_limit(setting.limit)?;
        }
        let moved = match setting.row.peer() {
            Peer::Nothing => Moved::Nobody,
            Peer::Zram(_) | Peer::Zswap(_) | Peer::SwapFile => Moved::by_kernel(),
            Peer::Vswap(_) | Peer::VswapOnZram(..) => Moved::by_vswap()?,
        };
        let start = Instant::now();
        let run = Running {
            child: self.spawn(setting, &swap, group.as_ref(), moved.stats_path().as_deref())?,
            deadline: start + self.time_limit(setting),
        };
        let mut watch =
            Watch { swap: &swap, group: group.as_ref(), setting, seen: Seen::default() };
        let output = run.watch(&self.stop, &mut watch)?;
        let real_ns = start.elapsed().as_nanos() as u64;
        let seen = watch.seen;
        let cpu = group.as_ref().and_then(MemoryGroup::cpu_time);
        let peak = match &group {
            // The sum of two numbers that peak at different times has to be sampled.
            Some(_) if seen.uncharged_pool > 0 || setting.keeps_files_apart() => Some(seen.total),
            Some(group) => {
                // The page cache of a program that nobody had read before is no use of the row's; a
                // group without a limit keeps it to its end.
                let files = if setting.row.is_kernel() { 0 } else { group.file_pages()? };
                Some(group.peak().unwrap_or(seen.total).saturating_sub(files))
            }
            None => seen.pss,
        };
        let (moved_pages, pages_out) = moved.pages().unzip();
        Ok(Measurement {
            phases: output.phases,
            real_ns,
            accesses: output.accesses,
            cpu: cpu.unwrap_or_else(|| seen.cpu.total()),
            moved_pages,
            pages_out,
            peak,
            uncharged_pool: seen.uncharged_pool,
            peak_pss: seen.pss,
            foreign_swap: seen.foreign_swap,
        })
    }

    /// Whether a signal asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) != 0
    }

    /// Some 80 µs for each page in each pass, ten times what a slow peer takes, and as much again where
    /// there is a disk: only a hang reaches it. Besides the phases themselves there are the checks
    /// before the memory is freed and at the end, and the blocks to churn.
    fn time_limit(&self, setting: &Setting) -> Duration {
        let passes = setting.phases.len() as u64 + 3;
        let on_disk = self.swap_file || setting.row.is_slow();
        // A program goes over its data many times.
        let programs = setting.phases.iter().any(|phase| phase.is_program());
        let slowness = if on_disk || programs { 5 } else { 1 };
        // A whole program is at work whatever the size of its data.
        let at_least = if programs { 30 * passes } else { 30 };
        let limit = Duration::from_secs(at_least)
            + Duration::from_millis((self.bytes >> 20) * 20 * passes * slowness);
        self.under_quota(limit)
    }

    /// What a time limit is where less than a CPU may be used.
    pub fn under_quota(&self, limit: Duration) -> Duration {
        limit.div_f64(self.cpus.map_or(1.0, |cpus| cpus.count().min(1.0)))
    }

    /// Sets up the kernel's swap for a row.
    ///
    /// # Errors
    /// [`KernelError`] if this machine or user cannot have it.
    pub fn swap(&self, row: Row) -> Result<Swap<'j>, KernelError> {
        let (journal, version) = match (&self.kernel, row.peer()) {
            (_, Peer::Nothing | Peer::Vswap(_)) => return Ok(Swap::None),
            (None, _) => return Err(KernelError::Missing("right to configure swap".into())),
            (Some((journal, hierarchy)), _) => (*journal, hierarchy.version),
        };
        // Room for all of the data, and for what the machine swaps of others once it can.
        let area = 2 * self.bytes + SPARE_AREA;
        let file = |priority| SwapFile::on(journal, &self.swap_dir, area, priority);
        match row.peer() {
            // As distributions size the device when there is a file behind it.
            Peer::Zram(codec) if self.swap_file => {
                let zram = ZramSwap::on(journal, codec, self.ram)?;
                Ok(Swap::Zram(Some(file(Priority::Second)?), zram))
            }
            Peer::Zram(codec) => Ok(Swap::Zram(None, ZramSwap::on(journal, codec, area)?)),
            Peer::Zswap(codec) => {
                let pool = match (self.swap_file, version) {
                    (false, _) => PoolLimit::All(area),
                    (true, Version::V1) => PoolLimit::Machine(self.ram / 2),
                    (true, Version::V2) => PoolLimit::Group,
                };
                let zswap = ZswapSwap::on(journal, codec, pool, &self.swap_dir, area)?;
                Ok(Swap::Zswap(zswap, version))
            }
            Peer::SwapFile => {
                let zswap_off = zswap::off(journal)?;
                Ok(Swap::File { file: file(Priority::First)?, _zswap_off: zswap_off })
            }
            Peer::VswapOnZram(_, codec) => {
                // A page as it is takes two blocks, for its check. With more room, slots of pages that are
                // back would be kept, as zram itself does not, and all of the data be there twice.
                let area = 2 * self.bytes + SPARE_DEVICE;
                Ok(Swap::Device(ZramDevice::add(journal, codec, area)?))
            }
            Peer::Nothing | Peer::Vswap(_) => Ok(Swap::None),
        }
    }

    /// Starts the workload, inside the group if there is one, in a process group of its own so
    /// that all of it can be killed.
    fn spawn(
        &self,
        setting: &Setting,
        swap: &Swap<'_>,
        group: Option<&MemoryGroup<'_>>,
        stats: Option<&str>,
    ) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.program);
        if let Some(group) = group {
            command.args(["bench", "enter"]).args(group.procs()).arg("--").arg(&self.program);
        }
        if let Some(engine) = setting.row.engine() {
            let ram = setting.limit.to_string();
            command.args(["run", "--ram", &ram, "--engine", engine]);
            command.args(stats.into_iter().flat_map(|path| ["--stats", path]));
            match swap {
                // zram is the codec, and nobody else reads that device.
                Swap::Device(zram) => {
                    command.args(["--zswap-max", "0", "--codec", "none", "--no-encrypt"]);
                    command.arg("--swap").arg(zram.node());
                }
                _ if self.swap_file => {
                    command.arg("--swap").arg(&self.swap_dir);
                }
                _ => {}
            }
            command.arg("--").arg(&self.program);
        }
        command.args(["bench", "workload"]);
        command.arg("--bytes").arg(setting.bytes_of(self.bytes).to_string());
        command.arg("--threads").arg(setting.threads.to_string());
        command.arg("--contents").arg(self.contents.argument());
        command.arg("--accesses").arg(self.accesses.to_string());
        if let Some(scratch) = &self.scratch {
            command.arg("--scratch").arg(scratch);
        }
        if let Some(source) = &self.kernel_source {
            command.arg("--kernel-source").arg(source);
        }
        let phases: Vec<_> = setting.phases.iter().map(|phase| phase.argument()).collect();
        command.arg("--phases").arg(phases.join(","));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        Ok(child)
    }
}

/// A started workload, killed when dropped before its end.
struct Running {
    child: Child,
    deadline: Instant,
}

impl Running {
    fn watch(mut self, stop: &AtomicUsize, watch: &mut Watch<'_>) -> anyhow::Result<Output> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            let signal = stop.load(Ordering::Relaxed);
            ensure!(signal == 0, "stopped by signal {signal}");
            ensure!(Instant::now() < self.deadline, "it ran longer than its time limit");
            watch.sample(Pid::from_child(&self.child))?;
            std::thread::sleep(SAMPLE);
        };
        if let Some(signal) = status.signal() {
            let reason = if signal == libc::SIGKILL { ", probably for want of memory" } else { "" };
            bail!("it was killed by signal {signal}{reason}");
        }
        ensure!(status.success(), "it ended with {status}");
        let mut text = String::new();
        self.child.stdout.take().context("its output is gone")?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("it printed {text:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, its id may be another's.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Looks at a run from outside.
struct Watch<'a> {
    swap: &'a Swap<'a>,
    group: Option<&'a MemoryGroup<'a>>,
    setting: &'a Setting,
    seen: Seen,
}

#[derive(Debug, Default)]
struct Seen {
    cpu: TreeCpu,
    samples: u64,
    total: u64,
    uncharged_pool: u64,
    pss: Option<u64>,
    foreign_swap: u64,
}

impl Watch<'_> {
    fn sample(&mut self, child: Pid) -> Result<(), KernelError> {
        if let Some(group) = self.group {
            let pool = self.own_pool(group)?;
            let files = if self.setting.keeps_files_apart() { group.file_pages()? } else { 0 };
            let usage = group.usage()?.saturating_sub(files);
            self.seen.uncharged_pool = self.seen.uncharged_pool.max(pool);
            self.seen.total = self.seen.total.max(usage + pool);
        }
        let counted = self.group.is_some_and(|group| group.cpu_time().is_some());
        if !counted && self.seen.samples.is_multiple_of(SAMPLES_PER_CPU_SAMPLE) {
            self.seen.cpu.sample(child);
        }
        self.seen.samples += 1;
        if self.setting.sample_pss {
            let processes = match self.group {
                Some(group) => group.processes()?,
                None => tree_memory::descendants(child),
            };
            self.seen.pss = self.seen.pss.max(Some(tree_memory::anonymous_bytes(&processes)));
        }
        Ok(())
    }

    /// The workload's part of the pool that is charged to nobody. Swap is the whole machine's, so
    /// others may have pages in it; they are taken to compress as ours do.
    fn own_pool(&mut self, group: &MemoryGroup<'_>) -> Result<u64, KernelError> {
        let areas = self.swap.areas();
        if areas.is_empty() {
            return self.swap.uncharged_pool();
        }
        let mut used = 0;
        for area in areas {
            used += swap_file::used(area)?;
        }
        let own = group.swapped()?;
        let foreign = used.saturating_sub(own);
        self.seen.foreign_swap = self.seen.foreign_swap.max(foreign);
        let pool = self.swap.uncharged_pool()?;
        let own_share = (used - foreign) as f64 / used.max(1) as f64;
        Ok((pool as f64 * own_share) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(row: Row, phases: &[Phase]) -> Setting {
        let (phases, page_cluster, threads) = (phases.to_vec(), None, 1);
        Setting { row, page_cluster, threads, phases, limit: 0, sample_pss: false }
    }

    #[test]
    fn page_cache_is_left_out_of_samples_where_a_group_has_no_limit() {
        for &row in Row::value_variants() {
            let is_sampled = setting(row, &Phase::BASIC).keeps_files_apart();
            assert_eq!(is_sampled, row.is_on_zram());
            let is_sampled = setting(row, &Phase::PROGRAMS).keeps_files_apart();
            assert_eq!(is_sampled, !row.is_kernel());
        }
    }

    #[test]
    fn a_fork_has_less_data_under_every_peer() {
        let bytes = |row, phases: &[Phase]| setting(row, phases).bytes_of(512);
        for &row in Row::value_variants() {
            assert_eq!(bytes(row, &[Phase::Fill, Phase::ForkReread]), 384);
            assert_eq!(bytes(row, &Phase::BASIC), 512);
        }
    }
}
