//! The packed record of one virtual slot.
//!
//! All that the space knows of a slot is one 64-bit word, changed by compare-and-swap:
//!
//! | bits | field | |
//! |---|---|---|
//! | 0–2 | kind | what holds the data, see below |
//! | 3 | cached | in the swap cache: the page is resident, and the backing (if any) still valid |
//! | 4 | locked | the entry lock, the kernel's folio lock: who holds it may read or change the place |
//! | 5–7 | count | swap count; 7 means 7 plus what the cluster's side table says |
//! | 8–9 | encoding | how the object is coded: raw, lz4 or zstd |
//! | 10–15 | slack | pool objects: size class less length |
//! | 16–24 | group | who is charged |
//! | 25–63 | payload | where the object is |
//!
//! Count, cached and group are the slot's *life*; they change without the lock. Kind, encoding,
//! slack and payload are its *place*; only the holder of the lock changes them, and while nobody
//! holds it the object that they name exists. A slot is **live** while it is counted or cached.
//!
//! Legal words ([`Descriptor::verify`] asserts them):
//!
//! | kind | cached | count | place fields | meaning |
//! |---|---|---|---|---|
//! | `Free` | 0 | 0 | all zero | not allocated |
//! | `Page` | 1 | any | zero | only the resident page has the data |
//! | `Page` | 0 | > 0 | – | **illegal: the data would be lost** |
//! | `Zero` | any | any | zero | all bytes are zero |
//! | `SameFilled` | any | any | word, or pool object of 8 bytes | one repeated 8-byte word |
//! | `Compressed` | any | any | encoding, slack, pool location | an object in the pool |
//! | `Device`, `External` | any | any | encoding, backing, handle, length | an object in a backing |
//! | `Poisoned` | any | any | zero | the data could not be kept; loads fail |
//! | any but `Free` | 0 | 0 | any | dying: locked, and whoever unlocks it frees it |
//!
//! A same-filled word is kept inline when it is a 45-bit number, sign-extended or not, or twice
//! the same 32 bits; the encoding field says which. Only other words cost a pool object.

mod place;
mod word;

pub(crate) use place::BACKINGS_MAX;
pub use place::{Encoding, Place};
pub(crate) use word::{AtomicDescriptor, Dead, Dup, Put, dup_excess, put_excess};

use crate::entry::{BackingId, GroupId};

/// What holds a slot's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Not allocated.
    Free = 0,
    /// Only the resident page has the data.
    Page = 1,
    /// All bytes are zero.
    Zero = 2,
    /// One repeated 8-byte word.
    SameFilled = 3,
    /// An object in the pool.
    Compressed = 4,
    /// A physical slot of a swap device.
    Device = 5,
    /// An object in a RAM backing other than the pool.
    External = 6,
    /// The data could not be kept.
    Poisoned = 7,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Free,
        Self::Page,
        Self::Zero,
        Self::SameFilled,
        Self::Compressed,
        Self::Device,
        Self::External,
        Self::Poisoned,
    ];
}

/// One descriptor word.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Descriptor(u64);

const _: () = assert!(size_of::<Descriptor>() == 8);

const KIND_MASK: u64 = 0b111;
const CACHED: u64 = 1 << 3;
const LOCKED: u64 = 1 << 4;
const COUNT_SHIFT: u32 = 5;
const COUNT_MASK: u64 = 0b111 << COUNT_SHIFT;
const ENCODING_SHIFT: u32 = 8;
const ENCODING_MASK: u64 = 0b11 << ENCODING_SHIFT;
const SLACK_SHIFT: u32 = 10;
const SLACK_BITS: u32 = 6;
const SLACK_MASK: u64 = ((1 << SLACK_BITS) - 1) << SLACK_SHIFT;
const GROUP_SHIFT: u32 = 16;
const GROUP_BITS: u32 = 9;
const GROUP_MASK: u64 = ((1 << GROUP_BITS) - 1) << GROUP_SHIFT;
const PAYLOAD_SHIFT: u32 = 25;
const PAYLOAD_BITS: u32 = 39;
const PLACE_MASK: u64 = KIND_MASK | ENCODING_MASK | SLACK_MASK | (u64::MAX << PAYLOAD_SHIFT);

const _: () = assert!(PAYLOAD_SHIFT + PAYLOAD_BITS == 64);
const _: () = assert!(COUNT_MASK & PLACE_MASK == 0 && GROUP_MASK & PLACE_MASK == 0);

/// Groups that a descriptor can tell apart.
pub const GROUPS_MAX: usize = 1 << GROUP_BITS;

/// The count field's value for "this many or more".
pub const COUNT_OVERFLOW: u8 = 7;

impl Descriptor {
    /// A slot that nobody has.
    pub const FREE: Self = Self(0);

