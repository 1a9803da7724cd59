//! How random accesses scale: with threads, and with the size of what is swapped out.
//!
//! Each point gets the RAM in which three quarters of its data are swapped out, so that every one
//! misses equally often, and the same number of accesses. What is left to grow with the size are the
//! engine's own structures, page tables and caches of the CPU.

use std::fmt::Write as _;

use serde::Serialize;

use super::kernel::KernelError;
use super::report::{Conditions, Spread};
use super::rows::{Bench, Row, Setting};
use super::workload::Phase;

const MIB: u64 = 1 << 20;
const ROWS: [Row; 3] = [Row::ZramLz4, Row::Handoff, Row::Inline];
const PHASES: [Phase; 3] = [Phase::Fill, Phase::RandomRead, Phase::RandomWrite];
const THREADS: [usize; 4] = [1, 2, 4, 8];
/// Swapped out.
const SIZES: [u64; 5] = [64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB, 8192 * MIB];
/// The size at which threads are compared, and the largest of a quick bench.
const MIDDLE: u64 = 256 * MIB;
const ACCESSES: u64 = 128 << 10;
const ACCESSES_QUICK: u64 = 16 << 10;
/// What a program takes besides its data: its own memory, its stacks, an engine's.
const BESIDES: u64 = 6 * MIB;

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Of the workload.
    pub threads: usize,
    /// Bytes that do not fit into the RAM uncompressed.
    pub swapped: u64,
}

impl Point {
    /// All that the workload touches.
    const fn data(self) -> u64 {
        self.swapped / 3 * 4
    }

    /// The limit under which so much is swapped out: of a cgroup that no pool is charged to, or with
    /// the pool in it.
    fn limit(self, row: Row, ratio: f64) -> u64 {
        let resident = self.data() - self.swapped + BESIDES;
        if row.is_kernel() { resident } else { resident + self.pool(ratio) }
    }

    /// Pools keep part of lz4's ratio.
    fn pool(self, ratio: f64) -> u64 {
        (self.swapped as f64 / (ratio * 0.92)) as u64
    }
}

/// Settings that differ in one thing.
#[derive(Clone, Debug, Serialize)]
struct Series {
    by: &'static str,
    points: Vec<Point>,
}

fn series(quick: bool) -> [Series; 2] {
    let swapped = if quick { SIZES[0] } else { MIDDLE };
    let threads = THREADS.into_iter().map(|threads| Point { threads, swapped });
    let sizes = SIZES.into_iter().filter(|&size| !quick || size <= MIDDLE);
    let sizes = sizes.map(|swapped| Point { threads: 1, swapped });
    [
        Series { by: "threads", points: threads.collect() },
        Series { by: "size", points: sizes.collect() },
    ]
}

/// The times of a row at a point.
#[derive(Clone, Debug, Serialize)]
struct Cell {
    row: Row,
    point: Point,
    phase: Phase,
    ns: Spread,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Scaling {
    conditions: Conditions,
    series: [Series; 2],
    cells: Vec<Cell>,
    /// Points that this machine cannot have, with the reason.
    skipped: Vec<String>,
    /// Points that failed.
    pub failed: Vec<String>,
}

/// A time of one round.
struct Time(Row, Point, Phase, f64);

/// Measures all points in turn, so many rounds of them; `None` if a signal asked to stop.
pub fn run(bench: &Bench<'_>, conditions: Conditions, rows: &[Row]) -> Option<Scaling> {
    let wanted = |row: &Row| rows.is_empty() || rows.contains(row);
    let series = series(conditions.quick);
    let mut points: Vec<Point> = series.iter().flat_map(|series| series.points.clone()).collect();
    points.sort_by_key(|point| (point.swapped, point.threads));
    points.dedup();
    let (mut times, mut skipped, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    let mut absent: Vec<(Row, Point)> = Vec::new();
    for round in 1..=conditions.rounds {
        for &point in &points {
            for row in ROWS.into_iter().filter(wanted) {
                if absent.contains(&(row, point)) {
                    continue;
                }
                let title = format!("{}, {}", row.title(), describe(point));
                match measure(bench, &conditions, row, point) {
                    Ok(found) => {
                        eprintln!("round {round}/{}: {title}: {}", conditions.rounds, say(&found));
                        times.extend(found);
                    }
                    Err(_) if bench.is_stopped() => return None,
                    Err(error) => {
                        absent.push((row, point));
                        let line = format!("{title}: {error:#}");
                        let unavailable =
                            error.downcast_ref().is_some_and(KernelError::is_unavailable);
                        if unavailable { &mut skipped } else { &mut failed }.push(line);
                    }
                }
            }
        }
    }
    Some(Scaling { conditions, cells: cells(&times), series, skipped, failed })
}

fn measure(
    bench: &Bench<'_>,
    conditions: &Conditions,
    row: Row,
    point: Point,
) -> anyhow::Result<Vec<Time>> {
    let ratio = bench.contents.ratio();
    let (limit, available) = (point.limit(row, ratio), super::kernel::available_memory()?);
    // A kernel row's pool is beside its limit.
    if point.limit(Row::Handoff, ratio) > available / 10 * 9 {
        let what = format!("{} MiB of free RAM for that", available / MIB);
        return Err(KernelError::TooLittle(what).into());
    }
    let bench = Bench {
        kernel: bench.kernel.clone(),
        program: bench.program.clone(),
        bytes: point.data(),
        phases: PHASES.to_vec(),
        accesses: if conditions.quick { ACCESSES_QUICK } else { ACCESSES },
        ram: limit,
        swap_dir: bench.swap_dir.clone(),
        scratch: None,
        kernel_source: None,
        stop: std::sync::Arc::clone(&bench.stop),
        ..*bench
    };
    let measured = bench.run(&Setting {
        row,
        // What suits random accesses.
        page_cluster: row.is_kernel().then_some(0),
        threads: point.threads,
        phases: PHASES.to_vec(),
        limit,
        sample_pss: false,
    })?;
    Ok(measured.phases.iter().map(|time| Time(row, point, time.phase, time.ns)).collect())
}

fn cells(times: &[Time]) -> Vec<Cell> {
    let mut keys: Vec<_> =
        times.iter().map(|Time(row, point, phase, _)| (*row, *point, *phase)).collect();
    keys.sort_by_key(|(row, point, phase)| (*phase, *row, point.swapped, point.threads));
    keys.dedup();
    let rounds = |key| {
        let same =
            times.iter().filter(move |Time(row, point, phase, _)| (*row, *point, *phase) == key);
        same.map(|Time(.., ns)| *ns).collect()
    };
    keys.into_iter()
        .filter_map(|key| {
            let (row, point, phase) = key;
            Some(Cell { row, point, phase, ns: Spread::of(rounds(key))? })
        })
        .collect()
}

fn say(times: &[Time]) -> String {
    let times = times.iter().map(|Time(.., phase, ns)| format!("{} {ns:.0} ns", phase.title()));
    times.collect::<Vec<_>>().join(", ")
}

fn describe(point: Point) -> String {
    format!("{}, {} threads", size(point.swapped), point.threads)
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes / MIB) }
}

