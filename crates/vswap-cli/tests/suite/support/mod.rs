//! What the groups share: C programs ([`program`]), jobs with limits ([`job`]), what a run left in
//! its statistics file ([`stats`]), a look at the processes of a job ([`processes`]), and memory
//! cgroups ([`cgroup`]).

pub mod cgroup;
pub mod job;
pub mod processes;
pub mod program;
pub mod stats;
pub mod watch;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use job::{Job, Outcome, Running, Vswap};
pub use program::program;

/// Held shared by every job and exclusively by tests that measure time.
static MACHINE: RwLock<()> = RwLock::new(());

/// Keeps measurements away while a job runs.
pub fn share_machine() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no job runs, and keeps others from starting.
pub fn own_machine() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the long forms were asked for.
pub fn long() -> bool {
    std::env::var_os("VSWAP_TEST_LONG").is_some_and(|value| value != "0")
}

/// Says on stderr that a test proves nothing here, and why. libtest shows it for failing tests
/// only, so it goes around its capture, to the real stderr.
pub fn skipped(test: &str, reason: &str) {
    use std::io::Write;
    let line = format!("skipped: {test}: {reason}\n");
    // The capture replaces what `eprintln` writes to, not the descriptor.
    if let Ok(mut stderr) = std::fs::OpenOptions::new().append(true).open("/proc/self/fd/2") {
        let _ = stderr.write_all(line.as_bytes());
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
