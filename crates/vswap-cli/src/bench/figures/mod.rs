//! Numbers beside the table of patterns: swap devices, the swap cache, the pool's density.
//!
//! Each is measured in every round beside its peer's, if it has one, and judged by a target. What is
//! judged is the number itself, or its ratio to the peer's in the same round.

mod density;
mod devices;
mod disk;
mod swap_cache;

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use super::kernel::{Journal, KernelError};
use super::report::{Conditions, Spread};
use super::rows::Bench;

/// What has no part in the figures. Of each of them and not of their group, or clap would name none that was given.
const WITHOUT: [&str; 7] =
    ["rows", "programs", "kernel_build", "scaling", "phases", "threads", "html"];

/// What to measure instead of the table.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
pub struct Choice {
    /// Measure swap devices instead: writeback and reads of single pages beside direct I/O on the same file, and
    /// ordered reads, bytes written and bytes held beside the kernel's swap file
    #[arg(long, conflicts_with_all = WITHOUT)]
    devices: bool,
    /// Measure instead what it is worth to keep the compressed copy of a page that was only read, with data of
    /// 1.2, 2 and 4 times the RAM
    #[arg(long, conflicts_with_all = WITHOUT)]
    swap_cache: bool,
    /// Measure the pool instead: what part of its memory is compressed data, after a fill and after churn, and
    /// how much else each swapped page takes
    #[arg(long, conflicts_with_all = WITHOUT)]
    density: bool,
}

/// One of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `--devices`.
    Devices,
    /// `--swap-cache`.
    SwapCache,
    /// `--density`.
    Density,
}

impl Choice {
    /// What was chosen.
    pub fn part(&self) -> Option<Part> {
        let parts = [
            (self.devices, Part::Devices),
            (self.swap_cache, Part::SwapCache),
            (self.density, Part::Density),
        ];
        parts.into_iter().find_map(|(chosen, part)| chosen.then_some(part))
    }
}

impl Part {
    /// Whether all of the data has to be held in RAM.
    pub fn is_in_ram(self) -> bool {
        self == Self::Density
    }

    /// Runs all rounds; `None` if a signal asked to stop.
    pub fn measure(
        self,
        bench: &Bench<'_>,
        journal: &Journal,
        conditions: Conditions,
    ) -> Option<Figures> {
        let mut figures = Figures::new(conditions);
        for round in 1..=figures.conditions.rounds {
            match self {
                Self::Devices => devices::measure(bench, journal, &mut figures),
                Self::SwapCache => swap_cache::measure(bench, &mut figures),
                Self::Density => density::measure(bench, &mut figures),
            }
            if bench.is_stopped() {
                return None;
            }
            eprintln!("round {round}/{} done", figures.conditions.rounds);
        }
        Some(figures)
    }
}

/// What a figure is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judged {
    /// The number itself.
    Value,
    /// How many times the peer's number it is.
    OfPeer,
    /// How many times smaller than the peer's it is.
    TimesBelowPeer,
}

/// The target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// For people, with the unit.
    pub name: String,
    /// Whose number stands beside it.
    pub peer: Option<&'static str>,
    /// What counts.
    pub judged: Judged,
    /// What is wanted, if somebody said so.
    pub target: Option<Target>,
}

/// What the rounds gave.
#[derive(Clone, Debug)]
struct Figure {
    measure: Measure,
    own: Vec<f64>,
    peer: Vec<f64>,
}

impl Figure {
    /// Of each round that has what it takes.
    fn judged(&self) -> Vec<f64> {
        let pairs = self.own.iter().zip(&self.peer);
        match self.measure.judged {
            Judged::Value => self.own.clone(),
            Judged::OfPeer => pairs.map(|(own, peer)| own / peer).collect(),
            Judged::TimesBelowPeer => pairs.map(|(own, peer)| peer / own).collect(),
        }
    }

    fn summary(&self) -> Option<Summary<'_>> {
        let judged = Spread::of(self.judged());
        let target = self.measure.target.zip(judged.as_ref());
        Some(Summary {
            measure: &self.measure,
            own: Spread::of(self.own.clone())?,
            beside: Spread::of(self.peer.clone()),
            met: target.map(|(target, judged)| target.is_met(judged.median)),
            ratio: judged.filter(|_| self.measure.judged != Judged::Value),
        })
    }
}

/// A figure as it is shown.
#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    measure: &'a Measure,
    own: Spread,
    beside: Option<Spread>,
    ratio: Option<Spread>,
    met: Option<bool>,
}

