//! What a program can notice of its pager, which is nothing, and how the two end.
//!
//! Most tests use `hold`: it evicts its memory, does something to itself, says `ready PID`, waits for
//! a line, and verifies its memory. Here it is looked at, traced and killed meanwhile.

mod core_dumps;
mod ends;
mod traced;

use std::time::Duration;

use crate::support::cgroup::Cgroup;
use crate::support::job::Running;
use crate::support::{Job, Outcome, Vswap, is_root, processes, skipped};

const BUDGET: &str = "32M";

/// `hold`, started under vswap, at its `ready` line: with its process ID.
fn held(action: &str) -> (Running, u32) {
    let running = hold(action).start_under(&Vswap::ram(BUDGET));
    let pid = running.wait_for("ready ").parse().expect("a process ID");
    (running, pid)
}

fn hold(action: &str) -> Job {
    Job::c("hold", &[action]).stdin("")
}

/// Lets `hold` go on to its end.
fn let_go(mut running: Running) -> Outcome {
    running.send("go");
    running.finish()
}

fn assert_verified(outcome: &Outcome) {
    let last = String::from_utf8_lossy(&outcome.stdout).lines().last().map(str::to_owned);
    let verified = last.is_some_and(|line| line.starts_with("ok hold"));
    assert!(outcome.status.success() && verified, "{}", outcome.describe());
    assert_eq!(outcome.stderr, "", "{}", outcome.name);
}

/// The action behaves as in a plain run, and the memory is right after it.
fn survives(action: &str) {
    let mut plain = hold(action).start_plain();
    plain.wait_for("ready ");
    plain.send("go");
    assert_verified(&plain.finish());
    let (running, _) = held(action);
    let paged = let_go(running);
    assert_verified(&paged);
    paged.stats().assert_swapped();
}

fn survives_as_root(test: &str, action: &str) {
    if is_root() { survives(action) } else { skipped(test, "needs root") }
}

#[test]
fn the_program_may_close_every_descriptor() {
    survives("close_everything");
}

#[test]
fn waiting_finds_no_stranger_and_sigchld_tells_of_none() {
    survives("wait_for_children");
}

#[test]
fn pipes_reach_their_end() {
    survives("close_pipes");
}

#[test]
fn tight_resource_limits_do_not_reach_the_pager() {
    survives("tight_limits");
}

#[test]
fn a_user_namespace_can_be_entered() {
    let allowed = std::process::Command::new("unshare").args(["-U", "true"]).status();
    if allowed.is_ok_and(|status| status.success()) {
        survives("new_user_namespace");
    } else {
        skipped("a_user_namespace_can_be_entered", "unshare -U does not work here");
    }
}

#[test]
fn other_namespaces_can_be_entered() {
    survives_as_root("other_namespaces_can_be_entered", "new_namespaces");
}

#[test]
fn the_first_process_of_a_namespace_is_paged_right() {
    survives_as_root("the_first_process_of_a_namespace", "new_pid_namespace");
}

/// With its privileges a program gives up the right to a userfaultfd, so its children have no pager,
/// whatever room there is.
#[test]
fn a_fork_without_the_right_to_a_pager_fails_or_is_right() {
    survives_as_root("a_fork_without_the_right_to_a_pager", "few_processes");
}

/// Where a child fits into a cgroup and its pager does not: EAGAIN, and nothing of a child is left.
#[test]
fn a_fork_without_room_for_a_pager_fails() {
    let cgroup = match Cgroup::with_tasks(1000) {
        Ok(cgroup) => cgroup,
        Err(reason) => return skipped("a_fork_without_room_for_a_pager_fails", &reason),
    };
    let limit = cgroup.pids_max();
    for vswap in [Vswap::ram(BUDGET), Vswap::ram(BUDGET).inline()] {
        let job = hold("few_tasks").env("PIDS_MAX", limit.to_str().expect("a path of ours"));
        let mut running = job.in_cgroup(&cgroup).start_under(&vswap);
        let refused: u32 = running.wait_for("refused ").parse().expect("a number");
        // The child's own place is the first of them.
        assert!(refused >= 4, "{refused} forks were refused");
        running.wait_for("ready ");
        running.send("go");
        let paged = running.finish();
        assert_verified(&paged);
        paged.stats().assert_swapped();
    }
}

