//! The rows beside the physical floor.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::floor::Floor;
use super::super::rows::Row;
use super::{Report, Run, Spread, by_read_ahead};

/// What a row took of the CPUs, beside what the pages that it moved have to take.
#[derive(Clone, Debug, Serialize)]
pub struct RowFloor {
    /// The peer.
    pub row: Row,
    /// Of the workload.
    pub threads: usize,
    /// The read-ahead of a kernel row.
    pub page_cluster: Option<u8>,
    /// Least CPU time for each page that was moved, in ns.
    pub floor_ns: Spread,
    /// How many times that the row took, the workload's own work included.
    pub times_floor: Spread,
}

/// Of each read-ahead of a row.
pub fn row_floors(runs: &[Run], floor: Option<&Floor>, row: Row, threads: usize) -> Vec<RowFloor> {
    let of_setting = |(page_cluster, runs): (Option<u8>, Vec<&Run>)| {
        let pairs = runs.iter().filter(|run| run.only.is_none()).filter_map(|run| {
            let measured = &run.measurement;
            let (moved, out) = measured.moved_pages.zip(measured.pages_out)?;
            let floor_ns = floor?.of_row(row, moved, out)?;
            Some((floor_ns, measured.cpu.total_ns() as f64 / moved as f64 / floor_ns))
        });
        let (floors, times): (Vec<f64>, Vec<f64>) = pairs.unzip();
        let (floor_ns, times_floor) = (Spread::of(floors)?, Spread::of(times)?);
        Some(RowFloor { row, threads, page_cluster, floor_ns, times_floor })
    };
    by_read_ahead(runs, row, threads).into_iter().filter_map(of_setting).collect()
}

impl Report {
    /// Nothing if no row moved a page.
    pub(super) fn write_floors(&self, text: &mut String, threads: usize) {
        let mut rows = self.floors.iter().filter(|floor| floor.threads == threads).peekable();
        let (Some(floor), Some(_)) = (self.floor, rows.peek()) else { return };
        let _ = writeln!(
            text,
            "CPU ns per page moved beside the least it can take: {:.0} out, {:.0} in (lz4 and copies), {:.0} \
             copied only\n{:<18} {:>27} {:>27}",
            floor.out, floor.back, floor.copy, "", "floor", "times the floor"
        );
        for row in rows {
            let title = match row.page_cluster {
                Some(pages) => format!("{} ({pages})", row.row.title()),
                None => row.row.title(),
            };
            let Spread { median, min, max, .. } = &row.times_floor;
            let times = format!("{median:.2} ({min:.2}–{max:.2})");
            let _ = writeln!(text, "{title:<22} {:>23.0} {times:>27}", row.floor_ns.median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kernel::cgroup::CpuTime;
    use super::super::super::rows::Measurement;
    use super::super::Conditions;
    use super::*;

    fn run(row: Row, pages_out: Option<u64>) -> Run {
        let measurement = Measurement {
            cpu: CpuTime { user_ns: 600, system_ns: 400 },
            moved_pages: pages_out.map(|_| 4),
            pages_out,
            ..Measurement::default()
        };
        Run { row, page_cluster: None, threads: 1, only: None, measurement }
    }

    #[test]
    fn a_row_is_shown_beside_the_floor_of_what_it_moved() {
        let floor = Floor { out: 200.0, back: 100.0, copy: 10.0 };
        let runs = [run(Row::Handoff, Some(0)), run(Row::Plain, None)];
        let report = Report::new(Conditions::default(), &runs, &[], vec![], vec![]);
        let report = report.with_floor(&runs, Some(floor));
        assert_eq!(report.floors.len(), 1);
        assert_eq!(report.floors[0].floor_ns.rounds, [100.0]);
        assert_eq!(report.floors[0].times_floor.rounds, [2.5]);
        assert!(report.table().contains("2.50 (2.50–2.50)"), "{}", report.table());
    }
}
