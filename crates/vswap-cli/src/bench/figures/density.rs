//! The pool's memory: what part of it is compressed data, what keeping it so costs, and what each swapped page
//! takes beside it.

use super::super::contents::PAGE_BYTES;
use super::super::rows::{Bench, Row};
use super::super::session::{Session, Status, Subject};
use super::super::workload::Phase;
use super::super::workload::stepped::Step;
use super::{Figures, Judged, Measure, Target};

/// Times that the memory is rewritten, or allocated and freed, in one round.
const CHURNED: u64 = 2;

/// One round.
pub fn measure(bench: &Bench<'_>, figures: &mut Figures) {
    for row in [Row::Handoff, Row::Inline] {
        figures.attempt(bench, &row.title(), |figures| measure_row(bench, row, figures));
    }
}

fn measure_row(bench: &Bench<'_>, row: Row, figures: &mut Figures) -> anyhow::Result<()> {
    let subject = Subject {
        row,
        ram: bench.ram,
        options: Vec::new(),
        bytes: bench.bytes,
        contents: bench.contents,
        accesses: CHURNED * bench.bytes / PAGE_BYTES as u64,
    };
    let title = |what: &str| format!("{what}, {}", row.title());
    let mut session = Session::start(bench, &subject)?;
    session.step(Step::Phase(Phase::Fill))?;
    let filled = session.status()?;
    add_density(figures, title("payload / pool memory after a fill"), 0.95, &filled)?;
    let pages = filled.now("swapped_bytes")? / PAGE_BYTES as u64;
    let metadata = filled.now("metadata_bytes")? as f64 / pages.max(1) as f64;
    figures.add(
        value(title("metadata, bytes per swapped page"), Some(Target::AtMost(16.0))),
        metadata,
        None,
    );
    for (phase, what) in [(Phase::RandomWrite, "rewriting"), (Phase::Churn, "malloc churn")] {
        let before = session.status()?.counter("pool_compact_ns")?;
        let done = session.step(Step::Phase(phase))?;
        let churned = session.status()?;
        let name = format!("payload / pool memory after {what}");
        add_density(figures, title(&name), 0.9, &churned)?;
        let ns = churned.counter("pool_compact_ns")? - before;
        let name = format!("cleaner's CPU, % of {what}");
        figures.add(value(title(&name), None), 100.0 * ns as f64 / done.ns as f64, None);
    }
    session.finish()
}

fn add_density(
    figures: &mut Figures,
    name: String,
    least: f64,
    status: &Status,
) -> anyhow::Result<()> {
    let density = status.now("payload_bytes")? as f64 / status.now("pool_bytes")?.max(1) as f64;
    figures.add(value(name, Some(Target::AtLeast(least))), density, None);
    Ok(())
}

fn value(name: String, target: Option<Target>) -> Measure {
    Measure { name, peer: None, judged: Judged::Value, target }
}