/// At its start a program without room for a pager goes on, and is told so, whichever of the pager's
/// tasks it is that does not fit.
#[test]
fn a_program_without_room_for_a_pager_runs_unmanaged() {
    let job = Job::c("fill", &["40", "1", "4"]);
    let plain = job.plain();
    let mut unmanaged = 0;
    for tasks in 2..8 {
        let cgroup = match Cgroup::with_tasks(tasks) {
            Ok(cgroup) => cgroup,
            Err(reason) => return skipped("a_program_without_room_for_a_pager", &reason),
        };
        let paged = job.clone().in_cgroup(&cgroup).under(&Vswap::ram("64M"));
        assert!(paged.status.success() && paged.stdout == plain.stdout, "{}", paged.describe());
        let lines: Vec<_> = paged.stderr.lines().collect();
        unmanaged += lines.len();
        let told = lines.iter().all(|line| line.contains("runs unmanaged"));
        assert!(told && lines.len() <= 1, "{}", paged.describe());
    }
    // Room for none to three of its four tasks; the process that makes it may still count as one.
    assert!((4..=5).contains(&unmanaged), "{unmanaged} runs had no pager");
}

/// A privileged process in the memory of an unprivileged one would be a way up.
#[test]
fn the_pager_follows_its_programs_credentials() {
    const FIELDS: [&str; 6] = ["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapInh"];
    if !is_root() {
        return skipped("the_pager_follows_its_programs_credentials", "needs root");
    }
    let (running, program) = held("become_nobody");
    let lines = |pid| FIELDS.map(|field| processes::status_line(pid, field));
    let pagers = processes::sharing_memory_with(running.mark(), program);
    assert!(!pagers.is_empty(), "the program has no pager");
    assert_eq!(lines(program)[0].as_deref(), Some("65534 65534 65534 65534"));
    for pager in pagers {
        let followed =
            processes::wait_until(Duration::from_millis(300), || lines(pager) == lines(program));
        assert!(followed, "program {:?}, pager {:?}", lines(program), lines(pager));
    }
    assert_verified(&let_go(running));
}

/// The reader of a pipeline sees the end when the program closes its standard output, although it
/// lives on, and `vswap run` with it.
#[test]
fn standard_output_ends_when_the_program_closes_it() {
    let mut running = hold("close_stdout").start_under(&Vswap::ram(BUDGET));
    assert!(running.stdout_ends_within(Duration::from_secs(5)), "its output is still open");
    let mark = running.mark().to_owned();
    assert!(!processes::of_job(&mark).is_empty(), "it ended instead");
    running.send("go");
    let paged = running.finish();
    assert!(paged.status.success() && paged.stderr.is_empty(), "{}", paged.describe());
}

#[test]
fn standard_input_is_the_programs_own() {
    let text = "a line of some length\nanother\n".repeat(100_000);
    for command in ["sort -rn | md5sum", "read first; echo \"$first\"; head -c 5", "cat", "true"] {
        let job = Job::new("sh", &["-c", command]).stdin(&text);
        let plain = job.plain();
        job.under(&Vswap::ram("64M")).assert_same(&plain);
    }
}

/// No pager is needed, and none is seen: a small program's children are those it made.
#[test]
fn a_small_program_stays_alone() {
    let script = "sleep 0.1; ls /proc/self/task | wc -l; ps -o comm= --ppid $$ 2>/dev/null | sort";
    let job = Job::new("sh", &["-c", script]);
    let plain = job.plain();
    job.under(&Vswap::ram("512M")).assert_same(&plain);
}
