//! How many pages the pool holds, and may hold.
//!
//! One counter of pages in use would be a cache line that all workers write. So pages are granted
//! from the common counter in batches and a worker takes them from its shard. What is granted never
//! passes the limit, so neither does what is in use; when the limit nears, grants shrink to what is
//! asked for and idle grants are called back.

use crate::page::{PAGE_SHIFT, PAGE_SIZE};
use crate::sync::{AtomicUsize, CacheLine, Ordering};

/// Workers beyond this share shards, which costs time and nothing else.
const SHARDS: usize = 16;

/// Pages in a grant.
const BATCH: usize = 32;

/// Which shard a worker takes from.
#[derive(Clone, Copy, Debug)]
pub struct Shard(usize);

/// Counts pages against a limit.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    granted: AtomicUsize,
    spare: [CacheLine<AtomicUsize>; SHARDS],
}

impl Budget {
    /// No limit and nothing in use.
    pub const fn new() -> Self {
        Self {
            limit: AtomicUsize::new(usize::MAX),
            granted: AtomicUsize::new(0),
            spare: [const { CacheLine(AtomicUsize::new(0)) }; SHARDS],
        }
    }

    /// The shard for the `n`th worker.
    pub fn shard(n: usize) -> Shard {
        Shard(n % SHARDS)
    }

    /// Sets the limit in bytes. What is already in use stays.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes >> PAGE_SHIFT, Ordering::Relaxed);
        self.call_back();
    }

    /// Bytes in use. While workers run this may be too high by their grants under way.
    pub fn used(&self) -> usize {
        let spare: usize = self.spare.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
        self.granted.load(Ordering::Relaxed).saturating_sub(spare) * PAGE_SIZE
    }

    /// Counts `pages` more in use, unless that would pass the limit.
    #[inline]
    pub fn take(&self, shard: Shard, pages: usize) -> bool {
        let spare = &self.spare[shard.0].0;
        // Counters only, here and below: they order nothing.
        let taken = spare
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spare| spare.checked_sub(pages));
        taken.is_ok() || self.take_grant(shard, pages)
    }

    /// Counts `pages` fewer in use.
    pub fn give(&self, pages: usize) {
        self.granted.fetch_sub(pages, Ordering::Relaxed);
    }

    #[cold]
    fn take_grant(&self, shard: Shard, pages: usize) -> bool {
        if self.grant(pages + BATCH) {
            self.spare[shard.0].0.fetch_add(BATCH, Ordering::Relaxed);
            return true;
        }
        if !self.grant(pages) {
            self.call_back();
            return self.grant(pages);
        }
        true
    }

    fn grant(&self, pages: usize) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let granted = self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |granted| {
            granted.checked_add(pages).filter(|&granted| granted <= limit)
        });
        granted.is_ok()
    }

    fn call_back(&self) {
        for shard in &self.spare {
            let spare = shard.0.swap(0, Ordering::Relaxed);
            self.granted.fetch_sub(spare, Ordering::Relaxed);
        }
    }
}
