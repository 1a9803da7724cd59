//! Groups of processes: limits that hold for several spaces together.
//!
//! Each process of a run has a space of its own, so what a group uses is a sum over processes. The tree of groups
//! lies in memory that they share; what each process uses it says there in a record of its own, and the sum is
//! made when it is asked for ([`SharedGroups::room`], [`SharedGroups::fits`]). A sum that is kept would be
//! wrong for good once a process is killed between two steps; a record goes with its process.
//!
//! One process makes and removes groups; all others only read and count events. All-zero bytes are a tree of
//! one group without limits.

use crate::error::GroupError;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Groups of one tree, at most.
pub const SHARED_GROUPS_MAX: usize = 64;

/// A group of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupIndex(u8);

impl GroupIndex {
    /// The group that contains all others.
    pub const ROOT: Self = Self(0);

    /// The group of a number.
    pub fn new(number: u32) -> Option<Self> {
        u8::try_from(number).ok().filter(|&n| usize::from(n) < SHARED_GROUPS_MAX).map(Self)
    }

    /// Its number.
    pub fn raw(self) -> u32 {
        self.0.into()
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Limit {
    /// RAM, compressed or not.
    Memory = 0,
    /// RAM that compressed objects take.
    Zswap = 1,
    /// Physical slots on swap devices.
    Swap = 2,
}

const LIMITS: usize = 3;

/// What is counted, under the kernel's names in `memory.swap.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SwapEvent {
    /// Physical slots were refused because of a maximum.
    Max = 0,
    /// They were refused, for whatever reason.
    Fail = 1,
}

const EVENTS: usize = 2;

/// What the processes of a group and of all its descendants may use together. `None` is no limit, 0 is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedLimits {
    /// Bytes of RAM.
    pub memory_max: Option<u64>,
    /// Bytes of RAM for compressed objects.
    pub zswap_max: Option<u64>,
    /// Bytes on swap devices.
    pub swap_max: Option<u64>,
    /// Whether anything may go to a swap device; an ancestor can forbid it too.
    pub zswap_writeback: bool,
}

