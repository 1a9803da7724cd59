//! The physical slots of one swap device.
//!
//! # Places
//!
//! The unit is the device's logical block. An object takes a *slot* of as many contiguous blocks.
//! The device is divided into clusters of 256 KiB, and a cluster holds slots of one size, its
//! *class*, from the first object that it gets until it is empty again. A worker fills a cluster of
//! its own per class; [`DeviceLocal`] remembers which. When that one is full, it takes the next
//! from these:
//!
//! 1. partial clusters of the class, with at least a quarter of their slots free, and free
//!    clusters (for a batch, the other way round: it then becomes one write);
//! 2. a new extent from the [`ExtentSource`];
//! 3. scattered clusters of the class, with less than a quarter of their slots free, and dirty
//!    clusters, whose old contents were not discarded yet (for a batch, the other way round).
//!
//! When all that fails, an object is put into any slot that can hold it: of a larger class, or in a
//! cluster that another worker owns. So an object is refused only if no slot anywhere can hold it.
//! (A cluster keeps its class while a worker owns it, even when it is empty; `retire` ends that.)
//!
//! # Extents
//!
//! Several processes share a device: it is handed out to them in extents of 4 MiB. An extent whose
//! clusters are all free goes back, except one that is kept as a spare.
//!
//! After fork, two processes refer to what was written before. [`Space::seal`] says what follows.
//! Objects that lie far apart are moved together by a pass of compaction, [`Space::begin_compaction`].
//!
//! # Memory
//!
//! One bit per block, and 16 bytes per cluster: 80 bytes for 64 slots of 8 blocks. Pages of it
//! are used from the first extent that they describe until the last of these went back. There is
//! no reverse map.
//!
//! # Threads
//!
//! All operations may run at the same time, save where one says otherwise. Taking a slot locks the
//! cluster, which is uncontended as long as there are free slots elsewhere; freeing locks nothing
//! unless the cluster changes its state. Lock order: extents, lists, cluster.

mod bits;
mod cluster;
mod compact;
mod discard;
mod extents;
mod geometry;
mod lists;
mod placed;
mod seal;
mod steal;
mod usage;

pub use compact::Fragmentation;
pub use discard::Discard;
pub use extents::{ExtentSource, TooManyBadRanges};
pub use geometry::{
    Block, CLUSTER_BYTES_SHIFT, EXTENT_BYTES_SHIFT, Extent, Geometry, OBJECT_BLOCKS_MAX,
};
pub use placed::Placed;
pub use seal::Side;
pub use usage::{ClassUse, Occupancy};

use crate::pieces::Pieces;
use crate::platform::Platform;
use crate::sync::{AtomicBool, AtomicU32, CacheLine, Ordering, SpinLock};

use bits::{Bits, Words};
use cluster::{Header, Settling, State};
use extents::{BadTable, Extents};
use geometry::ClusterId;
use lists::{Headers, Lists};

const OBJECT_SIZE: &str = "an object has up to a page of blocks and one more";

/// No slot can hold the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the swap device has no slot for the object")]
pub struct Full;

/// Which slots are taken first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// As the module says: few long writes.
    Fresh,
    /// Those between other objects, so that nothing else is begun.
    Holes,
}

/// A worker's clusters, one per class and way to fill.
#[derive(Debug)]
pub struct DeviceLocal {
    epoch: u32,
    fresh: Current,
    holes: Current,
}

impl DeviceLocal {
    fn current(&mut self, fill: Fill) -> &mut Current {
        match fill {
            Fill::Fresh => &mut self.fresh,
            Fill::Holes => &mut self.holes,
        }
    }
}

/// What a worker fills, by class.
#[derive(Debug)]
struct Current {
    clusters: [Option<ClusterId>; OBJECT_BLOCKS_MAX],
    /// Where the next free slot is looked for: a cluster is filled in one direction.
    cursors: [u16; OBJECT_BLOCKS_MAX],
}