    /// A slot with this place, neither counted nor cached nor locked.
    #[inline]
    pub fn new(place: Place, group: GroupId) -> Self {
        Self(place.encode() | u64::from(group.0) << GROUP_SHIFT)
    }

    /// What holds the data.
    #[inline]
    pub const fn kind(self) -> Kind {
        Kind::ALL[(self.0 & KIND_MASK) as usize]
    }

    /// Where the data is; `None` for a free slot.
    #[inline]
    pub fn place(self) -> Option<Place> {
        Place::decode(self.0 & PLACE_MASK)
    }

    /// Whether the data is in this backing.
    #[inline]
    pub const fn is_in(self, id: BackingId) -> bool {
        Place::is_in(self.0, id)
    }

    /// Whether the page is resident as well.
    #[inline]
    pub const fn is_cached(self) -> bool {
        self.0 & CACHED != 0
    }

    /// Whether somebody holds the entry lock.
    #[inline]
    pub const fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    /// Swap count up to 6; [`COUNT_OVERFLOW`] for all larger ones.
    #[inline]
    pub const fn count(self) -> u8 {
        ((self.0 & COUNT_MASK) >> COUNT_SHIFT) as u8
    }

    /// Who is charged.
    #[inline]
    pub const fn group(self) -> GroupId {
        GroupId(((self.0 & GROUP_MASK) >> GROUP_SHIFT) as u16)
    }

    /// Whether the slot has a reason to exist.
    #[inline]
    pub const fn is_live(self) -> bool {
        self.0 & (CACHED | COUNT_MASK) != 0
    }

    /// The same slot with its data elsewhere.
    #[inline]
    #[must_use]
    pub fn with_place(self, place: Place) -> Self {
        Self(self.0 & !PLACE_MASK | place.encode())
    }

    /// The same slot, in the swap cache or not.
    #[inline]
    #[must_use]
    pub const fn with_cached(self, cached: bool) -> Self {
        Self(if cached { self.0 | CACHED } else { self.0 & !CACHED })
    }

    /// The same slot, locked or not.
    #[inline]
    #[must_use]
    pub const fn with_locked(self, locked: bool) -> Self {
        Self(if locked { self.0 | LOCKED } else { self.0 & !LOCKED })
    }

    /// The same slot with another swap count.
    #[inline]
    #[must_use]
    pub const fn with_count(self, count: u8) -> Self {
        debug_assert!(count <= COUNT_OVERFLOW);
        Self(self.0 & !COUNT_MASK | (count as u64) << COUNT_SHIFT)
    }

    /// Checks the word against the table of legal words, for a moment at which no operation is
    /// under way.
    ///
    /// # Errors
    /// The rule that the word breaks.
    pub fn verify(self) -> Result<(), &'static str> {
        if self.is_locked() {
            return Err("locked while no operation is under way");
        }
        let Some(place) = self.place() else {
            return if self == Self::FREE { Ok(()) } else { Err("free slot with fields set") };
        };
        if !self.is_live() {
            return Err("neither counted nor cached, but not free");
        }
        if place.encode() != self.0 & PLACE_MASK {
            return Err("fields set that the kind does not use");
        }
        if place == Place::Page && !self.is_cached() {
            return Err("counted, without backing and not resident: the data is lost");
        }
        Ok(())
    }
}

impl core::fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Descriptor")
            .field("place", &self.place())
            .field("count", &self.count())
            .field("cached", &self.is_cached())
            .field("locked", &self.is_locked())
            .field("group", &self.group().0)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_fields_do_not_touch_each_other() {
        let word = Descriptor::new(Place::Zero, GroupId(511)).with_count(7).with_cached(true);
        assert_eq!((word.count(), word.is_cached(), word.is_locked()), (7, true, false));
        assert_eq!(word.with_locked(true).with_locked(false), word);
        assert_eq!(word.with_place(Place::SameFilled(u64::MAX)).group(), GroupId(511));
        assert_eq!(word.with_place(Place::Page).with_place(Place::Zero), word);
    }

    #[test]
    fn verify_knows_the_illegal_words() {
        let page = Descriptor::new(Place::Page, GroupId::ROOT);
        assert!(page.verify().is_err(), "dead");
        assert!(page.with_count(1).verify().is_err(), "data lost");
        assert!(page.with_cached(true).verify().is_ok());
        assert!(page.with_cached(true).with_locked(true).verify().is_err());
        assert!(Descriptor(1 << PAYLOAD_SHIFT).verify().is_err(), "free with a payload");
        assert!(Descriptor(Kind::Zero as u64 | 1 << COUNT_SHIFT | 1 << 40).verify().is_err());
        assert!(Descriptor::FREE.verify().is_ok());
    }
}
