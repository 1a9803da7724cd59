//! From the runs to what people and programs read.
//!
//! A cell is the median of its rounds, with the least and the greatest. A kernel row was run with
//! two settings of its read-ahead; each of its cells shows the better one. The ratio says how many
//! times faster a cell is than the best kernel row's in the same column.

mod costs;
mod floors;
mod tails;

use std::fmt::Write as _;

use serde::Serialize;

use self::floors::{RowFloor, row_floors};
use super::calibrate::Calibration;
use super::floor::Floor;
use super::kernel::cgroup::{CpuTime, Cpus};
use super::rows::{Measurement, Row};
use super::workload::{Latencies, Phase};

/// With more the lines of a table would be too long to read.
const PHASES_PER_BLOCK: usize = 4;

/// A measured run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The peer.
    pub row: Row,
    /// The read-ahead of a kernel row.
    pub page_cluster: Option<u8>,
    /// Of the workload.
    pub threads: usize,
    /// The phase that it is about, if that is one alone; its CPU time is not that of the others.
    pub only: Option<Phase>,
    /// What it gave.
    pub measurement: Measurement,
}

impl Run {
    /// A line for who waits.
    pub fn summary(&self) -> String {
        let times = self.measurement.phases.iter().map(|time| {
            let (unit, ns) = time.phase.unit();
            format!("{} {:.0} {unit}", time.phase.title(), time.ns / ns)
        });
        let times = times.collect::<Vec<_>>().join(", ");
        let read_ahead = self.page_cluster.map(|pages| format!(" (page-cluster {pages})"));
        let read_ahead = read_ahead.unwrap_or_default();
        format!("threads {}: {:<18} {times}{read_ahead}", self.threads, self.row.title())
    }
}

/// What a row got for its runs.
#[derive(Clone, Copy, Debug)]
pub struct Calibrated {
    /// The peer.
    pub row: Row,
    /// The phase, if it is for runs of one alone.
    pub only: Option<Phase>,
    /// Its limit, and what it took.
    pub calibration: Calibration,
}

/// Times of one cell over the rounds, in ns per page or access.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of a sample, or 0 of one round.
    pub deviation: f64,
    /// All, in the order of the rounds.
    pub rounds: Vec<f64>,
}

impl Spread {
    /// Sums up rounds; `None` if there are none.
    pub fn of(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        let count = rounds.len() as f64;
        let mean = rounds.iter().sum::<f64>() / count;
        let squares: f64 = rounds.iter().map(|ns| (ns - mean).powi(2)).sum();
        let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
        Some(Self { median, min, max, mean, deviation, rounds })
    }
}

/// One cell of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The peer.
    pub row: Row,
    /// Of the workload.
    pub threads: usize,
    /// The pattern.
    pub phase: Phase,
    /// The better read-ahead, for a kernel row.
    pub page_cluster: Option<u8>,
    /// The times.
    pub ns: Spread,
    /// How many times faster than the best kernel row, if one was measured.
    pub ratio: Option<f64>,
    /// The same of each round, against the same kernel row.
    pub round_ratios: Vec<f64>,
    /// How long single accesses of a random phase took, in all rounds together.
    pub latency: Option<Latency>,
}

/// Times of single accesses, in ns, each the upper end of a bucket an eighth wide.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: u64,
    /// What 99 % did not exceed.
    pub p99: u64,
    /// What 99.9 % did not exceed.
    pub p99_9: u64,
    /// Each time with the share of accesses that took no longer.
    pub distribution: Vec<(u64, f64)>,
}

impl Latency {
    fn of<'a>(rounds: impl Iterator<Item = &'a Latencies>) -> Option<Self> {
        let mut all = Latencies::default();
        rounds.for_each(|round| all.add(round));
        Some(Self {
            p50: all.quantile(0.5)?,
            p99: all.quantile(0.99)?,
            p99_9: all.quantile(0.999)?,
            distribution: all.distribution(),
        })
    }
}

