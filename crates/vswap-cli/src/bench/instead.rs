//! What can be measured instead of the access patterns.

use std::path::PathBuf;

/// Other things to run.
#[derive(clap::Args, Debug)]
pub struct Instead {
    /// Run whole programs instead, each with about --size of data: sort, Python, SQLite, redis with clients in
    /// a closed loop, and make -j2 of a generated C project. Not inline, since they make system calls on
    /// their data
    #[arg(long, conflicts_with = "phases")]
    pub programs: bool,
    /// With --programs, build a kernel too: the tinyconfig of the unpacked, clean source at PATH, with make -j2
    #[arg(long, value_name = "PATH", requires = "programs")]
    pub kernel_build: Option<PathBuf>,
    /// Measure instead how random accesses scale: with threads, and with the size of the swapped data, in zram and
    /// both engines. --ram
    /// and --size are not used: each size gets the RAM in which so much of it is swapped out
    #[arg(long, conflicts_with_all = ["phases", "programs", "html", "swap", "size", "ram", "threads"])]
    pub scaling: bool,
}
