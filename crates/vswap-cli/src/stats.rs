//! The account of a run: as JSON for programs, in a few lines for people.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap as _};
use vswap_core::group::shared::GroupIndex;
use vswap_pager::config::Engine;
use vswap_pager::run_page::{Counter, Gauge, RunPage};

use crate::control::About;
use crate::coordinator::{Outcome, Totals};
use crate::refusal::{Refusal, reason, say};
use crate::size::Size;

/// Gauges of memory that cannot be paged, and the reasons.
const UNPAGEABLE: [(Gauge, &str); 4] = [
    (Gauge::UnpageableShared, "shared"),
    (Gauge::UnpageableLocked, "locked"),
    (Gauge::UnpageableFile, "file"),
    (Gauge::UnpageableStack, "stack"),
];

/// A run that ended.
pub struct Report<'a> {
    pub exit_code: u8,
    pub outcome: Outcome,
    pub account: Account<'a>,
}

/// The file for the report, opened while an error can still be told.
pub struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    /// Creates or empties the file.
    pub fn create(path: &Path) -> Result<Self, Refusal> {
        let file = File::create(path).map_err(|error| {
            let what = format!("--stats: cannot write {}: {}", path.display(), reason(error));
            Refusal::usage(what, "name a file that can be written")
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes the report. The program has ended, so a failure is told and nothing more.
    pub fn write(mut self, report: &Report<'_>) {
        let written = serde_json::to_vec_pretty(&Document::of(report))
            .map_err(std::io::Error::from)
            .and_then(|json| self.file.write_all(&[&json[..], b"\n"].concat()));
        if let Err(error) = written {
            let path = self.path.display();
            say(format_args!("cannot write {path}: {}; the statistics are lost", reason(error)));
        }
    }
}

/// The report as written. `version` is raised when a field changes its meaning or goes away.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    exit_code: u8,
    signal: Option<i32>,
    #[serde(flatten)]
    account: &'a Account<'a>,
}

impl<'a> Document<'a> {
    fn of(report: &'a Report<'_>) -> Self {
        Self {
            version: 1,
            exit_code: report.exit_code,
            signal: match report.outcome {
                Outcome::Exited(_) => None,
                Outcome::Killed(signal) => Some(signal),
            },
            account: &report.account,
        }
    }
}

/// What there is on swap devices.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SwapSpace {
    swap_limit_bytes: u64,
    swap_leased_bytes: u64,
}

impl SwapSpace {
    /// What a group has, its descendants included.
    pub fn of(page: &RunPage, group: GroupIndex) -> Self {
        let leased = match group {
            GroupIndex::ROOT => page.devices.reach(),
            group => page.swap_held(group),
        };
        Self { swap_limit_bytes: page.swap_limit(group), swap_leased_bytes: leased }
    }
}

/// What can be said of a run that goes on, too.
#[derive(Serialize)]
pub struct Account<'a> {
    program: String,
    wall_seconds: f64,
    fault_seconds: f64,
    stall_seconds: f64,
    ram_bytes: u64,
    engine: &'static str,
    codec: String,
    #[serde(flatten)]
    swap: SwapSpace,
    /// Processes that had a pager.
    pagers: u64,
    counters: Counters<'a>,
    now: Gauges<'a>,
    peak: Gauges<'a>,
    unpageable: Unpageable<'a>,
}

impl<'a> Account<'a> {
    /// The account until now.
    pub fn of(about: &About, swap: SwapSpace, totals: &'a Totals, pagers: u64) -> Self {
        Self {
            program: about.words[0].to_string_lossy().into_owned(),
            wall_seconds: about.started.elapsed().as_secs_f64(),
            fault_seconds: seconds(totals.counter(Counter::FaultNs)),
            stall_seconds: seconds(totals.counter(Counter::StallNs)),
            ram_bytes: about.config.ram,
            engine: engine_name(about.config.engine),
            codec: about.config.codec.to_string(),
            swap,
            pagers,
            counters: Counters(totals),
            now: Gauges { totals, value: Totals::gauge },
            peak: Gauges { totals, value: Totals::peak },
            unpageable: Unpageable(totals),
        }
    }