/// What a row took of the CPUs, in ns, all phases together.
#[derive(Clone, Debug, Serialize)]
pub struct RowCpu {
    /// The peer.
    pub row: Row,
    /// Of the workload.
    pub threads: usize,
    /// The read-ahead of a kernel row.
    pub page_cluster: Option<u8>,
    /// Wall time, user and system time of a whole run, in seconds.
    pub seconds: [Spread; 3],
    /// For each page or access of the workload.
    pub per_access: Spread,
    /// Of that, in the kernel.
    pub system_per_access: Spread,
    /// For each page that the peer moved, if it moved any.
    pub per_moved_page: Option<Spread>,
}

/// What a row took of RAM.
#[derive(Clone, Debug, Serialize)]
pub struct RowMemory {
    /// The peer.
    pub row: Row,
    /// Of the workload.
    pub threads: usize,
    /// The cgroup's limit of a kernel row, `--ram` of a vswap row.
    pub limit: Option<u64>,
    /// Most RAM over all of its runs, seen from outside.
    pub peak: Option<u64>,
    /// The largest pool that the limit does not cover.
    pub uncharged_pool: u64,
    /// Most anonymous memory of the process tree in the calibration run.
    pub peak_pss_anon: Option<u64>,
    /// Most bytes that other programs had in the row's swap area: they slowed it down.
    pub foreign_swap: u64,
}

/// A row that has no numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Absence {
    /// The peer.
    pub row: Row,
    /// The phase, if it is this one alone.
    pub phase: Option<Phase>,
    /// Why.
    pub reason: String,
}

impl Absence {
    /// For people.
    pub fn title(&self) -> String {
        let phase = self.phase.map(|phase| format!(", {}", phase.title())).unwrap_or_default();
        self.row.title() + &phase
    }
}

/// What was measured where.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Conditions {
    /// Kernel release.
    pub kernel: String,
    /// Name of the processor.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// How many of them each row could use, if that was limited.
    pub cpus: Option<Cpus>,
    /// The machine's setting of transparent huge pages.
    pub huge_pages: String,
    /// Version of the memory cgroup, or none.
    pub cgroup: Option<&'static str>,
    /// Bytes touched.
    pub bytes: u64,
    /// What those bytes were.
    pub contents: String,
    /// Whether each limited row had a swap file.
    pub swap_file: bool,
    /// RAM of each limited row, all told.
    pub ram: u64,
    /// Programs that were asked for, each with what this machine does not have of what it needs.
    pub missing_programs: Vec<(Phase, &'static str)>,
    /// Rounds of each cell.
    pub rounds: usize,
    /// A short run: fewer accesses, and each read-ahead only for the phases that it suits.
    pub quick: bool,
}

impl Conditions {
    /// For people: the CPUs, if they were limited.
    pub fn quota(&self) -> String {
        self.cpus.map_or(String::new(), |cpus| format!(", {} CPUs", cpus.count()))
    }
}

/// Everything that the bench found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and how.
    pub conditions: Conditions,
    /// The table's cells.
    pub cells: Vec<Cell>,
    /// What the rows took of RAM.
    pub memory: Vec<RowMemory>,
    /// What the rows took of the CPUs.
    pub cpu: Vec<RowCpu>,
    /// What moving a page costs at the least, if it was measured.
    pub floor: Option<Floor>,
    /// The rows beside that.
    pub floors: Vec<RowFloor>,
    /// Rows that this machine or user cannot have.
    pub skipped: Vec<Absence>,
    /// Rows that failed.
    pub failed: Vec<Absence>,
}

