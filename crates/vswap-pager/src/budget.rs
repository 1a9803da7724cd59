//! How much of the RAM budget is used, and when reclaim has to work.
//!
//! Everything that the process keeps in RAM counts: resident pages (those in staging too), the
//! pool, the engine's tables, and the anonymous memory that is not managed, which is measured from
//! time to time as what the kernel counts beyond the rest. Reclaim starts when little is free and
//! goes on until there is a stock, so that one wake-up serves many faults.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use vswap_core::page::PAGE_SIZE;

const MIB: u64 = 1 << 20;

/// What is free for a process that is held: more than any watermark.
const NO_END: i64 = i64::MAX / 4;

/// Use of the budget, in bytes unless it says pages. `ram` is the run's, `allowance` this process's.
#[derive(Debug)]
pub struct Budget {
    allowance: AtomicU64,
    ram: AtomicU64,
    resident_pages: AtomicI64,
    engine: AtomicU64,
    unmanaged: AtomicU64,
    held: AtomicBool,
}

impl Budget {
    /// Nothing is used; nothing is allowed.
    pub const fn new() -> Self {
        Self {
            allowance: AtomicU64::new(0),
            ram: AtomicU64::new(0),
            resident_pages: AtomicI64::new(0),
            engine: AtomicU64::new(0),
            unmanaged: AtomicU64::new(0),
            held: AtomicBool::new(false),
        }
    }

    /// Sets what this process may use: its share of the run's budget, `ram`. A share that its pool,
    /// tables and unmanaged memory fill leaves nothing that reclaim could take, and every fault
    /// would look for it in vain, so such a process gets what its pages need to come and go beyond
    /// it; the others give way.
    pub fn set_share(&self, share: u64, ram: u64) {
        let fixed = self.engine.load(Ordering::Relaxed) + self.unmanaged();
        let floor = fixed + 6 * margin_of(share) as u64;
        self.allowance.store(share.max(floor.min(ram)), Ordering::Relaxed);
        self.ram.store(ram, Ordering::Relaxed);
    }

    /// Whether more than this process may use is in the hands of others.
    pub fn is_divided(&self) -> bool {
        self.allowance() < self.ram.load(Ordering::Relaxed)
    }

    /// What this process may use.
    pub fn allowance(&self) -> u64 {
        self.allowance.load(Ordering::Relaxed)
    }

