//! `vswap swapin`: all pages are there for a debugger, whatever the budget, until `vswap swapout`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use super::{Job, Vswap};
use crate::support::job::Running;
use crate::support::processes;

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

fn vswap(words: &[&str]) -> Output {
    let mut vswap = Command::new("timeout");
    vswap.args(["60", env!("CARGO_BIN_EXE_vswap")]).args(words);
    vswap.output().expect("vswap runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn swapped(running: &Running) -> u64 {
    let output = vswap(&["status", &running.pid().to_string(), "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    status["now"]["swapped_bytes"].as_u64().expect("a number")
}

/// Pages of the largest mapping that another process reads, and that it cannot.
fn readable(pid: u32) -> (usize, usize) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a live process");
    let ranges = maps.lines().filter(|line| line.contains(" rw-p ")).map(|line| {
        let (start, end) = line.split(' ').next().and_then(|r| r.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        number(start)..number(end)
    });
    // The engine's own reservations are larger, but none of the program's 64 MiB is elsewhere.
    let of_program =
        ranges.filter(|range| (64 * MIB..72 * MIB).contains(&(range.end - range.start)));
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let mut page = [0; PAGE];
    let reads: Vec<bool> = of_program
        .flat_map(|range| range.step_by(PAGE))
        .map(|address| memory.read_exact_at(&mut page, address).is_ok())
        .collect();
    let read = reads.iter().filter(|&&is_read| is_read).count();
    (read, reads.len() - read)
}

/// D 64 MiB, r 13, B 24 MiB.
fn brings_all_back(vswap_run: &Vswap) {
    let mut running = Job::c("rest", &["64"]).stdin("").start_under(vswap_run);
    let program: u32 = running.wait_for("ready ").parse().expect("a process ID");
    let name = program.to_string();
    assert!(swapped(&running) > 30 * MIB);
    assert!(readable(program).1 > 1000, "evicted pages can be read");

    let output = vswap(&["swapin", &name]);
    let line = said(&output);
    assert!(output.status.success() && line.contains("back in 1 process"), "{line}");
    let (read, missing) = readable(program);
    assert!(read >= (64 * MIB) as usize / PAGE && missing == 0, "{read}, {missing} missing");
    // It stays so.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(readable(program).1, 0);

    let output = vswap(&["swapout", &name]);
    assert!(said(&output).contains("holds again for 1 process"), "{}", said(&output));
    let out = || swapped(&running) > 30 * MIB;
    assert!(processes::wait_until(Duration::from_secs(20), out), "{}", swapped(&running));
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
}

#[test]
fn all_pages_are_there_for_a_debugger() {
    brings_all_back(&Vswap::ram("24M"));
}

#[test]
fn all_pages_come_back_from_a_device() {
    brings_all_back(&Vswap::ram("24M").swap("128M").option(["--zswap-max", "1M"]));
}

#[test]
fn all_pages_come_back_under_inline_faults() {
    brings_all_back(&Vswap::ram("24M").inline());
}

/// D 48 MiB in the program and its child, B 24 MiB: all processes of a run, by its process ID.
#[test]
fn all_processes_of_a_run_are_brought_back() {
    let mut running = Job::c("shares", &["48", "halves"]).stdin("").start_under(&Vswap::ram("24M"));
    running.wait_for("step filled");
    running.send("go");
    running.wait_for("step forked");
    let both = || swapped(&running) > 70 * MIB;
    assert!(processes::wait_until(Duration::from_secs(20), both), "{}", swapped(&running));
    let run = running.pid().to_string();
    let output = vswap(&["swapin", &run]);
    assert!(said(&output).contains("back in 2 processes"), "{}", said(&output));
    let in_memory = || swapped(&running) < MIB;
    assert!(processes::wait_until(Duration::from_secs(5), in_memory), "{}", swapped(&running));
    // It goes on, held or not.
    running.send("go");
    running.wait_for("step half");
    assert!(said(&vswap(&["swapout", &run])).contains("holds again for 2 processes"));
    running.send("go");
    running.wait_for("step freed");
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
}