impl Summary<'_> {
    /// All but the name.
    fn text(&self) -> String {
        let mut text = format!("{:<20}", shown(&self.own));
        if let (Some(beside), Some(peer)) = (&self.beside, self.measure.peer) {
            let _ = write!(text, "  {peer} {}", shown(beside));
        }
        if let Some(ratio) = &self.ratio {
            let _ = write!(text, "  ratio {}", shown(ratio));
        }
        if let (Some(target), Some(met)) = (self.measure.target, self.met) {
            let verdict = if met { "met" } else { "MISSED" };
            let _ = write!(text, "  wanted {}: {verdict}", target.text());
        }
        text
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Figures {
    conditions: Conditions,
    #[serde(rename = "figures", serialize_with = "summaries")]
    measured: Vec<Figure>,
    /// Peers that this machine or user cannot have, and why.
    skipped: Vec<String>,
    /// What failed, and why.
    failed: Vec<String>,
}

fn summaries<S: Serializer>(figures: &[Figure], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(figures.iter().filter_map(Figure::summary))
}

impl Figures {
    fn new(conditions: Conditions) -> Self {
        Self { conditions, measured: Vec::new(), skipped: Vec::new(), failed: Vec::new() }
    }

    /// Adds a round's numbers. A round without the peer's is left out where that is what counts.
    fn add(&mut self, measure: Measure, own: f64, peer: Option<f64>) {
        let index = self.measured.iter().position(|figure| figure.measure == measure);
        let index = index.unwrap_or_else(|| {
            self.measured.push(Figure { measure, own: Vec::new(), peer: Vec::new() });
            self.measured.len() - 1
        });
        let figure = &mut self.measured[index];
        figure.own.push(own);
        figure.peer.extend(peer);
    }

    /// Does a part of a round. One that failed is told, and not tried in later rounds.
    fn attempt<T>(
        &mut self,
        bench: &Bench<'_>,
        what: &str,
        work: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> Option<T> {
        let absent = |absences: &[String]| absences.iter().any(|other| other.starts_with(what));
        if bench.is_stopped() || absent(&self.skipped) || absent(&self.failed) {
            return None;
        }
        match work(self) {
            Ok(value) => return Some(value),
            Err(_) if bench.is_stopped() => {}
            Err(error) => {
                let line = format!("{what}: {error:#}");
                let unavailable = error.downcast_ref().is_some_and(KernelError::is_unavailable);
                eprintln!("{}: {line}", if unavailable { "SKIPPED" } else { "FAILED" });
                if unavailable { &mut self.skipped } else { &mut self.failed }.push(line);
            }
        }
        None
    }

    /// Whether everything that this machine allows was measured.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// The table.
    pub fn table(&self) -> String {
        let Conditions { contents, bytes, ram, rounds, .. } = &self.conditions;
        let mut text = format!(
            "contents: {contents}\n{} MiB in {} MiB of RAM{}; median (min–max) of {rounds} rounds\n",
            bytes >> 20,
            ram >> 20,
            self.conditions.quota(),
        );
        let summaries: Vec<_> = self.measured.iter().filter_map(Figure::summary).collect();
        let names = summaries.iter().map(|summary| summary.measure.name.chars().count());
        let width = names.max().unwrap_or(0);
        for summary in summaries {
            let _ = writeln!(text, "{:<width$}  {}", summary.measure.name, summary.text());
        }
        for (what, lines) in [("skipped", &self.skipped), ("FAILED", &self.failed)] {
            for line in lines {
                let _ = writeln!(text, "{what}: {line}");
            }
        }
        text
    }
}

/// With three digits.
fn shown(spread: &Spread) -> String {
    let Spread { median, min, max, .. } = spread;
    match median.abs() {
        value if value >= 100.0 => format!("{median:.0} ({min:.0}–{max:.0})"),
        value if value >= 10.0 => format!("{median:.1} ({min:.1}–{max:.1})"),
        value if value >= 1.0 => format!("{median:.2} ({min:.2}–{max:.2})"),
        _ => format!("{median:.3} ({min:.3}–{max:.3})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(judged: Judged, target: Target) -> Measure {
        let name = format!("{judged:?}, ns");
        Measure { name, peer: Some("a plain read"), judged, target: Some(target) }
    }

    fn figures(measure: &Measure, rounds: &[(f64, Option<f64>)]) -> Figures {
        let mut figures =
            Figures::new(Conditions { rounds: rounds.len(), ..Conditions::default() });
        for &(own, peer) in rounds {
            figures.add(measure.clone(), own, peer);
        }
        figures
    }

    #[test]
    fn the_median_of_the_rounds_ratios_is_judged() {
        let of_peer = measure(Judged::OfPeer, Target::AtMost(1.5));
        let rounds = [(30.0, Some(10.0)), (14.0, Some(10.0)), (12.0, Some(10.0))];
        let all = figures(&of_peer, &rounds);
        let summary = all.measured[0].summary().unwrap();
        assert_eq!(summary.met, Some(true));
        assert_eq!(summary.ratio.unwrap().rounds, [3.0, 1.4, 1.2]);
        let below = measure(Judged::TimesBelowPeer, Target::AtLeast(4.0));
        let all = figures(&below, &[(10.0, Some(39.0))]);
        assert_eq!(all.measured[0].summary().unwrap().met, Some(false));
        assert!(all.table().contains("MISSED"), "{}", all.table());
    }

    #[test]
    fn a_figure_without_a_peer_is_judged_by_itself() {
        let value = measure(Judged::Value, Target::AtLeast(0.95));
        let all = figures(&value, &[(0.97, None)]);
        let summary = all.measured[0].summary().unwrap();
        assert!(summary.ratio.is_none() && summary.met == Some(true));
        assert!(all.table().contains("wanted ≥ 0.95: met"), "{}", all.table());
    }

    #[test]
    fn without_its_peer_nothing_is_said_to_be_met() {
        let all = figures(&measure(Judged::OfPeer, Target::AtMost(1.5)), &[(30.0, None)]);
        assert_eq!(all.measured[0].summary().unwrap().met, None);
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json["figures"][0]["own"]["median"], 30.0);
        assert!(json["figures"][0]["beside"].is_null());
    }
}