impl Current {
    const NONE: Self =
        Self { clusters: [None; OBJECT_BLOCKS_MAX], cursors: [0; OBJECT_BLOCKS_MAX] };
}

/// The physical slots of a swap device.
#[derive(Debug)]
pub struct Space<P: Platform, S: ExtentSource> {
    platform: P,
    source: S,
    geometry: Geometry,
    headers: Pieces<Header, { bits::PIECE_SHIFT }, 64>,
    words: Words,
    bad: BadTable,
    lists: SpinLock<Lists>,
    extents: SpinLock<Extents>,
    /// How many extents were ever leased; tells a waiter that another thread got one.
    leases: AtomicU32,
    /// One more than the highest extent ever leased.
    end: AtomicU32,
    metadata_pages: AtomicU32,
    /// Rises with each seal, which ends the ownership of all clusters.
    epoch: AtomicU32,
    discard: AtomicBool,
    /// A pass of compaction is under way. It changes under the lock of the lists.
    compacting: AtomicBool,
    used: CacheLine<AtomicU32>,
}

impl<P: Platform, S: ExtentSource> Headers for Space<P, S> {
    #[inline]
    fn header(&self, cluster: ClusterId) -> &Header {
        self.headers.get(cluster.0 as usize).expect("a leased cluster has a header")
    }
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// An empty device. It takes no memory before the first object.
    pub const fn new(platform: P, source: S, geometry: Geometry) -> Self {
        Self {
            platform,
            source,
            geometry,
            headers: Pieces::new(),
            words: Pieces::new(),
            bad: BadTable::new(),
            lists: SpinLock::new(Lists::new()),
            extents: SpinLock::new(Extents),
            leases: AtomicU32::new(0),
            end: AtomicU32::new(0),
            metadata_pages: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            discard: AtomicBool::new(false),
            compacting: AtomicBool::new(false),
            used: CacheLine(AtomicU32::new(0)),
        }
    }

    /// The sizes of the device.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What a worker needs to take slots. It is given back with [`Self::retire`].
    pub fn local(&self) -> DeviceLocal {
        let epoch = self.epoch.load(Ordering::Relaxed);
        DeviceLocal { epoch, fresh: Current::NONE, holes: Current::NONE }
    }

    /// Ends a worker: others may fill its clusters.
    pub fn retire(&self, mut local: DeviceLocal) {
        self.give_up_all(&mut local);
    }

    fn give_up_all(&self, local: &mut DeviceLocal) {
        self.renew(local);
        for class in 1..=self.geometry.object_blocks_max() {
            self.give_up(local.current(Fill::Fresh), class);
            self.give_up(local.current(Fill::Holes), class);
        }
    }

    /// Takes a slot for an object of `blocks` blocks.
    ///
    /// # Errors
    /// If no slot can hold it.
    ///
    /// # Panics
    /// If an object cannot have that many blocks.
    pub fn take(&self, local: &mut DeviceLocal, blocks: u8) -> Result<Block, Full> {
        assert!((1..=self.geometry.object_blocks_max()).contains(&blocks), "{OBJECT_SIZE}");
        let mut place = Block::default();
        self.take_slots(local, Fill::Fresh, (blocks, 1), |block, _| place = block)?;
        Ok(place)
    }

    /// Takes slots for a batch of objects, given by their blocks: all of them or none. `out` is
    /// sorted by place, and [`Placed::runs`] gives the parts that are contiguous, of which there
    /// are as few as is possible without a search.
    ///
    /// # Errors
    /// If no slots can hold them.
    ///
    /// # Panics
    /// If `out` is not as long as `sizes`, or an object cannot have that many blocks.
    pub fn take_run(
        &self,
        local: &mut DeviceLocal,
        sizes: &[u8],
        out: &mut [Placed],
    ) -> Result<(), Full> {
        self.take_run_by(local, Fill::Fresh, sizes, out)
    }

