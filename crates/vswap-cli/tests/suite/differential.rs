//! Random mapping operations against a model, with many seeds.
//!
//! A failure names the program's seed and step; the same arguments repeat the same operations.

use crate::support::{Job, Vswap, long};

fn run(steps: u32, mib: u32, threads: u32, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let words = [seed.to_string(), steps.to_string(), mib.to_string(), threads.to_string()];
        let job = Job::c("differential", &words.each_ref().map(String::as_str));
        let plain = job.plain();
        // Eviction because the budget demands it, and eviction at any time.
        for vswap in [Vswap::ram("16M"), Vswap::ram("24M").chaos(seed)] {
            job.compare_with(&plain, &vswap).stats().assert_swapped();
        }
    }
}

#[test]
fn one_thread_agrees_with_the_model() {
    if long() {
        run(40_000, 64, 1, 100..130);
    } else {
        run(3_000, 64, 1, 1..4);
    }
}

#[test]
fn threads_agree_with_their_models() {
    if long() {
        run(20_000, 64, 4, 200..230);
    } else {
        run(2_000, 64, 4, 11..14);
    }
}