impl Report {
    /// Sums up the runs.
    pub fn new(
        conditions: Conditions,
        runs: &[Run],
        calibrations: &[Calibrated],
        skipped: Vec<Absence>,
        failed: Vec<Absence>,
    ) -> Self {
        let mut settings: Vec<_> = runs.iter().map(|run| (run.threads, run.row)).collect();
        settings.sort_unstable();
        settings.dedup();
        let mut cells: Vec<Cell> = settings
            .iter()
            .flat_map(|&(threads, row)| {
                Phase::all().filter_map(move |phase| cell(runs, row, threads, phase))
            })
            .collect();
        let kernel: Vec<Cell> = cells.iter().filter(|cell| cell.row.is_kernel()).cloned().collect();
        for cell in &mut cells {
            let best = kernel
                .iter()
                .filter(|other| other.phase == cell.phase && other.threads == cell.threads)
                .min_by(|one, other| one.ns.median.total_cmp(&other.ns.median));
            if let Some(best) = best {
                cell.ratio = Some(best.ns.median / cell.ns.median);
                let rounds = best.ns.rounds.iter().zip(&cell.ns.rounds);
                cell.round_ratios = rounds.map(|(best, own)| best / own).collect();
            }
        }
        let memory = settings
            .iter()
            .map(|&(threads, row)| memory(runs, calibrations, row, threads))
            .collect();
        let cpu = settings.iter().flat_map(|&(threads, row)| cpu(runs, row, threads)).collect();
        let (floor, floors) = (None, Vec::new());
        Self { conditions, cells, memory, cpu, floor, floors, skipped, failed }
    }

    /// The same beside the physical floor.
    pub fn with_floor(mut self, runs: &[Run], floor: Option<Floor>) -> Self {
        let rows = self.memory.iter().map(|memory| (memory.row, memory.threads));
        let of_row = |(row, threads)| row_floors(runs, floor.as_ref(), row, threads);
        self.floors = rows.flat_map(of_row).collect();
        self.floor = floor;
        self
    }

    /// The tables, one for each number of threads.
    pub fn table(&self) -> String {
        let mut text = format!("contents: {}", self.conditions.contents);
        text.push_str(if self.conditions.swap_file { "; with a swap file\n" } else { "\n" });
        for threads in self.threads() {
            self.write_table(&mut text, threads);
        }
        for (phase, program) in &self.conditions.missing_programs {
            let _ = writeln!(text, "skipped: {}: {program} is not installed", phase.title());
        }
        for (what, absences) in [("skipped", &self.skipped), ("FAILED", &self.failed)] {
            for absence in absences {
                let _ = writeln!(text, "{what}: {}: {}", absence.title(), absence.reason);
            }
        }
        text
    }

    fn write_table(&self, text: &mut String, threads: usize) {
        let plural = if threads == 1 { "" } else { "s" };
        let _ = writeln!(
            text,
            "{threads} thread{plural}, {} MiB in {} MiB of RAM{}; ns per page or access, median \
             (min–max) × faster than the best kernel row; MiB: limit, pool outside it, peak of both",
            self.conditions.bytes >> 20,
            self.conditions.ram >> 20,
            self.conditions.quota(),
        );
        for (block, phases) in self.measured_phases().chunks(PHASES_PER_BLOCK).enumerate() {
            self.write_block(text, threads, phases, block == 0);
        }
        self.write_latencies(text, threads);
        self.write_rounds(text, threads);
        self.write_cpu(text, threads);
        self.write_floors(text, threads);
        for memory in self.memory.iter().filter(|memory| memory.threads == threads) {
            let foreign = memory.foreign_swap >> 20;
            if foreign > 0 {
                let title = memory.row.title();
                let _ = writeln!(text, "disturbed: {title}: others had {foreign} MiB in its swap");
            }
        }
        text.push('\n');
    }

    /// What fits on a line, with the memory in the first block.
    fn write_block(&self, text: &mut String, threads: usize, phases: &[Phase], with_memory: bool) {
        let _ = write!(text, "{:<18}", "");
        for phase in phases {
            let _ = write!(text, " {:>27}", phase.heading());
        }
        text.push_str(if with_memory { "     limit   pool   peak\n" } else { "\n" });
        for memory in self.memory.iter().filter(|memory| memory.threads == threads) {
            let _ = write!(text, "{:<18}", memory.row.title());
            for &phase in phases {
                let _ = write!(text, " {:>27}", self.cell_text(memory.row, threads, phase));
            }
            let mib = |bytes: Option<u64>| bytes.map_or("–".into(), |b| (b >> 20).to_string());
            if with_memory {
                let pool = Some(memory.uncharged_pool).filter(|&pool| pool > 0);
                let (limit, pool, peak) = (mib(memory.limit), mib(pool), mib(memory.peak));
                let _ = write!(text, " {limit:>9} {pool:>6} {peak:>6}");
            }
            text.push('\n');
        }
    }

