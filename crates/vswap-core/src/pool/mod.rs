//! The zswap pool: compressed objects in RAM.
//!
//! Objects of up to a page lie in slots of their size class ([`class`]), slots in segments of 256
//! KiB, and a segment is described by one cache line that lies elsewhere ([`segment`]). Segments
//! take physical memory page by page as their slots are first filled, lowest first.
//!
//! # Protocol
//!
//! A worker brings a [`PoolLocal`], which owns one segment of each class that it has used. Storing
//! fills a slot of that segment, with no lock. When it has no unused slot it is *settled*: put on
//! the list of its class that fits its fullness, or on none if it is all but full. The worker goes
//! on with the fullest listed segment, or with a new one; so sparse segments are left to drain.
//!
//! Anybody frees, without a [`PoolLocal`] and without a lock: two atomic operations on the header.
//! Only the free that takes a settled segment past the end of its list (every quarter of its slots,
//! at its first few percent of holes, and at the last object) moves it, under the lock of its
//! class. It also gives back pages on which nothing is left, and the whole segment when it is empty.
//!
//! There are three kinds of locks, and nobody holds two: the class's (its lists, and who owns a
//! segment), the space's (free segments; held while address space is reserved, once in 64 MiB), and
//! the compactor's, for which nobody waits.
//!
//! A copy of the address space made by fork while no operation is under way is a consistent pool.
//! Its data pages stay shared until the other side stores into them: frees write headers only.
//!
//! # Why size classes
//!
//! When stores and frees alternate at random, a class fills its holes where they are. Append-only
//! segments have to be cleaned instead: at a density of 0.9, with objects that die at random and the
//! emptiest segment cleaned first, the usual model says that 4 to 5 bytes move for each one stored,
//! whatever the pool's size. (That is computed, not measured.) Here the share falls as the pool
//! grows, since the objects of a class then vary less in number. Measured with lz4 pages of Python
//! heap, text and machine code, each object replaced five times by a random other
//! (`cargo bench -p vswap-core --bench pool`, 2 vCPU, busy with other work; payload / memory):
//!
//! | pool | filled | after churn | moved per byte stored, to keep 0.9 | bookkeeping per object |
//! |---|---|---|---|---|
//! | 13 MB of heap | 0.973 | 0.83 | 1.4 | 2.8 bytes |
//! | 50 MB of all | 0.981 | 0.83 | 1.5 | 1.4 |
//! | 400 MB of all | 0.985 | 0.93 | 0 | 0.62 |
//!
//! In the same run and the second pool a free took 18 ns, and a store 518 ns, of which copying 2 KiB
//! to memory that is not in the cache took 382.

mod budget;
mod check;
pub mod class;
mod compact;
mod lists;
mod moves;
pub mod segment;
mod space;
mod store;

use core::slice;

pub use crate::entry::Stored;
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::sync::{AtomicUsize, CacheLine, Ordering, SpinLock};
use budget::{Budget, Shard};
pub use check::Violation;
use class::CLASSES;
use lists::Lists;
use segment::SLOT_BITS;
use space::{SEGMENT_BITS, Segment, Space};

/// Bits of a location: the segment's number, then the slot's index.
pub const LOCATION_BITS: u32 = SEGMENT_BITS + SLOT_BITS;

/// The pool has no room: its limit is reached, or address space has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the compressed pool is full")]
pub struct PoolFull;

/// Compressed objects in memory of the platform.
#[derive(Debug)]
pub struct Pool<P: Platform> {
    platform: P,
    space: Space,
    budget: Budget,
    classes: [CacheLine<SpinLock<Lists>>; CLASSES],
    /// Held by whoever chooses or releases victims: where the next choice begins.
    compaction: SpinLock<u32>,
    locals: AtomicUsize,
}

