//! The virtual slots: clusters of descriptors, made on demand and given back when empty.
//!
//! A cluster's descriptors are one page of [`Pieces`], at its number. A worker fills the slots of
//! a cluster that it owns, in order, so slots are handed out in time order; it looks for its next
//! cluster on the list of partial ones first and makes a new one last. The header's module says
//! which states a cluster goes through.
//!
//! Lock order: entry locks before the list lock; a cluster's count lock is a leaf.

mod count;
mod header;

pub(crate) use count::DupFailure;
pub(crate) use header::{Header, State};

use crate::descriptor::{AtomicDescriptor, Descriptor};
use crate::entry::{CLUSTER_SHIFT, CLUSTER_SLOTS, ClusterId, SLOT_BITS, SwapEntry};
use crate::error::OutOfMemory;
use crate::pieces::{Pieces, Zeroable};
use crate::platform::Platform;
use crate::sync::{AtomicU32, AtomicU64, Ordering, SpinLock};

const PIECE_SHIFT: u32 = 23;
const PIECES: usize = 1 << (SLOT_BITS - PIECE_SHIFT);
const CLUSTER_PIECE_SHIFT: u32 = PIECE_SHIFT - CLUSTER_SHIFT;

/// The most clusters that a space can have.
pub(crate) const CLUSTERS_MAX: u32 = 1 << (SLOT_BITS - CLUSTER_SHIFT);

/// Number that ends a list: cluster 0 does not exist.
const NONE: u32 = 0;

// SAFETY: an atomic integer; zero is a free descriptor.
unsafe impl Zeroable for AtomicDescriptor {}
// SAFETY: atomic integers; zeros are an unused cluster with an open lock.
unsafe impl Zeroable for Header {}
// SAFETY: an atomic integer.
unsafe impl Zeroable for AtomicU64 {}

/// The descriptors of a cluster.
pub(crate) type Row = [AtomicDescriptor; CLUSTER_SLOTS];

/// No slot can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSlot {
    /// The limit on clusters is reached.
    Limit,
    /// The host has no memory for descriptors.
    Memory,
}

impl From<OutOfMemory> for NoSlot {
    fn from(_: OutOfMemory) -> Self {
        Self::Memory
    }
}

#[derive(Debug)]
struct Lists {
    first_partial: u32,
    last_partial: u32,
    first_spare: u32,
    clusters: u32,
    /// Clusters whose side table of swap counts has memory.
    excess: u32,
}

/// A worker's cluster and what it may still fill there.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) cluster: ClusterId,
    cursor: usize,
    credit: usize,
}

/// All virtual slots of a space.
#[derive(Debug)]
pub(crate) struct Slots {
    descriptors: Pieces<AtomicDescriptor, PIECE_SHIFT, PIECES>,
    headers: Pieces<Header, CLUSTER_PIECE_SHIFT, PIECES>,
    /// By how much swap counts exceed 7. A word per slot makes a cluster's part a page.
    excess: Pieces<AtomicU64, PIECE_SHIFT, PIECES>,
    lists: SpinLock<Lists>,
    /// One more than the highest cluster number ever used.
    end: AtomicU32,
}

impl Slots {
    pub(crate) const fn new() -> Self {
        Self {
            descriptors: Pieces::new(),
            headers: Pieces::new(),
            excess: Pieces::new(),
            lists: SpinLock::new(Lists {
                first_partial: NONE,
                last_partial: NONE,
                first_spare: NONE,
                clusters: 0,
                excess: 0,
            }),
            end: AtomicU32::new(1),
        }
    }

    /// The descriptor of an entry, if its cluster ever existed.
    #[inline]
    pub(crate) fn descriptor(&self, entry: SwapEntry) -> Option<&AtomicDescriptor> {
        self.descriptors.get(entry.raw() as usize)
    }

