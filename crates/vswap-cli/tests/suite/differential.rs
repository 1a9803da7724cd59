//! Random mapping operations against a model, with many seeds.
//!
//! A failure names the program's seed and step; the same arguments repeat the same operations.

use std::time::{Duration, Instant, SystemTime};

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

/// After its forks this seed's child holds, in memory that is read-only just now, more than its share:
/// each of its faults took the harder measures again.
#[test]
fn a_member_over_its_share_gets_on() {
    let job = Job::c("differential", &["1795272554838", "1500", "64", "1"]);
    job.limit(60).compare(&Vswap::ram("16M")).stats().assert_swapped();
}

/// Both engines, with eviction on demand and at any time, one thread and four, seed after seed, for
/// a fixed time. `VSWAP_TEST_LONG` says for how many seconds; with 1 it is ten minutes, from a seed
/// that nobody has tried. Whatever fails names the command that repeats it.
#[test]
fn soak() {
    let seconds = std::env::var("VSWAP_TEST_LONG").ok().and_then(|text| text.parse().ok());
    let (limit, first) = match seconds {
        None | Some(0) => (15, 1000),
        Some(1) => (600, unused_seed()),
        Some(seconds) => (seconds, unused_seed()),
    };
    let end = Instant::now() + Duration::from_secs(limit);
    let mut runs = 0;
    for seed in (first..).take_while(|_| Instant::now() < end) {
        let threads = if seed % 2 == 0 { "1" } else { "4" };
        let seed_word = seed.to_string();
        for flags in ["", "nosys"] {
            let job = Job::c("differential", &[&seed_word, "1500", "64", threads, flags]);
            let plain = job.plain();
            for vswap in [Vswap::ram("16M"), Vswap::ram("24M").chaos(seed)] {
                // Under inline faults the kernel may not touch what is swapped out.
                let vswap = if flags == "nosys" { vswap.inline() } else { vswap };
                job.compare_with(&plain, &vswap).stats().assert_swapped();
                runs += 1;
            }
        }
    }
    println!("soak: {runs} runs from seed {first} on");
    assert!(runs > 0);
}

fn unused_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