    /// [`Self::take_run`] with a choice of slots.
    ///
    /// # Errors
    /// If no slots can hold them.
    ///
    /// # Panics
    /// As [`Self::take_run`].
    pub fn take_run_by(
        &self,
        local: &mut DeviceLocal,
        fill: Fill,
        sizes: &[u8],
        out: &mut [Placed],
    ) -> Result<(), Full> {
        assert_eq!(sizes.len(), out.len(), "each object gets one place");
        let largest = self.geometry.object_blocks_max();
        assert!(sizes.iter().all(|size| (1..=largest).contains(size)), "{OBJECT_SIZE}");
        let mut filled = 0;
        // Larger objects first: smaller ones may need slots of their size.
        for blocks in (1..=largest).rev() {
            let mut objects = (0..sizes.len()).filter(|&object| sizes[object] == blocks);
            let wanted = objects.clone().count() as u32;
            let taken = self.take_slots(local, fill, (blocks, wanted), |first, count| {
                for (n, object) in objects.by_ref().take(count as usize).enumerate() {
                    let block = first.plus(n as u32 * u32::from(blocks));
                    out[filled] = Placed { object: object as u32, block, blocks };
                    filled += 1;
                }
            });
            if taken.is_err() {
                for placed in &out[..filled] {
                    self.put_back(placed);
                }
                return Err(Full);
            }
        }
        out.sort_unstable_by_key(|placed| placed.block);
        Ok(())
    }

    /// Frees an object of `blocks` blocks.
    pub fn free(&self, block: Block, blocks: u8) {
        self.free_many(&[(block, blocks)]);
    }

    /// Frees objects; neighbours in the slice that are neighbours on the device cost less.
    pub fn free_many(&self, objects: &[(Block, u8)]) {
        let cluster_of = |object: &(Block, u8)| self.geometry.cluster_of(object.0);
        let mut total = 0;
        for objects in objects.chunk_by(|a, b| cluster_of(a) == cluster_of(b)) {
            let cluster = cluster_of(&objects[0]);
            let Some(header) = self.headers.get(cluster.0 as usize) else {
                debug_assert!(false, "an object was freed where there never was one");
                continue;
            };
            let now = header.now();
            debug_assert!(now.state.in_use(), "an object was freed in an empty cluster");
            let mut count = 0;
            for &(block, blocks) in objects {
                let freed = now.state.in_use() && self.clear(block, blocks, now.sealed);
                debug_assert!(freed, "an object was freed twice");
                count += u32::from(freed);
                total += u32::from(blocks) * u32::from(freed);
            }
            let after = header.remove(count, now.sealed);
            if count > 0 && after.settling(self.geometry) != Settling::Stay {
                self.settle(cluster);
            }
        }
        self.used.0.fetch_sub(total, Ordering::Relaxed);
    }

    /// Whether the block belongs to an object, or is bad, or did belong to an object when the
    /// device was sealed.
    pub fn is_used(&self, block: Block) -> bool {
        let cluster = self.geometry.cluster_of(block);
        self.is_leased(cluster) && !self.bits(cluster).are_clear(self.geometry.index(block), 1)
    }

