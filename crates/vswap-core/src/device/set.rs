//! Which swap device the next objects go to.
//!
//! As in the kernel: the highest priority first, and devices of one priority in turns. A worker
//! stays with its device for as many blocks as a cluster has, so that devices alternate by
//! cluster and writes stay contiguous. Devices of one priority form a *tier*; which tiers are
//! allowed is the caller's choice, call by call, and demotion asks for those below.
//!
//! A device is passed over while it is full, draining (swapoff is emptying it) or failed. The three
//! are independent: a swapoff that is called off leaves the device as full as it was.
//!
//! Workers hold a [`Turn`] and take the lock only when it ends, or when anything about any device
//! has changed since it began: room on a better device is used at once.

use crate::platform::Platform;
use crate::sync::{AtomicU32, Ordering, SpinLock};

/// The most devices in a set.
pub const DEVICES_MAX: usize = 8;

/// A device of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u8);

impl DeviceId {
    /// The device of a number; `None` from [`DEVICES_MAX`] on.
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < DEVICES_MAX { Some(Self(number)) } else { None }
    }

    /// The device's number, below [`DEVICES_MAX`].
    pub const fn raw(self) -> u8 {
        self.0
    }
}

/// The devices of one priority. The number is kept as long as one of them is in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TierId(u8);

impl TierId {
    /// The tier alone.
    pub const fn mask(self) -> TierMask {
        TierMask(1 << self.0)
    }
}

/// A choice of tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierMask(u8);

const _: () = assert!(DEVICES_MAX <= u8::BITS as usize);

impl TierMask {
    /// All tiers, those of later devices included.
    pub const ALL: Self = Self(u8::MAX);
    /// No tier.
    pub const NONE: Self = Self(0);

    /// Whether the tier is among these.
    pub const fn contains(self, tier: TierId) -> bool {
        self.0 & tier.mask().0 != 0
    }

    /// The tiers in both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The tiers in either.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a device gets no objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bar {
    /// It has no place. What is freed on it takes this away.
    Full = 1,
    /// It is being emptied.
    Draining = 1 << 1,
    /// A write failed.
    Failed = 1 << 2,
}

/// The set holds as many devices as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {DEVICES_MAX} swap devices already")]
pub struct TooManyDevices;

#[derive(Clone, Copy, Debug)]
struct Device {
    priority: i16,
    tier: TierId,
    /// [`Bar`]s.
    bars: u8,
    /// When it was last chosen, in turns of the set.
    chosen_at: u64,
}

#[derive(Debug)]
struct Members {
    devices: [Option<Device>; DEVICES_MAX],
    turns: u64,
}

/// A worker's stay with a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    device: Option<(DeviceId, TierId)>,
    blocks_left: u32,
    generation: u32,
}

impl Turn {
    /// With no device.
    pub const NONE: Self = Self { device: None, blocks_left: 0, generation: 0 };

    /// The device that the worker stays with.
    pub fn device(&self) -> Option<DeviceId> {
        self.device.map(|(device, _)| device)
    }
}

/// The swap devices, in order of use.
#[derive(Debug)]
pub struct DeviceSet {
    members: SpinLock<Members>,
    /// Rises with each change of a device, so that turns that began before are over.
    generation: AtomicU32,
}

impl Default for DeviceSet {
    fn default() -> Self {
        Self::new()
    }
}

impl DeviceSet {
    /// A set without devices.
    pub const fn new() -> Self {
        let members = Members { devices: [None; DEVICES_MAX], turns: 0 };
        Self { members: SpinLock::new(members), generation: AtomicU32::new(0) }
    }

