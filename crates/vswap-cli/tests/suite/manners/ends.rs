//! How a run ends: by exit, by signal, and when one of the two is killed.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{BUDGET, held, hold, let_go};
use crate::support::{Job, Vswap, processes};

#[test]
fn exit_codes_are_the_programs_own() {
    for code in [0, 1, 2, 42, 125, 126, 127, 137, 255] {
        let job = Job::new("sh", &["-c", &format!("exit {code}")]);
        assert_eq!(job.under(&Vswap::ram(BUDGET)).status.code(), Some(code));
    }
    let paged = hold("exit_with_42").under(&Vswap::ram(BUDGET));
    assert_eq!(paged.status.code(), Some(42), "{}", paged.describe());
}

/// A signal of the program's own making gives the same wait status as without vswap.
#[test]
fn death_by_a_signal_is_seen_as_such() {
    for action in ["die_by_segv", "die_by_abort", "die_by_bus_error"] {
        let plain = hold(action).plain();
        let paged = hold(action).under(&Vswap::ram(BUDGET));
        assert!(plain.status.signal().is_some(), "{}", plain.describe());
        // The bit for a core dump may differ: where it is written depends on who dies.
        assert_eq!(paged.status.signal(), plain.status.signal(), "{}", paged.describe());
    }
}

/// The pager took the end of the first thread for that of the program, and left the others without.
#[test]
fn a_program_outlives_its_first_thread() {
    let job = Job::c("crash", &["72", "leave"]);
    job.compare(&Vswap::ram("24M")).stats().assert_swapped();
    job.compare(&Vswap::ram("24M").inline()).stats().assert_swapped();
}

/// A signal from outside, sent to the program itself.
#[test]
fn killing_the_program_leaves_no_process() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        let (running, program) = held("none");
        let mark = running.mark().to_owned();
        let pagers = processes::sharing_memory_with(&mark, program);
        assert!(!pagers.is_empty(), "the program has no pager");
        processes::kill(program, signal);
        let gone = || pagers.iter().all(|&pager| !processes::is_alive(pager));
        assert!(processes::wait_until(Duration::from_secs(1), gone), "the pager lives on");
        let paged = running.finish();
        assert_eq!(paged.status.signal(), Some(signal.as_raw()), "{}", paged.describe());
    }
}

/// Killed at any moment, mostly in the middle of a mapping call with locks of the engine held.
#[test]
fn killing_a_busy_program_leaves_no_process() {
    for round in 0..10 {
        let job = Job::c("heap", &["96", "1000000", "4"]);
        let running = job.start_under(&Vswap::ram("24M"));
        let mark = running.mark().to_owned();
        let program = processes::first_child_of(running.pid());
        let pagers = || processes::sharing_memory_with(&mark, program);
        assert!(processes::wait_until(Duration::from_secs(10), || !pagers().is_empty()));
        std::thread::sleep(Duration::from_millis(50 + 7 * round));
        let pagers = pagers();
        processes::kill(program, Signal::KILL);
        let gone = || pagers.iter().all(|&pager| !processes::is_alive(pager));
        assert!(processes::wait_until(Duration::from_secs(2), gone), "a pager lives on");
        let paged = running.finish();
        assert_eq!(paged.status.signal(), Some(libc::SIGKILL), "{}", paged.describe());
    }
}

/// As a terminal does it: to the whole process group, `vswap run` in it.
#[test]
fn an_interrupt_of_the_group_ends_the_program() {
    let (running, _) = held("none");
    let group = Pid::from_raw(running.pid() as i32).expect("a process ID");
    kill_process_group(group, Signal::INT).expect("the job has a group of its own");
    let paged = running.finish();
    assert_eq!(paged.status.signal(), Some(libc::SIGINT), "{}", paged.describe());
}

/// Who asks `vswap run` to end asks its program to.
#[test]
fn a_signal_to_vswap_run_reaches_the_program() {
    let (running, program) = held("none");
    processes::kill(running.pid(), Signal::TERM);
    let paged = running.finish();
    assert_eq!(paged.status.signal(), Some(libc::SIGTERM), "{}", paged.describe());
    assert!(!processes::is_alive(program));
}

/// Without its pager the program would wait for ever, or read zeros. It does neither.
#[test]
fn killing_the_pager_ends_the_program_at_once_with_one_line() {
    let (running, program) = held("none");
    let pagers = processes::sharing_memory_with(running.mark(), program);
    assert!(!pagers.is_empty(), "the program has no pager");
    let killed = Instant::now();
    for pager in pagers {
        processes::kill(pager, Signal::KILL);
    }
    // The program is told to go on, and would verify zeros now.
    let paged = let_go(running);
    assert!(killed.elapsed() < Duration::from_secs(2), "not at once: {:?}", killed.elapsed());
    assert_eq!(paged.status.code(), Some(137), "{}", paged.describe());
    let lines: Vec<_> = paged.stderr.lines().collect();
    let &[line] = lines.as_slice() else { panic!("not one line: {}", paged.describe()) };
    assert!(line.starts_with("vswap: ") && line.contains("pager"), "{line}");
    assert!(!String::from_utf8_lossy(&paged.stdout).contains("ok hold"), "{}", paged.describe());
}

/// A member goes on with what it has.
#[test]
fn a_program_survives_its_coordinator() {
    let (mut running, program) = held("none");
    processes::kill(running.pid(), Signal::KILL);
    std::thread::sleep(Duration::from_millis(100));
    assert!(processes::is_alive(program), "it died with its coordinator");
    running.send("go");
    let verified = running.wait_for("ok hold ");
    assert!(verified.contains("checksum"), "{verified}");
    let ended = processes::wait_until(Duration::from_secs(5), || !processes::is_alive(program));
    assert!(ended, "it did not end");
}

/// One whose coordinator it could not reach from its start on (another user, another network
/// namespace), with all memory that it can find evicted again and again.
#[test]
fn a_program_without_a_coordinator_is_paged_by_itself() {
    let shown = Job::new("printenv", &["LD_PRELOAD"]).under(&Vswap::ram("24M"));
    let object = String::from_utf8(shown.stdout).expect("a path");
    let settings = "1;ram=25165824;engine=handoff;codec=lz4;chaos=1;socket=";
    for (name, arguments) in [("fill", ["96"]), ("forks", ["64"])] {
        let job = Job::c(name, &arguments);
        let plain = job.plain();
        let alone = job.env("LD_PRELOAD", object.trim()).env("VSWAP_RUN", settings).limit(60);
        // What a process and its children share is another matter.
        let alone = if name == "fill" { alone.watched() } else { alone };
        let alone = alone.plain();
        assert_eq!(alone.status, plain.status, "{}", alone.describe());
        assert_eq!(alone.stdout, plain.stdout, "{}", alone.describe());
        // The largest resident set of a process, as the kernel counts it, is that of this one at least, which
        // forked it.
        if let Some(peak) = alone.peak.as_ref() {
            let bytes = peak.reading.bytes();
            assert!(bytes < 72 << 20, "not paged: {bytes} bytes: {}", alone.describe());
        }
    }
}
