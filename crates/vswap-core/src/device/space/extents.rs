//! Where clusters come from and go to: extents of the device, bad blocks, and the memory for
//! what is known of them.

use core::ops::Range;

use super::Space;
use super::bits::Bits;
use super::cluster::State;
use super::geometry::{Block, ClusterId, EXTENT_CLUSTERS_SHIFT, Extent};
use super::lists::{Headers, Lists};
use crate::page::PAGE_SIZE;
use crate::pieces::Pieces;
use crate::platform::Platform;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Who hands out the extents of a device.
///
/// Both calls come with a spin lock held, so that there is one at a time: they must not call back
/// into the [`Space`], and should not take long.
pub trait ExtentSource: Sync {
    /// An extent that no process holds. It is asked each time that nothing else is free, so a
    /// refusal should be cheap.
    fn lease(&self) -> Option<Extent>;

    /// How many processes hold an extent that this one holds.
    fn holders(&self, extent: Extent) -> u32 {
        let _ = extent;
        1
    }

    /// This process uses the extent no more. After a fork, the child holds what its parent held,
    /// so an extent is free when each of its holders gave it back; if one of them had sealed it,
    /// its contents were not discarded.
    fn give_back(&self, extent: Extent);
}

impl<S: ExtentSource + ?Sized> ExtentSource for &S {
    fn lease(&self) -> Option<Extent> {
        (**self).lease()
    }

    fn holders(&self, extent: Extent) -> u32 {
        (**self).holders(extent)
    }

    fn give_back(&self, extent: Extent) {
        (**self).give_back(extent);
    }
}

/// Whoever has the lock on this leases extents and gives them back.
#[derive(Debug)]
pub(super) struct Extents;

/// The table of bad blocks is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bad blocks of the swap device form more than {} ranges", BadTable::RANGES)]
pub struct TooManyBadRanges;

/// Ranges of bad blocks. It is what bits are made from when an extent is leased.
#[derive(Debug)]
pub(super) struct BadTable {
    /// First block and end of each range. There is one piece, reserved for the first range.
    ranges: Pieces<AtomicU64, { Self::SHIFT }, 1>,
    len: AtomicU32,
}

impl BadTable {
    const SHIFT: u32 = 10;
    const RANGES: usize = 1 << Self::SHIFT;

    pub(super) const fn new() -> Self {
        Self { ranges: Pieces::new(), len: AtomicU32::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire) as usize
    }

    fn iter(&self) -> impl Iterator<Item = Range<u32>> {
        (0..self.len()).filter_map(|n| self.ranges.get(n)).map(|range| {
            let range = range.load(Ordering::Relaxed);
            (range >> 32) as u32..range as u32
        })
    }

    fn add<P: Platform>(&self, platform: &P, range: Range<u32>) -> Result<(), TooManyBadRanges> {
        let len = self.len();
        let (mut at, mut start) = (len, range.start);
        if let Some(last) = self.iter().last().filter(|last| last.end == range.start) {
            (at, start) = (len - 1, last.start);
        }
        self.ranges.ensure(platform, at).map_err(|_| TooManyBadRanges)?;
        let entry = self.ranges.get(at).ok_or(TooManyBadRanges)?;
        entry.store(u64::from(start) << 32 | u64::from(range.end), Ordering::Relaxed);
        self.len.store(at as u32 + 1, Ordering::Release);
        Ok(())
    }

    fn pages(&self) -> usize {
        (self.len() * size_of::<u64>()).div_ceil(PAGE_SIZE)
    }

    pub(super) fn unreserve<P: Platform>(&mut self, platform: &P) {
        self.ranges.unreserve(platform);
    }
}

