//! The virtual swap space itself: what it is made of, and the operations on single entries.
//!
//! # Protocol
//!
//! A client that evicts a page gets a [`SwapEntry`] and keeps nothing else. The entry lives while
//! it is counted (page-table words that hold it) or in the swap cache (its page is resident); the
//! last of these to go frees it and its backing.
//!
//! Two ways to use it:
//!
//! - [`VirtualSwap::swap_out`], [`VirtualSwap::load`] and [`VirtualSwap::free`], for a client that
//!   holds a page or an entry; one that keeps the entry of a page that it loaded evicts it again with
//!   [`VirtualSwap::holds`] and [`VirtualSwap::renew`];
//! - the kernel's way, in [`crate::VirtualSwap::alloc_run`] and what follows there: slots are
//!   allocated in the swap cache while the page is still resident, page-table words are replaced
//!   and counted, the page is written, and only then leaves the cache.
//!
//! **What protects what.** A descriptor's place belongs to the holder of its entry lock; counts and
//! the cached flag change at any time. Lock order: entry lock, then cluster list, pool class or
//! backing, which are leaves. No lock is held across a call to [`Backing`] but the entry's.
//!
//! **After fork.** There is no thread-local state, no process number and no queue of waiters: a
//! copy of the address space made while no operation is under way is a consistent space. Only
//! [`usage`](VirtualSwap::usage) may be: see [`reset_after_fork`](VirtualSwap::reset_after_fork).

mod cache;
mod check;
mod compact;
mod groups;
mod load;
mod recompress;
mod release;
mod relocate;
mod renew;
mod run;
mod store;
mod transfer;
mod usage;
mod write_back;

pub use check::Violation;
pub use load::{Keep, Origin, Pinned};
pub use recompress::{Cursor, Recompression};
pub use relocate::Relocated;
pub use transfer::{Rehoming, Target, Transfer};
pub use usage::{Metadata, Usage};
pub use write_back::{Pooled, WRITE_BACK_BATCH, WriteBack};

use crate::backing::Backing;
use crate::backings::{BackingState, Backings};
use crate::codec::CodecKind;
use crate::counters::{Counter, Counters};
use crate::descriptor::{AtomicDescriptor, Descriptor};
use crate::entry::{BackingId, CLUSTER_SHIFT, GroupId, SwapEntry};
use crate::error::OutOfMemory;
use crate::error::{BackingSetError, StoreError};
use crate::group::Groups;
use crate::page::Page;
use crate::platform::Platform;
use crate::pool::Pool;
use crate::slots::{CLUSTERS_MAX, NoSlot, Slots};
use crate::sync::{AtomicU64, CacheLine};
use crate::worker::Worker;

/// How large a space may become; the pool has [`VirtualSwap::set_pool_limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Virtual slots, rounded up to whole clusters.
    pub slots: u32,
}

impl Limits {
    /// As many slots as entries have numbers.
    pub const NONE: Self = Self { slots: u32::MAX };

    const fn clusters(self) -> u32 {
        let clusters = self.slots.div_ceil(1 << CLUSTER_SHIFT);
        if clusters < CLUSTERS_MAX { clusters } else { CLUSTERS_MAX - 1 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::NONE
    }
}

/// Ways in which frees are counted apart, by cluster, so that threads that free do not meet.
const FREED_SHARDS: usize = 8;

#[derive(Debug)]
struct Freed {
    slots: AtomicU64,
    incompressible: AtomicU64,
}

/// A virtual swap space. It takes no memory before the first page is evicted.
#[derive(Debug)]
pub struct VirtualSwap<P: Platform> {
    pool: Pool<P>,
    slots: Slots,
    groups: Groups,
    backings: Backings,
    counters: Counters,
    freed: [CacheLine<Freed>; FREED_SHARDS],
    clusters_max: u32,
}

impl<P: Platform> VirtualSwap<P> {
    /// An empty space.
    pub const fn new(platform: P, limits: Limits) -> Self {
        let freed = [const {
            CacheLine(Freed { slots: AtomicU64::new(0), incompressible: AtomicU64::new(0) })
        }; FREED_SHARDS];
        Self {
            pool: Pool::new(platform),
            slots: Slots::new(),
            groups: Groups::new(),
            backings: Backings::new(),
            counters: Counters::new(),
            freed,
            clusters_max: limits.clusters(),
        }
    }

    pub(crate) fn platform(&self) -> &P {
        self.pool.platform()
    }

    /// A context for one thread. It has to be given back with [`Self::retire`].
    ///
    /// # Errors
    /// If the platform has no memory for codec and buffers, or there are too many workers.
    pub fn worker(&self, codec: CodecKind) -> Result<Worker, OutOfMemory> {
        let pool = || self.pool.local();
        let worker = Worker::new(self.platform(), &self.counters, pool, codec)?;
        self.counters.set_memory(&worker.record, worker.coder.memory());
        Ok(worker)
    }