    /// Adds a device, which joins the tier of its priority.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add<P: Platform + ?Sized>(
        &self,
        platform: &P,
        priority: i16,
    ) -> Result<DeviceId, TooManyDevices> {
        let members = self.members.lock(platform);
        let free = members.devices.iter().position(Option::is_none).ok_or(TooManyDevices)?;
        drop(members);
        let device = DeviceId(free as u8);
        self.insert(platform, device, priority);
        Ok(device)
    }

    /// Adds a device whose number is known, in place of one that had it.
    pub fn insert<P: Platform + ?Sized>(&self, platform: &P, device: DeviceId, priority: i16) {
        let mut members = self.members.lock(platform);
        let tier = members.tier_of(priority);
        members.devices[usize::from(device.0)] =
            Some(Device { priority, tier, bars: 0, chosen_at: 0 });
        self.changed();
    }

    /// Takes a device out of the set. Its number may be given to another one.
    pub fn remove<P: Platform + ?Sized>(&self, platform: &P, device: DeviceId) {
        self.members.lock(platform).devices[usize::from(device.0)] = None;
        self.changed();
    }

    /// Bars a device, and says whether it was not barred for that before.
    pub fn bar<P: Platform + ?Sized>(&self, platform: &P, device: DeviceId, bar: Bar) -> bool {
        self.set_bar(platform, device, bar, true)
    }

    /// Takes back a bar, and says whether there was one.
    pub fn unbar<P: Platform + ?Sized>(&self, platform: &P, device: DeviceId, bar: Bar) -> bool {
        self.set_bar(platform, device, bar, false)
    }

    fn set_bar<P: Platform + ?Sized>(
        &self,
        platform: &P,
        device: DeviceId,
        bar: Bar,
        set: bool,
    ) -> bool {
        let mut members = self.members.lock(platform);
        let Some(device) = &mut members.devices[usize::from(device.0)] else { return false };
        let before = device.bars;
        device.bars = if set { before | bar as u8 } else { before & !(bar as u8) };
        let changed = device.bars != before;
        if changed {
            self.changed();
        }
        changed
    }

    /// Whether a device is barred for this.
    pub fn is_barred<P: Platform + ?Sized>(
        &self,
        platform: &P,
        device: DeviceId,
        bar: Bar,
    ) -> bool {
        let members = self.members.lock(platform);
        members.devices[usize::from(device.0)].is_some_and(|device| device.bars & bar as u8 != 0)
    }

    /// The device for the next `blocks` blocks, among the allowed tiers. A worker that stays with
    /// its device uses up `cluster_blocks` before another one of the same priority has its turn.
    #[inline]
    pub fn choose<P: Platform + ?Sized>(
        &self,
        platform: &P,
        turn: &mut Turn,
        allowed: TierMask,
        blocks: u32,
        cluster_blocks: u32,
    ) -> Option<DeviceId> {
        // Acquire: whoever barred a device before is heeded.
        let current = turn.generation == self.generation.load(Ordering::Acquire);
        match turn.device {
            Some((device, tier))
                if current && turn.blocks_left >= blocks && allowed.contains(tier) =>
            {
                turn.blocks_left -= blocks;
                Some(device)
            }
            _ => self.next_turn(platform, turn, allowed, blocks, cluster_blocks),
        }
    }

    #[cold]
    fn next_turn<P: Platform + ?Sized>(
        &self,
        platform: &P,
        turn: &mut Turn,
        allowed: TierMask,
        blocks: u32,
        cluster_blocks: u32,
    ) -> Option<DeviceId> {
        let mut members = self.members.lock(platform);
        // Changes happen under the lock, so this is the state that is chosen from.
        let generation = self.generation.load(Ordering::Relaxed);
        let device = members.best(allowed);
        *turn = Turn {
            device: device.and_then(|id| Some((id, members.get(id)?.tier))),
            blocks_left: cluster_blocks.saturating_sub(blocks),
            generation,
        };
        device
    }

    /// The tier of a device.
    pub fn tier<P: Platform + ?Sized>(&self, platform: &P, device: DeviceId) -> Option<TierId> {
        self.members.lock(platform).get(device).map(|device| device.tier)
    }

    /// The tier with this priority, to make a mask of.
    pub fn tier_with<P: Platform + ?Sized>(&self, platform: &P, priority: i16) -> Option<TierId> {
        let members = self.members.lock(platform);
        members.present().find(|device| device.priority == priority).map(|device| device.tier)
    }

    /// The tiers that are slower than this one: where its data is demoted to.
    pub fn below<P: Platform + ?Sized>(&self, platform: &P, tier: TierId) -> TierMask {
        self.compare(platform, tier, |other, this| other < this)
    }

    /// The tiers that are faster than this one: where its data is promoted to.
    pub fn above<P: Platform + ?Sized>(&self, platform: &P, tier: TierId) -> TierMask {
        self.compare(platform, tier, |other, this| other > this)
    }

    fn compare<P: Platform + ?Sized>(
        &self,
        platform: &P,
        tier: TierId,
        fits: fn(i16, i16) -> bool,
    ) -> TierMask {
        let members = self.members.lock(platform);
        let Some(this) = members.present().find(|device| device.tier == tier) else {
            return TierMask::NONE;
        };
        let others = members.present().filter(|other| fits(other.priority, this.priority));
        others.fold(TierMask::NONE, |mask, other| mask.or(other.tier.mask()))
    }

    fn changed(&self) {
        // Under the lock. Release pairs with the load in `choose`.
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Members {
    fn get(&self, device: DeviceId) -> Option<&Device> {
        self.devices[usize::from(device.0)].as_ref()
    }

    fn present(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().flatten()
    }

    /// The tier that devices of this priority have, or the first number that no tier has.
    fn tier_of(&self, priority: i16) -> TierId {
        if let Some(device) = self.present().find(|device| device.priority == priority) {
            return device.tier;
        }
        let taken = self.present().fold(TierMask::NONE, |mask, device| mask.or(device.tier.mask()));
        TierId(taken.0.trailing_ones() as u8)
    }

    /// The device of the highest priority that waits longest for its turn.
    fn best(&mut self, allowed: TierMask) -> Option<DeviceId> {
        self.turns += 1;
        let turns = self.turns;
        let usable = |device: &Device| device.bars == 0 && allowed.contains(device.tier);
        let devices = self.devices.iter_mut().enumerate();
        let (number, best) = devices
            .filter_map(|(number, device)| Some((number, device.as_mut()?)))
            .filter(|(_, device)| usable(device))
            .min_by_key(|(_, device)| (core::cmp::Reverse(device.priority), device.chosen_at))?;
        best.chosen_at = turns;
        Some(DeviceId(number as u8))
    }
}

#[cfg(test)]
mod tests;
