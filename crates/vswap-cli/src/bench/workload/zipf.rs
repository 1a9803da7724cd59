//! Which page is accessed next where that is not uniform: zipf ranks, and a random cycle.

use super::super::contents::Random;

/// As YCSB has it: the page of rank k is accessed in proportion to 1/k^0.99.
const SKEW: f64 = 0.99;

/// Larger than any number of pages here and prime, so that multiplying by it permutes the pages.
const SCATTER: u64 = 2_654_435_761;

/// Draws pages by a zipf law, by rejection-inversion (Hörmann and Derflinger 1996): exact, without a
/// table, and with fewer than 1.2 draws for each page.
#[derive(Clone, Debug)]
pub struct Zipf {
    pages: usize,
    first: f64,
    last: f64,
    /// Draws this near to a rank need no second look.
    near: f64,
}

impl Zipf {
    /// Over so many pages, which is not none.
    pub fn new(pages: usize) -> Self {
        Self {
            pages,
            first: integral(1.5) - 1.0,
            last: integral(pages as f64 + 0.5),
            near: 2.0 - inverse_integral(integral(2.5) - density(2.0)),
        }
    }

    /// The next page. Hot ones lie scattered, or they would share huge pages and read-ahead.
    pub fn next(&self, random: &mut Random) -> usize {
        let rank = self.next_rank(random) - 1;
        (rank as u64 * SCATTER % self.pages as u64) as usize
    }

    /// From 1 on.
    fn next_rank(&self, random: &mut Random) -> usize {
        loop {
            let unit = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            let drawn = self.last + unit * (self.first - self.last);
            let exact = inverse_integral(drawn);
            let rank = exact.round().clamp(1.0, self.pages as f64);
            if rank - exact <= self.near || drawn >= integral(rank + 0.5) - density(rank) {
                return rank as usize;
            }
        }
    }
}

fn density(x: f64) -> f64 {
    x.powf(-SKEW)
}

fn integral(x: f64) -> f64 {
    (x.powf(1.0 - SKEW) - 1.0) / (1.0 - SKEW)
}

fn inverse_integral(y: f64) -> f64 {
    (1.0 + y * (1.0 - SKEW)).powf(1.0 / (1.0 - SKEW))
}

/// For each page the next one of a random cycle through all of them (Sattolo).
pub fn random_cycle(pages: usize, random: &mut Random) -> Vec<u32> {
    let mut next: Vec<u32> = (0..pages as u32).collect();
    for last in (1..pages).rev() {
        next.swap(last, random.below(last));
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_law() {
        let (pages, draws) = (1000, 1_000_000);
        let zipf = Zipf::new(pages);
        let mut random = Random::new(1);
        let mut counts = vec![0u32; pages + 1];
        for _ in 0..draws {
            counts[zipf.next_rank(&mut random)] += 1;
        }
        let sum: f64 = (1..=pages).map(|rank| density(rank as f64)).sum();
        for rank in [1, 2, 3, 10, 100, 1000] {
            let expected = f64::from(draws) * density(rank as f64) / sum;
            let found = f64::from(counts[rank]);
            // Five standard deviations.
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{rank}: {found} {expected}");
        }
    }

    #[test]
    fn each_page_has_one_rank_and_neighbours_in_rank_lie_apart() {
        let pages = 30_000_u64;
        let place = |rank: u64| rank * SCATTER % pages;
        let mut places: Vec<_> = (0..pages).map(place).collect();
        assert!((0..20).all(|rank| place(rank).abs_diff(place(rank + 1)) > 100));
        places.sort_unstable();
        assert!(places.iter().copied().eq(0..pages));
    }

    #[test]
    fn the_cycle_passes_every_page_once() {
        for pages in [1, 2, 1000] {
            let next = random_cycle(pages, &mut Random::new(5));
            let mut seen = vec![false; pages];
            let mut page = 0;
            for _ in 0..pages {
                assert!(!std::mem::replace(&mut seen[page], true));
                page = next[page] as usize;
            }
            assert_eq!(page, 0);
        }
    }
}
