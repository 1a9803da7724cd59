//! What the middle of the rounds does not show: how long the slowest requests to a server took, and how
//! far the rounds lie apart.

use std::fmt::Write as _;

use super::super::workload::Phase;
use super::{Cell, Report};

impl Report {
    /// What the clients of a server saw. The other phases' are in the JSON and HTML reports.
    pub(super) fn write_latencies(&self, text: &mut String, threads: usize) {
        let asked = |cell: &&Cell| cell.threads == threads && cell.phase == Phase::Redis;
        let cells: Vec<_> = self.cells.iter().filter(asked).collect();
        if cells.is_empty() {
            return;
        }
        let best = cells.iter().filter(|cell| cell.row.is_kernel());
        let best = best.filter_map(|cell| Some(cell.latency.as_ref()?.p99)).min();
        let _ = writeln!(
            text,
            "{:<18} {:>10} {:>10} {:>10} {:>10} {:>22}",
            "redis", "requests/s", "p50, µs", "p99, µs", "p99.9, µs", "p99 ÷ the kernel's best"
        );
        for cell in cells {
            let Some(latency) = &cell.latency else { continue };
            let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
            let ratio = best
                .map_or("–".into(), |best| format!("{:.2}", latency.p99 as f64 / best as f64));
            let _ = writeln!(
                text,
                "{:<18} {:>10.0} {:>10} {:>10} {:>10} {ratio:>22}",
                cell.row.title(),
                1e9 / cell.ns.median,
                us(latency.p50),
                us(latency.p99),
                us(latency.p99_9),
            );
        }
    }

    /// Mean and standard deviation of each cell, and its ratio in each round, if there are several.
    pub(super) fn write_rounds(&self, text: &mut String, threads: usize) {
        let several = |cell: &&Cell| cell.threads == threads && cell.ns.rounds.len() > 1;
        let cells: Vec<_> = self.cells.iter().filter(several).collect();
        if !cells.is_empty() {
            text.push_str("mean ± standard deviation; ratio of each round\n");
        }
        for cell in cells {
            let unit = cell.phase.unit().1;
            let (mean, deviation) = (cell.ns.mean / unit, cell.ns.deviation / unit);
            let ratios = cell.round_ratios.iter().map(|ratio| format!("{ratio:.2}"));
            let _ = writeln!(
                text,
                "{:<18} {:<17} {:>20}  {}",
                cell.row.title(),
                cell.phase.heading(),
                format!("{mean:.0} ± {deviation:.0}"),
                ratios.collect::<Vec<_>>().join(" ")
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kernel::cgroup::CpuTime;
    use super::super::super::rows::{Measurement, Row};
    use super::super::super::workload::{Latencies, PhaseTime};
    use super::super::{Conditions, Run};
    use super::*;

    fn run(row: Row, phase: Phase, ns: f64, slowest: u64) -> Run {
        let mut latencies = Latencies::default();
        (0..98).for_each(|_| latencies.record(10_000));
        (0..2).for_each(|_| latencies.record(slowest));
        let measurement = Measurement {
            phases: vec![PhaseTime { phase, ns, latencies: Some(latencies) }],
            accesses: 1,
            cpu: CpuTime::default(),
            ..Measurement::default()
        };
        Run { row, page_cluster: None, threads: 1, only: None, measurement }
    }

    fn table(runs: &[Run]) -> String {
        Report::new(Conditions::default(), runs, &[], vec![], vec![]).table()
    }

    #[test]
    fn a_servers_tail_is_compared_with_the_kernels() {
        let table = table(&[
            run(Row::ZramLz4, Phase::Redis, 20_000.0, 65_535),
            run(Row::Handoff, Phase::Redis, 10_000.0, 32_767),
        ]);
        let line = table.lines().rfind(|line| line.ends_with("0.50")).unwrap();
        assert!(line.starts_with("vswap handoff") && line.contains(" 100000 "), "{table}");
    }

    #[test]
    fn the_tail_of_a_pattern_is_not_in_the_table() {
        assert!(!table(&[run(Row::Handoff, Phase::RandomRead, 9.0, 9)]).contains("p99"));
    }

    #[test]
    fn the_ratio_of_each_round_is_shown() {
        let table = table(&[
            run(Row::ZramLz4, Phase::Fill, 20.0, 9),
            run(Row::Handoff, Phase::Fill, 10.0, 9),
            run(Row::ZramLz4, Phase::Fill, 40.0, 9),
            run(Row::Handoff, Phase::Fill, 8.0, 9),
        ]);
        assert!(table.contains("9 ± 1  2.00 5.00\n"), "{table}");
    }
}
