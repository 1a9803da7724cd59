//! The header of a cluster: its state, its class and what it holds, in one word.
//!
//! | state | who allocates there | list |
//! |---|---|---|
//! | unleased | nobody, it is not ours | |
//! | free | whoever makes it a cluster of some class | free |
//! | dirty | the same, when nothing else is free: its old contents are not discarded yet | dirty |
//! | discarding | nobody, until the discard is done | |
//! | owned | a worker | owned |
//! | partial, scattered | a worker that takes it; at least a quarter of its slots is free, or less | one per class |
//! | full | nobody | |
//! | draining | nobody: compaction empties it | |
//! | vacant | nobody: it is empty, and compaction empties the rest of its extent | |
//! | foreign | nobody: its free slots are those of another process | |
//! | foreign and draining | nobody, for both reasons | |
//! | dead | nobody: sealed, and without objects | |
//!
//! The state changes under the lock of the lists only. Counts change at any time: who frees an
//! object learns from the same instruction whether the state should change, takes the lock and
//! looks again.
//!
//! An object is counted before its bits are set and while they are being cleared, so a cluster
//! without objects has no bits either, save those of bad blocks.

use super::geometry::Geometry;
use crate::pieces::Zeroable;
use crate::sync::{AtomicU32, Ordering, RawSpinLock};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum State {
    Unleased = 0,
    Free = 1,
    Dirty = 2,
    Discarding = 3,
    Owned = 4,
    Full = 5,
    Scattered = 6,
    Partial = 7,
    Draining = 8,
    Foreign = 9,
    Dead = 10,
    Vacant = 11,
    ForeignDraining = 12,
}

impl State {
    const ALL: [Self; 13] = [
        Self::Unleased,
        Self::Free,
        Self::Dirty,
        Self::Discarding,
        Self::Owned,
        Self::Full,
        Self::Scattered,
        Self::Partial,
        Self::Draining,
        Self::Foreign,
        Self::Dead,
        Self::Vacant,
        Self::ForeignDraining,
    ];

    /// Whether the cluster has a class, and may hold objects.
    pub(super) fn in_use(self) -> bool {
        !self.is_empty() && self != Self::Unleased
    }

    /// Whether the cluster is leased, and holds nothing.
    pub(super) fn is_empty(self) -> bool {
        matches!(self, Self::Free | Self::Dirty | Self::Discarding | Self::Dead | Self::Vacant)
    }

    /// Whether compaction empties the cluster.
    pub(super) fn is_draining(self) -> bool {
        matches!(self, Self::Draining | Self::ForeignDraining)
    }
}

/// What should become of a cluster that nobody owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settling {
    Stay,
    Move(State),
    Emptied,
}

const COUNT_MASK: u32 = 0x3ff;
const LOST_SHIFT: u32 = 10;
const CLASS_SHIFT: u32 = 20;
const STATE_SHIFT: u32 = 24;
const NIBBLE: u32 = 0xf;
const SEALED: u32 = 1 << 28;

/// A cluster at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) state: State,
    /// Blocks in a slot; 0 before the cluster is of a class.
    pub(super) class: u8,
    pub(super) objects: u32,
    /// Slots that can hold nothing: some block is bad, or they were freed after a seal.
    pub(super) lost: u32,
    /// What is freed here is not used again.
    pub(super) sealed: bool,
}

impl Use {
    fn unpack(word: u32) -> Self {
        Self {
            state: State::ALL[(word >> STATE_SHIFT & NIBBLE) as usize],
            class: (word >> CLASS_SHIFT & NIBBLE) as u8,
            objects: word & COUNT_MASK,
            lost: word >> LOST_SHIFT & COUNT_MASK,
            sealed: word & SEALED != 0,
        }
    }

    fn pack(self) -> u32 {
        self.objects
            | self.lost << LOST_SHIFT
            | u32::from(self.class) << CLASS_SHIFT
            | (self.state as u32) << STATE_SHIFT
            | if self.sealed { SEALED } else { 0 }
    }

    /// Slots that objects can still be put into.
    pub(super) fn free_slots(self, geometry: Geometry) -> u32 {
        // While an object is freed and its slot taken anew, both are counted for a moment.
        let taken = self.objects + self.lost;
        if self.class == 0 { 0 } else { geometry.slots(self.class).saturating_sub(taken) }
    }

    /// Which state fits the counts.
    pub(super) fn settling(self, geometry: Geometry) -> Settling {
        let fitting = match self.state {
            State::Full | State::Scattered | State::Partial if self.objects > 0 => {
                let (free, slots) = (self.free_slots(geometry), geometry.slots(self.class));
                match free {
                    0 => State::Full,
                    // The kernel's distinction between clusters that are "nonfull" and "frag":
                    // one with few free slots costs a turn of the lists for each write.
                    _ if free * 4 < slots => State::Scattered,
                    _ => State::Partial,
                }
            }
            state if state.in_use() && state != State::Owned && self.objects == 0 => {
                return Settling::Emptied;
            }
            state => state,
        };
        if fitting == self.state { Settling::Stay } else { Settling::Move(fitting) }
    }
}

/// What is known of a cluster beside its bits.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Header {
    word: AtomicU32,
    /// Held while slots of the cluster are taken.
    pub(super) filling: RawSpinLock,
    /// Neighbours on the list of its state, under the lock of the lists.
    pub(super) previous: AtomicU32,
    pub(super) next: AtomicU32,
}

const _: () = assert!(size_of::<Header>() == 16);

// SAFETY: atomic integers; zeros are a cluster that is not leased, with an open lock.
unsafe impl Zeroable for Header {}

impl Header {
    #[inline]
    pub(super) fn now(&self) -> Use {
        Use::unpack(self.word.load(Ordering::Acquire))
    }

    /// Changes the state and what comes with it. Under the lock of the lists.
    pub(super) fn change(&self, change: impl Fn(&mut Use)) {
        let mut old = self.word.load(Ordering::Relaxed);
        loop {
            let mut new = Use::unpack(old);
            change(&mut new);
            let new = new.pack();
            match self.word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    /// Counts objects whose bits are about to be set.
    pub(super) fn add(&self, objects: u32) {
        self.word.fetch_add(objects, Ordering::Relaxed);
    }

    /// Takes `objects` out of the count, their bits being clear. With `lost`, their bits stay set,
    /// and their slots cannot be used again.
    pub(super) fn remove(&self, objects: u32, lost: bool) -> Use {
        let by = if lost { objects.wrapping_sub(objects << LOST_SHIFT) } else { objects };
        // Release: who acts on the new count sees the bits clear. Acquire: if that is us, we see
        // those of the others.
        let before = self.word.fetch_sub(by, Ordering::AcqRel);
        debug_assert!(before & COUNT_MASK >= objects, "a cluster freed more than it held");
        Use::unpack(before.wrapping_sub(by))
    }

    /// As if the cluster never was leased.
    pub(super) fn reset(&self) {
        self.previous.store(0, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
        self.word.store(0, Ordering::Release);
    }
}
