//! What it is worth to keep the compressed copy of a page that was only read: on against off.

use super::super::rows::{Bench, Row};
use super::super::session::{Session, Subject};
use super::super::workload::Phase;
use super::super::workload::stepped::Step;
use super::{Figures, Judged, Measure};

/// Data for each byte of RAM.
const TIMES_RAM: [f64; 3] = [1.2, 2.0, 4.0];

const PHASES: [Phase; 3] = [Phase::OrderedRead, Phase::RandomRead, Phase::ZipfRead];

/// One round.
pub fn measure(bench: &Bench<'_>, figures: &mut Figures) {
    for row in [Row::Handoff, Row::Inline] {
        for times in TIMES_RAM {
            let title = format!("{}, {times} × RAM", row.title());
            figures.attempt(bench, &title, |figures| {
                let off = run(bench, row, times, false)?;
                let on = run(bench, row, times, true)?;
                for ((phase, on), off) in PHASES.into_iter().zip(on).zip(off) {
                    let measure = Measure {
                        name: format!("{}, ns, {title}", phase.title()),
                        peer: Some("without kept copies"),
                        judged: Judged::TimesBelowPeer,
                        target: None,
                    };
                    figures.add(measure, on, Some(off));
                }
                Ok(())
            });
        }
    }
}

/// The time of a page or access in each phase. All are run once before, so that what can be kept is.
fn run(bench: &Bench<'_>, row: Row, times: f64, keeps: bool) -> anyhow::Result<Vec<f64>> {
    let bytes = (bench.ram as f64 * times) as u64;
    let mut options = Vec::new();
    if !bench.contents.fits(bytes, bench.ram) {
        options.extend(["--swap".into(), bench.swap_dir.clone().into()]);
    }
    if !keeps {
        options.extend(["--swap-cache".into(), "off".into()]);
    }
    let subject = Subject {
        row,
        ram: bench.ram,
        options,
        bytes,
        contents: bench.contents,
        accesses: bench.accesses,
    };
    let mut session = Session::start(bench, &subject)?;
    session.step(Step::Phase(Phase::Fill))?;
    let mut times = Vec::new();
    for phase in PHASES {
        session.step(Step::Phase(phase))?;
        times.push(session.step(Step::Phase(phase))?.ns_per_access());
    }
    session.finish()?;
    Ok(times)
}
