//! How long single accesses took: a histogram on a logarithmic scale.

use serde::{Deserialize, Serialize};

/// Buckets per power of two: none is wider than an eighth of its times.
const PER_OCTAVE: u64 = 8;
const BUCKETS: usize = 62 * PER_OCTAVE as usize;

/// Counts of accesses by their time. Printed and kept as the buckets that are not empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Sparse", try_from = "Sparse")]
pub struct Latencies(Vec<u32>);

type Sparse = Vec<(usize, u32)>;

impl Default for Latencies {
    fn default() -> Self {
        Self(vec![0; BUCKETS])
    }
}

impl From<Latencies> for Sparse {
    fn from(latencies: Latencies) -> Self {
        latencies.0.into_iter().enumerate().filter(|(_, count)| *count > 0).collect()
    }
}

impl TryFrom<Sparse> for Latencies {
    type Error = &'static str;

    fn try_from(sparse: Sparse) -> Result<Self, Self::Error> {
        let mut latencies = Self::default();
        for (bucket, count) in sparse {
            *latencies.0.get_mut(bucket).ok_or("a bucket that no time falls into")? = count;
        }
        Ok(latencies)
    }
}

impl Latencies {
    /// Counts an access.
    pub fn record(&mut self, ns: u64) {
        self.0[bucket(ns)] += 1;
    }

    /// Adds those of another thread or round.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(&other.0) {
            *sum += count;
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&count| u64::from(count)).sum()
    }

    /// For each time in which some access ended the share of those that took no longer.
    pub fn distribution(&self) -> Vec<(u64, f64)> {
        let total = self.count();
        let mut below = 0;
        let counted = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        counted
            .map(|(bucket, &count)| {
                below += u64::from(count);
                (end(bucket), below as f64 / total as f64)
            })
            .collect()
    }

    /// The time that this share of the accesses did not exceed, as the upper end of a bucket.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        self.distribution().into_iter().find_map(|(ns, below)| (below >= share).then_some(ns))
    }
}

fn bucket(ns: u64) -> usize {
    let octave = ns.max(PER_OCTAVE).ilog2() - PER_OCTAVE.ilog2();
    (u64::from(octave) * PER_OCTAVE + (ns >> octave)) as usize
}

/// The longest time in a bucket.
fn end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let octave = (bucket / PER_OCTAVE).saturating_sub(1);
    ((bucket - octave * PER_OCTAVE + 1) << octave).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_hold_every_time() {
        let mut before = 0;
        for ns in (0..100_000).chain([u64::from(u32::MAX), 1 << 60]) {
            let bucket = bucket(ns);
            assert!(bucket >= before, "{ns}");
            assert!(bucket < BUCKETS && (ns..=ns + ns / 8).contains(&end(bucket)), "{ns}");
            before = bucket;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        (1..=500).for_each(|ns| one.record(ns * 10));
        (501..=1000).for_each(|ns| other.record(ns * 10));
        one.add(&other);
        for (share, ns) in [(0.5, 5_000), (0.99, 9_900), (0.999, 9_990)] {
            let found = one.quantile(share).unwrap();
            assert!((ns..ns + ns / 8).contains(&found), "{share}: {found}");
        }
        assert_eq!(Latencies::default().quantile(0.5), None);
        assert_eq!(one.distribution().last().map(|(_, share)| *share), Some(1.0));
    }

    #[test]
    fn the_printed_form_is_short_and_read_back() {
        let mut latencies = Latencies::default();
        (0..1000).for_each(|ns| latencies.record(100 + ns % 2));
        let text = serde_json::to_string(&latencies).unwrap();
        assert!(text.len() < 20, "{text}");
        assert_eq!(serde_json::from_str::<Latencies>(&text).unwrap(), latencies);
        assert!(serde_json::from_str::<Latencies>("[[100000, 1]]").is_err());
    }
}