    /// Takes back a context: its clusters and pool segments are others' to use from now on.
    pub fn retire(&self, worker: Worker) {
        let Worker { single, runs, pool, record, coder, page } = worker;
        self.slots.give_back(self.platform(), single);
        self.slots.give_back(self.platform(), runs);
        self.pool.retire(pool);
        coder.release(self.platform());
        page.release(self.platform());
        self.counters.give(&record);
    }

    /// Gives up what an idle worker holds, so that empty clusters and pages go back meanwhile.
    pub fn idle(&self, worker: &mut Worker) {
        self.slots.give_back(self.platform(), worker.single.take());
        self.slots.give_back(self.platform(), worker.runs.take());
        self.pool.settle_all(&mut worker.pool);
    }

    /// Stores a page under a new entry with a swap count of 1, not in the swap cache: the whole of
    /// an eviction in one call.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing has changed then.
    #[inline]
    pub fn swap_out(
        &self,
        worker: &mut Worker,
        group: GroupId,
        page: &Page,
    ) -> Result<SwapEntry, StoreError> {
        let found = self.slots.next(self.platform(), &mut worker.single, self.clusters_max);
        let entry = found.map_err(|refusal| self.refused(worker, refusal))?;
        let place = self.place_page(worker, store::Owner { entry, group }, page)?;
        if let Some(owned) = &mut worker.single {
            self.slots.fill(owned, entry, 1, Descriptor::new(place, group).with_count(1));
        }
        self.groups.add_entries(group, 1);
        self.counters.add(&worker.record, Counter::SlotsAllocated, 1);
        Ok(entry)
    }

    #[cold]
    fn refused(&self, worker: &Worker, refusal: NoSlot) -> StoreError {
        self.counters.add(&worker.record, Counter::AllocReject, 1);
        match refusal {
            NoSlot::Limit => StoreError::NoSlots,
            NoSlot::Memory => StoreError::OutOfMemory(OutOfMemory),
        }
    }

    fn descriptor(&self, entry: SwapEntry) -> Option<&AtomicDescriptor> {
        self.slots.descriptor(entry)
    }

    /// A look at an entry's descriptor, for observers: it may have changed already.
    #[inline]
    pub fn peek(&self, entry: SwapEntry) -> Descriptor {
        self.descriptor(entry).map_or(Descriptor::FREE, AtomicDescriptor::peek)
    }

    /// The swap count of an entry, beyond what the descriptor shows.
    pub fn swap_count(&self, entry: SwapEntry) -> u64 {
        self.slots.count(entry)
    }

    /// Limits the memory that the pool takes. A store beyond it goes to the next backing, or
    /// fails with [`StoreError::Full`]. What is stored already stays.
    pub fn set_pool_limit(&self, bytes: usize) {
        self.pool.set_limit(bytes);
    }

    /// Adds a place for objects, behind those that were added before.
    ///
    /// # Errors
    /// If there are as many as a descriptor can tell apart.
    pub fn add_backing(&self, backing: &'static dyn Backing) -> Result<BackingId, BackingSetError> {
        self.backings.add(self.platform(), backing)
    }

    /// Has these backings asked first, in this order, when an object needs a place; the others follow in
    /// the order in which they were added. A hint that costs nothing to change.
    pub fn prefer_backings(&self, first: &[BackingId]) {
        self.backings.prefer(first);
    }

    /// Whether a backing is given objects.
    pub fn backing_state(&self, id: BackingId) -> Option<BackingState> {
        self.backings.get(self.platform(), id).map(|_| self.backings.state(id))
    }

    /// Opens a backing for stores or closes it; closed, it can be emptied with [`Self::rehome`].
    ///
    /// # Errors
    /// If there is no such backing.
    pub fn set_backing_state(
        &self,
        id: BackingId,
        state: BackingState,
    ) -> Result<(), BackingSetError> {
        self.backings.get(self.platform(), id).ok_or(BackingSetError::Unknown)?;
        self.backings.set_state(id, state);
        Ok(())
    }

    /// Forgets a backing that was closed and emptied.
    ///
    /// # Errors
    /// If there is no such backing, or it may still get or hold objects.
    pub fn remove_backing(&self, id: BackingId) -> Result<(), BackingSetError> {
        self.backings.remove(self.platform(), id)
    }
}

impl<P: Platform> Drop for VirtualSwap<P> {
    fn drop(&mut self) {
        let Self { pool, slots, groups, counters, .. } = self;
        slots.unreserve(pool.platform());
        groups.unreserve(pool.platform());
        counters.unreserve(pool.platform());
    }
}
