//! Our own memory programs: each plain, with a budget of a quarter of its data, and in chaos mode.
//!
//! Their data compresses about 13:1 (see `vswap_test.h`), so a quarter of it holds all of it:
//! D/r + B(1 - 1/r) is below B for D up to 13 times B.

use crate::support::{Job, Vswap, long};

fn chaos_seeds() -> std::ops::Range<u64> {
    if long() { 1..21 } else { 1..4 }
}

/// A quarter of the data, then chaos mode with the same budget.
fn quarter_and_chaos(job: &Job, quarter: &str) {
    let plain = job.plain();
    job.compare_with(&plain, &Vswap::ram(quarter)).stats().assert_swapped();
    for seed in chaos_seeds() {
        println!("chaos seed {seed}");
        job.compare_with(&plain, &Vswap::ram(quarter).chaos(seed)).stats().assert_swapped();
    }
}

#[test]
fn filled_memory_keeps_its_content() {
    quarter_and_chaos(&Job::c("fill", &["96", "1", "2"]), "24M");
}

/// Pages that are only read keep their entries, and one changed byte is noticed.
#[test]
fn pages_that_leave_as_they_came_are_not_stored_again() {
    let handoff = [Vswap::ram("24M"), Vswap::ram("24M").chaos(1)];
    for (arguments, runs) in
        [(&["96"][..], handoff.clone()), (&["96", "6", "own"], handoff.map(Vswap::inline))]
    {
        let job = Job::c("reread", arguments);
        let plain = job.plain();
        for vswap in runs {
            let paged = job.compare_with(&plain, &vswap);
            paged.stats().assert_swapped();
            for counter in ["swap_cache_clean", "swap_cache_stale"] {
                assert!(paged.stats().counter(counter) > 0, "{counter} is 0");
            }
        }
        // Without copies each page is stored again.
        let paged = job.compare_with(&plain, &Vswap::ram("24M").option(["--swap-cache", "off"]));
        assert_eq!(paged.stats().counter("swap_cache_clean"), 0);
        assert_eq!(paged.stats().peak("swapcached_bytes"), 0);
    }
}

/// D 96 MiB, r 1, B 24 MiB: all but the budget has to go to the file.
#[test]
fn memory_that_does_not_compress_goes_to_the_swap_file() {
    let paged =
        Job::c("fill", &["96", "2", "1", "random"]).compare(&Vswap::ram("24M").swap("256M"));
    paged.stats().assert_used_the_swap_file();
}

/// D 64 MiB, four times over from the end; a fault for each page would be 65 536 of them.
#[test]
fn memory_that_is_used_from_its_end_comes_back_in_windows() {
    let job = Job::c("descend", &["64"]);
    let plain = job.plain();
    for vswap in [Vswap::ram("16M"), Vswap::ram("16M").inline()] {
        let paged = job.compare_with(&plain, &vswap);
        paged.stats().assert_swapped();
        let faults = paged.stats().counter("pgfault");
        assert!(faults < 8000, "{faults} faults");
    }
}

#[test]
fn every_mapping_change_keeps_its_promise() {
    quarter_and_chaos(&Job::c("remap", &["80"]), "24M");
}

#[test]
fn the_end_of_the_heap_moves_down_and_up() {
    quarter_and_chaos(&Job::c("brk", &["96"]), "24M");
}

#[test]
fn malloc_and_calloc_keep_their_promises() {
    quarter_and_chaos(&Job::c("heap", &["96", "20000"]), "24M");
}

#[test]
fn malloc_keeps_its_promises_in_threads() {
    quarter_and_chaos(&Job::c("heap", &["96", "12000", "4"]), "24M");
}

#[test]
fn threads_verify_in_chaos() {
    quarter_and_chaos(&Job::c("threads", &["96", "4", "1", "2"]), "24M");
}

/// Mappings come and go in threads, so that an address is mapped again by one thread while events
/// about its last mapping are still under way for another.
#[test]
fn mappings_come_and_go_in_threads() {
    let rounds = if long() { "2000" } else { "250" };
    quarter_and_chaos(&Job::c("churn", &["4", rounds, "96"]), "24M");
}

/// D 40 MiB, and as much again for each of up to three children at one time; r about 13, B 32 MiB.
#[test]
fn every_way_of_making_a_process() {
    quarter_and_chaos(&Job::c("forks", &["40"]), "32M");
}

/// Everything that can be evicted is, the heap's own bookkeeping and the thread library's included,
/// and then threads are made and joined.
#[test]
fn threads_end_with_everything_evicted() {
    quarter_and_chaos(&Job::c("join", &["96"]), "24M");
}

/// Memory that the kernel has merged with the zeroed data of the program, of libc, of the engine.
#[test]
fn mappings_behind_the_data_of_objects_are_paged() {
    let job = Job::c("neighbours", &[]);
    let plain = job.plain();
    job.compare_with(&plain, &Vswap::ram("32M"));
    job.compare_with(&plain, &Vswap::ram("32M").chaos(1));
}

/// Threads that began before paging did, taken over from another thread than the first.
#[test]
fn control_blocks_stay_whoever_takes_over() {
    quarter_and_chaos(&Job::c("tcb", &["96"]), "24M");
}

/// What is brought back for good is brought back whole, also while events are pending for which the
/// kernel refuses to fill pages.
#[test]
fn memory_that_stops_being_paged_keeps_its_content() {
    let job = Job::c("exclude", &["100"]);
    let plain = job.plain();
    job.compare_with(&plain, &Vswap::ram("32M"));
    job.compare_with(&plain, &Vswap::ram("32M").chaos(1));
}
