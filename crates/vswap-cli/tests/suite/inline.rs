//! The inline engine: faults resolved in the faulting thread, for programs that let the kernel touch
//! no paged memory and leave SIGBUS alone.

use std::os::unix::process::ExitStatusExt;

use crate::support::{Job, Vswap};

fn holds(job: &Job, vswap: &Vswap) {
    job.compare(&vswap.clone().inline()).stats().assert_swapped();
}

/// D 96 MiB, r about 13, B 24 MiB.
#[test]
fn filled_memory_keeps_its_content() {
    holds(&Job::c("fill", &["96", "1", "2"]), &Vswap::ram("24M"));
}

/// D 96 MiB, r 1, B 24 MiB and a swap file.
#[test]
fn the_swap_file_serves_inline_faults() {
    let job = Job::c("fill", &["96", "1", "1", "random"]);
    let paged = job.compare(&Vswap::ram("24M").swap("256M").inline());
    paged.stats().assert_used_the_swap_file();
}

/// D 96 MiB, r about 13, B 24 MiB.
#[test]
fn threads_fault_side_by_side() {
    holds(&Job::c("threads", &["96", "4", "1"]), &Vswap::ram("24M"));
    holds(&Job::c("threads", &["96", "4", "1"]), &Vswap::ram("24M").chaos(1));
}

/// The kernel writes a thread's rseq area where no handler can run: with it evicted, the thread died
/// of a SIGSEGV without an address.
#[test]
fn control_blocks_stay_whoever_takes_over() {
    holds(&Job::c("tcb", &["96"]), &Vswap::ram("24M"));
    holds(&Job::c("tcb", &["96"]), &Vswap::ram("24M").chaos(1));
}

#[test]
fn every_mapping_change_keeps_its_promise() {
    holds(&Job::c("remap", &["80", "1", "nosys"]), &Vswap::ram("24M"));
}

#[test]
fn random_operations_agree_with_the_model() {
    for (seed, threads) in [("1", "1"), ("2", "1"), ("3", "2")] {
        let job = Job::c("differential", &[seed, "2000", "64", threads, "nosys"]);
        holds(&job, &Vswap::ram("24M"));
        holds(&job, &Vswap::ram("24M").chaos(1));
    }
}

/// A program that handles or blocks SIGBUS, before paging begins or later, goes on doing so.
#[test]
fn a_program_with_its_own_sigbus_keeps_it() {
    for how in ["early", "late", "once", "block", "suspend", "spawn"] {
        let job = Job::c("sigbus", &[how, "48"]);
        holds(&job, &Vswap::ram("24M"));
        // The default engine has no use for that signal.
        job.compare(&Vswap::ram("24M")).stats().assert_swapped();
    }
}

/// One that somebody sends is no fault.
#[test]
fn a_sent_bus_error_kills() {
    let job = Job::c("sigbus", &["sent", "48"]);
    let (plain, paged) = (job.plain(), job.under(&Vswap::ram("24M").inline()));
    assert_eq!(plain.status.signal(), Some(libc::SIGBUS), "{}", plain.describe());
    paged.assert_same(&plain);
}

/// A bus error of the program's own making still kills it.
#[test]
fn a_real_bus_error_is_the_programs_own() {
    let paged = Job::c("hold", &["die_by_bus_error"]).under(&Vswap::ram("24M").inline());
    assert_eq!(paged.status.signal(), Some(libc::SIGBUS), "{}", paged.describe());
}

/// A thread cannot resolve its faults without the descriptor. It ends, with a line, and does not
/// fault for ever.
#[test]
fn closing_every_descriptor_ends_the_program_with_one_line() {
    let paged = Job::c("hold", &["close_everything"]).limit(20).under(&Vswap::ram("24M").inline());
    assert_eq!(paged.status.signal(), Some(libc::SIGKILL), "{}", paged.describe());
    let lines: Vec<_> = paged.stderr.lines().collect();
    let &[line] = lines.as_slice() else { panic!("not one line: {}", paged.describe()) };
    assert!(line.starts_with("vswap: ") && line.contains("closed"), "{line}");
}
