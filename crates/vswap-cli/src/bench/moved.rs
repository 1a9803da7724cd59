//! How many pages a peer moved out of memory and into it, by its own counters, which have the same
//! names in the kernel and in vswap.
//!
//! The kernel's are the whole machine's; nobody but the measured program is expected to swap
//! meanwhile.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsRawFd as _;

use rustix::fs::{MemfdFlags, memfd_create};

const VMSTAT: &str = "/proc/vmstat";

const MOVED: [&str; 8] = [
    "pswpin",
    "pswpout",
    "zswpin",
    "zswpout",
    "swpin_zero",
    "swpout_zero",
    "same_filled_in",
    "same_filled_out",
];
/// Counted in pswpout too, though they had left memory before.
const MOVED_BEFORE: [&str; 2] = ["zswpwb", "written_back_pages"];

/// Counting the pages of one run.
pub enum Moved {
    /// Since there were so many.
    Kernel(u64),
    /// With a file that `vswap run --stats` writes.
    Vswap(File),
    /// Nothing moves pages.
    Nobody,
}

impl Moved {
    /// Counts what the kernel moves from now on.
    pub fn by_kernel() -> Self {
        Self::Kernel(vmstat())
    }

    /// Counts what a `vswap run` moves.
    ///
    /// # Errors
    /// There is no memory for its file.
    pub fn by_vswap() -> io::Result<Self> {
        Ok(Self::Vswap(memfd_create("vswap-bench-stats", MemfdFlags::CLOEXEC)?.into()))
    }

    /// For `--stats`: no other program can have put something else there.
    pub fn stats_path(&self) -> Option<String> {
        match self {
            Self::Vswap(file) => {
                Some(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
            }
            Self::Kernel(_) | Self::Nobody => None,
        }
    }

    /// Pages moved by a run that has ended, or `None` if that cannot be known.
    pub fn pages(self) -> Option<u64> {
        match self {
            Self::Nobody => None,
            Self::Kernel(before) => Some(vmstat() - before),
            Self::Vswap(mut file) => {
                let mut text = String::new();
                file.rewind().ok()?;
                file.read_to_string(&mut text).ok()?;
                let stats: serde_json::Value = serde_json::from_str(&text).ok()?;
                Some(sum(|name| stats["counters"][name].as_u64()))
            }
        }
    }
}

fn vmstat() -> u64 {
    let text = fs::read_to_string(VMSTAT).unwrap_or_default();
    sum(|name| text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().parse().ok()))
}

/// A counter that a kernel does not have is 0.
fn sum(counter: impl Fn(&str) -> Option<u64>) -> u64 {
    let sum = |names: &[&str]| names.iter().filter_map(|name| counter(name)).sum::<u64>();
    sum(&MOVED).saturating_sub(sum(&MOVED_BEFORE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vswap_wrote_is_added_up() {
        let moved = Moved::by_vswap().unwrap();
        let stats = r#"{"counters": {"pswpout": 10, "written_back_pages": 10, "zswpout": 30,
            "zswpin": 5, "same_filled_out": 2, "faults": 1000}}"#;
        fs::write(moved.stats_path().unwrap(), stats).unwrap();
        assert_eq!(moved.pages(), Some(37));
        assert_eq!(Moved::by_vswap().unwrap().pages(), None);
        assert_eq!(Moved::Nobody.pages(), None);
    }
}
