//! Pages that cannot be restored: the swap file of a run is damaged from outside, and what was in
//! the damaged part is lost, alone.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::support::{Job, Outcome, Vswap};

/// An object's header, and the blocks that it is laid out in where a page can be read alone.
const HEADER: usize = vswap_core::device::object::HEADER;
const BLOCK: usize = 512;

/// What a page of the file begins with, before its index: see `poison.c`.
const MAGIC: u64 = 0x766f_7261_7077_6170;

/// The swap file of a run, through the coordinator's descriptor: it has no name.
fn swap_file_of(coordinator: u32) -> File {
    let fds = fs::read_dir(format!("/proc/{coordinator}/fd")).expect("the coordinator's files");
    let path = fds.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
        let target = fs::read_link(path).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        target.ends_with(" (deleted)") && !target.starts_with("/memfd:")
    });
    OpenOptions::new().read(true).write(true).open(path.expect("a swap file")).expect("open")
}

/// Pages of the program's range in the file, in the file's order: offset and index.
fn pages_in(file: &File) -> Vec<(u64, u64)> {
    let len = file.metadata().expect("metadata").len();
    let mut found = Vec::new();
    for offset in (0..len).step_by(BLOCK) {
        let mut start = [0; HEADER + 16];
        if file.read_exact_at(&mut start, offset).is_err() {
            break;
        }
        let [magic, index] = [&start[HEADER..HEADER + 8], &start[HEADER + 8..]]
            .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
        if magic == MAGIC {
            found.push((offset, index));
        }
    }
    found
}

/// Runs the program and cuts the last `count` of its pages off the file; gives them.
fn lose(count: usize, vswap: &Vswap) -> (BTreeSet<u64>, Outcome) {
    let vswap = vswap.clone().swap("16M").no_encrypt();
    let mut running = Job::c("poison", &[]).stdin("").start_under(&vswap);
    running.wait_for("ready ");
    let file = swap_file_of(running.pid());
    let pages = pages_in(&file);
    assert_eq!(pages.len(), 128, "a quarter of 512 pages");
    let cut = &pages[pages.len() - count..];
    file.set_len(cut[0].0).expect("a shorter file");
    let lost: BTreeSet<u64> = cut.iter().map(|(_, index)| *index).collect();
    running.send(&lost.iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
    (lost, running.finish())
}

/// One line for each page, and no page twice. The child of a fork finds the same pages lost: it is
/// told by the word that its parent's page table has for them.
fn assert_told(lost: &BTreeSet<u64>, outcome: &Outcome) {
    assert!(outcome.status.success(), "{}", outcome.describe());
    let addresses: BTreeSet<_> = outcome
        .stderr
        .lines()
        .map(|line| line.strip_prefix("vswap: the page at ").and_then(|rest| rest.split_once(' ')))
        .map(|line| line.unwrap_or_else(|| panic!("another line: {}", outcome.describe())))
        .filter(|(_, rest)| rest.contains("could not be restored"))
        .map(|(address, _)| address)
        .collect();
    assert_eq!(addresses.len(), lost.len(), "{}", outcome.describe());
    assert_eq!(outcome.stderr.lines().count(), lost.len(), "{}", outcome.describe());
    assert_eq!(outcome.stats().counter("poisoned"), lost.len() as u64);
}

/// The 2 MiB of every kind of page with one that fails in their middle, so that a window which has
/// grown to its full size reaches over it.
#[test]
fn one_page_that_fails_in_a_window_is_lost_alone() {
    for vswap in [Vswap::ram("32M"), Vswap::ram("32M").inline()] {
        let (lost, outcome) = lose(1, &vswap);
        let page = *lost.first().expect("one page");
        assert!((128..384).contains(&page), "page {page} is near an end of the range");
        assert_told(&lost, &outcome);
    }
}

#[test]
fn many_pages_that_fail_are_lost_alone() {
    for vswap in [Vswap::ram("32M"), Vswap::ram("32M").inline()] {
        let (lost, outcome) = lose(80, &vswap);
        assert_told(&lost, &outcome);
    }
}
