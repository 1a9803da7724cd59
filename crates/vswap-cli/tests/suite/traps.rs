//! Mapping calls that the program makes by traps of its own, past libc and so past every hook: content is
//! right, nothing hangs or dies, and the budget holds a moment later.
//!
//! Each program makes all its calls so, and then mixes them with hooked ones, on demand and in chaos
//! mode. What takes an unloaded machine a second or two gets a minute.

use crate::budget::assert_peak;
use crate::support::{Job, Outcome, Vswap, own_machine};

const SECONDS: u64 = 60;

/// What a program that maps and fills by traps may exceed its budget by, beyond what others may: what it
/// fills between two looks of the watcher, 10 ms apart if it gets a CPU then, and until reclaim has
/// caught up.
const UNSEEN: u64 = 48 << 20;

/// Both engines, evicting on demand and at any time. D 64 to 96 MiB, r about 13, B 24 MiB.
fn run(name: &str, arguments: &[&str]) -> Vec<Outcome> {
    let job = Job::c(name, arguments).limit(SECONDS);
    let plain = job.plain();
    let engines = [Vswap::ram("24M"), Vswap::ram("24M").inline()];
    let runs = engines.into_iter().flat_map(|vswap| [vswap.clone(), vswap.chaos(1)]);
    runs.map(|vswap| job.compare_with(&plain, &vswap)).collect()
}

fn hold(name: &str, arguments: &[&str]) {
    for paged in run(name, arguments) {
        paged.stats().assert_swapped();
    }
}

#[test]
fn every_mapping_change_keeps_its_promise() {
    hold("remap", &["80", "1", "nosys,trap"]);
    hold("remap", &["80", "1", "nosys,libc,trap"]);
}

/// The same where the kernel touches paged memory too.
#[test]
fn every_mapping_change_and_system_calls() {
    let job = Job::c("remap", &["80", "1", "libc,trap"]).limit(SECONDS);
    job.compare(&Vswap::ram("24M")).stats().assert_swapped();
    let job = Job::c("differential", &["5", "2000", "64", "1", "libc,trap"]).limit(SECONDS);
    job.compare(&Vswap::ram("24M")).stats().assert_swapped();
}

/// A mapping that grew in place by a trap died of SIGBUS under inline faults; one that moved with
/// pages in staging ended the program; one that nobody looked for did not fit.
#[test]
fn random_operations_agree_with_the_model() {
    for (seed, threads) in [("1", "1"), ("2", "1"), ("3", "2")] {
        // By traps alone it can be done in a fifth of a second, before the watcher gets a CPU.
        run("differential", &[seed, "2000", "64", threads, "nosys,trap"]);
        hold("differential", &[seed, "2000", "64", threads, "nosys,libc,trap"]);
    }
}

/// A hook waited for ever for the event of memory that was registered and not known: a trap had mapped a
/// file in front of it, so that it looked like zeroed data of an object.
#[test]
fn hooks_and_traps_in_threads_agree_with_their_models() {
    for seed in ["2", "3"] {
        let flags = "nosys,function,trap";
        let job = Job::c("differential", &[seed, "1500", "64", "4", flags]).limit(SECONDS);
        let plain = job.plain();
        for vswap in [Vswap::ram("16M"), Vswap::ram("16M").inline()] {
            job.compare_with(&plain, &vswap).stats().assert_swapped();
        }
    }
}

/// What one thread unmaps another maps, with the event about it still open.
#[test]
fn mappings_come_and_go_in_threads() {
    hold("churn", &["4", "250", "96", "1", "trap"]);
    hold("churn", &["4", "250", "96", "1", "libc,function,trap"]);
}

#[test]
fn the_end_of_the_heap_moves_down_and_up() {
    hold("brk", &["96", "1", "trap"]);
    hold("brk", &["96", "1", "libc,trap"]);
}

/// One thread, whose only call that a hook sees comes after an eighth of its memory. D 512 MiB, r about
/// 13, B 96 MiB.
#[test]
fn the_budget_holds_a_moment_later() {
    const BUDGET: u64 = 96 << 20;
    let _machine = own_machine();
    let job = Job::c("rush", &["traps", "512"]).limit(SECONDS).watched().in_callers_share();
    for vswap in [Vswap::ram("96M"), Vswap::ram("96M").inline()] {
        let paged = job.compare(&vswap);
        paged.stats().assert_swapped();
        assert_peak(&paged, BUDGET, BUDGET + UNSEEN);
    }
}
