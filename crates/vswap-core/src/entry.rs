//! The names that clients and backings hold: small numbers with a type each.

use core::num::NonZeroU32;

/// Binary logarithm of [`CLUSTER_SLOTS`].
pub const CLUSTER_SHIFT: u32 = 9;

/// Virtual slots in a cluster. Their descriptors fill one page exactly.
pub const CLUSTER_SLOTS: usize = 1 << CLUSTER_SHIFT;

/// Bits of a slot index: a client can pack one into 31 bits of a page-table word.
pub const SLOT_BITS: u32 = 31;

/// A virtual slot: all that a client holds of a page that was swapped out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SwapEntry(NonZeroU32);

impl SwapEntry {
    /// The entry's number, 1 to 2^31 - 1.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0.get()
    }

    /// The entry with this number; `None` for numbers that no entry has.
    #[inline]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(number) if raw >> SLOT_BITS == 0 => Some(Self(number)),
            _ => None,
        }
    }

    /// The `n`-th entry of a run that starts here.
    ///
    /// # Panics
    /// If that is beyond the last possible entry, which no run reaches.
    #[inline]
    #[must_use]
    pub const fn nth(self, n: usize) -> Self {
        match Self::from_raw(self.raw() + n as u32) {
            Some(entry) => entry,
            None => panic!("a run of swap entries left the virtual swap space"),
        }
    }

    /// The cluster that the slot lies in.
    #[inline]
    pub(crate) const fn cluster(self) -> ClusterId {
        ClusterId(self.raw() >> CLUSTER_SHIFT)
    }

    /// The slot's index in its cluster.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.raw() as usize & (CLUSTER_SLOTS - 1)
    }
}

/// The number of a cluster. Cluster 0 does not exist, so that no entry is 0 and 0 can end a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct ClusterId(pub(crate) u32);

impl ClusterId {
    /// The entry of the cluster's `index`-th slot.
    #[inline]
    pub(crate) const fn entry(self, index: usize) -> SwapEntry {
        debug_assert!(self.0 != 0 && index < CLUSTER_SLOTS);
        match SwapEntry::from_raw((self.0 << CLUSTER_SHIFT) | index as u32) {
            Some(entry) => entry,
            None => panic!("cluster 0 has no entries"),
        }
    }
}

/// Who is charged for a page: what a memory cgroup is to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GroupId(pub(crate) u16);

impl GroupId {
    /// The group that exists from the start and contains all others.
    pub const ROOT: Self = Self(0);

    /// The group's number.
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// A backing that was added to a virtual swap space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct BackingId(pub(crate) u8);

impl BackingId {
    /// The backing that [`Self::raw`] gave this number.
    pub const fn from_raw(number: u8) -> Self {
        Self(number)
    }

    /// The backing's number.
    pub const fn raw(self) -> u8 {
        self.0
    }
}

/// Where a [`crate::Backing`] put an object, in numbers of its own choice below 2^30.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Handle(u32);

impl Handle {
    /// Bits of a handle.
    pub const BITS: u32 = 30;

    /// A handle; `None` if the number is too large.
    pub const fn new(number: u32) -> Option<Self> {
        if number >> Self::BITS == 0 { Some(Self(number)) } else { None }
    }

    /// The handle's number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// An object in the pool: where it is and how long. The length is that of its place, less `slack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The pool's number for the place, [`crate::pool::LOCATION_BITS`] wide.
    pub location: u64,
    /// Less than [`crate::pool::class::SLACK_LIMIT`].
    pub slack: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_fit_31_bits_and_are_never_zero() {
        assert_eq!(SwapEntry::from_raw(0), None);
        assert_eq!(SwapEntry::from_raw(1 << 31), None);
        let last = SwapEntry::from_raw((1 << 31) - 1).unwrap();
        assert_eq!(last.cluster().entry(last.index()), last);
    }

    #[test]
    fn handles_fit_30_bits() {
        assert_eq!(Handle::new((1 << 30) - 1).map(Handle::raw), Some((1 << 30) - 1));
        assert_eq!(Handle::new(1 << 30), None);
    }
}
