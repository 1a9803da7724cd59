//! What forks, execs and starts cost beside those of a plain run. The numbers of a quiet machine are in
//! ARCHITECTURE.md; here is what a busy one must keep to as well.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Job, Vswap};
use crate::support::own_machine;

/// Runs of each kind, of which the fastest counts: whatever else the machine does only adds to it.
const ROUNDS: usize = 21;

/// What may be added to the start of a program: 5 ms, and three times that to a build without
/// optimization.
const START: Duration = Duration::from_millis(if cfg!(debug_assertions) { 15 } else { 5 });

/// Programs that a shell starts, one after the other.
const EXECS: u32 = 100;

fn fastest(mut command: impl FnMut() -> Command) -> Duration {
    let runs = (0..ROUNDS).map(|_| {
        let mut command = command();
        let started = Instant::now();
        let status = command.stdout(Stdio::null()).status().expect("it runs");
        assert!(status.success(), "{command:?}");
        started.elapsed()
    });
    runs.min().expect("some rounds")
}

fn plain(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn under_vswap(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswap"));
    command.args(["run", "--ram", "256M", "--"]).args(words);
    command
}

#[test]
fn of_a_short_program() {
    let _machine = own_machine();
    let [plain, paged] = [fastest(|| plain(&["true"])), fastest(|| under_vswap(&["true"]))];
    println!("true: plain {plain:.2?}, under vswap {paged:.2?}");
    assert!(paged < plain + START, "plain {plain:?}, under vswap {paged:?}");
}

#[test]
fn of_each_program_in_a_tree() {
    let _machine = own_machine();
    let script = format!("i=0; while [ $i -lt {EXECS} ]; do /bin/true; i=$((i + 1)); done");
    let words = ["sh", "-c", &script];
    let each = |time: Duration| time / EXECS;
    let (plain, paged) = (each(fastest(|| plain(&words))), each(fastest(|| under_vswap(&words))));
    println!("fork, exec and end: plain {plain:.3?}, under vswap {paged:.3?}");
    assert!(paged < plain + Duration::from_millis(1), "plain {plain:?}, under vswap {paged:?}");
}

/// What `forkcost` says that a fork took until it returned, in microseconds.
fn fork_us(outcome: &crate::support::Outcome) -> u64 {
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let number = said.strip_prefix("fork ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{}", outcome.describe()))
}

/// D 16 and 256 MiB, r 13, B 32 MiB: bringing the larger one's pages back would take 200 ms.
#[test]
fn of_a_fork_does_not_go_with_the_data() {
    let _machine = own_machine();
    for mappings in ["1", "100"] {
        for mib in ["16", "256"] {
            let job = Job::c("forkcost", &[mib, mappings, "21"]).in_callers_share();
            let paged = job.under(&Vswap::ram("48M"));
            assert!(paged.status.success(), "{}", paged.describe());
            let (plain, paged) = (fork_us(&job.plain()), fork_us(&paged));
            println!("fork, {mib} MiB in {mappings} mappings: plain {plain}, paged {paged} us");
            assert!(paged < plain + 100_000, "plain {plain} us, paged {paged} us");
        }
    }
}
