//! The part of the [run page](crate::run_page) that is about swap devices: which there are, and which
//! member holds which part of them.
//!
//! A device is leased to members in [extents](vswap_core::device::space::Extent). For each extent there
//! is one bit per member: it is free when no bit is set. So an extent that a fork left to two members
//! has two holders, and when a member dies, however it dies, the coordinator clears its bits.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use vswap_core::device::object::{KEY, Protection};
use vswap_core::device::set::DEVICES_MAX;
use vswap_core::device::space::{EXTENT_BYTES_SHIFT, Extent, Geometry};
use vswap_core::group::shared::GroupIndex;

use crate::run_page::MEMBERS_MAX;

/// Extents of one device, at most: 512 GiB.
pub const EXTENTS_MAX: usize = 1 << 17;

/// Bytes of a device that can be used, at most.
pub const DEVICE_BYTES_MAX: u64 = (EXTENTS_MAX as u64) << EXTENT_BYTES_SHIFT;

const HOLDER_WORDS: usize = MEMBERS_MAX.div_ceil(u64::BITS as usize);
const KEY_WORDS: usize = KEY / size_of::<u64>();

/// What a device is to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceState {
    /// There is none of this number.
    None = 0,
    /// In use.
    On = 1,
    /// Members move what they have there elsewhere.
    Draining = 2,
}

/// What the coordinator knows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Objects go to devices of high priority first.
    pub priority: i16,
    /// Its blocks.
    pub geometry: Geometry,
    /// Whether `mkswap` formatted it: its first page is a header, which lists bad pages.
    pub has_header: bool,
    /// How freed space is given back.
    pub discard: DiscardBy,
    /// Whether I/O goes past the page cache.
    pub direct: bool,
}

/// How a device is told that space is not used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DiscardBy {
    /// It is not.
    Nothing = 0,
    /// A hole in a file.
    PunchHole = 1,
    /// BLKDISCARD.
    Ioctl = 2,
}

impl DiscardBy {
    /// From a word.
    pub fn from_word(word: u32) -> Self {
        match word {
            1 => Self::PunchHole,
            2 => Self::Ioctl,
            _ => Self::Nothing,
        }
    }
}

const HAS_HEADER: u32 = 1 << 8;
const DIRECT: u32 = 1 << 9;
const DISCARD_MASK: u32 = 3;

/// A set of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders([u64; HOLDER_WORDS]);

impl Holders {
    /// No members.
    pub const NONE: Self = Self([0; HOLDER_WORDS]);
    /// All members.
    pub const ALL: Self = Self([u64::MAX; HOLDER_WORDS]);

    /// Adds the member of a number.
    pub fn insert(&mut self, member: usize) {
        self.0[member / 64] |= 1 << (member % 64);
    }
}

/// One device.
#[derive(Debug)]
pub struct RunDevice {
    state: AtomicU32,
    /// The number of the group that brought it.
    group: AtomicU32,
    /// The groups that are kept from it, one bit each.
    closed_to: AtomicU64,
    /// Counts the devices that had this number.
    serial: AtomicU32,
    priority: AtomicI32,
    block_shift: AtomicU32,
    blocks: AtomicU32,
    options: AtomicU32,
    /// Where the next free extent is looked for.
    hint: AtomicU32,
    /// One more than the highest extent that was ever leased.
    end: AtomicU32,
    holders: [[AtomicU64; HOLDER_WORDS]; EXTENTS_MAX],
}

impl RunDevice {
    /// Whether it is there, and whether it may get anything.
    pub fn state(&self) -> DeviceState {
        match self.state.load(Ordering::Acquire) {
            1 => DeviceState::On,
            2 => DeviceState::Draining,
            _ => DeviceState::None,
        }
    }

    /// Changes it. For the coordinator.
    pub fn set_state(&self, state: DeviceState) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// What it is; `None` if there is none.
    pub fn description(&self) -> Option<Description> {
        if self.state() == DeviceState::None {
            return None;
        }
        let options = self.options.load(Ordering::Relaxed);
        Some(Description {
            priority: self.priority.load(Ordering::Relaxed) as i16,
            geometry: Geometry::new(
                self.block_shift.load(Ordering::Relaxed),
                self.blocks.load(Ordering::Relaxed),
            )?,
            has_header: options & HAS_HEADER != 0,
            discard: DiscardBy::from_word(options & DISCARD_MASK),
            direct: options & DIRECT != 0,
        })
    }

    /// Which of the devices that had this number it is.
    pub fn serial(&self) -> u32 {
        self.serial.load(Ordering::Acquire)
    }

    /// The group that brought it.
    pub fn group(&self) -> GroupIndex {
        GroupIndex::new(self.group.load(Ordering::Relaxed)).unwrap_or(GroupIndex::ROOT)
    }

