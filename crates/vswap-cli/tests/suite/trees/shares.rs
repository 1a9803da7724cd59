//! What parent and child share after a fork is held once for each, and given back when both have
//! freed it, whoever was first.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Job, Vswap};
use crate::support::job::Running;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

/// What the run holds, all processes together.
#[derive(Clone, Copy, Debug)]
struct Held {
    swapped: u64,
    pool: u64,
    payload: u64,
    on_devices: u64,
    leased: u64,
}

fn held(running: &Running) -> Held {
    let mut vswap = std::process::Command::new("timeout");
    vswap.args(["60", env!("CARGO_BIN_EXE_vswap"), "status", &running.pid().to_string(), "--json"]);
    let output = vswap.output().expect("vswap runs");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bytes = |pointer: &str| json.pointer(pointer).and_then(Value::as_u64).expect(pointer);
    Held {
        swapped: bytes("/now/swapped_bytes"),
        pool: bytes("/now/pool_bytes"),
        payload: bytes("/now/payload_bytes"),
        on_devices: bytes("/now/swap_used_bytes"),
        leased: bytes("/swaps/0/used_bytes"),
    }
}

/// Looks until the condition holds.
fn held_when(running: &Running, what: &str, holds: impl Fn(&Held) -> bool) -> Held {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let held = held(running);
        if holds(&held) {
            return held;
        }
        assert!(Instant::now() < end, "{what}: {held:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// D 40 MiB in each process, B 16 MiB.
fn freed_by(who: &str, contents: &str, vswap: &Vswap) {
    let mut running = Job::c("shares", &["40", who, contents]).stdin("").start_under(vswap);
    let step = |running: &mut Running, next: &str| {
        running.send("go");
        running.wait_for(&format!("step {next}"));
    };
    running.wait_for("step filled");
    let on_devices = contents == "random";
    held_when(&running, "filled", |now| now.swapped > 20 * MIB);
    step(&mut running, "forked");
    // Both count what they share.
    held_when(&running, "forked", |now| now.swapped > 56 * MIB);
    step(&mut running, "half");
    let half = held_when(&running, "half", |now| now.swapped < 44 * MIB);
    assert!(half.swapped > 16 * MIB, "{half:?}");
    assert!(!on_devices || half.on_devices > 8 * MIB, "{half:?}");
    step(&mut running, "freed");
    // Their libc's own pages may be out, each of another size.
    held_when(&running, "freed", |now| {
        now.swapped < MIB
            && now.pool < 2 * MIB
            && now.payload < 128 * KIB
            && now.on_devices < 128 * KIB
            && now.leased < 128 * KIB
    });
    running.send("go");
    let outcome = running.finish();
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(outcome.status.success() && said.contains("ok shares"), "{}", outcome.describe());
}

fn pool_and_device(who: &str) {
    for vswap in [Vswap::ram("16M"), Vswap::ram("16M").inline()] {
        freed_by(who, "words", &vswap.clone().swap("64M"));
        freed_by(who, "random", &vswap.swap("128M"));
    }
}

#[test]
fn the_parent_frees_before_the_child() {
    pool_and_device("parent");
}

#[test]
fn the_child_frees_before_the_parent() {
    pool_and_device("child");
}

#[test]
fn the_child_ends_before_the_parent_frees() {
    pool_and_device("exit");
}

#[test]
fn each_frees_a_half_before_the_other() {
    pool_and_device("halves");
}
