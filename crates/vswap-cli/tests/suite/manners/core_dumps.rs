//! Core dumps: complete when `vswap core-fix` has put in what was swapped out, and nothing of it can be
//! noticed before.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::job::scratch;
use crate::support::{Job, Vswap, is_root, own_machine, skipped};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// MiB that the program fills; the budget is a third.
const DATA: &str = "72";
const BUDGET: &str = "24M";

/// Cores in the working directory, for as long as it exists; the machine has to be the caller's own.
struct CoresHere {
    before: Option<String>,
}

impl CoresHere {
    /// `None` where the kernel writes them elsewhere, and this user cannot change that.
    fn arrange() -> Option<Self> {
        let before = std::fs::read_to_string(PATTERN).ok()?;
        if before.trim() == "core" {
            return Some(Self { before: None });
        }
        let cores = Self { before: Some(before) };
        (is_root() && std::fs::write(PATTERN, "core").is_ok()).then_some(cores)
    }
}

impl Drop for CoresHere {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = std::fs::write(PATTERN, before);
        }
    }
}

/// A directory that is gone with all that is in it when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = scratch("core");
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    /// The only core in it.
    fn core(&self) -> PathBuf {
        let mut files = self.0.read_dir().expect("a directory").map(|file| file.unwrap().path());
        let core = files.next().expect("a core");
        assert_eq!(files.next(), None);
        core
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `crash`, with its core in a directory.
fn crash_in(directory: &Directory, how: &str) -> Job {
    let script = "cd \"$1\" && shift && exec \"$@\"";
    let program = crate::support::program("crash");
    let words = [&directory.0, &program].map(|path| path.to_str().expect("a plain name"));
    Job::new("sh", &["-c", script, "sh", words[0], words[1], DATA, how]).in_callers_share()
}

fn core_fix(core: &Path) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vswap"));
    command.arg("core-fix").arg(core).output().expect("vswap")
}

/// The parent of a program that dies so sees the same, and its core has all words of all pages.
fn complete(how: &str, vswap: &Vswap) {
    let _machine = own_machine();
    let Some(_cores) = CoresHere::arrange() else {
        skipped(how, "the kernel writes cores elsewhere, and that takes root to change");
        return;
    };
    let directory = Directory::new();
    let plain = crash_in(&directory, how).plain();
    assert!(plain.status.success(), "{}", plain.describe());
    assert!(String::from_utf8_lossy(&plain.stdout).ends_with("core dumped: 1\n"));
    std::fs::remove_file(directory.core()).expect("a core of the plain run");

    let paged = crash_in(&directory, how).under(vswap);
    assert_eq!(
        (paged.status, &paged.stdout),
        (plain.status, &plain.stdout),
        "{}",
        paged.describe()
    );
    paged.stats().assert_swapped();
    let core = directory.core();
    let path = core.to_str().expect("a plain name");
    let check = Job::c("crash", &["check", path, DATA]).in_callers_share();
    assert!(!check.plain().status.success(), "nothing was swapped out");
    assert!(paged.stderr.contains("'vswap core-fix CORE' puts all"), "{}", paged.describe());

    let fixed = core_fix(&core);
    assert!(fixed.status.success(), "{fixed:?}");
    let checked = check.plain();
    assert!(checked.status.success(), "{}", checked.describe());
    // The pages are in the core, and nowhere else any more.
    assert_eq!(core_fix(&core).status.code(), Some(2));
}

#[test]
fn of_a_program_that_aborts() {
    complete("abort", &Vswap::ram(BUDGET));
}

#[test]
fn of_a_program_that_aborts_inline() {
    complete("abort", &Vswap::ram(BUDGET).inline());
}

#[test]
fn of_a_program_with_a_swap_file() {
    complete("segv", &Vswap::ram(BUDGET).swap("256M").option(["--zswap-max", "1M"]));
}

#[test]
fn of_a_segmentation_fault_inline() {
    complete("segv", &Vswap::ram(BUDGET).inline());
}

#[test]
fn of_a_signal_from_outside() {
    complete("quit", &Vswap::ram(BUDGET));
    complete("quit", &Vswap::ram(BUDGET).inline());
}

/// Where no handler of a signal could run.
#[test]
fn of_a_stack_that_overflows() {
    complete("overflow", &Vswap::ram(BUDGET));
}

/// While other threads fault, and wait for pages when they die.
#[test]
fn of_threads() {
    complete("thread", &Vswap::ram(BUDGET));
    complete("thread", &Vswap::ram(BUDGET).inline());
}

/// The program has all signals to itself.
#[test]
fn a_handler_of_the_programs_own_runs() {
    let job = Job::c("crash", &[DATA, "handled"]);
    job.compare(&Vswap::ram(BUDGET)).stats().assert_swapped();
    job.compare(&Vswap::ram(BUDGET).inline()).stats().assert_swapped();
}

#[test]
fn without_a_core_nothing_is_kept_or_said() {
    let script = "ulimit -c 0; \"$1\" \"$2\" abort";
    let special = crate::support::program("special");
    let job = Job::new("sh", &["-c", script, "sh", special.to_str().expect("a plain name"), DATA]);
    let paged = job.under(&Vswap::ram(BUDGET));
    assert!(!paged.stderr.contains("core-fix"), "{}", paged.describe());
}