    /// The descriptors of a cluster that exists or did.
    #[inline]
    pub(crate) fn row(&self, cluster: ClusterId) -> &Row {
        let row = self.descriptors.row((cluster.0 as usize) << CLUSTER_SHIFT);
        row.expect("a cluster got its number after its memory")
    }

    /// The header of a cluster that exists or did.
    #[inline]
    pub(crate) fn header(&self, cluster: ClusterId) -> &Header {
        let header = self.headers.get(cluster.0 as usize);
        header.expect("a cluster got its number after its memory")
    }

    /// The clusters with memory, in the order of their numbers.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = ClusterId> {
        self.clusters_from(ClusterId(1))
    }

    /// The clusters with memory from `first` on.
    pub(crate) fn clusters_from(&self, first: ClusterId) -> impl Iterator<Item = ClusterId> {
        let end = self.end.load(Ordering::Acquire);
        (first.0.max(1)..end)
            .map(ClusterId)
            .filter(|&cluster| self.header(cluster).now().state != State::Unused)
    }

    /// Numbers that were ever used, which is what headers have memory for.
    pub(crate) fn numbers(&self) -> usize {
        self.end.load(Ordering::Acquire) as usize
    }

    /// See [`crate::VirtualSwap::reset_after_fork`].
    pub(crate) fn reset_after_fork(&self) {
        self.lists.reset_after_fork();
    }

    /// Clusters with memory, and how many of them have a side table.
    pub(crate) fn in_use<P: Platform + ?Sized>(&self, platform: &P) -> (usize, usize) {
        let lists = self.lists.lock(platform);
        (lists.clusters as usize, lists.excess as usize)
    }

    /// Finds the next slot of `owned` that can be filled, getting another cluster when there is
    /// none. The slot is not taken before [`Self::fill`].
    #[inline]
    pub(crate) fn next<P: Platform + ?Sized>(
        &self,
        platform: &P,
        owned: &mut Option<Owned>,
        limit: u32,
    ) -> Result<SwapEntry, NoSlot> {
        loop {
            if let Some(current) = owned {
                if let Some(index) = self.scan(current, 1) {
                    return Ok(current.cluster.entry(index));
                }
                self.give_back(platform, owned.take());
            }
            *owned = Some(self.take(platform, limit, 1)?);
        }
    }

    /// Like [`Self::next`], for `n` contiguous slots at a multiple of `n`, a power of two.
    pub(crate) fn next_run<P: Platform + ?Sized>(
        &self,
        platform: &P,
        owned: &mut Option<Owned>,
        limit: u32,
        n: usize,
    ) -> Result<SwapEntry, NoSlot> {
        /// Partial clusters that are searched before a new one is made: a run is rare in them.
        const TRIES: u32 = 4;
        for attempt in 0.. {
            if let Some(current) = owned {
                if let Some(index) = self.scan(current, n) {
                    return Ok(current.cluster.entry(index));
                }
                self.give_back(platform, owned.take());
            }
            let least = if attempt < TRIES { n } else { CLUSTER_SLOTS };
            *owned = Some(self.take(platform, limit, least)?);
        }
        unreachable!("a new cluster has room for any run")
    }

    /// Moves the cursor to `n` free slots, and makes sure of the credit for them.
    #[inline]
    fn scan(&self, owned: &mut Owned, n: usize) -> Option<usize> {
        let row = self.row(owned.cluster);
        let mut index = owned.cursor.next_multiple_of(n);
        while index < CLUSTER_SLOTS {
            if row[index..index + n].iter().all(|slot| slot.peek() == Descriptor::FREE) {
                if owned.credit < n {
                    owned.credit += self.header(owned.cluster).claim();
                }
                // Descriptors are freed before the header counts them, so that there can be more
                // free ones than credit for a moment.
                return (owned.credit >= n).then(|| {
                    owned.cursor = index;
                    index
                });
            }
            index += n;
        }
        owned.cursor = CLUSTER_SLOTS;
        None
    }

    /// Fills `n` slots from `entry` on, which `next` or `next_run` just found in `owned`.
    #[inline]
    pub(crate) fn fill(&self, owned: &mut Owned, entry: SwapEntry, n: usize, word: Descriptor) {
        debug_assert!(owned.cluster == entry.cluster() && owned.cursor == entry.index());
        for slot in &self.row(owned.cluster)[owned.cursor..owned.cursor + n] {
            slot.publish(word);
        }
        owned.cursor += n;
        owned.credit -= n;
    }

    /// Takes a partial cluster with at least `least` free slots, or makes a new one.
    #[cold]
    fn take<P: Platform + ?Sized>(
        &self,
        platform: &P,
        limit: u32,
        least: usize,
    ) -> Result<Owned, NoSlot> {
        let mut lists = self.lists.lock(platform);
        let cluster = match self.first_partial(&lists, least) {
            Some(cluster) => {
                self.unlink(&mut lists, cluster);
                cluster
            }
            None if lists.clusters < limit => self.create(platform, &mut lists)?,
            None => self.any_with_room(least).ok_or(NoSlot::Limit)?,
        };
        let credit = self.header(cluster).take();
        Ok(Owned { cluster, cursor: 0, credit })
    }

    fn first_partial(&self, lists: &Lists, least: usize) -> Option<ClusterId> {
        let first = ClusterId(lists.first_partial);
        let fits = || CLUSTER_SLOTS - self.header(first).now().used >= least;
        (first.0 != NONE && fits()).then_some(first)
    }

    /// At the limit even a cluster with few free slots is welcome.
    fn any_with_room(&self, least: usize) -> Option<ClusterId> {
        self.clusters().find(|&cluster| {
            let now = self.header(cluster).now();
            now.state == State::Full && CLUSTER_SLOTS - now.used >= least
        })
    }

    fn create<P: Platform + ?Sized>(
        &self,
        platform: &P,
        lists: &mut Lists,
    ) -> Result<ClusterId, NoSlot> {
        let cluster = if lists.first_spare == NONE {
            let number = self.end.load(Ordering::Relaxed);
            if number >= CLUSTERS_MAX {
                return Err(NoSlot::Limit);
            }
            // The reservations happen under the lock, once per 8 million slots.
            self.headers.ensure(platform, number as usize)?;
            self.descriptors.ensure(platform, (number as usize) << CLUSTER_SHIFT)?;
            self.end.store(number + 1, Ordering::Release);
            ClusterId(number)
        } else {
            let spare = ClusterId(lists.first_spare);
            lists.first_spare = self.header(spare).next.load(Ordering::Relaxed);
            spare
        };
        lists.clusters += 1;
        Ok(cluster)
    }

    /// Ends the ownership of a cluster.
    pub(crate) fn give_back<P: Platform + ?Sized>(&self, platform: &P, owned: Option<Owned>) {
        let Some(owned) = owned else { return };
        let mut lists = self.lists.lock(platform);
        let header = self.header(owned.cluster);
        header.set_state(State::Full);
        header.release(owned.credit);
        let emptied = self.settle_locked(&mut lists, owned.cluster);
        drop(lists);
        self.finish(platform, emptied);
    }

    /// Takes `n` freed slots of a cluster out of use. Their descriptors are free already.
    #[inline]
    pub(crate) fn release<P: Platform + ?Sized>(&self, platform: &P, cluster: ClusterId, n: usize) {
        if self.header(cluster).release(n).needs_settling() {
            self.settle(platform, cluster);
        }
    }

    #[cold]
    fn settle<P: Platform + ?Sized>(&self, platform: &P, cluster: ClusterId) {
        let mut lists = self.lists.lock(platform);
        let emptied = self.settle_locked(&mut lists, cluster);
        drop(lists);
        self.finish(platform, emptied);
    }

    /// Lists a cluster that has become worth it; takes an empty one away from everybody and
    /// returns it for [`Self::finish`].
    fn settle_locked(&self, lists: &mut Lists, cluster: ClusterId) -> Option<ClusterId> {
        let header = self.header(cluster);
        let now = header.now();
        if !now.needs_settling() {
            return None;
        }
        if now.used > 0 {
            self.link_last(lists, cluster);
            header.set_state(State::Listed);
            return None;
        }
        if now.state == State::Listed {
            self.unlink(lists, cluster);
        }
        header.set_state(State::Unused);
        Some(cluster)
    }

    /// Gives an emptied cluster's memory back, outside the lock, and then its number.
    fn finish<P: Platform + ?Sized>(&self, platform: &P, emptied: Option<ClusterId>) {
        let Some(cluster) = emptied else { return };
        let header = self.header(cluster);
        let first = (cluster.0 as usize) << CLUSTER_SHIFT;
        // SAFETY: all slots are free and the number is on no list, so nobody fills them. Whoever
        // still looks at a stale entry reads a free descriptor before and after. A cluster's rows
        // of descriptors and excess words are whole pages.
        unsafe {
            self.descriptors.discard(platform, first, CLUSTER_SLOTS);
            if header.now().excess {
                self.excess.discard(platform, first, CLUSTER_SLOTS);
            }
        }
        let mut lists = self.lists.lock(platform);
        if header.now().excess {
            header.set_excess(false);
            lists.excess -= 1;
        }
        lists.clusters -= 1;
        header.next.store(lists.first_spare, Ordering::Relaxed);
        lists.first_spare = cluster.0;
    }

    fn link_last(&self, lists: &mut Lists, cluster: ClusterId) {
        let header = self.header(cluster);
        header.next.store(NONE, Ordering::Relaxed);
        header.previous.store(lists.last_partial, Ordering::Relaxed);
        match lists.last_partial {
            NONE => lists.first_partial = cluster.0,
            last => self.header(ClusterId(last)).next.store(cluster.0, Ordering::Relaxed),
        }
        lists.last_partial = cluster.0;
    }

    fn unlink(&self, lists: &mut Lists, cluster: ClusterId) {
        let header = self.header(cluster);
        let previous = header.previous.load(Ordering::Relaxed);
        let next = header.next.load(Ordering::Relaxed);
        match previous {
            NONE => lists.first_partial = next,
            previous => self.header(ClusterId(previous)).next.store(next, Ordering::Relaxed),
        }
        match next {
            NONE => lists.last_partial = previous,
            next => self.header(ClusterId(next)).previous.store(previous, Ordering::Relaxed),
        }
    }

    /// Checks that exactly the listed clusters are on the list; gives the broken rule and where.
    pub(crate) fn verify_lists<P: Platform + ?Sized>(
        &self,
        platform: &P,
    ) -> Result<(), (&'static str, u32)> {
        let lists = self.lists.lock(platform);
        let (mut previous, mut listed) = (NONE, 0);
        let mut number = lists.first_partial;
        while number != NONE {
            let header = self.header(ClusterId(number));
            if header.now().state != State::Listed {
                return Err(("a cluster on the list is marked so", number));
            }
            if header.previous.load(Ordering::Relaxed) != previous {
                return Err(("links agree in both directions", number));
            }
            listed += 1;
            previous = number;
            number = header.next.load(Ordering::Relaxed);
        }
        let is_listed = |&cluster: &ClusterId| self.header(cluster).now().state == State::Listed;
        if lists.last_partial != previous || self.clusters().filter(is_listed).count() != listed {
            return Err(("each listed cluster is on the list", previous));
        }
        if self.clusters().count() != lists.clusters as usize {
            return Err(("clusters in use are those counted", 0));
        }
        Ok(())
    }

    /// Gives all address space back.
    pub(crate) fn unreserve<P: Platform + ?Sized>(&mut self, platform: &P) {
        self.descriptors.unreserve(platform);
        self.headers.unreserve(platform);
        self.excess.unreserve(platform);
    }
}