    /// Whether a group is kept from it, and with it all below that group.
    pub fn is_closed_to(&self, group: GroupIndex) -> bool {
        self.closed_to.load(Ordering::Relaxed) & 1 << group.raw() != 0
    }

    /// Keeps a group from it, or no more. For the coordinator, while the group has no members.
    pub fn set_closed_to(&self, group: GroupIndex, closed: bool) {
        let bit = 1 << group.raw();
        if closed {
            self.closed_to.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.closed_to.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Adds it to the run, for a group and its descendants, all of whom may use it. For the coordinator.
    pub fn set(&self, device: Description, group: GroupIndex) {
        self.serial.fetch_add(1, Ordering::Release);
        self.group.store(group.raw(), Ordering::Relaxed);
        self.closed_to.store(0, Ordering::Relaxed);
        self.priority.store(device.priority.into(), Ordering::Relaxed);
        self.block_shift.store(device.geometry.block_shift(), Ordering::Relaxed);
        self.blocks.store(device.geometry.blocks(), Ordering::Relaxed);
        let has_header = if device.has_header { HAS_HEADER } else { 0 };
        let direct = if device.direct { DIRECT } else { 0 };
        self.options.store(device.discard as u32 | has_header | direct, Ordering::Relaxed);
        self.hint.store(0, Ordering::Relaxed);
        self.set_state(DeviceState::On);
    }

    /// Bytes that can be used.
    pub fn limit(&self) -> u64 {
        self.description().map_or(0, |device| {
            u64::from(device.geometry.blocks()) << device.geometry.block_shift()
        })
    }

    /// Bytes that members hold.
    pub fn leased(&self) -> u64 {
        self.leased_by(&Holders::ALL)
    }

    /// Bytes that some members hold, shared ones once.
    pub fn leased_by(&self, members: &Holders) -> u64 {
        let ever = &self.holders[..self.end.load(Ordering::SeqCst) as usize];
        let is_held = |words: &&[AtomicU64; HOLDER_WORDS]| {
            // Who compares this with a limit has just taken an extent, and so may others have.
            let holders = words.iter().map(|word| word.load(Ordering::SeqCst));
            holders.zip(members.0).any(|(word, wanted)| word & wanted != 0)
        };
        (ever.iter().filter(is_held).count() as u64) << EXTENT_BYTES_SHIFT
    }

    fn extents(&self) -> usize {
        let extents = self.description().map_or(0, |device| device.geometry.extents());
        (extents as usize).min(EXTENTS_MAX)
    }

    /// Leases an extent that nobody holds to a member.
    pub fn lease(&self, member: usize) -> Option<Extent> {
        let extents = self.extents();
        let start = self.hint.load(Ordering::Relaxed) as usize;
        let number = (0..extents)
            .map(|step| (start + step) % extents)
            .find(|&extent| self.claim(extent, member))?;
        self.hint.store(number as u32 + 1, Ordering::Relaxed);
        self.end.fetch_max(number as u32 + 1, Ordering::SeqCst);
        Some(Extent(number as u32))
    }

    /// Two that claim at once both see the other, or one does: never both neither.
    fn claim(&self, extent: usize, member: usize) -> bool {
        let words = &self.holders[extent];
        let (own, bit) = (member / 64, 1 << (member % 64));
        let free = words.iter().all(|word| word.load(Ordering::Relaxed) == 0);
        if !free
            || words[own].compare_exchange(0, bit, Ordering::SeqCst, Ordering::Relaxed).is_err()
        {
            return false;
        }
        let mut others = words.iter().enumerate().filter(|(index, _)| *index != own);
        let alone = others.all(|(_, word)| word.load(Ordering::SeqCst) == 0);
        if !alone {
            words[own].fetch_and(!bit, Ordering::SeqCst);
        }
        alone
    }

    /// Makes a member a holder of an extent that another member holds.
    pub fn hold(&self, extent: Extent, member: usize) {
        if let Some(words) = self.holders.get(extent.0 as usize) {
            words[member / 64].fetch_or(1 << (member % 64), Ordering::SeqCst);
        }
    }

    /// A member holds an extent no more.
    pub fn give_back(&self, extent: Extent, member: usize) {
        if let Some(words) = self.holders.get(extent.0 as usize) {
            words[member / 64].fetch_and(!(1 << (member % 64)), Ordering::SeqCst);
        }
    }

    /// How many members hold an extent.
    pub fn holders(&self, extent: Extent) -> u32 {
        let words = self.holders.get(extent.0 as usize).into_iter().flatten();
        words.map(|word| word.load(Ordering::SeqCst).count_ones()).sum()
    }

    /// Takes back all that a member holds, which has ended. For the coordinator.
    pub fn release(&self, member: usize) {
        for extent in 0..self.end.load(Ordering::Relaxed) {
            self.give_back(Extent(extent), member);
        }
    }
}

/// All devices of a run.
#[derive(Debug)]
pub struct RunDevices {
    key: [AtomicU64; KEY_WORDS],
    encrypted: AtomicU32,
    processes: AtomicU32,
    /// Times that what resident pages have kept was to go.
    kept_dropped: AtomicU32,
    devices: [RunDevice; DEVICES_MAX],
}

impl RunDevices {
    /// The device of a number, be it there or not.
    pub fn get(&self, number: usize) -> Option<&RunDevice> {
        self.devices.get(number)
    }

    /// All that are there, with their numbers.
    pub fn all(&self) -> impl Iterator<Item = (usize, &RunDevice)> {
        let devices = self.devices.iter().enumerate();
        devices.filter(|(_, device)| device.state() != DeviceState::None)
    }

    /// Asks the members to give up what resident pages have kept in the virtual swap space. For the coordinator.
    pub fn drop_kept(&self) {
        self.kept_dropped.fetch_add(1, Ordering::Release);
    }

    /// How often that was asked for. A member says which time it has heeded.
    pub fn kept_dropped(&self) -> u32 {
        self.kept_dropped.load(Ordering::Acquire)
    }

    /// Bytes that some members hold on all devices.
    pub fn leased_by(&self, members: &Holders) -> u64 {
        self.all().map(|(_, device)| device.leased_by(members)).sum()
    }

    /// A number that no device has.
    pub fn free_number(&self) -> Option<usize> {
        self.devices.iter().position(|device| device.state() == DeviceState::None)
    }

    /// Bytes up to the end of what was ever leased.
    pub fn reach(&self) -> u64 {
        let ends = self.all().map(|(_, device)| device.end.load(Ordering::Relaxed));
        ends.map(|end| u64::from(end) << EXTENT_BYTES_SHIFT).sum()
    }

    /// Says how objects are protected, before any member joins.
    pub fn protect(&self, key: [u8; KEY], protection: Protection) {
        for (word, bytes) in self.key.iter().zip(key.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        let encrypted = u32::from(protection == Protection::Encrypted);
        self.encrypted.store(encrypted, Ordering::Relaxed);
    }

    /// The run's key, and what it is for.
    pub fn protection(&self) -> ([u8; KEY], Protection) {
        let mut key = [0; KEY];
        for (word, bytes) in self.key.iter().zip(key.as_chunks_mut().0) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let encrypted = self.encrypted.load(Ordering::Relaxed) != 0;
        (key, if encrypted { Protection::Encrypted } else { Protection::Checked })
    }

    /// A number that no other process of the run has.
    pub fn next_process(&self) -> u32 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;

    use super::*;

    fn device(extents: u32) -> Box<RunDevice> {
        // SAFETY: all-zero bytes are a device that is not there.
        let device: Box<RunDevice> = unsafe { Box::new_zeroed().assume_init() };
        let geometry = Geometry::new(9, extents << (EXTENT_BYTES_SHIFT - 9)).unwrap();
        let discard = DiscardBy::PunchHole;
        let description =
            Description { priority: -2, geometry, has_header: true, discard, direct: false };
        device.set(description, GroupIndex::ROOT);
        device
    }

    #[test]
    fn a_description_comes_back_as_it_was() {
        let device = device(3);
        let description = device.description().unwrap();
        assert_eq!((description.priority, description.has_header), (-2, true));
        assert_eq!(description.discard, DiscardBy::PunchHole);
        assert_eq!(device.limit(), 3 << EXTENT_BYTES_SHIFT);
        device.set_state(DeviceState::None);
        assert_eq!(device.description(), None);
    }

    #[test]
    fn an_extent_is_free_when_its_last_holder_gave_it_back() {
        let device = device(2);
        let first = device.lease(5).unwrap();
        let second = device.lease(100).unwrap();
        assert_ne!(first, second);
        assert_eq!(device.lease(7), None);
        device.hold(first, 119);
        assert_eq!(device.holders(first), 2);
        device.give_back(first, 5);
        assert_eq!((device.holders(first), device.holders(second)), (1, 1));
        assert_eq!((device.lease(7), device.leased()), (None, 2 << EXTENT_BYTES_SHIFT));
        device.release(119);
        assert_eq!(device.leased(), 1 << EXTENT_BYTES_SHIFT);
        assert_eq!(device.lease(7), Some(first));
    }

    #[test]
    fn members_that_lease_at_once_never_get_the_same_extent() {
        let device: &RunDevice = Box::leak(device(400));
        let threads = [3, 70, 71].map(|member| {
            std::thread::spawn(move || {
                let leased = core::iter::from_fn(|| device.lease(member));
                leased.collect::<std::vec::Vec<_>>()
            })
        });
        let mut all = std::vec::Vec::new();
        for thread in threads {
            all.extend(thread.join().unwrap());
        }
        // Two that get into each other's way may both pass an extent over.
        all.extend(core::iter::from_fn(|| device.lease(3)));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((count, all.len()), (400, 400));
    }
}
