//! What all members of a run counted and held, the ended ones included.
//!
//! A member's slot is reused, so when it ends its counters are added here. A peak over the whole
//! run is not the sum of the members' peaks, which they may have had one after another: it is
//! sampled, and never less than the largest peak that a single member had.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vswap_pager::run_page::{Counter, Gauge, Member};

/// Sums over all members of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Totals {
    counters: Vec<u64>,
    gauges: Vec<u64>,
    peaks: Vec<u64>,
    last: Vec<u64>,
    charged: u64,
}

impl Default for Totals {
    fn default() -> Self {
        let none = || vec![0; Gauge::ALL.len()];
        let counters = vec![0; Counter::ALL.len()];
        Self { counters, gauges: none(), peaks: none(), last: none(), charged: 0 }
    }
}

impl Totals {
    /// Value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// What is held now.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize]
    }

    /// What is held now and was held by the member that ended last: at the end of a run, what its
    /// program left behind.
    pub fn at_end(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize] + self.last[gauge as usize]
    }

    /// The most that was held at one time.
    pub fn peak(&self, gauge: Gauge) -> u64 {
        self.peaks[gauge as usize]
    }

    /// Bytes charged to the budget now.
    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// Adds what a member that ended counted. It holds nothing any more.
    pub fn harvest(&mut self, member: &Member) {
        self.add_counters(member);
        self.raise_peaks(member);
        self.last = Gauge::ALL.iter().map(|gauge| member.gauge(*gauge)).collect();
    }

    /// These totals, of the ended members, with the live ones on top.
    pub fn with_live<'a>(&mut self, live: impl Iterator<Item = &'a Member>) -> Self {
        let mut now = self.clone();
        for member in live {
            now.add_counters(member);
            now.raise_peaks(member);
            now.charged += member.charged.load(Ordering::Relaxed);
            for (sum, gauge) in now.gauges.iter_mut().zip(Gauge::ALL) {
                *sum += member.gauge(*gauge);
            }
        }
        for (peak, sum) in now.peaks.iter_mut().zip(&now.gauges) {
            *peak = (*peak).max(*sum);
        }
        self.peaks.clone_from(&now.peaks);
        now
    }

    fn add_counters(&mut self, member: &Member) {
        for (total, counter) in self.counters.iter_mut().zip(Counter::ALL) {
            *total += member.counter(*counter);
        }
    }

    fn raise_peaks(&mut self, member: &Member) {
        for (peak, gauge) in self.peaks.iter_mut().zip(Gauge::ALL) {
            *peak = (*peak).max(member.peak(*gauge));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(faults: u64, resident: &[u64]) -> Member {
        // SAFETY: the engine's own contract: all-zero bytes are a valid member.
        let member: Member = unsafe { std::mem::zeroed() };
        member.count(Counter::Faults, faults);
        for bytes in resident {
            member.set_gauge(Gauge::Resident, *bytes);
        }
        member
    }

    #[test]
    fn ended_members_count_but_hold_nothing() {
        let mut totals = Totals::default();
        totals.harvest(&member(10, &[700, 300]));
        let live = [member(1, &[200]), member(2, &[100])];
        let sum = totals.with_live(live.iter());
        assert_eq!(sum.counter(Counter::Faults), 13);
        assert_eq!(sum.gauge(Gauge::Resident), 300);
        assert_eq!(sum.peak(Gauge::Resident), 700);
        assert_eq!(sum.at_end(Gauge::Resident), 600);
    }

    #[test]
    fn members_at_one_time_make_a_peak_together() {
        let mut totals = Totals::default();
        totals.with_live([member(0, &[200]), member(0, &[150])].iter());
        assert_eq!(totals.with_live([].iter()).peak(Gauge::Resident), 350);
    }
}
