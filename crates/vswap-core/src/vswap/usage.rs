//! How much the space holds, and what that costs.

use super::VirtualSwap;
use crate::counters::{COUNTERS, Counter};
use crate::entry::CLUSTER_SLOTS;
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::slots::Header;
use crate::sync::Ordering;

/// Memory for bookkeeping, in bytes, by what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Descriptors: a page per cluster.
    pub descriptors: usize,
    /// Cluster headers.
    pub headers: usize,
    /// The pool's bookkeeping.
    pub pool: usize,
    /// Side tables for large swap counts.
    pub side_tables: usize,
    /// Groups and counter records.
    pub tables: usize,
    /// Codecs and buffers of workers.
    pub workers: usize,
    /// What backings say of their own.
    pub backings: usize,
    /// The space itself.
    pub fixed: usize,
}

impl Metadata {
    /// All of it.
    pub fn total(&self) -> usize {
        let Self { descriptors, headers, pool, side_tables, tables, workers, backings, fixed } =
            self;
        descriptors + headers + pool + side_tables + tables + workers + backings + fixed
    }
}

/// What the space holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Memory that the pool takes, in bytes.
    pub pool_memory: usize,
    /// Bytes of the objects in it.
    pub payload: usize,
    /// Bookkeeping.
    pub metadata: Metadata,
    /// Slots in use.
    pub live_slots: u64,
    /// Clusters in use.
    pub clusters: usize,
    /// Pages that are in the pool as they are, because they did not compress.
    pub stored_incompressible_pages: u64,
    /// Bytes in RAM backings.
    pub external: u64,
    /// Bytes in use on devices.
    pub device: u64,
    /// Objects on devices.
    pub device_objects: u64,
    counters: [u64; COUNTERS],
}

impl Usage {
    /// The value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// Allocations refused because of a limit or for want of memory.
    pub fn refused(&self) -> u64 {
        self.counter(Counter::AllocReject)
    }
}

impl<P: Platform> VirtualSwap<P> {
    /// Frees the locks that threads held which were asking for the [`usage`](Self::usage), in a copy of the
    /// address space that has none of these threads. Any other operation must not have been under way.
    pub fn reset_after_fork(&self) {
        self.slots.reset_after_fork();
        self.backings.reset_after_fork();
    }

    /// What the space holds now. Takes some microseconds; exact while no operation is under way.
    pub fn usage(&self) -> Usage {
        use crate::backing::Medium;

        let platform = self.platform();
        let counters = self.counters.sums();
        let count = |counter: Counter| counters[counter as usize];
        let (mut freed, mut incompressible_freed) = (0, 0);
        for shard in &self.freed {
            freed += shard.0.slots.load(Ordering::Relaxed);
            incompressible_freed += shard.0.incompressible.load(Ordering::Relaxed);
        }
        let (clusters, excess) = self.slots.in_use(platform);
        let (mut external, mut device, mut backings) = (0, 0, 0);
        let mut device_objects = 0;
        for (id, backing) in self.backings.all(platform) {
            let room = backing.room();
            if backing.medium() == Medium::Device {
                device_objects += self.backings.objects(id);
            }
            backings += room.metadata as usize;
            *(if backing.medium() == Medium::Device { &mut device } else { &mut external }) +=
                room.used;
        }
        let headers = self.slots.numbers() * size_of::<Header>();
        Usage {
            pool_memory: self.pool.memory(),
            payload: self.pool.payload(),
            metadata: Metadata {
                descriptors: clusters * PAGE_SIZE,
                headers: headers.next_multiple_of(PAGE_SIZE) * usize::from(clusters > 0),
                pool: self.pool.metadata(),
                side_tables: excess * size_of::<u64>() * CLUSTER_SLOTS,
                tables: self.groups.memory() + self.counters.memory(),
                workers: self.counters.worker_memory(),
                backings,
                fixed: size_of::<Self>() - size_of_val(&self.pool),
            },
            live_slots: count(Counter::SlotsAllocated).saturating_sub(freed),
            clusters,
            stored_incompressible_pages: count(Counter::IncompressibleStored)
                .saturating_sub(incompressible_freed),
            external,
            device,
            device_objects,
            counters,
        }
    }
}
