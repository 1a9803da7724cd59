//! Unusual things that a program does with its own memory: `tests/programs/special.c`.

use super::{Row, shell};
use crate::support::{Job, Vswap};

const BUDGET: &str = "26M";

fn case(name: &'static str, what: &'static str, case: &str) {
    case_of(name, what, case, "100");
}

fn case_of(name: &'static str, what: &'static str, case: &str, mib: &str) {
    Row::own(name, what).measure(&Job::c("special", &[case, mib]), &Vswap::ram(BUDGET));
}

#[test]
fn protection_keys() {
    case("protection keys", "memory under a key, evicted and read", "protection-keys");
}

#[test]
fn locked_memory() {
    case(
        "mlock and mlockall",
        "an eighth of the memory locked, and what is mapped under MCL_FUTURE",
        "locked",
    );
}

#[test]
fn memory_that_a_child_does_not_get() {
    case("MADV_DONTFORK and MADV_WIPEONFORK", "a child of evicted memory", "forked");
}

#[test]
fn robust_mutexes() {
    case("robust mutexes", "owners that end while their mutex is evicted", "robust-mutexes");
}

#[test]
fn a_userfaultfd_of_the_programs_own() {
    // What the program serves itself is resident.
    case_of(
        "userfaultfd of the program's own",
        "a quarter of the memory registered and filled by the program",
        "own-userfaultfd",
        "60",
    );
}

#[test]
fn memory_through_proc() {
    case("/proc/self/mem", "evicted pages written and read through it", "proc-mem");
}

#[test]
fn huge_pages() {
    case("transparent huge pages", "MADV_HUGEPAGE and MADV_COLLAPSE on all of it", "huge-pages");
}

#[test]
fn no_huge_pages() {
    case("no transparent huge pages", "the same after PR_SET_THP_DISABLE", "no-huge-pages");
}

#[test]
fn low_limits() {
    let program = crate::support::program("special");
    let program = program.to_str().expect("a target directory with a plain name");
    let script = "ulimit -v 400000; ulimit -n 40; exec \"$1\" address-space 100";
    let row = Row::own("ulimit -v and -n", "400 MB of address space used up, 16 descriptors");
    row.measure(&shell(script, &[program]), &Vswap::ram(BUDGET));
}
