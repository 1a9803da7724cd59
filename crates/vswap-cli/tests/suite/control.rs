//! What `vswap status` says of a program that is paged, and what `vswap reclaim` does to it.
//!
//! The program is `rest`: it fills its memory, says `ready PID`, waits for a line, and verifies.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::job::Running;
use crate::support::{Job, Outcome, Vswap, processes, program};

const MIB: u64 = 1 << 20;

/// `rest`, when all of its memory is filled.
fn resting(arguments: &[&str], vswap: &Vswap) -> (Running, u32) {
    let running = Job::c("rest", arguments).stdin("").start_under(vswap);
    let program = running.wait_for("ready ").parse().expect("a process ID");
    (running, program)
}

fn wake(mut running: Running) -> Outcome {
    running.send("go");
    let outcome = running.finish();
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(outcome.status.success() && said.contains("ok rest"), "{}", outcome.describe());
    assert_eq!(outcome.stderr, "", "{}", outcome.name);
    outcome
}

fn vswap(words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_vswap")]).args(words).stdin(Stdio::null());
    command
}

fn status(run: u32) -> Value {
    let output = vswap(&["status", &run.to_string(), "--json"]).output().expect("vswap runs");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn reclaim(run: u32, size: &str) -> Output {
    vswap(&["reclaim", &run.to_string(), size]).output().expect("vswap runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn resident(program: u32) -> u64 {
    let line = processes::status_line(program, "RssAnon").expect("a live program");
    let kib: u64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("KiB");
    kib << 10
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}

#[test]
fn status_has_what_the_statistics_have() {
    let (running, program) = resting(&["96"], &Vswap::ram("48M").swap("64M"));
    let run = running.pid();
    let status = status(run);
    let bytes = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).expect("a number");
    assert!(bytes("/now/swapped_bytes") > 40 * MIB, "{status:#}");
    assert!(bytes("/charged_bytes") <= bytes("/ram_bytes") + MIB, "{status:#}");
    assert_eq!(bytes("/members/0/pid"), u64::from(program));
    assert_eq!(status["members"][0]["name"], "rest");
    assert_eq!(bytes("/members/0/swapped_bytes"), bytes("/now/swapped_bytes"));
    assert_eq!(bytes("/swaps/0/size_bytes"), 64 * MIB);
    assert_eq!(bytes("/swaps/0/used_bytes"), bytes("/now/swap_used_bytes"));
    assert_eq!(status["swaps"][0]["type"], "file");

    let shown = vswap(&["status", &run.to_string()]).output().expect("vswap runs");
    let shown = text(&shown.stdout);
    assert!(shown.starts_with("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/"), "{shown}");
    assert!(shown.contains("swapfile.") && shown.contains("65536"), "{shown}");
    assert!(shown.contains("\nzswpout ") && shown.contains("budget "), "{shown}");

    let outcome = wake(running);
    let stats = outcome.stats().json();
    for key in
        keys(stats).into_iter().filter(|key| !["exit_code", "signal"].contains(&key.as_str()))
    {
        assert!(status.get(key).is_some(), "{key} is not in the status");
        if stats[key].is_object() {
            assert_eq!(keys(&stats[key]), keys(&status[key]), "{key}");
        }
    }
}

/// The pool keeps a thirteenth of what leaves, and its tables a little.
fn assert_fell(before: u64, after: u64, mib: u64) {
    let fell = before.saturating_sub(after) as f64 / MIB as f64;
    let asked = mib as f64;
    assert!((asked * 0.85..asked + 2.0).contains(&fell), "{fell:.1} MiB of {mib}");
}

fn reclaims(vswap: &Vswap, arguments: &[&str]) {
    let (running, program) = resting(arguments, vswap);
    let before = resident(program);
    let output = reclaim(running.pid(), "24M");
    let said = text(&output.stdout);
    assert!(output.status.success() && said.starts_with("reclaimed 24"), "{output:?}");
    assert_eq!((said.lines().count(), text(&output.stderr).as_str()), (1, ""));
    assert_fell(before, resident(program), 24);
    let outcome = wake(running);
    let proactive = outcome.stats().counter("pgsteal_proactive") * 4096 / MIB;
    assert!((24..26).contains(&proactive), "{proactive} MiB");
}

#[test]
fn reclaim_evicts_what_it_is_asked_for() {
    reclaims(&Vswap::ram("64M"), &["40"]);
}

#[test]
fn reclaim_reaches_a_program_that_is_only_watched() {
    reclaims(&Vswap::ram("256M"), &["40", "threads"]);
}

#[test]
fn reclaim_works_with_inline_faults() {
    reclaims(&Vswap::ram("64M").inline(), &["40"]);
}

/// Each of two processes gives its part of what is asked of both, and all of it if need be.
#[test]
fn reclaim_is_shared_by_the_processes_of_a_run() {
    let rest = program("rest").display().to_string();
    let script = "exec 3<&0; \"$1\" 36 threads <&3 & \"$1\" 18 threads <&3 & wait";
    let job = Job::new("sh", &["-c", script, "sh", &rest]).stdin("");
    let running = job.start_under(&Vswap::ram("256M"));
    running.wait_for("ready ");
    let run = running.pid();
    let swapped = || -> Vec<u64> {
        let status = status(run);
        let members = status["members"].as_array().expect("members").iter();
        let mut members: Vec<_> = members
            .map(|member| (member["pid"].as_u64(), member["swapped_bytes"].as_u64()))
            .collect();
        members.sort_unstable();
        members.into_iter().filter_map(|(_, swapped)| swapped).collect()
    };
    // While they share out the budget they may evict a little themselves.
    let filled = || {
        let status = status(run);
        let charged = status["charged_bytes"].as_u64().unwrap_or(0);
        charged + status["now"]["swapped_bytes"].as_u64().unwrap_or(0) > 53 * MIB
    };
    assert!(processes::wait_until(Duration::from_secs(20), filled), "{:#}", status(run));

    let before = swapped();
    assert!(reclaim(run, "30M").status.success());
    let mut parts: Vec<u64> = swapped().iter().zip(&before).map(|(now, then)| now - then).collect();
    parts.sort_unstable();
    let [small, large] = parts[..] else { panic!("{parts:?}") };
    assert!((8 * MIB..13 * MIB).contains(&small), "{parts:?}");
    assert!((17 * MIB..23 * MIB).contains(&large), "{parts:?}");
    assert_eq!(reclaim(run, "1G").status.code(), Some(1));
    assert!(swapped().iter().sum::<u64>() > 53 * MIB, "{:?}", swapped());

    let outcome = running.finish();
    let said = text(&outcome.stdout);
    assert_eq!(said.matches("ok rest").count(), 2, "{}", outcome.describe());
}

#[test]
fn reclaim_says_when_there_is_no_more() {
    let (running, program) = resting(&["40"], &Vswap::ram("64M"));
    let output = reclaim(running.pid(), "1G");
    let line = text(&output.stderr);
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{output:?}");
    assert!(line.contains("of the 1G asked for") && line.contains("nothing else in RAM"), "{line}");
    let left = status(running.pid())["now"]["resident_bytes"].as_u64();
    assert!(left.is_some_and(|bytes| bytes < MIB), "{left:?}");
    assert!(resident(program) < 10 * MIB);
    // Memory that came back can be asked for again.
    wake(running);
}

/// What does not compress goes to the swap file, and when that is full to the pool as it is, which may be more
/// than the half of the budget that it has with a device that takes something.
#[test]
fn reclaim_fills_the_pool_when_the_swap_file_is_full() {
    let (running, _) = resting(&["44", "random"], &Vswap::ram("64M").swap("4M"));
    let output = reclaim(running.pid(), "42M");
    assert!(output.status.success(), "{output:?}");
    let pool = status(running.pid())["now"]["pool_bytes"].as_u64().expect("a number");
    assert!(pool > 36 * MIB, "{pool}");
    wake(running);
}

#[test]
fn reclaim_says_when_there_is_no_room() {
    let vswap = Vswap::ram("64M").swap("4M").option(["--zswap-max", "28M"]);
    let (running, _) = resting(&["44", "random"], &vswap);
    let output = reclaim(running.pid(), "44M");
    let line = text(&output.stderr);
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{output:?}");
    assert!(line.contains("neither its pool nor a swap device takes more"), "{line}");
    let swapped = status(running.pid())["now"]["swapped_bytes"].as_u64().expect("a number");
    assert!((28 * MIB..38 * MIB).contains(&swapped), "{swapped}");
    wake(running);
}

/// Memory is evicted again and again while the program uses it, maps, unmaps and forks.
#[test]
fn reclaim_does_not_disturb_a_program_at_work() {
    for (job, vswap) in [
        (Job::c("fill", &["96", "1", "3"]), Vswap::ram("32M").swap("64M")),
        (Job::c("fill", &["96", "2", "3"]), Vswap::ram("32M").inline()),
        (Job::c("threads", &["96", "4", "1", "2"]), Vswap::ram("32M")),
        (Job::c("churn", &["4", "250", "96"]), Vswap::ram("32M")),
        (Job::c("forks", &["40"]), Vswap::ram("32M")),
    ] {
        let plain = job.plain();
        let running = job.start_under(&vswap);
        let run = running.pid();
        let mut reclaimed = 0;
        let ended = processes::wait_until(Duration::from_secs(100), || {
            reclaimed += u32::from(reclaim(run, "8M").status.success());
            !processes::is_alive(run)
        });
        assert!(ended, "{} goes on", job.name());
        let outcome = running.finish();
        outcome.assert_same(&plain);
        println!("{}: reclaimed 8 MiB {reclaimed} times in {:.1?}", job.name(), outcome.elapsed);
        assert!(outcome.stats().counter("pgsteal_proactive") > 0, "{}", job.name());
    }
}

/// A reclaim that is under way.
fn client_of(run: u32) -> Child {
    let mut client = Command::new(env!("CARGO_BIN_EXE_vswap"));
    client.args(["reclaim", &run.to_string(), "24M"]).stdin(Stdio::null()).stderr(Stdio::piped());
    client.spawn().expect("vswap runs")
}

#[test]
fn an_interrupt_takes_a_reclaim_back() {
    let (running, program) = resting(&["40"], &Vswap::ram("64M"));
    let pagers = processes::sharing_memory_with(running.mark(), program);
    assert!(!pagers.is_empty(), "the program has no pager");
    let all = |signal| pagers.iter().for_each(|&pager| processes::kill(pager, signal));
    all(Signal::STOP);
    let mut client = client_of(running.pid());
    std::thread::sleep(Duration::from_millis(500));
    let pid = Pid::from_child(&client);
    kill_process(pid, Signal::INT).expect("a client that waits");
    let ended = processes::wait_until(Duration::from_secs(5), || {
        client.try_wait().expect("a child").is_some()
    });
    all(Signal::CONT);
    assert!(ended, "the client goes on");
    let output = client.wait_with_output().expect("a child");
    assert!(text(&output.stderr).contains("reclaimed 0 of run"), "{output:?}");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGINT));
    // A second one finds a run that is free, and does no more than it asks for.
    let before = resident(program);
    assert!(reclaim(running.pid(), "8M").status.success());
    assert_fell(before, resident(program), 8);
    wake(running);
}

/// A client that dies takes its request with it.
#[test]
fn a_run_is_free_when_its_client_is_gone() {
    let (running, program) = resting(&["40"], &Vswap::ram("64M"));
    let pagers = processes::sharing_memory_with(running.mark(), program);
    let all = |signal| pagers.iter().for_each(|&pager| processes::kill(pager, signal));
    all(Signal::STOP);
    let mut client = client_of(running.pid());
    std::thread::sleep(Duration::from_millis(500));
    let busy = reclaim(running.pid(), "8M");
    assert_eq!(busy.status.code(), Some(1));
    assert!(text(&busy.stderr).contains("busy with another client's request"), "{busy:?}");
    client.kill().expect("a child");
    client.wait().expect("a child");
    std::thread::sleep(Duration::from_millis(300));
    all(Signal::CONT);
    let before = resident(program);
    assert!(reclaim(running.pid(), "8M").status.success());
    assert_fell(before, resident(program), 8);
    wake(running);
}