/// The segments that one worker fills. It must be handed back to [`Pool::retire`]: one that is
/// dropped keeps its segments from ever being given back.
#[derive(Debug)]
#[must_use]
pub struct PoolLocal {
    shard: Shard,
    /// Segment numbers plus one, zero for none.
    current: [u32; CLASSES],
}

impl<P: Platform> Pool<P> {
    /// An empty pool, which takes memory as objects arrive.
    pub const fn new(platform: P) -> Self {
        Self {
            platform,
            space: Space::new(),
            budget: Budget::new(),
            classes: [const { CacheLine(SpinLock::new(Lists::new())) }; CLASSES],
            compaction: SpinLock::new(0),
            locals: AtomicUsize::new(0),
        }
    }

    /// Where the pool's memory comes from.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// What a worker needs to store.
    pub fn local(&self) -> PoolLocal {
        let n = self.locals.fetch_add(1, Ordering::Relaxed);
        PoolLocal { shard: Budget::shard(n), current: [0; CLASSES] }
    }

    /// Takes back what a worker needed.
    pub fn retire(&self, mut local: PoolLocal) {
        self.settle_all(&mut local);
        self.locals.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives up a worker's segments, so that their unused pages go back and others can fill them:
    /// for a worker that goes idle.
    pub fn settle_all(&self, local: &mut PoolLocal) {
        for current in &mut local.current {
            if let Some(number) = core::mem::take(current).checked_sub(1) {
                self.trim(number);
                self.settle(number);
            }
        }
    }

    /// The object's length.
    #[inline]
    pub fn len(&self, stored: Stored) -> usize {
        self.segment_of(stored.location).header.class().size() - stored.slack as usize
    }

    /// The object.
    ///
    /// # Safety
    /// `stored` came from [`Pool::store`] of this pool and is not freed while the slice is in use.
    #[inline]
    pub unsafe fn bytes(&self, stored: Stored) -> &[u8] {
        let segment = self.segment_of(stored.location);
        let size = segment.header.class().size();
        let index = slot_index(stored.location) as usize;
        // SAFETY: the object is alive, so its slot lies in the segment, has been written up to this
        // length, and is not written until it is freed.
        unsafe {
            slice::from_raw_parts(
                segment.data.add(index * size).as_ptr(),
                size - stored.slack as usize,
            )
        }
    }

    /// Frees an object, which the caller alone still refers to.
    #[inline]
    pub fn free(&self, stored: Stored) {
        let segment = self.segment_of(stored.location);
        if let Some(class) = segment.header.free(slot_index(stored.location), stored.slack) {
            self.move_segment(segment, class);
        }
    }

    #[inline]
    fn segment_of(&self, location: u64) -> Segment<'_> {
        self.space.segment((location >> SLOT_BITS) as u32)
    }

    /// Lets [`Pool::memory`] grow to this many bytes and no further. What is there already stays.
    pub fn set_limit(&self, bytes: usize) {
        self.budget.set_limit(bytes);
    }

    /// Bytes of memory that hold objects, page by page, as the kernel counts them.
    pub fn memory(&self) -> usize {
        self.budget.used()
    }

    /// Bytes of the objects. Looks at every segment: some nanoseconds for each 256 KiB.
    pub fn payload(&self) -> usize {
        (0..self.space.known()).map(|n| self.space.segment(n).header.state().payload()).sum()
    }

    /// Bytes of memory that hold the bookkeeping: headers and table by the page, the pool itself
    /// and what its workers hold.
    pub fn metadata(&self) -> usize {
        self.space.metadata_pages() * PAGE_SIZE
            + size_of::<Self>()
            + self.locals.load(Ordering::Relaxed) * size_of::<PoolLocal>()
    }
}

impl<P: Platform> Drop for Pool<P> {
    fn drop(&mut self) {
        // SAFETY: objects are borrowed from the pool, so none outlives it.
        unsafe { self.space.destroy(&self.platform) };
    }
}

#[inline]
fn slot_index(location: u64) -> u32 {
    location as u32 & ((1 << SLOT_BITS) - 1)
}