impl Default for SharedLimits {
    fn default() -> Self {
        Self { memory_max: None, zswap_max: None, swap_max: None, zswap_writeback: true }
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Node {
    exists: AtomicU32,
    parent: AtomicU32,
    writeback_forbidden: AtomicU32,
    /// Complements, so that 0 is no limit.
    max: [AtomicU64; LIMITS],
    events: [AtomicU64; EVENTS],
}

impl Node {
    fn max(&self, limit: Limit) -> Option<u64> {
        Some(!self.max[limit as usize].load(Ordering::Relaxed)).filter(|&max| max != u64::MAX)
    }
}

/// The tree.
#[derive(Debug)]
#[repr(transparent)]
pub struct SharedGroups([Node; SHARED_GROUPS_MAX]);

impl SharedGroups {
    fn node(&self, group: GroupIndex) -> &Node {
        &self.0[usize::from(group.0)]
    }

    /// Whether there is such a group.
    pub fn exists(&self, group: GroupIndex) -> bool {
        group == GroupIndex::ROOT || self.node(group).exists.load(Ordering::Acquire) != 0
    }

    /// Makes a group below another.
    ///
    /// # Errors
    /// If the parent does not exist, or there are [`SHARED_GROUPS_MAX`] groups.
    pub fn add(&self, parent: GroupIndex, limits: SharedLimits) -> Result<GroupIndex, GroupError> {
        if !self.exists(parent) {
            return Err(GroupError::Unknown);
        }
        let mut all = (0..SHARED_GROUPS_MAX as u8).map(GroupIndex);
        let group = all.find(|&group| !self.exists(group)).ok_or(GroupError::TooMany)?;
        let node = self.node(group);
        node.parent.store(parent.raw(), Ordering::Relaxed);
        self.set_limits(group, limits);
        node.events.iter().for_each(|event| event.store(0, Ordering::Relaxed));
        // Release: who finds the group finds its limits and its parent.
        node.exists.store(1, Ordering::Release);
        Ok(group)
    }

    /// Removes a group that no process belongs to.
    ///
    /// # Errors
    /// If it has children, is the root, or does not exist.
    pub fn remove(&self, group: GroupIndex) -> Result<(), GroupError> {
        if group == GroupIndex::ROOT || !self.exists(group) {
            return Err(GroupError::Unknown);
        }
        let mut all = (1..SHARED_GROUPS_MAX as u8).map(GroupIndex);
        if all.any(|child| self.exists(child) && self.parent(child) == Some(group)) {
            return Err(GroupError::InUse);
        }
        self.node(group).exists.store(0, Ordering::Release);
        Ok(())
    }

    /// Changes a group's limits. Who is beyond them gives way.
    pub fn set_limits(&self, group: GroupIndex, limits: SharedLimits) {
        let node = self.node(group);
        let all = [limits.memory_max, limits.zswap_max, limits.swap_max];
        for (word, max) in node.max.iter().zip(all) {
            word.store(!max.unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let forbidden = u32::from(!limits.zswap_writeback);
        node.writeback_forbidden.store(forbidden, Ordering::Relaxed);
    }

    /// A group's own limits.
    pub fn limits(&self, group: GroupIndex) -> SharedLimits {
        let node = self.node(group);
        SharedLimits {
            memory_max: node.max(Limit::Memory),
            zswap_max: node.max(Limit::Zswap),
            swap_max: node.max(Limit::Swap),
            zswap_writeback: node.writeback_forbidden.load(Ordering::Relaxed) == 0,
        }
    }

    /// The parent; `None` for the root.
    pub fn parent(&self, group: GroupIndex) -> Option<GroupIndex> {
        if group == GroupIndex::ROOT {
            return None;
        }
        GroupIndex::new(self.node(group).parent.load(Ordering::Relaxed))
    }

    /// The group, its parent, and so on to the root.
    pub fn path(&self, group: GroupIndex) -> impl Iterator<Item = GroupIndex> {
        // Others can write here: whatever they do, a path ends.
        core::iter::successors(Some(group), |&group| self.parent(group)).take(SHARED_GROUPS_MAX)
    }

    /// Whether a group is another or a descendant of it.
    pub fn is_within(&self, group: GroupIndex, ancestor: GroupIndex) -> bool {
        self.path(group).any(|one| one == ancestor)
    }

    /// Whether what is in the group may go to a swap device: all its ancestors have to allow it.
    pub fn writes_back(&self, group: GroupIndex) -> bool {
        let allows = |one| self.node(one).writeback_forbidden.load(Ordering::Relaxed) == 0;
        self.path(group).all(allows)
    }

    /// The groups on the path that have a maximum of a kind, with it.
    pub fn bounds(
        &self,
        group: GroupIndex,
        limit: Limit,
    ) -> impl Iterator<Item = (GroupIndex, u64)> {
        self.path(group).filter_map(move |one| Some((one, self.node(one).max(limit)?)))
    }

    /// The tightest maximum on the path.
    pub fn tightest(&self, group: GroupIndex, limit: Limit) -> Option<u64> {
        self.bounds(group, limit).map(|(_, max)| max).min()
    }

    /// What is left to somebody in the group, if `used` gives what all others use within a group; `None` if
    /// nothing limits it.
    pub fn room(
        &self,
        group: GroupIndex,
        limit: Limit,
        used: impl Fn(GroupIndex) -> u64,
    ) -> Option<u64> {
        self.bounds(group, limit).map(|(one, max)| max.saturating_sub(used(one))).min()
    }

    /// Whether no group on the path uses more than it may.
    pub fn fits(&self, group: GroupIndex, limit: Limit, used: impl Fn(GroupIndex) -> u64) -> bool {
        self.bounds(group, limit).all(|(one, max)| used(one) <= max)
    }

    /// Counts an event in the group and all its ancestors.
    pub fn count(&self, group: GroupIndex, event: SwapEvent) {
        for one in self.path(group) {
            self.node(one).events[event as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often an event was counted, in the group or below it.
    pub fn counted(&self, group: GroupIndex, event: SwapEvent) -> u64 {
        self.node(group).events[event as usize].load(Ordering::Relaxed)
    }
}

impl Default for SharedGroups {
    fn default() -> Self {
        let node = || Node {
            exists: AtomicU32::new(0),
            parent: AtomicU32::new(0),
            writeback_forbidden: AtomicU32::new(0),
            max: [const { AtomicU64::new(0) }; LIMITS],
            events: [const { AtomicU64::new(0) }; EVENTS],
        };
        Self(core::array::from_fn(|_| node()))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn zswap_max(bytes: u64) -> SharedLimits {
        SharedLimits { zswap_max: Some(bytes), ..SharedLimits::default() }
    }

    fn writeback(zswap_writeback: bool) -> SharedLimits {
        SharedLimits { zswap_writeback, ..SharedLimits::default() }
    }

    /// The kernel's test_zswap_writeback with a child: what it sets does not matter.
    #[test]
    fn a_parent_that_forbids_writeback_beats_its_child() {
        let tree = SharedGroups::default();
        let parent = tree.add(GroupIndex::ROOT, writeback(false)).unwrap();
        let child = tree.add(parent, writeback(true)).unwrap();
        assert!(tree.limits(child).zswap_writeback && !tree.writes_back(child));
        tree.set_limits(parent, writeback(true));
        assert!(tree.writes_back(child));
        tree.set_limits(child, writeback(false));
        assert!(!tree.writes_back(child) && tree.writes_back(parent));
    }

    /// The kernel's test_no_invasive_cgroup_shrink: a full child leaves its siblings alone.
    #[test]
    fn the_limit_of_a_child_binds_the_child_alone() {
        let tree = SharedGroups::default();
        let control = tree.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
        let child = tree.add(GroupIndex::ROOT, zswap_max(1000)).unwrap();
        let used = |group| if group == child { 900 } else { 5000 };
        assert_eq!(tree.room(child, Limit::Zswap, used), Some(100));
        assert_eq!(tree.room(control, Limit::Zswap, used), None);
        assert!(!tree.fits(child, Limit::Zswap, |_| 1001) && tree.fits(child, Limit::Zswap, used));
        assert_eq!(tree.tightest(child, Limit::Swap), None);
    }

    #[test]
    fn the_tightest_limit_of_a_path_binds() {
        let tree = SharedGroups::default();
        tree.set_limits(GroupIndex::ROOT, zswap_max(3000));
        let parent = tree.add(GroupIndex::ROOT, zswap_max(2000)).unwrap();
        let child = tree.add(parent, zswap_max(5000)).unwrap();
        let used = |group| if group == GroupIndex::ROOT { 2500 } else { 700 };
        assert_eq!(tree.room(child, Limit::Zswap, used), Some(500));
        assert_eq!(tree.room(child, Limit::Zswap, |_| 0), Some(2000));
        assert_eq!(tree.room(child, Limit::Zswap, |_| 9000), Some(0));
    }

    /// As in the kernel's test_swapin_nozswap.
    #[test]
    fn a_limit_of_0_means_never() {
        let tree = SharedGroups::default();
        let group = tree.add(GroupIndex::ROOT, zswap_max(0)).unwrap();
        assert_eq!(tree.room(group, Limit::Zswap, |_| 0), Some(0));
        assert!(tree.fits(group, Limit::Zswap, |_| 0) && !tree.fits(group, Limit::Zswap, |_| 1));
    }

    #[test]
    fn events_count_upwards() {
        let tree = SharedGroups::default();
        let parent = tree.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
        let [one, other] = [(); 2].map(|()| tree.add(parent, SharedLimits::default()).unwrap());
        tree.count(one, SwapEvent::Max);
        tree.count(other, SwapEvent::Max);
        let counted = [one, other, parent, GroupIndex::ROOT];
        assert_eq!(counted.map(|group| tree.counted(group, SwapEvent::Max)), [1, 1, 2, 2]);
        assert_eq!(tree.counted(parent, SwapEvent::Fail), 0);
    }

    #[test]
    fn groups_come_and_go() {
        let tree = SharedGroups::default();
        let parent = tree.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
        let child = tree.add(parent, zswap_max(7)).unwrap();
        assert_eq!(tree.remove(parent), Err(GroupError::InUse));
        assert_eq!(tree.remove(GroupIndex::ROOT), Err(GroupError::Unknown));
        tree.count(child, SwapEvent::Fail);
        assert_eq!((tree.remove(child), tree.remove(parent)), (Ok(()), Ok(())));
        assert_eq!(tree.add(child, SharedLimits::default()), Err(GroupError::Unknown));
        for _ in 1..SHARED_GROUPS_MAX {
            let new = tree.add(GroupIndex::ROOT, SharedLimits::default()).unwrap();
            assert_eq!(tree.limits(new), SharedLimits::default());
            assert_eq!(tree.counted(new, SwapEvent::Fail), 0);
        }
        let one_more = tree.add(GroupIndex::ROOT, SharedLimits::default());
        assert_eq!(one_more, Err(GroupError::TooMany));
    }
}