    /// The numbers of threads that there are tables for.
    pub fn threads(&self) -> Vec<usize> {
        let mut threads: Vec<_> = self.memory.iter().map(|memory| memory.threads).collect();
        threads.dedup();
        threads
    }

    /// In their order.
    pub fn measured_phases(&self) -> Vec<Phase> {
        let measured = |phase: &Phase| self.cells.iter().any(|cell| cell.phase == *phase);
        Phase::all().filter(measured).collect()
    }

    fn cell_text(&self, row: Row, threads: usize, phase: Phase) -> String {
        let same = |cell: &&Cell| cell.row == row && cell.threads == threads && cell.phase == phase;
        let Some(cell) = self.cells.iter().find(same) else { return "–".into() };
        let [median, min, max] =
            [cell.ns.median, cell.ns.min, cell.ns.max].map(|ns| ns / phase.unit().1);
        let ratio = cell.ratio.map_or(String::new(), |ratio| format!(" {ratio:5.2}×"));
        format!("{median:.0} ({min:.0}–{max:.0}){ratio}")
    }
}

/// The runs of a row, by their read-ahead.
fn by_read_ahead(runs: &[Run], row: Row, threads: usize) -> Vec<(Option<u8>, Vec<&Run>)> {
    let of_row = || runs.iter().filter(move |run| run.row == row && run.threads == threads);
    let mut settings: Vec<_> = of_row().map(|run| run.page_cluster).collect();
    settings.sort_unstable();
    settings.dedup();
    settings
        .into_iter()
        .map(|setting| (setting, of_row().filter(|run| run.page_cluster == setting).collect()))
        .collect()
}

fn cpu(runs: &[Run], row: Row, threads: usize) -> Vec<RowCpu> {
    let settings = by_read_ahead(runs, row, threads);
    let of_setting = |(page_cluster, runs): (Option<u8>, Vec<&Run>)| {
        let measured = || runs.iter().filter(|run| run.only.is_none()).map(|run| &run.measurement);
        let per_access = |ns: fn(CpuTime) -> u64| {
            Spread::of(measured().map(|m| ns(m.cpu) as f64 / m.accesses as f64).collect())
        };
        let seconds = |ns: fn(&Measurement) -> u64| {
            Spread::of(measured().map(|m| ns(m) as f64 / 1e9).collect())
        };
        let per_moved_page = measured()
            .filter_map(|m| Some((m.cpu.total_ns(), m.moved_pages.filter(|&pages| pages > 0)?)))
            .map(|(ns, pages)| ns as f64 / pages as f64);
        Some(RowCpu {
            row,
            threads,
            page_cluster,
            seconds: [
                seconds(|m| m.real_ns)?,
                seconds(|m| m.cpu.user_ns)?,
                seconds(|m| m.cpu.system_ns)?,
            ],
            per_access: per_access(CpuTime::total_ns)?,
            system_per_access: per_access(|cpu| cpu.system_ns)?,
            per_moved_page: Spread::of(per_moved_page.collect()),
        })
    };
    settings.into_iter().filter_map(of_setting).collect()
}

/// The better of a row's read-ahead settings, without its ratio.
fn cell(runs: &[Run], row: Row, threads: usize, phase: Phase) -> Option<Cell> {
    by_read_ahead(runs, row, threads)
        .into_iter()
        .filter_map(|(page_cluster, runs)| {
            let times = || {
                let times = runs.iter().flat_map(|run| &run.measurement.phases);
                times.filter(|time| time.phase == phase)
            };
            let ns = Spread::of(times().map(|time| time.ns).collect())?;
            let latency = Latency::of(times().filter_map(|time| time.latencies.as_ref()));
            let (ratio, round_ratios) = (None, Vec::new());
            Some(Cell { row, threads, phase, page_cluster, ns, ratio, round_ratios, latency })
        })
        .min_by(|one, other| one.ns.median.total_cmp(&other.ns.median))
}

