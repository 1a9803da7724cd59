//! Whole programs, run plain and under `vswap run`, and compared byte for byte.
//!
//! One module per group of promises:
//!
//! - [`whole`]: programs that people use (`sort`, `python3`, `sqlite3`, `sh`), beyond their budget;
//! - [`memory`]: our own C programs, which verify memory after every kind of mapping change;
//! - [`differential`]: random mapping operations against a model;
//! - [`syscalls`]: the kernel reading and writing pages that are swapped out;
//! - [`trees`]: processes that fork, and what they share;
//! - [`traps`]: mapping calls that no hook sees;
//! - [`poison`]: pages that cannot be restored;
//! - [`manners`]: what a program can notice of the pager, which is nothing, and how both end;
//! - [`compat`]: the rows of docs/compatibility.md;
//! - [`budget`]: `--ram` holds, seen from outside;
//! - [`cgroup`]: hard memory limits, and data that does not fit;
//! - [`inline`]: the inline engine;
//! - [`statistics`]: what `--stats` says;
//! - [`groups`]: runs inside runs, and limits;
//! - [`control`]: what `vswap status` says, and `vswap reclaim` does;
//! - [`overhead`]: a program far below its budget does not pay.
//!
//! The C programs are in `tests/programs`; each says in its head comment what it proves. A job has a
//! hard time limit, and at its end nothing that it started may be left ([`support`]). A test prints
//! its D (what the program needs), r (how well that compressed) and B (its budget).
//!
//! `VSWAP_TEST_LONG=1` runs more seeds and longer forms. Tests that need root, a tool or a cgroup say
//! `skipped:` with the reason on stderr when they cannot run.

mod budget;
mod cgroup;
mod compat;
mod control;
mod devices;
mod differential;
mod groups;
mod inline;
mod manners;
mod memory;
mod overhead;
mod poison;
mod statistics;
mod support;
mod syscalls;
mod traps;
mod trees;
mod whole;