impl Scaling {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("contents: {}\n", self.conditions.contents);
        for series in &self.series {
            let fixed = match (series.by, series.points.first()) {
                ("threads", Some(point)) => format!("{} swapped out", size(point.swapped)),
                _ => "1 thread".into(),
            };
            let _ = writeln!(
                text,
                "by {}, {fixed}, 3/4 of the data; ns per page or access, median of {} (× the first \
                 column's)",
                series.by, self.conditions.rounds
            );
            for phase in PHASES {
                self.write_phase(&mut text, series, phase);
            }
            text.push('\n');
        }
        for (what, lines) in [("skipped", &self.skipped), ("FAILED", &self.failed)] {
            for line in lines {
                let _ = writeln!(text, "{what}: {line}");
            }
        }
        text
    }

    fn write_phase(&self, text: &mut String, series: &Series, phase: Phase) {
        let _ = write!(text, "{:<18}", phase.title());
        for point in &series.points {
            let title =
                if series.by == "size" { size(point.swapped) } else { point.threads.to_string() };
            let _ = write!(text, " {title:>15}");
        }
        text.push('\n');
        for row in ROWS.into_iter().filter(|row| self.cells.iter().any(|cell| cell.row == *row)) {
            let find = |point: &Point| {
                let key = (row, *point, phase);
                self.cells.iter().find(|cell| (cell.row, cell.point, cell.phase) == key)
            };
            let first = series.points.iter().find_map(find);
            let _ = write!(text, "{:<18}", row.title());
            for cell in series.points.iter().map(find) {
                let shown = match (cell, first) {
                    (Some(cell), Some(first)) => {
                        let (ns, base) = (cell.ns.median, first.ns.median);
                        format!("{ns:.0} ({:.2}×)", ns / base)
                    }
                    _ => "–".into(),
                };
                let _ = write!(text, " {shown:>15}");
            }
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: Point = Point { threads: 1, swapped: 96 * MIB };

    #[test]
    fn three_quarters_are_swapped_out_whoever_pays_for_the_pool() {
        assert_eq!(POINT.data(), 128 * MIB);
        assert_eq!(POINT.limit(Row::ZramLz4, 2.4), 32 * MIB + BESIDES);
        let pool = POINT.limit(Row::Inline, 2.0 / 0.92) - POINT.limit(Row::ZramLz4, 2.4);
        assert!(pool.abs_diff(48 * MIB) <= 1, "{pool}");
    }

    #[test]
    fn one_thing_differs_in_a_series() {
        for quick in [false, true] {
            let [threads, sizes] = series(quick);
            assert!(threads.points.windows(2).all(|pair| pair[0].swapped == pair[1].swapped));
            assert!(sizes.points.iter().all(|point| point.threads == 1));
            assert!(sizes.points.windows(2).all(|pair| pair[0].swapped < pair[1].swapped));
        }
    }

    #[test]
    fn the_table_shows_the_ratio_to_the_first_column() {
        let [_, sizes] = series(true);
        let [small, large] = [sizes.points[0], sizes.points[1]];
        let read = |point, ns| Time(Row::Inline, point, Phase::RandomRead, ns);
        let times =
            [read(small, 100.0), read(large, 130.0), read(small, 300.0), read(large, 390.0)];
        let (skipped, failed) = (vec!["zram: none".into()], vec![]);
        let cells = cells(&times);
        assert_eq!(cells.len(), 2);
        let conditions = Conditions::default();
        let found = Scaling { conditions, series: series(true), cells, skipped, failed };
        let table = found.table();
        let line = table.lines().rfind(|line| line.contains("1.30×")).unwrap();
        assert!(line.contains("200 (1.00×)") && line.contains("260 (1.30×)"), "{line}");
        assert!(table.ends_with("skipped: zram: none\n"), "{table}");
    }
}