fn memory(runs: &[Run], calibrations: &[Calibrated], row: Row, threads: usize) -> RowMemory {
    let measured = runs.iter().filter(|run| run.row == row && run.threads == threads);
    let measured = || measured.clone().map(|run| &run.measurement);
    let calibration = calibrations.iter().find(|other| other.row == row && other.only.is_none());
    let calibration = calibration.map(|found| &found.calibration);
    let seen = measured().filter_map(|measurement| measurement.peak).max();
    RowMemory {
        row,
        threads,
        limit: calibration.map(|calibration| calibration.limit),
        // Without a cgroup only the calibration run looks.
        peak: seen.or(calibration.and_then(|calibration| calibration.peak)),
        uncharged_pool: measured().map(|run| run.uncharged_pool).max().unwrap_or(0),
        foreign_swap: measured().map(|run| run.foreign_swap).max().unwrap_or(0),
        peak_pss_anon: calibration.and_then(|calibration| calibration.peak_pss),
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::PhaseTime;
    use super::*;

    fn run(row: Row, page_cluster: Option<u8>, times: &[(Phase, f64)]) -> Run {
        let phases =
            times.iter().map(|&(phase, ns)| PhaseTime { phase, ns, latencies: None }).collect();
        let measurement = Measurement {
            phases,
            accesses: 10,
            cpu: CpuTime { user_ns: 300, system_ns: 700 },
            moved_pages: row.is_kernel().then_some(5),
            peak: Some(1 << 20),
            ..Measurement::default()
        };
        Run { row, page_cluster, threads: 1, only: None, measurement }
    }

    fn report(runs: &[Run]) -> Report {
        Report::new(Conditions::default(), runs, &[], vec![], vec![])
    }

    fn find(report: &Report, row: Row, phase: Phase) -> &Cell {
        report.cells.iter().find(|cell| cell.row == row && cell.phase == phase).unwrap()
    }

    #[test]
    fn the_median_is_the_middle() {
        let median = |rounds: &[f64]| Spread::of(rounds.to_vec()).map(|spread| spread.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let spread = Spread::of(vec![9.0, 2.0, 5.0]).unwrap();
        assert_eq!((spread.min, spread.max, &spread.rounds[..]), (2.0, 9.0, &[9.0, 2.0, 5.0][..]));
    }

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        let spread = |rounds: &[f64]| Spread::of(rounds.to_vec()).unwrap();
        let several = spread(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert!((several.mean - 5.0).abs() < 1e-9);
        assert!((several.deviation - (32.0_f64 / 7.0).sqrt()).abs() < 1e-9);
        assert!(spread(&[3.0]).deviation.abs() < 1e-9);
    }

    #[test]
    fn whole_programs_are_shown_in_ms() {
        let table = report(&[run(Row::Plain, None, &[(Phase::Sqlite, 3.4e9)])]).table();
        assert!(table.contains("sqlite, ms") && table.contains(" 3400 (3400–3400)"), "{table}");
    }

    #[test]
    fn access_times_of_all_rounds_are_put_together() {
        let round = |ns: u64| {
            let mut run = run(Row::Inline, None, &[(Phase::RandomRead, 50.0)]);
            let latencies = run.measurement.phases[0].latencies.insert(Latencies::default());
            (0..100).for_each(|_| latencies.record(ns));
            run
        };
        let report = report(&[round(7), round(7), round(15)]);
        let latency = find(&report, Row::Inline, Phase::RandomRead).latency.as_ref().unwrap();
        assert_eq!((latency.p50, latency.p99, latency.p99_9), (7, 15, 15));
        assert_eq!(latency.distribution.len(), 2);
    }

    #[test]
    fn a_run_for_one_phase_has_a_cell_and_no_part_in_the_cpu_time() {
        let mut fork = run(Row::Inline, None, &[(Phase::ForkReread, 50.0)]);
        fork.only = Some(Phase::ForkReread);
        fork.measurement.accesses = 1;
        let report = report(&[run(Row::Inline, None, &[(Phase::Fill, 10.0)]), fork]);
        assert_eq!(find(&report, Row::Inline, Phase::ForkReread).ns.rounds, [50.0]);
        assert_eq!(find(&report, Row::Inline, Phase::Fill).ns.rounds, [10.0]);
        assert_eq!(report.cpu[0].per_access.rounds, [100.0]);
    }

    #[test]
    fn the_cpu_of_each_read_ahead_is_shown_by_itself() {
        let report = report(&[
            run(Row::ZramLz4, Some(0), &[(Phase::Fill, 30.0)]),
            run(Row::ZramLz4, Some(3), &[(Phase::Fill, 20.0)]),
            run(Row::Handoff, None, &[(Phase::Fill, 10.0)]),
        ]);
        let median = |spread: &Spread| spread.median;
        let cpu: Vec<_> = report.cpu.iter().map(|cpu| (cpu.row, cpu.page_cluster)).collect();
        let rows = [(Row::ZramLz4, Some(0)), (Row::ZramLz4, Some(3)), (Row::Handoff, None)];
        assert_eq!(cpu, rows);
        assert_eq!(report.cpu[0].per_access.rounds, [100.0]);
        assert_eq!(report.cpu[0].system_per_access.rounds, [70.0]);
        assert_eq!(report.cpu[0].per_moved_page.as_ref().map(median), Some(200.0));
        assert!(report.cpu[2].per_moved_page.is_none());
        assert!(report.table().contains("kernel zram lz4 (3)"), "{}", report.table());
    }

    #[test]
    fn a_kernel_cell_is_the_better_read_ahead_of_its_phase() {
        let report = report(&[
            run(Row::ZramLz4, Some(0), &[(Phase::OrderedRead, 60.0), (Phase::RandomRead, 30.0)]),
            run(Row::ZramLz4, Some(3), &[(Phase::OrderedRead, 20.0), (Phase::RandomRead, 40.0)]),
        ]);
        let cell = |phase| find(&report, Row::ZramLz4, phase);
        assert_eq!(cell(Phase::OrderedRead).page_cluster, Some(3));
        assert_eq!(cell(Phase::RandomRead).page_cluster, Some(0));
        assert_eq!(cell(Phase::RandomRead).ns.rounds, [30.0]);
    }

    #[test]
    fn ratios_are_to_the_best_kernel_row_of_the_same_phase() {
        let report = report(&[
            run(Row::ZramLz4, Some(3), &[(Phase::Fill, 30.0)]),
            run(Row::ZswapLzo, Some(3), &[(Phase::Fill, 20.0)]),
            run(Row::Handoff, None, &[(Phase::Fill, 10.0), (Phase::RandomRead, 5.0)]),
        ]);
        let ratio = |row| find(&report, row, Phase::Fill).ratio;
        assert_eq!(ratio(Row::Handoff), Some(2.0));
        assert_eq!(ratio(Row::ZswapLzo), Some(1.0));
        assert_eq!(ratio(Row::ZramLz4), Some(20.0 / 30.0));
        assert_eq!(find(&report, Row::Handoff, Phase::RandomRead).ratio, None);
        assert_eq!(find(&report, Row::Handoff, Phase::Fill).round_ratios, [2.0]);
    }

    #[test]
    fn the_table_shows_each_row_once() {
        let table = report(&[
            run(Row::ZramLz4, Some(0), &[(Phase::Fill, 30.0)]),
            run(Row::ZramLz4, Some(3), &[(Phase::Fill, 20.0)]),
            run(Row::Handoff, None, &[(Phase::Fill, 10.0)]),
        ])
        .table();
        let (table, _) = table.split_once("CPU ns").unwrap();
        assert_eq!(table.matches("kernel zram lz4").count(), 1, "{table}");
        assert!(table.contains("10 (10–10)  2.00×"), "{table}");
    }

    #[test]
    fn the_table_has_every_measured_phase_and_no_other() {
        let times: Vec<_> = Phase::PATTERNS[..6].iter().map(|&phase| (phase, 7.0)).collect();
        let table = report(&[run(Row::Plain, None, &times)]).table();
        for phase in Phase::all() {
            let expected = usize::from(times.iter().any(|(measured, _)| *measured == phase));
            assert_eq!(table.matches(phase.title()).count(), expected, "{table}");
        }
        // Two blocks of phases and the CPU time.
        assert_eq!(table.matches("plain, no limit").count(), 3, "{table}");
    }
}
