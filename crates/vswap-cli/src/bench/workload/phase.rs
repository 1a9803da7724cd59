//! The access patterns, in the order in which they run.

use serde::{Deserialize, Serialize};

/// One access pattern, measured by itself.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    clap::ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The first touch of every page, in order, writing all of it.
    Fill,
    /// Every byte of every page is read, in order.
    OrderedRead,
    /// One word of a random page is read.
    RandomRead,
    /// A random page is read and written in eight places.
    RandomWrite,
    /// As random reads, but few pages get most of them.
    ZipfRead,
    /// As zipf reads, but each tenth access writes.
    #[value(name = "mix-90-10")]
    #[serde(rename = "mix-90-10")]
    Mix9010,
    /// Reads along a random cycle through all pages, each of which needs the one before.
    PointerChase,
    /// A child is forked that reads every byte; the parent waits for it.
    ForkReread,
    /// All of the memory is unmapped.
    Free,
    /// Blocks of various sizes are freed, allocated and filled, without growth.
    Churn,
    /// A whole program: GNU sort, from a pipe.
    Sort,
    /// A whole program: a dictionary in Python.
    Python,
    /// A whole program: a database in memory.
    Sqlite,
    /// A whole program: a server with clients that wait for its answers.
    Redis,
    /// Whole programs: compilers, two at a time.
    Compile,
    /// The same of a kernel, where there is its source.
    KernelBuild,
}

impl Phase {
    /// Access patterns, in the order in which they run. What follows [`Self::Free`] has memory of its
    /// own.
    pub const PATTERNS: [Self; 10] = [
        Self::Fill,
        Self::OrderedRead,
        Self::RandomRead,
        Self::RandomWrite,
        Self::ZipfRead,
        Self::Mix9010,
        Self::PointerChase,
        Self::ForkReread,
        Self::Free,
        Self::Churn,
    ];

    /// Those of a quick bench.
    pub const BASIC: [Self; 4] =
        [Self::Fill, Self::OrderedRead, Self::RandomRead, Self::RandomWrite];

    /// Whole programs, which run after the patterns.
    pub const PROGRAMS: [Self; 6] =
        [Self::Sort, Self::Python, Self::Sqlite, Self::Redis, Self::Compile, Self::KernelBuild];

    /// Patterns and programs, in the order in which they run.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::PATTERNS.into_iter().chain(Self::PROGRAMS)
    }

    /// These phases in their order, after the fill, without which there is nothing to access.
    pub fn in_order(wanted: &[Self]) -> Vec<Self> {
        let fills = wanted.iter().any(|phase| !phase.is_program());
        let runs = |phase: &Self| (fills && *phase == Self::Fill) || wanted.contains(phase);
        Self::all().filter(runs).collect()
    }

    /// Whether it is a whole program, whose time is not that of a page or access.
    pub fn is_program(self) -> bool {
        Self::PROGRAMS.contains(&self)
    }

    /// Its title, with what its times are shown in unless that is ns.
    pub fn heading(self) -> String {
        match self.unit().0 {
            "ns" => self.title().into(),
            unit => format!("{}, {unit}", self.title()),
        }
    }

    /// What its times are shown in, with how many ns that is.
    pub fn unit(self) -> (&'static str, f64) {
        match self {
            // Of a request.
            Self::Redis => ("µs", 1e3),
            _ if self.is_program() => ("ms", 1e6),
            _ => ("ns", 1.0),
        }
    }

    /// Whether pages are accessed in the order of their addresses, where read-ahead helps.
    pub const fn is_ordered(self) -> bool {
        matches!(self, Self::Fill | Self::OrderedRead | Self::ForkReread)
    }

    /// Whether single pages are accessed in no order, so that the times of accesses say something.
    pub const fn is_random(self) -> bool {
        use Phase::{Mix9010, PointerChase, RandomRead, RandomWrite, ZipfRead};
        matches!(self, RandomRead | RandomWrite | ZipfRead | Mix9010 | PointerChase)
    }

    /// Name on the command line.
    pub fn argument(self) -> String {
        self.title().replace([' ', '/'], "-")
    }

    /// Name for people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::OrderedRead => "ordered read",
            Self::RandomRead => "random read",
            Self::RandomWrite => "random write",
            Self::ZipfRead => "zipf read",
            Self::Mix9010 => "mix 90/10",
            Self::PointerChase => "pointer chase",
            Self::ForkReread => "fork reread",
            Self::Free => "free",
            Self::Churn => "churn",
            Self::Sort => "sort",
            Self::Python => "python",
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Compile => "compile",
            Self::KernelBuild => "kernel build",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn a_phase_is_called_on_the_command_line_what_it_is_called_in_the_report() {
        for phase in Phase::all() {
            assert_eq!(Phase::from_str(&phase.argument(), false), Ok(phase));
            let json = serde_json::to_string(&phase).unwrap();
            assert_eq!(json, format!("{:?}", phase.argument()));
        }
        assert!(Phase::value_variants().iter().copied().eq(Phase::all()));
    }

    #[test]
    fn the_fill_is_never_left_out() {
        let phases = Phase::in_order(&[Phase::Free, Phase::RandomRead]);
        assert_eq!(phases, [Phase::Fill, Phase::RandomRead, Phase::Free]);
        assert_eq!(Phase::in_order(&Phase::PROGRAMS), Phase::PROGRAMS, "programs fill their own");
    }
}