/// The clusters that share a page of metadata with this one.
fn sharing(cluster: ClusterId, per_page: usize) -> Range<u32> {
    let first = cluster.0 & !(per_page as u32 - 1);
    first..first + per_page as u32
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    const HEADERS_PER_PAGE: usize = PAGE_SIZE / size_of::<super::Header>();

    fn bits_per_page(&self) -> usize {
        PAGE_SIZE / size_of::<u64>() / self.geometry.words()
    }

    /// Marks blocks as never to be used. Neighbouring ranges count as one.
    ///
    /// # Errors
    /// If there are too many ranges.
    ///
    /// # Panics
    /// If slots were taken before.
    pub fn mark_bad(&mut self, blocks: Range<Block>) -> Result<(), TooManyBadRanges> {
        assert_eq!(self.leases.load(Ordering::Relaxed), 0, "bad blocks are marked at the start");
        self.bad.add(&self.platform, blocks.start.raw()..blocks.end.raw())
    }

    /// Memory that the device's bookkeeping takes, in bytes.
    pub fn metadata(&self) -> usize {
        let pages = self.metadata_pages.load(Ordering::Relaxed) as usize + self.bad.pages();
        pages * PAGE_SIZE + size_of::<Self>()
    }

    /// Gives all free extents back, the spare one too. What still is to be discarded stays.
    pub fn trim(&self) {
        self.end_compaction();
        for extent in (0..self.end.load(Ordering::Acquire)).map(Extent) {
            let _extents = self.extents.lock(&self.platform);
            self.return_locked(extent);
        }
    }

    /// The extents that are leased, in order. A process that was forked tells its source of them, before
    /// [`Self::seal`].
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        let all = (0..self.end.load(Ordering::Acquire)).map(Extent);
        all.filter(|&extent| {
            let mut clusters = self.geometry.extent_clusters(extent);
            clusters.any(|cluster| self.is_leased(cluster))
        })
    }

    /// Gets an extent, unless another thread got one since the caller saw `leases`.
    pub(super) fn lease(&self, leases: u32) -> bool {
        let _extents = self.extents.lock(&self.platform);
        if self.leases.load(Ordering::Relaxed) != leases {
            return true;
        }
        let Some(extent) = self.source.lease() else { return false };
        if !self.is_new(extent) {
            debug_assert!(false, "the source leased an extent twice, or one that is not there");
            return false;
        }
        if self.map(extent).is_none() {
            self.source.give_back(extent);
            return false;
        }
        self.leases.fetch_add(1, Ordering::Release);
        true
    }

    fn is_new(&self, extent: Extent) -> bool {
        extent.0 < self.geometry.extents()
            && !self.geometry.extent_clusters(extent).any(|cluster| self.is_leased(cluster))
    }

    pub(super) fn is_leased(&self, cluster: ClusterId) -> bool {
        let header = self.headers.get(cluster.0 as usize);
        header.is_some_and(|header| header.now().state != State::Unleased)
    }

    /// All clusters that are leased, in order.
    pub(super) fn leased(&self) -> impl Iterator<Item = ClusterId> {
        let end = self.end.load(Ordering::Acquire);
        let extents = (0..end).map(Extent);
        let clusters = extents.flat_map(|extent| self.geometry.extent_clusters(extent));
        clusters.filter(|&cluster| self.is_leased(cluster))
    }

    /// Makes an extent's clusters free ones.
    fn map(&self, extent: Extent) -> Option<()> {
        let clusters = self.geometry.extent_clusters(extent);
        let first = clusters.clone().next()?;
        self.headers.ensure(&self.platform, first.0 as usize).ok()?;
        let word = first.0 as usize * self.geometry.words();
        self.words.ensure(&self.platform, word).ok()?;
        let pages = self.unused_pages(first).into_iter().flatten().count();
        self.metadata_pages.fetch_add(pages as u32, Ordering::Relaxed);
        self.set_bad_bits(extent);
        let mut lists = self.lists.lock(&self.platform);
        for cluster in clusters {
            lists.change(self, cluster, State::Free, 0);
        }
        self.end.fetch_max(extent.0 + 1, Ordering::Release);
        Some(())
    }

    /// Sets the bits of bad blocks, and of those that the last cluster has not.
    fn set_bad_bits(&self, extent: Extent) {
        let blocks = self.geometry.extent_blocks(extent);
        let end = blocks.end.next_multiple_of(self.geometry.cluster_blocks());
        let missing = self.geometry.blocks()..u32::MAX;
        for bad in self.bad.iter().chain([missing]) {
            let (mut at, end) = (bad.start.max(blocks.start), bad.end.min(end));
            while at < end {
                let cluster = ClusterId(at >> self.geometry.cluster_shift());
                let index = at & (self.geometry.cluster_blocks() - 1);
                let len = (end - at).min(self.geometry.cluster_blocks() - index);
                Bits::of(&self.words, cluster, self.geometry).set(index, len);
                at += len;
            }
        }
    }

    /// The pages of headers and of bits that a cluster shares with no leased one, by the first
    /// cluster that they describe. With the extents locked.
    fn unused_pages(&self, cluster: ClusterId) -> [Option<ClusterId>; 2] {
        [Self::HEADERS_PER_PAGE, self.bits_per_page()].map(|per_page| {
            let mut shared = sharing(cluster, per_page);
            let first = ClusterId(shared.start);
            // Only whole extents are leased.
            let leased = |number: u32| self.is_leased(ClusterId(number));
            (!shared.by_ref().step_by(1 << EXTENT_CLUSTERS_SHIFT).any(leased)).then_some(first)
        })
    }

    /// Whether all of an extent is free, and then whether a part of it is dead.
    fn is_returnable(&self, extent: Extent) -> Option<bool> {
        let mut clusters = self.geometry.extent_clusters(extent);
        clusters.try_fold(false, |dead, cluster| match self.headers.get(cluster.0 as usize) {
            Some(header) => match header.now().state {
                State::Free => Some(dead),
                State::Dead => Some(true),
                _ => None,
            },
            None => None,
        })
    }

    /// Says whether an extent that has lost a cluster's objects is to go back.
    pub(super) fn surplus(&self, lists: &mut Lists, extent: Extent) -> Option<Extent> {
        let dead = self.is_returnable(extent)?;
        let spare = lists.spare.filter(|&spare| spare != extent);
        if dead || spare.is_some_and(|spare| self.is_returnable(spare).is_some()) {
            return Some(extent);
        }
        lists.spare = Some(extent);
        // Other free clusters are taken before those of the spare.
        for cluster in self.geometry.extent_clusters(extent) {
            lists.set_state(self, cluster, State::Free);
        }
        None
    }

    /// Gives an extent back that `surplus` named. It can wait, for the next `trim` at most, so a
    /// free does not wait for a source that is at work.
    pub(super) fn return_surplus(&self, surplus: Option<Extent>) {
        let Some(extent) = surplus else { return };
        if let Some(_extents) = self.extents.try_lock() {
            self.return_locked(extent);
        }
    }

    /// Gives an extent back, if it still is all free. With the extents locked.
    pub(super) fn return_locked(&self, extent: Extent) {
        let clusters = self.geometry.extent_clusters(extent);
        let mut lists = self.lists.lock(&self.platform);
        if self.is_returnable(extent).is_none() {
            return;
        }
        for cluster in clusters.clone() {
            // On no list, and of a state that is nobody's to change without the lock that we hold.
            lists.set_state(self, cluster, State::Dead);
        }
        lists.spare = lists.spare.filter(|&spare| spare != extent);
        drop(lists);
        for cluster in clusters.clone() {
            self.bits(cluster).reset();
            self.header(cluster).reset();
        }
        self.discard_metadata(clusters.clone().next());
        self.source.give_back(extent);
    }

    fn discard_metadata(&self, first: Option<ClusterId>) {
        let Some(first) = first else { return };
        let [headers, bits] = self.unused_pages(first);
        // SAFETY: the page describes extents that are not leased, and the caller's lock keeps it
        // so: nobody writes there, and who reads sees zeros before and after. Both indexes are
        // those of a page's first element.
        unsafe {
            if let Some(first) = headers {
                self.headers.discard(&self.platform, first.0 as usize, Self::HEADERS_PER_PAGE);
            }
            if let Some(first) = bits {
                let word = first.0 as usize * self.geometry.words();
                self.words.discard(&self.platform, word, PAGE_SIZE / size_of::<u64>());
            }
        }
        let pages = u32::from(headers.is_some()) + u32::from(bits.is_some());
        self.metadata_pages.fetch_sub(pages, Ordering::Relaxed);
    }
}
