//! Event counters, with the kernel's names where the kernel has them.
//!
//! Every worker counts in a record of its own, with plain loads and stores: nothing on the path of
//! a fault writes a cache line that another thread writes. A record outlives its worker and goes
//! on with the next one, so the sum over all records is exact.

use crate::error::OutOfMemory;
use crate::page::PAGE_SIZE;
use crate::pieces::{Pieces, Zeroable};
use crate::platform::Platform;
use crate::sync::{AtomicU64, AtomicUsize, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// What the space counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All counters, in the order of their index.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];

            /// The name under which it is published.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Pages stored in the pool.
    Zswpout => "zswpout",
    /// Pages loaded from the pool.
    Zswpin => "zswpin",
    /// Objects moved from the pool to a device.
    WrittenBackPages => "written_back_pages",
    /// Pages that a swap-out found to be zero.
    SwpoutZero => "swpout_zero",
    /// Zero entries loaded.
    SwpinZero => "swpin_zero",
    /// Pages stored as one repeated word.
    SameFilledOut => "same_filled_out",
    /// Loads of such pages.
    SameFilledIn => "same_filled_in",
    /// Pages written to a device.
    Pswpout => "pswpout",
    /// Pages read from a device.
    Pswpin => "pswpin",
    /// Pages stored in a RAM backing other than the pool.
    ExternalOut => "external_out",
    /// Pages loaded from one.
    ExternalIn => "external_in",
    /// Stores that the pool had no room for.
    PoolLimitHit => "pool_limit_hit",
    /// Pages that did not compress.
    RejectCompressPoor => "reject_compress_poor",
    /// Stores that a group's `zswap.max` kept out of RAM.
    ZswapMax => "zswap_max",
    /// Stores that a group's `swap.max` kept off the devices.
    SwapMax => "swap_max",
    /// Stores that a backing refused because it was full.
    BackingFull => "backing_full",
    /// Stores that a backing failed.
    WriteFail => "write_fail",
    /// Loads that a backing failed.
    ReadFail => "read_fail",
    /// Objects that did not decode to a page.
    DecompressFail => "decompress_fail",
    /// Pages that no place took.
    StoreFull => "store_full",
    /// Allocations refused because a limit on slots was reached or there was no memory for them.
    AllocReject => "alloc_reject",
    /// Objects coded again with a stronger codec.
    Recompressed => "recompressed",
    /// Objects moved by compaction.
    Compacted => "compacted",
    /// Objects that moved from one place to another by request.
    Transferred => "transferred",
    /// Objects that were moved closer together on their device.
    Relocated => "relocated",
    /// Their bytes.
    RelocatedBytes => "relocated_bytes",
    /// Slots allocated; less the slots freed, that is the number of live ones.
    SlotsAllocated => "slots_allocated",
    /// Incompressible pages put into RAM as they are; `stored_incompressible_pages` has what is left.
    IncompressibleStored => "incompressible_stored",
}

/// Counters there are.
pub const COUNTERS: usize = Counter::ALL.len();

/// Workers that can exist at a time.
pub const WORKERS_MAX: usize = 256;

const RECORDS_SHIFT: u32 = WORKERS_MAX.trailing_zeros();

/// One worker's counts, and the memory that it holds.
#[derive(Debug)]
#[repr(align(64))]
struct Record {
    counts: [AtomicU64; COUNTERS],
    memory: AtomicUsize,
}

// SAFETY: atomic integers.
unsafe impl Zeroable for Record {}

/// The records of all workers, present and past.
#[derive(Debug)]
pub(crate) struct Counters {
    records: Pieces<Record, RECORDS_SHIFT, 1>,
    /// A bit for each record that has a worker.
    taken: [AtomicU64; WORKERS_MAX / 64],
    /// One more than the highest record ever taken.
    end: AtomicUsize,
}

/// The right to count in one record.
#[derive(Debug)]
pub(crate) struct RecordId(usize);

impl Counters {
    pub(crate) const fn new() -> Self {
        Self {
            records: Pieces::new(),
            taken: [const { AtomicU64::new(0) }; WORKERS_MAX / 64],
            end: AtomicUsize::new(0),
        }
    }

    /// A record that no worker has.
    pub(crate) fn take<P: Platform + ?Sized>(&self, platform: &P) -> Result<RecordId, OutOfMemory> {
        self.records.ensure(platform, 0)?;
        for (word, taken) in self.taken.iter().enumerate() {
            let mut seen = taken.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = seen.trailing_ones();
                // Acquire pairs with the release in `give`: we go on from the last worker's counts.
                let claim = taken.compare_exchange_weak(
                    seen,
                    seen | 1 << bit,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                match claim {
                    Ok(_) => {
                        let record = word * 64 + bit as usize;
                        self.end.fetch_max(record + 1, Ordering::Relaxed);
                        return Ok(RecordId(record));
                    }
                    Err(now) => seen = now,
                }
            }
        }
        Err(OutOfMemory)
    }

    /// Gives a record up; its counts stay.
    pub(crate) fn give(&self, record: &RecordId) {
        self.set_memory(record, 0);
        self.taken[record.0 / 64].fetch_and(!(1 << (record.0 % 64)), Ordering::Release);
    }

    /// Counts `n` events.
    #[inline]
    pub(crate) fn add(&self, record: &RecordId, counter: Counter, n: u64) {
        if let Some(record) = self.records.get(record.0) {
            let count = &record.counts[counter as usize];
            // Only the record's holder writes it, so this is no lost update.
            count.store(count.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        }
    }

    /// Notes how much memory the record's worker holds for its codecs, in bytes.
    pub(crate) fn set_memory(&self, record: &RecordId, bytes: usize) {
        if let Some(record) = self.records.get(record.0) {
            record.memory.store(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of memory that all workers hold for their codecs.
    pub(crate) fn worker_memory(&self) -> usize {
        let records = (0..self.used()).map_while(|index| self.records.get(index));
        records.map(|record| record.memory.load(Ordering::Relaxed)).sum()
    }

    /// The sums over all records.
    pub(crate) fn sums(&self) -> [u64; COUNTERS] {
        let mut sums = [0; COUNTERS];
        for record in (0..self.used()).map_while(|index| self.records.get(index)) {
            for (sum, count) in sums.iter_mut().zip(&record.counts) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sums
    }

    /// Records ever taken.
    fn used(&self) -> usize {
        self.end.load(Ordering::Relaxed)
    }

    /// Bytes of memory that the records take.
    pub(crate) fn memory(&self) -> usize {
        (self.used() * size_of::<Record>()).next_multiple_of(PAGE_SIZE)
    }

    pub(crate) fn unreserve<P: Platform + ?Sized>(&mut self, platform: &P) {
        self.records.unreserve(platform);
    }
}