    #[inline]
    fn bits(&self, cluster: ClusterId) -> Bits<'_> {
        Bits::of(&self.words, cluster, self.geometry)
    }

    /// Clears the bits of a freed object. After a seal they stay: nothing goes there again.
    fn clear(&self, block: Block, blocks: u8, sealed: bool) -> bool {
        let bits = self.bits(self.geometry.cluster_of(block));
        let (at, len) = (self.geometry.index(block), u32::from(blocks));
        if sealed { bits.are_set(at, len) } else { bits.clear(at, len) }
    }

    /// Undoes a take that nobody has seen, so that it does not cost a slot after a seal.
    fn put_back(&self, placed: &Placed) {
        let cluster = self.geometry.cluster_of(placed.block);
        let cleared = self.clear(placed.block, placed.blocks, false);
        debug_assert!(cleared);
        self.used.0.fetch_sub(placed.blocks.into(), Ordering::Relaxed);
        if self.header(cluster).remove(1, false).settling(self.geometry) != Settling::Stay {
            self.settle(cluster);
        }
    }

    /// Forgets clusters that a seal took away.
    fn renew(&self, local: &mut DeviceLocal) {
        if local.epoch != self.epoch.load(Ordering::Relaxed) {
            *local = self.local();
        }
    }

    /// Takes `wanted` slots of `blocks` blocks and says where, by the first of a contiguous row and
    /// their number. What was said before an error is taken.
    fn take_slots(
        &self,
        local: &mut DeviceLocal,
        fill: Fill,
        (blocks, wanted): (u8, u32),
        mut say: impl FnMut(Block, u32),
    ) -> Result<(), Full> {
        self.renew(local);
        let current = local.current(fill);
        let (mut left, mut exhausted) = (wanted, false);
        while left > 0 {
            let (block, count) = match self.fill_current(current, blocks, left) {
                Some(found) => found,
                None if !exhausted => {
                    self.give_up(current, blocks);
                    exhausted = !self.take_cluster(current, fill, blocks, wanted > 1);
                    continue;
                }
                None => match self.steal(blocks) {
                    Some(block) => (block, 1),
                    // What a pass keeps others out of is better than nothing, but not for the pass.
                    None if fill == Fill::Fresh && self.end_compaction() => {
                        exhausted = false;
                        continue;
                    }
                    None => return Err(Full),
                },
            };
            self.used.0.fetch_add(count * u32::from(blocks), Ordering::Relaxed);
            say(block, count);
            left -= count;
        }
        Ok(())
    }

    /// Fills slots of the worker's cluster.
    #[inline]
    fn fill_current(&self, current: &mut Current, class: u8, wanted: u32) -> Option<(Block, u32)> {
        let cluster = current.clusters[usize::from(class) - 1]?;
        let cursor = &mut current.cursors[usize::from(class) - 1];
        let (slot, count) = self.fill(cluster, class, (*cursor).into(), wanted, class)?;
        *cursor = (slot + count) as u16;
        Some((Block::of(cluster, slot * u32::from(class), self.geometry), count))
    }

    /// Puts objects of `blocks` blocks into the first free slot of a cluster from `cursor` on, and
    /// into those right behind it. Either the cluster is the caller's, or the lists are locked.
    fn fill(
        &self,
        cluster: ClusterId,
        class: u8,
        cursor: u32,
        wanted: u32,
        blocks: u8,
    ) -> Option<(u32, u32)> {
        let (header, bits) = (self.header(cluster), self.bits(cluster));
        let (class, slots) = (u32::from(class), self.geometry.slots(class));
        let is_free = |slot: &u32| bits.are_clear(slot * class, class);
        header.filling.acquire(&self.platform);
        let found = (cursor..slots).find(is_free).map(|first| {
            let end = slots.min(first + wanted);
            let count = 1 + (first + 1..end).take_while(is_free).count() as u32;
            header.add(count);
            bits.set(first * class, (count - 1) * class + u32::from(blocks));
            (first, count)
        });
        header.filling.release();
        found
    }

    /// Ends a worker's ownership of its cluster.
    fn give_up(&self, current: &mut Current, class: u8) {
        let Some(cluster) = current.clusters[usize::from(class) - 1].take() else { return };
        let mut lists = self.lists.lock(&self.platform);
        // From here on, a free in this cluster settles it, so that none is missed.
        lists.set_state(self, cluster, State::Full);
        let surplus = self.settle_locked(&mut lists, cluster);
        drop(lists);
        self.return_surplus(surplus);
    }

    /// Gets a worker its next cluster.
    #[cold]
    fn take_cluster(&self, current: &mut Current, fill: Fill, class: u8, batch: bool) -> bool {
        use State::{Dirty, Free, Partial, Scattered};
        let (first, last): (&[State], &[State]) = match fill {
            Fill::Holes => (&[Partial, Scattered, Free], &[Dirty]),
            Fill::Fresh if batch => (&[Free, Partial], &[Dirty, Scattered]),
            Fill::Fresh => (&[Partial, Free], &[Scattered, Dirty]),
        };
        let found = loop {
            let leases = self.leases.load(Ordering::Acquire);
            if let Some(cluster) = self.own(first, class) {
                break Some(cluster);
            }
            if !self.lease(leases) {
                break self.own(last, class);
            }
        };
        current.clusters[usize::from(class) - 1] = found;
        current.cursors[usize::from(class) - 1] = 0;
        found.is_some()
    }

    /// Makes a cluster of one of these states a worker's.
    fn own(&self, states: &[State], class: u8) -> Option<ClusterId> {
        let mut lists = self.lists.lock(&self.platform);
        states.iter().find_map(|&state| {
            let mut clusters = lists.iter(self, state, class);
            let (cluster, lost) = clusters.find_map(|cluster| {
                let now = self.header(cluster).now();
                let lost = if now.class == 0 { self.bad_slots(cluster, class) } else { now.lost };
                (now.objects + lost < self.geometry.slots(class)).then_some((cluster, lost))
            })?;
            lists.change(self, cluster, State::Owned, class);
            self.header(cluster).change(|word| word.lost = lost);
            Some(cluster)
        })
    }

    /// Slots of an empty cluster that bad blocks make unusable.
    fn bad_slots(&self, cluster: ClusterId, class: u8) -> u32 {
        let bits = self.bits(cluster);
        if bits.are_clear(0, self.geometry.cluster_blocks()) {
            return 0;
        }
        let (class, slots) = (u32::from(class), self.geometry.slots(class));
        (0..slots).filter(|slot| !bits.are_clear(slot * class, class)).count() as u32
    }

    #[cold]
    fn settle(&self, cluster: ClusterId) {
        let mut lists = self.lists.lock(&self.platform);
        let surplus = self.settle_locked(&mut lists, cluster);
        drop(lists);
        self.return_surplus(surplus);
    }

    /// Gives a cluster the state that fits its counts. Returns the extent that is to go back now.
    fn settle_locked(&self, lists: &mut Lists, cluster: ClusterId) -> Option<Extent> {
        loop {
            // A free between the look and the move saw the old state, so the look is repeated.
            match self.header(cluster).now().settling(self.geometry) {
                Settling::Stay => return None,
                Settling::Move(state) => lists.set_state(self, cluster, state),
                Settling::Emptied => return self.emptied(lists, cluster),
            }
        }
    }

    fn emptied(&self, lists: &mut Lists, cluster: ClusterId) -> Option<Extent> {
        let header = self.header(cluster);
        let now = header.now();
        if now.sealed {
            lists.set_state(self, cluster, State::Dead);
        } else {
            let leaving = now.state == State::Draining;
            let state = if leaving { State::Vacant } else { self.unused() };
            lists.change(self, cluster, state, 0);
            header.change(|word| word.lost = 0);
        }
        self.release_vacated(lists, Extent::of(cluster));
        self.surplus(lists, Extent::of(cluster))
    }

    /// The state of a cluster that has just lost its last object.
    fn unused(&self) -> State {
        if self.discard.load(Ordering::Relaxed) { State::Dirty } else { State::Free }
    }
}

impl<P: Platform, S: ExtentSource> Drop for Space<P, S> {
    fn drop(&mut self) {
        self.headers.unreserve(&self.platform);
        self.words.unreserve(&self.platform);
        self.bad.unreserve(&self.platform);
    }
}

#[cfg(test)]
mod tests;
