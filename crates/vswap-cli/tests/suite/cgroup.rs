//! Hard memory limits, and data that does not fit.
//!
//! The cgroup has no kernel swap, so a plain run beyond its limit meets the OOM killer.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use crate::support::cgroup::Cgroup;
use crate::support::{Job, Vswap, skipped};

fn limited_to(mib: u64, test: &str) -> Option<Cgroup> {
    Cgroup::with_limit(mib << 20).map_err(|reason| skipped(test, &reason)).ok()
}

/// D 256 MiB, r about 13, B what `auto` makes of a limit of 128 MiB.
#[test]
fn a_limit_that_kills_the_plain_run_is_enough_under_vswap() {
    let Some(cgroup) = limited_to(128, "a_limit_that_kills_the_plain_run") else { return };
    let unlimited = Job::c("fill", &["256", "1", "1"]).plain();
    let job = Job::c("fill", &["256", "1", "1"]).in_cgroup(&cgroup);

    let plain = job.plain();
    assert_eq!(plain.status.signal(), Some(libc::SIGKILL), "{}", plain.describe());
    let killed = cgroup.oom_kills();
    assert!(killed > 0, "the plain run was not killed for its memory");

    let paged = job.under(&Vswap::ram("auto"));
    paged.assert_same(&unlimited);
    paged.report(&unlimited, "auto of 128M");
    paged.stats().assert_swapped();
    assert_eq!(cgroup.oom_kills(), killed, "the OOM killer came for the paged run");
}

/// The same for a program that populates its mappings: the kernel charges them inside one system
/// call, where nothing can be evicted meanwhile.
#[test]
fn populated_mappings_do_not_wake_the_oom_killer() {
    let Some(cgroup) = limited_to(128, "populated_mappings") else { return };
    let unlimited = Job::c("rush", &["populate", "256"]).plain();
    let paged = Job::c("rush", &["populate", "256"]).in_cgroup(&cgroup).under(&Vswap::ram("auto"));
    paged.assert_same(&unlimited);
    assert_eq!(cgroup.oom_kills(), 0);
}

const NO_SWAP_FILE: &str = "there is no swap file; raise --ram or add --swap PATH";

/// Ends with 137 and one line on stderr that says what filled, by how much, and what helps.
fn assert_ended_for_lack_of_room(job: &Job, vswap: &Vswap, reason_and_option: &str) {
    let paged = job.clone().limit(45).under(vswap);
    assert_eq!(paged.status.code(), Some(137), "{}", paged.describe());
    let lines: Vec<_> = paged.stderr.lines().collect();
    let &[line] = lines.as_slice() else { panic!("not one line: {}", paged.describe()) };
    assert!(line.starts_with("vswap: "), "{line}");
    assert!(line.contains(reason_and_option), "what filled, and which option helps? {line}");
    let says_an_amount = line
        .split_whitespace()
        .any(|word| word.starts_with(|c: char| c.is_ascii_digit()) || word == "MiB");
    assert!(says_an_amount, "by how much? {line}");
    // It throttles before it kills, but a program that cannot be helped ends soon.
    assert!(paged.elapsed < Duration::from_secs(40), "{:?}", paged.elapsed);
}

/// D 256 MiB, r 1, B what `auto` makes of a limit of 96 MiB.
#[test]
fn random_data_in_a_cgroup_ends_with_one_line_and_no_oom_kill() {
    let Some(cgroup) = limited_to(96, "random_data_in_a_cgroup") else { return };
    let job = Job::c("fill", &["256", "1", "1", "random"]).in_cgroup(&cgroup);
    assert_ended_for_lack_of_room(&job, &Vswap::ram("auto"), NO_SWAP_FILE);
    assert_eq!(cgroup.oom_kills(), 0, "the OOM killer was faster");
}

/// D 128 MiB, r 1, B 32 MiB, and no cgroup: it is the budget that is full.
#[test]
fn random_data_beyond_the_budget_ends_with_one_line() {
    let job = Job::c("fill", &["128", "1", "1", "random"]);
    assert_ended_for_lack_of_room(&job, &Vswap::ram("32M"), NO_SWAP_FILE);
}

/// D 192 MiB, r 1, B 32 MiB and a swap file of 64 MiB, which fills as well.
#[test]
fn random_data_beyond_the_swap_file_ends_with_one_line() {
    let job = Job::c("fill", &["192", "1", "1", "random"]);
    // A page and its header take 9 blocks of the 512 of a cluster: 63 MiB fill it.
    let full = "the swap space of 64 MiB is full (63 MiB of it by this process); raise --ram or the \
                size of --swap";
    assert_ended_for_lack_of_room(&job, &Vswap::ram("32M").swap("64M"), full);
}

/// Only the program that cannot be helped is ended: its shell lives on and sees 137.
#[test]
fn the_shell_of_a_program_that_was_ended_lives_on() {
    let fill = crate::support::program("fill");
    let script = format!("{} 128 1 1 random; echo \"ended with $?\"", fill.display());
    let paged = Job::new("sh", &["-c", &script]).limit(45).under(&Vswap::ram("32M"));
    assert_eq!(paged.stdout, b"ended with 137\n", "{}", paged.describe());
}