    /// The account of a run that ended after `wall`.
    pub fn at_end(mut self, wall: Duration) -> Self {
        self.wall_seconds = wall.as_secs_f64();
        self.now.value = Totals::at_end;
        self
    }
}

struct Counters<'a>(&'a Totals);

impl Serialize for Counters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Counter::ALL.iter().map(|c| (c.name(), self.0.counter(*c))))
    }
}

struct Gauges<'a> {
    totals: &'a Totals,
    value: fn(&Totals, Gauge) -> u64,
}

impl Serialize for Gauges<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let gauges = Gauge::ALL.iter();
        serializer.collect_map(gauges.map(|g| (g.name(), (self.value)(self.totals, *g))))
    }
}

/// Shares of the program's memory, from 0 to 1, taken from the peaks: at its end a program has
/// often let go of everything. Stacks and locked memory are anonymous, so they are counted as
/// resident or unmanaged already.
struct Unpageable<'a>(&'a Totals);

impl Serialize for Unpageable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let peak = |gauge| self.0.peak(gauge);
        let unpageable: u64 = UNPAGEABLE.iter().map(|(gauge, _)| peak(*gauge)).sum();
        let anonymous = peak(Gauge::Resident) + peak(Gauge::Swapped) + peak(Gauge::Unmanaged);
        let others = peak(Gauge::UnpageableShared) + peak(Gauge::UnpageableFile);
        // Peaks were not all at one time.
        let whole = (anonymous + others).max(unpageable).max(1) as f64;
        let mut map = serializer.serialize_map(Some(UNPAGEABLE.len() + 1))?;
        map.serialize_entry("share", &(unpageable as f64 / whole))?;
        for (gauge, reason) in UNPAGEABLE {
            map.serialize_entry(reason, &(peak(gauge) as f64 / whole))?;
        }
        map.end()
    }
}

impl Report<'_> {
    /// The account for people, on stderr.
    pub fn summarize(&self) {
        let totals = self.account.counters.0;
        let count = |counter| totals.counter(counter);
        let peak = |gauge| Size(totals.peak(gauge));
        let name = &self.account.program;
        let end = match self.outcome {
            Outcome::Exited(code) => format!("ended with exit code {code}"),
            Outcome::Killed(signal) => format!("was ended by signal {signal}"),
        };
        let (wall, pagers) = (self.account.wall_seconds, self.account.pagers);
        say(format_args!("{name} {end} after {wall:.3} s; {pagers} of its processes had a pager"));
        if pagers == 0 {
            return say("all of it stayed far below its RAM, so nothing was paged");
        }
        say(format_args!(
            "at most {} resident, {} in the pool for {} of compressed data, {} of bookkeeping, {} swapped out",
            peak(Gauge::Resident),
            peak(Gauge::Pool),
            peak(Gauge::Payload),
            peak(Gauge::Metadata),
            peak(Gauge::Swapped),
        ));
        say(format_args!(
            "pages out: {} compressed, {} zero, {} same-filled, {} to the swap file",
            count(Counter::Zswpout),
            count(Counter::SwpoutZero),
            count(Counter::SameFilledOut),
            count(Counter::Pswpout),
        ));
        say(format_args!(
            "pages in: {} compressed, {} zero, {} from the swap file",
            count(Counter::Zswpin),
            count(Counter::SwpinZero),
            count(Counter::Pswpin),
        ));
        say(format_args!(
            "{} faults took {:.3} s, and {:.3} s went into waiting for memory",
            count(Counter::Faults),
            seconds(count(Counter::FaultNs)),
            seconds(count(Counter::StallNs)),
        ));
        let reasons = UNPAGEABLE.map(|(gauge, reason)| format!("{} {reason}", peak(gauge)));
        say(format_args!("could not be paged: {}", reasons.join(", ")));
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Handoff => "handoff",
        Engine::Inline => "inline",
    }
}
