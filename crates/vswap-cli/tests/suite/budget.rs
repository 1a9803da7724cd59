//! `--ram` holds, seen from outside.
//!
//! Every 10 ms the proportional share of all anonymous memory of the job (Pss_Anon) is read from
//! smaps_rollup: the program's, its children's, the pagers' and that of `vswap run` itself. That walk
//! is not of one moment and counts twice what moves during it, so the sums of the resident sets
//! right before and right after it bound it. Where nothing is shared, as in most of these tests, what
//! is compared with the budget is therefore the smaller of both, with what comes and goes between
//! the samples unseen. See [`Reading`](crate::support::processes::Reading::bytes).

use crate::support::{Job, Outcome, Vswap};

/// What the budget may be exceeded by: 5 % and 8 MiB.
fn allowance(budget: u64) -> u64 {
    budget / 20 + (8 << 20)
}

/// Requires that a watched job stayed within its budget.
pub fn assert_within(outcome: &Outcome, budget: u64) {
    assert_peak(outcome, budget, budget + allowance(budget));
}

/// Requires that a watched job with this budget never had more than `most` bytes resident.
pub fn assert_peak(outcome: &Outcome, budget: u64, most: u64) {
    let peak = outcome.peak.as_ref().expect("a watched job");
    let bytes = peak.reading.bytes();
    println!(
        "{}: peak {} KiB of {} KiB, {} samples",
        outcome.name,
        bytes >> 10,
        budget >> 10,
        peak.samples
    );
    assert!(peak.samples >= 5, "only {} samples of {}", peak.samples, outcome.name);
    assert!(
        bytes <= most,
        "{}: {} KiB were resident, the budget is {} KiB: {:?}",
        outcome.name,
        bytes >> 10,
        budget >> 10,
        peak.reading
    );
}

fn holds(job: &Job, vswap: &Vswap, budget: u64) {
    let paged = job.clone().watched().compare(vswap);
    paged.stats().assert_swapped();
    assert_within(&paged, budget);
}

/// D 512 MiB, r about 13, B 96 MiB.
#[test]
fn it_holds_while_memory_is_filled_at_full_speed() {
    holds(&Job::c("rush", &["touch", "512"]), &Vswap::ram("96M"), 96 << 20);
}

/// The same, by four threads at once.
#[test]
fn it_holds_while_threads_fill_memory_at_full_speed() {
    holds(&Job::c("rush", &["threads", "512"]), &Vswap::ram("96M"), 96 << 20);
}

/// Mappings of 256 MiB, twice the budget, that ask to be populated by the call that makes them.
#[test]
fn it_holds_when_mappings_are_populated() {
    holds(&Job::c("rush", &["populate", "256"]), &Vswap::ram("96M"), 96 << 20);
}

/// The same with a budget whose first half is left unregistered.
#[test]
fn it_holds_when_mappings_far_below_it_are_populated() {
    holds(&Job::c("rush", &["populate", "512"]), &Vswap::ram("256M"), 256 << 20);
}

/// Huge pages come in faster than anybody can look. D 768 MiB, r about 13, B 256 MiB.
#[test]
fn it_holds_while_huge_pages_are_touched() {
    holds(&Job::c("rush", &["huge", "768"]), &Vswap::ram("256M"), 256 << 20);
}

/// A child fills what its parent mapped and never touched. D 512 MiB, r about 13, B 256 MiB.
#[test]
fn it_holds_for_inherited_mappings() {
    holds(&Job::c("rush", &["inherited", "512"]), &Vswap::ram("256M"), 256 << 20);
}

/// What both sides of a fork have in memory is one copy, until it is evicted: each page leaves
/// before the next is copied. D 192 MiB, r about 13, B 256 MiB.
#[test]
fn it_holds_while_what_a_fork_shares_is_evicted() {
    holds(&Job::c("rush", &["shared", "192"]), &Vswap::ram("256M"), 256 << 20);
}

/// Memory that malloc gets by brk and mmap inside libc, where no symbol can be interposed.
#[test]
fn it_holds_while_malloc_is_rushed() {
    holds(&Job::c("rush", &["malloc", "512"]), &Vswap::ram("96M"), 96 << 20);
}

/// Many short-lived mappings: each is small, and together they exceed the budget.
#[test]
fn it_holds_for_many_small_mappings() {
    holds(&Job::c("rush", &["small", "256"]), &Vswap::ram("64M"), 64 << 20);
}

/// Four processes that share one budget. D 4 x 64 MiB, r about 13, B 64 MiB.
#[test]
fn it_holds_for_a_tree_of_processes() {
    holds(&Job::c("rush", &["processes", "64"]), &Vswap::ram("64M"), 64 << 20);
}

/// Two members that fill memory at the same time must not both take the same free part. D 2 x 256
/// MiB, r about 13, B 96 MiB.
#[test]
fn it_holds_for_two_busy_members() {
    let rush = crate::support::program("rush");
    let script = format!("{0} touch 256 & {0} touch 256 & wait", rush.display());
    holds(&Job::new("sh", &["-c", &script]), &Vswap::ram("96M"), 96 << 20);
}
