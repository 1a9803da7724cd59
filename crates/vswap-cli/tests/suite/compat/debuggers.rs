//! Debuggers and signals from outside, while a program is swapped out.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::Signal;

use super::{Row, Scratch, shell};
use crate::support::{Job, Outcome, Running, Vswap, processes};

const BUDGET: &str = "26M";

fn hold() -> Job {
    Job::c("hold", &["none", "100"]).stdin("")
}

/// Runs `hold` plain and paged, with all of its memory evicted while `act` is at it.
fn around(row: &Row, act: impl Fn(&Running, u32)) {
    let run = |mut running: Running| -> Outcome {
        let pid = running.wait_for("ready ").parse().expect("a process ID");
        act(&running, pid);
        running.send("go");
        let mut outcome = running.finish();
        // The line with the process ID differs.
        let end = outcome.stdout.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        outcome.stdout.drain(..end);
        outcome
    };
    let vswap = Vswap::ram(BUDGET);
    let plain = run(hold().start_plain());
    let paged = run(hold().start_under(&vswap));
    row.record(&plain, BUDGET, &paged);
}

#[test]
fn gdb_attaches_and_detaches() {
    const WHAT: &str = "attached three times in batch mode, with a backtrace";
    let Some(row) = Row::of("gdb", WHAT, &["gdb", "--version"]) else { return };
    around(&row, |_, pid| {
        let pid = pid.to_string();
        for _ in 0..3 {
            let line = ["-batch", "-nx", "-p", &pid, "-ex", "bt", "-ex", "detach"];
            let gdb = Job::new("gdb", &line).in_callers_share().plain();
            let text = String::from_utf8_lossy(&gdb.stdout).into_owned();
            assert!(gdb.status.success() && text.contains("main"), "{}", gdb.describe());
        }
    });
}

#[test]
fn strace_attaches_and_detaches() {
    const WHAT: &str = "strace -f -p while evicted pages come back";
    let Some(row) = Row::of("strace", WHAT, &["strace", "--version"]) else { return };
    around(&row, |_, pid| {
        let target = pid.to_string();
        for _ in 0..3 {
            let line = ["-f", "-q", "-o", "/dev/null", "-p", &target];
            let strace = Job::new("strace", &line).in_callers_share().start_plain();
            let traced = || processes::status_line(pid, "TracerPid").is_some_and(|by| by != "0");
            assert!(processes::wait_until(Duration::from_secs(10), traced), "it did not attach");
            processes::kill(strace.pid(), Signal::TERM);
            strace.finish();
        }
    });
}

#[test]
fn stopped_and_continued() {
    let what = "stopped ten times, 20 ms each, with evicted pages";
    let row = Row::own("SIGSTOP and SIGCONT", what);
    around(&row, |_, pid| {
        for _ in 0..10 {
            processes::kill(pid, Signal::STOP);
            let stops = || processes::status_line(pid, "State").is_some_and(|s| s.starts_with('T'));
            assert!(processes::wait_until(Duration::from_secs(10), stops), "it did not stop");
            std::thread::sleep(Duration::from_millis(20));
            processes::kill(pid, Signal::CONT);
        }
    });
}

/// Whether the evicted pages of a program that dies by SIGABRT are in its core when it was fixed.
#[test]
fn core_dump() {
    const WHAT: &str =
        "SIGABRT with all pages evicted, `vswap core-fix`; gdb reads one page of the core";
    let Some(row) = Row::of("core dump", WHAT, &["gdb", "--version"]) else { return };
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim() != "core" {
        row.not_run("kernel.core_pattern is not `core`");
        return;
    }
    let special = crate::support::program("special");
    let special = special.to_str().expect("a target directory with a plain name");
    let script = "cd \"$1\" || exit 1; ulimit -c unlimited; \"$2\" abort 60 >out 2>&1; vswap=$3
        set -- \"$2\" core*; [ -f \"$2\" ] || { echo 'cannot: there is no core'; exit 77; }
        [ -z \"$VSWAP_RUN\" ] || \"$vswap\" core-fix \"$2\" >fixed || exit 1
        gdb -batch -nx -ex 'x/2gx data + 4096 * 9000' \"$@\" 2>/dev/null | grep -c 0x0000000000000000 >n
        if [ \"$(cat n)\" = 0 ]; then echo ok; else
        echo 'refused: evicted pages are zeros in the core'; exit 78; fi";
    let run = |vswap: Option<&Vswap>| {
        let directory = Scratch::directory();
        let job = shell(script, &[directory.path(), special, env!("CARGO_BIN_EXE_vswap")]);
        vswap.map_or_else(|| job.plain(), |vswap| job.under(vswap))
    };
    let vswap = Vswap::ram("20M");
    let (plain, paged) = (run(None), run(Some(&vswap)));
    assert!(plain.status.signal().is_none(), "{}", plain.describe());
    row.record(&plain, "20M", &paged);
}
