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

const MOVED_IN: [&str; 4] = ["pswpin", "zswpin", "swpin_zero", "same_filled_in"];
const MOVED_OUT: [&str; 4] = ["pswpout", "zswpout", "swpout_zero", "same_filled_out"];
/// Counted in pswpout too, though they had left memory before.
const MOVED_BEFORE: [&str; 2] = ["zswpwb", "written_back_pages"];

/// Counting the pages of one run.
pub enum Moved {
    /// Since there were so many, and so many of them out.
    Kernel((u64, u64)),
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

    /// Pages moved by a run that has ended, and those of them that went out, or `None` if that cannot be known.
    pub fn pages(self) -> Option<(u64, u64)> {
        match self {
            Self::Nobody => None,
            Self::Kernel((moved, out)) => {
                let now = vmstat();
                Some((now.0 - moved, now.1 - out))
            }
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

/// One of the kernel's counters, of the whole machine; 0 if it has none of that name.
pub fn kernel_counter(name: &str) -> u64 {
    let text = fs::read_to_string(VMSTAT).unwrap_or_default();
    counter_in(&text, name).unwrap_or(0)
}

fn counter_in(vmstat: &str, name: &str) -> Option<u64> {
    let mut lines = vmstat.lines().filter_map(|line| line.split_once(' '));
    lines.find_map(|(other, count)| (other == name).then(|| count.trim().parse().ok())?)
}

fn vmstat() -> (u64, u64) {
    let text = fs::read_to_string(VMSTAT).unwrap_or_default();
    sum(|name| counter_in(&text, name))
}

/// All, and those that went out. A counter that a kernel does not have is 0.
fn sum(counter: impl Fn(&str) -> Option<u64>) -> (u64, u64) {
    let sum = |names: &[&str]| names.iter().filter_map(|name| counter(name)).sum::<u64>();
    let out = sum(&MOVED_OUT).saturating_sub(sum(&MOVED_BEFORE));
    (sum(&MOVED_IN) + out, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let vmstat = "pswpout_x 1\npswpin 2\npswpout 30\n";
        assert_eq!(counter_in(vmstat, "pswpout"), Some(30));
        assert_eq!(counter_in(vmstat, "zswpout"), None);
    }

    #[test]
    fn what_vswap_wrote_is_added_up() {
        let moved = Moved::by_vswap().unwrap();
        let stats = r#"{"counters": {"pswpout": 10, "written_back_pages": 10, "zswpout": 30,
            "zswpin": 5, "same_filled_out": 2, "faults": 1000}}"#;
        fs::write(moved.stats_path().unwrap(), stats).unwrap();
        assert_eq!(moved.pages(), Some((37, 32)));
        assert_eq!(Moved::by_vswap().unwrap().pages(), None);
        assert_eq!(Moved::Nobody.pages(), None);
    }
}
