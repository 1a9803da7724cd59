//! The last resort: any slot that can hold the object.

use super::Space;
use super::cluster::State;
use super::extents::ExtentSource;
use super::geometry::{Block, ClusterId, Extent};
use super::lists::{Headers, Lists};
use crate::platform::Platform;

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// Takes one slot for an object of `blocks` blocks, of the smallest class that has one, in
    /// whoever's cluster.
    #[cold]
    pub(super) fn steal(&self, blocks: u8) -> Option<Block> {
        let mut lists = self.lists.lock(&self.platform);
        let classes = blocks..=self.geometry.object_blocks_max();
        let found = classes.into_iter().find_map(|class| self.steal_of(&mut lists, class, blocks));
        drop(lists);
        let (block, surplus) = found?;
        self.return_surplus(surplus);
        Some(block)
    }

    /// Takes one slot of this class. Under the lock of the lists clusters keep their owners, so a
    /// cluster's own lock is all that is needed besides.
    fn steal_of(
        &self,
        lists: &mut Lists,
        class: u8,
        blocks: u8,
    ) -> Option<(Block, Option<Extent>)> {
        let states = [State::Scattered, State::Partial, State::Owned];
        let (cluster, slot) = states.into_iter().find_map(|state| {
            let mut clusters = lists.iter(self, state, class);
            clusters.find_map(|cluster| self.steal_from(cluster, class, blocks))
        })?;
        let block = Block::of(cluster, slot * u32::from(class), self.geometry);
        Some((block, self.settle_locked(lists, cluster)))
    }

    fn steal_from(&self, cluster: ClusterId, class: u8, blocks: u8) -> Option<(ClusterId, u32)> {
        let now = self.header(cluster).now();
        if now.class != class || now.free_slots(self.geometry) == 0 {
            return None;
        }
        self.fill(cluster, class, 0, 1, blocks).map(|(slot, _)| (cluster, slot))
    }
}
