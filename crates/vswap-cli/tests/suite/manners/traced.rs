//! Under a debugger: the pager must be nobody that `strace -f` follows, stops or waits for.

use std::process::Command;
use std::time::Duration;

use super::{assert_verified, held, let_go};
use crate::support::{Job, Vswap, processes, skipped};

/// Whether tracing works here; says so if not.
fn can_trace(test: &str) -> bool {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let works = traced.is_ok_and(|output| output.status.success());
    if !works {
        skipped(test, "strace does not work here");
    }
    works
}

/// `strace -f` around the program, D 64 MiB, r about 13, B 24 MiB, with threads, forks and many mapping calls.
#[test]
fn strace_follows_a_program_from_its_start() {
    if !can_trace("strace_follows_a_program_from_its_start") {
        return;
    }
    for (name, arguments) in [("fill", ["64", "1"]), ("join", ["64", "1"]), ("churn", ["2", "20"])]
    {
        let program = crate::support::program(name);
        let program = program.to_str().expect("a target directory with a plain name");
        let job = Job::c(name, &arguments);
        let plain = job.plain();
        let inside = ["-f", "-o", "/dev/null", program, arguments[0], arguments[1]];
        let paged = Job::new("strace", &inside).under(&Vswap::ram("24M"));
        paged.assert_same(&plain);
        paged.stats().assert_swapped();
    }
}

/// `strace -f` around `vswap run` itself.
#[test]
fn strace_follows_vswap_run() {
    if !can_trace("strace_follows_vswap_run") {
        return;
    }
    let fill = crate::support::program("fill");
    let fill = fill.to_str().expect("a target directory with a plain name");
    let plain = Job::c("fill", &["64"]).plain();
    let vswap = env!("CARGO_BIN_EXE_vswap");
    let line = ["-f", "-o", "/dev/null", vswap, "run", "--ram", "24M", "--", fill, "64"];
    Job::new("strace", &line).plain().assert_same(&plain);
}

/// Attached while everything is evicted, and the program then faults.
#[test]
fn strace_attaches_to_a_running_program() {
    if !can_trace("strace_attaches_to_a_running_program") {
        return;
    }
    let (running, program) = held("none");
    let pid = program.to_string();
    let strace =
        Job::new("strace", &["-f", "-q", "-o", "/dev/null", "-p", &pid]).in_callers_share();
    let strace = strace.start_plain();
    let traced = || processes::status_line(program, "TracerPid").is_some_and(|pid| pid != "0");
    assert!(processes::wait_until(Duration::from_secs(5), traced), "strace did not attach");
    assert_verified(&let_go(running));
    assert!(strace.finish().status.success(), "strace failed");
}
