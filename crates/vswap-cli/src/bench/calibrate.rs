//! Giving every peer the same RAM, all told.
//!
//! A kernel row's RAM is its cgroup's charge plus the pool of compressed pages that the charge
//! leaves out: all of zram's, and zswap's in cgroups of version 1. So its limit is lowered by what
//! the pool takes. But a lower limit makes the pool larger, so the limit is found by unmeasured
//! runs. So is the budget of a vswap row that swaps to zram. Any other vswap row's RAM is all that is
//! charged to its cgroup, and it starts with that much as its budget. Its unmeasured run also samples the anonymous memory of its processes: a row that
//! breaks its budget is a failure, not a fast row.

use anyhow::{Context as _, ensure};

use super::rows::{Bench, Row, Setting};
use super::workload::Phase;

/// Runs that look for a limit before the nearest one is taken.
const TRIES: usize = 5;
/// With less than this no program runs, and what would be measured is its thrashing.
const LEAST_LIMIT: u64 = 4 << 20;

/// What a row gets so that it takes the bench's RAM in all.
#[derive(Clone, Copy, Debug)]
pub struct Calibration {
    /// The cgroup's limit, or `--ram`.
    pub limit: u64,
    /// The largest pool outside that limit.
    pub uncharged_pool: u64,
    /// Most RAM taken, all told, if it could be seen.
    pub peak: Option<u64>,
    /// Most anonymous memory of the process tree.
    pub peak_pss: Option<u64>,
}

/// Finds the row's limit for these phases and `ram` bytes, all told.
///
/// # Errors
/// Those of [`Bench::run`]; or the row breaks its budget, or takes more at any limit.
pub fn calibrate(
    bench: &Bench<'_>,
    row: Row,
    phases: &[Phase],
    ram: u64,
) -> anyhow::Result<Calibration> {
    let searched = row.is_kernel() || row.is_on_zram();
    let mut limit = if searched { first_guess(bench, row, ram) } else { ram };
    let mut best: Option<Calibration> = None;
    for _ in 0..TRIES {
        let found = try_limit(bench, row, phases, limit)?;
        if let Some(pss) = found.peak_pss {
            let (taken, budget) = (pss >> 20, limit >> 20);
            ensure!(pss <= tolerated(limit), "it takes {taken} MiB with a budget of {budget} MiB");
        }
        let Some(peak) = found.peak else { return Ok(found) };
        if peak <= ram && best.is_none_or(|best| best.limit < limit) {
            best = Some(found);
        }
        // A row whose limit is searched for gets all that it can use; the others have said themselves what
        // they need.
        if peak <= ram && (!searched || limit == ram || peak >= ram - ram / 50) {
            break;
        }
        limit =
            if searched { next_limit(limit, peak, ram) } else { limit.saturating_sub(peak - ram) };
        if limit < LEAST_LIMIT {
            break;
        }
    }
    best.context("at no limit does it take so little")
}

fn try_limit(
    bench: &Bench<'_>,
    row: Row,
    phases: &[Phase],
    limit: u64,
) -> anyhow::Result<Calibration> {
    let measured = bench.run(&Setting {
        row,
        // Read-ahead fills memory with pages that nobody may have asked for, so this is the
        // larger of the two.
        page_cluster: row.is_kernel().then_some(3),
        threads: 1,
        phases: phases.to_vec(),
        limit,
        sample_pss: !row.is_kernel(),
    })?;
    Ok(Calibration {
        limit,
        uncharged_pool: measured.uncharged_pool,
        peak: measured.peak,
        peak_pss: measured.peak_pss,
    })
}

/// What `vswap run` promises of its `--ram`.
fn tolerated(budget: u64) -> u64 {
    budget + budget / 20 + (8 << 20)
}

fn first_guess(bench: &Bench<'_>, row: Row, ram: u64) -> u64 {
    match row {
        // There is no pool.
        Row::SwapFile => ram,
        // The pool is no larger than its own limit.
        _ if bench.swap_file => ram - ram / 2,
        _ => all_compressed(bench.bytes, ram, bench.contents.ratio()),
    }
}

/// With a pool that shrinks pages to 1/r, D bytes fit in D/r + R(1 − 1/r) with R resident. Pools
/// keep part of lz4's ratio.
fn all_compressed(data: u64, ram: u64, ratio: f64) -> u64 {
    let ratio = (ratio * 0.92).max(1.1);
    let resident = (ram as f64 - data as f64 / ratio) / (1.0 - 1.0 / ratio);
    (resident as u64).clamp(4 * LEAST_LIMIT, ram)
}

/// A byte more of limit is a byte more resident, but takes 1/r off the pool; the aim is a little
/// below the RAM, so that the next run does not miss by a few pages.
fn next_limit(limit: u64, peak: u64, ram: u64) -> u64 {
    const GAIN: f64 = 1.0 / (1.0 - 1.0 / 2.2);
    let aim = ram - ram / 100;
    let next = limit as f64 + (aim as f64 - peak as f64) * GAIN;
    // The cast takes a negative number for 0.
    (next as u64).min(ram) & !4095
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_limit_closes_in_on_the_ram() {
        let (data, ram) = (512 * MIB, 256 * MIB);
        for ratio in [2.1, 2.2, 2.6, 3.0] {
            let taken = |limit: u64| limit + ((data - limit) as f64 / ratio) as u64;
            let mut limit = all_compressed(data, ram, 2.4);
            for _ in 0..TRIES {
                limit = next_limit(limit, taken(limit), ram);
            }
            let taken = taken(limit);
            assert!((ram - ram / 50..=ram).contains(&taken), "ratio {ratio}: {} MiB", taken / MIB);
        }
    }

    #[test]
    fn a_charged_pool_gets_the_whole_ram_at_once() {
        assert_eq!(next_limit(256 * MIB, 200 * MIB, 256 * MIB), 256 * MIB);
    }
}