    /// Notes pages that became resident (or, negative, were dropped).
    pub fn add_resident(&self, pages: i64) {
        self.resident_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Notes that resident pages, which were measured as unmanaged so far, are managed from now on.
    pub fn manage(&self, pages: u64) {
        let less = |bytes: u64| Some(bytes.saturating_sub(pages * PAGE_SIZE as u64));
        let _ = self.unmanaged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.add_resident(pages as i64);
    }

    /// Managed pages in memory.
    pub fn resident_pages(&self) -> u64 {
        self.resident_pages.load(Ordering::Relaxed).max(0) as u64
    }

    /// Notes what pool and tables take.
    pub fn set_engine(&self, bytes: u64) {
        self.engine.store(bytes, Ordering::Relaxed);
    }

    /// What is managed and what is the engine's, in bytes.
    pub fn known(&self) -> u64 {
        self.resident_pages() * PAGE_SIZE as u64 + self.engine.load(Ordering::Relaxed)
    }

    /// Takes a measurement of all anonymous memory of the process: what is neither managed nor the
    /// engine's is the rest. Pages that left between the measurement and now were `known` before
    /// it.
    pub fn measured(&self, anonymous: u64, known: u64) {
        let known = known.max(self.known());
        self.unmanaged.store(anonymous.saturating_sub(known), Ordering::Relaxed);
    }

    /// Anonymous memory that is not managed.
    pub fn unmanaged(&self) -> u64 {
        self.unmanaged.load(Ordering::Relaxed)
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.known() + self.unmanaged()
    }

    /// Says whether all pages are to be in memory, whatever the budget says.
    pub fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether they are.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Bytes left; negative when over the allowance.
    pub fn free(&self) -> i64 {
        if self.is_held() {
            return NO_END;
        }
        self.allowance() as i64 - self.used() as i64
    }

    /// The unit of the watermarks: a 128th of the allowance, within reason.
    pub fn margin(&self) -> i64 {
        margin_of(self.allowance())
    }

    /// Reclaim starts below this.
    pub fn low_watermark(&self) -> i64 {
        2 * self.margin()
    }

    /// Reclaim stops above this.
    pub fn high_watermark(&self) -> i64 {
        3 * self.margin()
    }

    /// Below this a fault reclaims before it is served.
    pub fn min_watermark(&self) -> i64 {
        self.margin() / 4
    }

    /// The pool may grow to this: all but what reclaim needs to work with and a 32nd for the program,
    /// or half if a device can take what does not fit. Without a device the share does not bound
    /// it, only the run's budget does: a page that the pool refuses stays resident, which is more.
    pub fn pool_limit(&self, has_device: bool) -> u64 {
        let unmanaged = self.unmanaged();
        if has_device {
            return self.allowance().saturating_sub(unmanaged) / 2;
        }
        let usable = self.ram.load(Ordering::Relaxed).saturating_sub(unmanaged);
        let kept = usable / 32 + self.high_watermark().max(0) as u64;
        usable.saturating_sub(kept)
    }

    /// Pages that go to staging in one batch.
    pub fn batch_pages(&self) -> usize {
        (self.allowance() as usize / PAGE_SIZE / 64).clamp(64, 256)
    }

    /// Trays that may wait in staging for their pages' second chance.
    pub fn staged_trays(&self) -> usize {
        (self.allowance() as usize / 64 / PAGE_SIZE / self.batch_pages()).clamp(1, 8)
    }
}

fn margin_of(bytes: u64) -> i64 {
    (bytes / 128).clamp(MIB / 2, 8 * MIB) as i64
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_beyond_the_known_is_unmanaged() {
        let budget = Budget::new();
        budget.set_share(64 * MIB, 64 * MIB);
        budget.add_resident(1024);
        budget.set_engine(2 * MIB);
        budget.measured(10 * MIB, 0);
        assert_eq!(budget.unmanaged(), 4 * MIB);
        assert_eq!(budget.used(), 10 * MIB);
        assert_eq!(budget.free(), 54 * MIB as i64);
        budget.measured(MIB, 0);
        assert_eq!(budget.unmanaged(), 0);
    }

    #[test]
    fn what_leaves_while_it_is_measured_is_not_unmanaged() {
        let budget = Budget::new();
        budget.add_resident(1024);
        let known = budget.known();
        budget.add_resident(-1024);
        budget.measured(4 * MIB, known);
        assert_eq!(budget.unmanaged(), 0);
    }

    #[test]
    fn what_is_taken_over_counts_once() {
        let budget = Budget::new();
        budget.measured(4 * MIB, 0);
        budget.manage(512);
        assert_eq!((budget.unmanaged(), budget.used()), (2 * MIB, 4 * MIB));
    }

    #[test]
    fn a_share_that_the_pool_fills_leaves_room_for_pages() {
        let budget = Budget::new();
        budget.set_share(3 * MIB, 16 * MIB);
        assert_eq!(budget.allowance(), 3 * MIB);
        budget.set_engine(5 * MIB);
        budget.set_share(3 * MIB, 16 * MIB);
        assert!(budget.free() >= budget.high_watermark() && budget.is_divided());
        assert!(budget.pool_limit(false) > 6 * MIB && budget.pool_limit(true) < 5 * MIB);
        budget.set_engine(15 * MIB);
        budget.set_share(3 * MIB, 16 * MIB);
        assert_eq!(budget.allowance(), 16 * MIB);
        assert!(!budget.is_divided());
    }

    #[test]
    fn a_process_that_is_held_is_never_short() {
        let budget = Budget::new();
        budget.set_share(16 * MIB, 16 * MIB);
        budget.add_resident(1 << 20);
        assert!(budget.free() < 0);
        budget.set_held(true);
        assert!(budget.free() > budget.high_watermark());
        budget.set_held(false);
        assert!(budget.free() < 0);
    }

    #[test]
    fn watermarks_are_in_order() {
        let budget = Budget::new();
        for allowance in [16 * MIB, 64 * MIB, 4096 * MIB] {
            budget.set_share(allowance, allowance);
            assert!(budget.min_watermark() < budget.low_watermark());
            assert!(budget.low_watermark() < budget.high_watermark());
            assert!((budget.high_watermark() as u64) < allowance / 4);
        }
    }
}
