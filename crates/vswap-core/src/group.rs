//! Groups: who is charged for what is stored, and how much may be stored for them.
//!
//! Groups form a tree below [`GroupId::ROOT`]. A charge goes to the group and all its ancestors, or
//! to none of them. The root has no limits of its own (the pool's limit and the devices' sizes are
//! the machine's) and is not charged: what it would show is the sum that [`crate::Usage`] has. So
//! a process that makes no groups pays nothing for them.
//!
//! Groups of several processes are another matter: [`shared`].

pub mod shared;

use crate::descriptor::GROUPS_MAX;
use crate::entry::GroupId;
use crate::error::GroupError;
use crate::page::PAGE_SIZE;
use crate::pieces::{Pieces, Zeroable};
use crate::platform::Platform;
use crate::sync::{AtomicU32, AtomicU64, Ordering, RawSpinLock};

/// What a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Bytes of compressed objects in RAM; 0 keeps its pages out of the pool.
    pub zswap_max: u64,
    /// Bytes of physical slots on devices.
    pub swap_max: u64,
    /// Whether its pages may go to a device at all; an ancestor can forbid it too.
    pub zswap_writeback: bool,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self { zswap_max: u64::MAX, swap_max: u64::MAX, zswap_writeback: true }
    }
}

/// What a group uses, its descendants included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// Bytes of compressed objects in RAM.
    pub zswap: u64,
    /// Bytes of physical slots on devices.
    pub swap: u64,
    /// Entries of the group itself.
    pub entries: u64,
    /// Charges that `zswap_max` refused.
    pub zswap_max_events: u64,
    /// Charges that `swap_max` refused.
    pub swap_max_events: u64,
}

/// What is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Resource {
    /// Objects in RAM, by the byte.
    Zswap = 0,
    /// Physical slots, by the page.
    Swap = 1,
}

#[derive(Debug)]
struct Meter {
    used: AtomicU64,
    max: AtomicU64,
    refused: AtomicU64,
}

