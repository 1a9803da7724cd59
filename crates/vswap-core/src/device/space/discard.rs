//! Discard of clusters that became free: holes in a file, BLKDISCARD on a device.

use core::ops::Range;

use super::Space;
use super::cluster::State;
use super::extents::ExtentSource;
use super::geometry::{ClusterId, Extent, Geometry};
use super::lists::Headers;
use crate::platform::Platform;
use crate::sync::Ordering;

/// Contiguous free clusters that the caller discards. They are not used before
/// [`Space::discarded`].
#[derive(Debug)]
#[must_use = "the clusters are lost until they are said to be discarded"]
pub struct Discard {
    first: ClusterId,
    /// The cluster behind the last one.
    end: ClusterId,
    geometry: Geometry,
}

impl Discard {
    /// The blocks to discard.
    pub fn blocks(&self) -> Range<u32> {
        let last = ClusterId(self.end.0 - 1);
        self.geometry.cluster_range(self.first).start..self.geometry.cluster_range(last).end
    }
}

fn row(first: ClusterId, end: ClusterId) -> impl Iterator<Item = ClusterId> {
    (first.0..end.0).map(ClusterId)
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// Says whether clusters that become free are to be discarded, as is not the case at first.
    /// Once the device has refused a discard, no more are asked for.
    pub fn set_discard(&self, discard: bool) {
        self.discard.store(discard, Ordering::Relaxed);
        while !discard && self.give_up_discard() {}
    }

    /// Makes a dirty cluster a free one; false if there is none.
    fn give_up_discard(&self) -> bool {
        let mut lists = self.lists.lock(&self.platform);
        let Some(cluster) = lists.iter(self, State::Dirty, 0).next() else { return false };
        lists.set_state(self, cluster, State::Free);
        let surplus = self.surplus(&mut lists, Extent::of(cluster));
        drop(lists);
        self.return_surplus(surplus);
        true
    }

    /// The next clusters to discard, within one extent.
    pub fn next_discard(&self) -> Option<Discard> {
        let mut lists = self.lists.lock(&self.platform);
        let cluster = lists.iter(self, State::Dirty, 0).next()?;
        let extent = self.geometry.extent_clusters(Extent::of(cluster));
        let dirty = |&cluster: &ClusterId| self.header(cluster).now().state == State::Dirty;
        let before = extent.clone().take_while(|&other| other < cluster);
        // The row starts behind the last cluster that is not dirty.
        let first = before.fold(None, |first, other| dirty(&other).then(|| first.unwrap_or(other)));
        let first = first.unwrap_or(cluster);
        let dirty_row = extent.skip_while(|&other| other < first).take_while(dirty);
        let end = ClusterId(first.0 + dirty_row.count() as u32);
        for cluster in row(first, end) {
            lists.set_state(self, cluster, State::Discarding);
        }
        Some(Discard { first, end, geometry: self.geometry })
    }

    /// The clusters were discarded, or cannot be: they may be used again.
    #[allow(clippy::needless_pass_by_value, reason = "a discard is done once")]
    pub fn discarded(&self, discard: Discard) {
        let mut lists = self.lists.lock(&self.platform);
        let Discard { first, end, .. } = discard;
        for cluster in row(first, end) {
            // In the child of a fork they are the parent's.
            if self.header(cluster).now().state == State::Discarding {
                lists.set_state(self, cluster, State::Free);
            }
        }
        let surplus = self.surplus(&mut lists, Extent::of(first));
        drop(lists);
        self.return_surplus(surplus);
    }
}
