//! Trees of processes: what a fork makes common is right in all of them, and goes when all have freed
//! it.
//!
//! Programs that people have are rows of [`compat`](crate::compat): redis-server saving under load, a
//! parallel build, python multiprocessing, shells, PostgreSQL, debuggers.

use crate::support::{Job, Vswap, long};

mod cost;
mod shares;
mod swap_in;

/// D 48 MiB, r 13, B 24 MiB.
#[test]
fn a_thousand_children_in_all() {
    let children = if long() { "20000" } else { "1000" };
    storm(&["48", children, "32"], &Vswap::ram("24M"));
}

/// D 48 MiB, r 13, B 24 MiB, from four threads at once.
#[test]
fn a_thousand_children_of_threads() {
    let children = if long() { "20000" } else { "600" };
    storm(&["48", children, "24", "4"], &Vswap::ram("24M").swap("1G"));
}

fn storm(arguments: &[&str], vswap: &Vswap) {
    let limit = if long() { 600 } else { 120 };
    let paged = Job::c("storm", arguments).limit(limit).compare(vswap);
    let stats = paged.stats();
    stats.assert_swapped();
    let children = arguments[1].parse().expect("a number");
    assert!(stats.counter("forks") >= children, "{} forks", stats.counter("forks"));
}

/// A process of the model, its threads and its descendants, at the same time: D 16 MiB for each
/// process.
fn lineage(seed: u64, steps: &str) {
    let threads = (seed % 3 + 1).to_string();
    let (flags, vswap) = match seed % 5 {
        0 => ("tree", Vswap::ram("16M")),
        1 => ("tree", Vswap::ram("24M").chaos(seed)),
        2 => ("libc,function,trap,tree", Vswap::ram("16M").swap("256M")),
        // Under inline faults the kernel may not touch what is swapped out.
        3 => ("nosys,tree", Vswap::ram("16M").inline()),
        _ => ("tree", Vswap::ram("24M").swap("256M").option(["--zswap-max", "1M"]).chaos(seed)),
    };
    let seed = seed.to_string();
    let job = Job::c("differential", &[&seed, steps, "16", &threads, flags]);
    job.compare(&vswap).stats().assert_swapped();
}

/// At a fork, the mapping behind a private file's was neither paged nor left to the child: looked at as zeroed
/// data of an object it stays in memory, but when what follows it was taken over it was marked as
/// if it were part of that.
#[test]
fn zeroed_data_is_inherited_when_its_neighbour_is_taken_over() {
    let flags = "libc,function,trap,tree";
    let job = Job::c("differential", &["15", "1000", "16", "1", flags]);
    job.compare(&Vswap::ram("16M")).stats().assert_swapped();
}

#[test]
fn descendants_agree_with_their_models() {
    if long() {
        (100..200).for_each(|seed| lineage(seed, "3000"));
    } else {
        (0..5).for_each(|seed| lineage(seed, "500"));
    }
}