impl Meter {
    /// Adds to the use, unless that passes the maximum.
    fn charge(&self, amount: u64) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let used = self.used.fetch_add(amount, Ordering::Relaxed);
        if used.saturating_add(amount) > max {
            self.used.fetch_sub(amount, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
#[repr(align(64))]
struct Group {
    exists: AtomicU32,
    parent: AtomicU32,
    children: AtomicU32,
    writeback: AtomicU32,
    entries: AtomicU64,
    meters: [Meter; 2],
}

// SAFETY: atomic integers; zeros are a group that does not exist.
unsafe impl Zeroable for Group {}

const SHIFT: u32 = GROUPS_MAX.trailing_zeros();

/// All groups of a space.
#[derive(Debug)]
pub(crate) struct Groups {
    table: Pieces<Group, SHIFT, 1>,
    /// Held while a group is made or removed.
    lock: RawSpinLock,
    /// One more than the highest number ever used.
    end: AtomicU32,
}

impl Groups {
    pub(crate) const fn new() -> Self {
        Self { table: Pieces::new(), lock: RawSpinLock::new(), end: AtomicU32::new(0) }
    }

    fn get(&self, id: GroupId) -> Option<&Group> {
        let group = self.table.get(id.0 as usize)?;
        (id != GroupId::ROOT && group.exists.load(Ordering::Acquire) != 0).then_some(group)
    }

    /// Whether entries can belong to the group.
    pub(crate) fn exists(&self, id: GroupId) -> bool {
        id == GroupId::ROOT || self.get(id).is_some()
    }

    /// The group and its ancestors, without the root.
    fn path(&self, id: GroupId) -> impl Iterator<Item = &Group> {
        let parent =
            |group: &&Group| self.get(GroupId(group.parent.load(Ordering::Relaxed) as u16));
        core::iter::successors(self.get(id), parent)
    }

    pub(crate) fn create<P: Platform + ?Sized>(
        &self,
        platform: &P,
        parent: GroupId,
        limits: GroupLimits,
    ) -> Result<GroupId, GroupError> {
        self.table.ensure(platform, 0)?;
        self.lock.acquire(platform);
        let made = self.create_locked(parent, limits);
        self.lock.release();
        made
    }

    fn create_locked(&self, parent: GroupId, limits: GroupLimits) -> Result<GroupId, GroupError> {
        if !self.exists(parent) {
            return Err(GroupError::Unknown);
        }
        let mut free = (1..GROUPS_MAX as u16).map(GroupId).filter(|&id| self.get(id).is_none());
        let id = free.next().ok_or(GroupError::TooMany)?;
        let group = self.table.get(id.0 as usize).ok_or(GroupError::TooMany)?;
        group.parent.store(u32::from(parent.0), Ordering::Relaxed);
        Self::store_limits(group, limits);
        for meter in &group.meters {
            meter.refused.store(0, Ordering::Relaxed);
        }
        if let Some(parent) = self.get(parent) {
            parent.children.fetch_add(1, Ordering::Relaxed);
        }
        // Release: who finds the group finds its limits and its parent.
        group.exists.store(1, Ordering::Release);
        self.end.fetch_max(u32::from(id.0) + 1, Ordering::Relaxed);
        Ok(id)
    }

    pub(crate) fn remove<P: Platform + ?Sized>(
        &self,
        platform: &P,
        id: GroupId,
    ) -> Result<(), GroupError> {
        self.lock.acquire(platform);
        let removed = match self.get(id) {
            None => Err(GroupError::Unknown),
            Some(group) if group.is_used() => Err(GroupError::InUse),
            Some(group) => {
                group.exists.store(0, Ordering::Release);
                let parent = GroupId(group.parent.load(Ordering::Relaxed) as u16);
                if let Some(parent) = self.get(parent) {
                    parent.children.fetch_sub(1, Ordering::Relaxed);
                }
                Ok(())
            }
        };
        self.lock.release();
        removed
    }

    pub(crate) fn set_limits(&self, id: GroupId, limits: GroupLimits) -> Result<(), GroupError> {
        Self::store_limits(self.get(id).ok_or(GroupError::Unknown)?, limits);
        Ok(())
    }

    fn store_limits(group: &Group, limits: GroupLimits) {
        group.meters[Resource::Zswap as usize].max.store(limits.zswap_max, Ordering::Relaxed);
        group.meters[Resource::Swap as usize].max.store(limits.swap_max, Ordering::Relaxed);
        group.writeback.store(u32::from(limits.zswap_writeback), Ordering::Relaxed);
    }

    pub(crate) fn usage(&self, id: GroupId) -> Option<GroupUsage> {
        let group = self.get(id)?;
        let [zswap, swap] = &group.meters;
        Some(GroupUsage {
            zswap: zswap.used.load(Ordering::Relaxed),
            swap: swap.used.load(Ordering::Relaxed),
            entries: group.entries.load(Ordering::Relaxed),
            zswap_max_events: zswap.refused.load(Ordering::Relaxed),
            swap_max_events: swap.refused.load(Ordering::Relaxed),
        })
    }

    /// Whether a store is worth the work: no group on the path is at its maximum yet.
    #[inline]
    pub(crate) fn has_room(&self, id: GroupId, resource: Resource) -> bool {
        id == GroupId::ROOT
            || self.path(id).all(|group| {
                group.meters[resource as usize].has_room()
                    && (resource == Resource::Zswap || group.writeback.load(Ordering::Relaxed) != 0)
            })
    }

    /// Charges the group and its ancestors, or none of them.
    #[inline]
    pub(crate) fn charge(&self, id: GroupId, resource: Resource, amount: u64) -> bool {
        id == GroupId::ROOT || self.charge_path(id, resource, amount)
    }

    fn charge_path(&self, id: GroupId, resource: Resource, amount: u64) -> bool {
        for (depth, group) in self.path(id).enumerate() {
            if !group.meters[resource as usize].charge(amount) {
                for charged in self.path(id).take(depth) {
                    charged.meters[resource as usize].used.fetch_sub(amount, Ordering::Relaxed);
                }
                return false;
            }
        }
        true
    }

    /// Takes a charge back.
    #[inline]
    pub(crate) fn uncharge(&self, id: GroupId, resource: Resource, amount: u64) {
        if id != GroupId::ROOT {
            for group in self.path(id) {
                group.meters[resource as usize].used.fetch_sub(amount, Ordering::Relaxed);
            }
        }
    }

    /// Notes that the group has `n` entries more.
    #[inline]
    pub(crate) fn add_entries(&self, id: GroupId, n: usize) {
        if let (true, Some(group)) = (id != GroupId::ROOT, self.table.get(id.0 as usize)) {
            group.entries.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// Notes that the group has `n` entries fewer.
    #[inline]
    pub(crate) fn remove_entries(&self, id: GroupId, n: usize) {
        if let (true, Some(group)) = (id != GroupId::ROOT, self.table.get(id.0 as usize)) {
            group.entries.fetch_sub(n as u64, Ordering::Release);
        }
    }

    /// Groups that exist, for checks.
    pub(crate) fn ids(&self) -> impl Iterator<Item = GroupId> {
        let end = self.end.load(Ordering::Relaxed) as u16;
        (1..end).map(GroupId).filter(|&id| self.get(id).is_some())
    }

    /// The parent of a group that exists.
    pub(crate) fn parent(&self, id: GroupId) -> Option<GroupId> {
        Some(GroupId(self.get(id)?.parent.load(Ordering::Relaxed) as u16))
    }

    /// Bytes of memory that the table takes.
    pub(crate) fn memory(&self) -> usize {
        let end = self.end.load(Ordering::Relaxed) as usize;
        (end * size_of::<Group>()).next_multiple_of(PAGE_SIZE)
    }

    pub(crate) fn unreserve<P: Platform + ?Sized>(&mut self, platform: &P) {
        self.table.unreserve(platform);
    }
}

impl Group {
    fn is_used(&self) -> bool {
        self.entries.load(Ordering::Acquire) > 0 || self.children.load(Ordering::Relaxed) > 0
    }
}
