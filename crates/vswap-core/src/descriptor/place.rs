//! Where a slot's data is, and how that is packed into a descriptor.

use super::{
    ENCODING_SHIFT, Kind, PAYLOAD_BITS, PAYLOAD_SHIFT, SLACK_BITS, SLACK_MASK, SLACK_SHIFT,
};
use crate::entry::{BackingId, Handle, Stored};
use crate::page::PAGE_SIZE;

/// How an object's bytes relate to the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// They are the page.
    Raw = 0,
    /// An lz4 block.
    Lz4 = 1,
    /// A zstd frame.
    Zstd = 2,
}

impl Encoding {
    const fn from_bits(bits: u64) -> Self {
        match bits {
            1 => Self::Lz4,
            2 => Self::Zstd,
            _ => Self::Raw,
        }
    }
}

/// Where a slot's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Only in the resident page.
    Page,
    /// Nowhere: all bytes are zero.
    Zero,
    /// In the descriptor: the page repeats this word. [`Place::same_filled`] says which words fit.
    SameFilled(u64),
    /// The page repeats a word that did not fit, and is an object of 8 bytes in the pool.
    SameFilledInPool(Stored),
    /// In the pool.
    Compressed {
        /// The object.
        object: Stored,
        /// How it is coded.
        encoding: Encoding,
    },
    /// In a backing.
    Backing {
        /// Whether it is a device, which is charged for physical slots.
        device: bool,
        /// Which one.
        id: BackingId,
        /// The backing's name for the object.
        handle: Handle,
        /// Bytes of the object, 1 to the page size.
        length: u16,
        /// How it is coded.
        encoding: Encoding,
    },
    /// Lost; loads fail.
    Poisoned,
}

/// Slack and payload taken together, for kinds that do not name a pool object.
const WIDE_BITS: u32 = SLACK_BITS + PAYLOAD_BITS;
const LENGTH_BITS: u32 = 12;
const BACKING_BITS: u32 = 3;

/// Where a descriptor has the backing's number.
const BACKING_SHIFT: u32 = PAYLOAD_SHIFT + LENGTH_BITS - SLACK_BITS;

/// Backings that a descriptor can tell apart.
pub(crate) const BACKINGS_MAX: usize = 1 << BACKING_BITS;

const _: () = assert!(LENGTH_BITS + Handle::BITS + BACKING_BITS == WIDE_BITS);
const _: () = assert!(PAGE_SIZE <= 1 << LENGTH_BITS);

/// The encoding field of a same-filled word.
const WORD_UNSIGNED: u64 = 0;
const WORD_SIGNED: u64 = 1;
const WORD_TWICE: u64 = 2;
const WORD_IN_POOL: u64 = 3;

#[inline]
const fn wide(value: u64) -> u64 {
    debug_assert!(value >> WIDE_BITS == 0);
    (value & ((1 << SLACK_BITS) - 1)) << SLACK_SHIFT | (value >> SLACK_BITS) << PAYLOAD_SHIFT
}

#[inline]
const fn wide_of(bits: u64) -> u64 {
    (bits & SLACK_MASK) >> SLACK_SHIFT | (bits >> PAYLOAD_SHIFT) << SLACK_BITS
}

/// The form and the 45 bits that stand for a word; `None` if it does not fit.
#[inline]
const fn compact_word(word: u64) -> Option<(u64, u64)> {
    let low = word & ((1 << WIDE_BITS) - 1);
    if low == word {
        Some((WORD_UNSIGNED, low))
    } else if word.cast_signed() << (64 - WIDE_BITS) >> (64 - WIDE_BITS) == word.cast_signed() {
        Some((WORD_SIGNED, low))
    } else if word >> 32 == word & u32::MAX as u64 {
        Some((WORD_TWICE, word >> 32))
    } else {
        None
    }
}

impl Place {
    /// The place of a page that repeats `word`, if it needs no memory.
    #[inline]
    pub const fn same_filled(word: u64) -> Option<Self> {
        match compact_word(word) {
            _ if word == 0 => Some(Self::Zero),
            Some(_) => Some(Self::SameFilled(word)),
            None => None,
        }
    }

    /// The kind that the descriptor shows.
    #[inline]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Page => Kind::Page,
            Self::Zero => Kind::Zero,
            Self::SameFilled(_) | Self::SameFilledInPool(_) => Kind::SameFilled,
            Self::Compressed { .. } => Kind::Compressed,
            Self::Backing { device: true, .. } => Kind::Device,
            Self::Backing { device: false, .. } => Kind::External,
            Self::Poisoned => Kind::Poisoned,
        }
    }

    #[inline]
    pub(super) fn encode(self) -> u64 {
        let rest = match self {
            Self::Page | Self::Zero | Self::Poisoned => 0,
            Self::SameFilled(word) => {
                let (form, bits) = compact_word(word).expect("only words that fit are kept inline");
                form << ENCODING_SHIFT | wide(bits)
            }
            Self::SameFilledInPool(object) => {
                WORD_IN_POOL << ENCODING_SHIFT | encode_stored(object)
            }
            Self::Compressed { object, encoding } => {
                (encoding as u64) << ENCODING_SHIFT | encode_stored(object)
            }
            Self::Backing { id, handle, length, encoding, .. } => {
                debug_assert!(length > 0 && usize::from(length) <= PAGE_SIZE);
                let name = u64::from(handle.raw()) << BACKING_BITS | u64::from(id.0);
                let bits = name << LENGTH_BITS | u64::from(length - 1);
                (encoding as u64) << ENCODING_SHIFT | wide(bits)
            }
        };
        self.kind() as u64 | rest
    }

    /// Whether the place that is packed in `bits` is in this backing, without unpacking it: for walks
    /// over all descriptors.
    #[inline]
    pub(super) const fn is_in(bits: u64, id: BackingId) -> bool {
        let kind = bits & super::KIND_MASK;
        let number = bits >> BACKING_SHIFT & (BACKINGS_MAX as u64 - 1);
        (kind == Kind::Device as u64 || kind == Kind::External as u64) && number == id.0 as u64
    }

    #[inline]
    pub(super) fn decode(bits: u64) -> Option<Self> {
        let form = bits >> ENCODING_SHIFT & 0b11;
        let word = wide_of(bits);
        Some(match Kind::ALL[(bits & super::KIND_MASK) as usize] {
            Kind::Free => return None,
            Kind::Page => Self::Page,
            Kind::Zero => Self::Zero,
            Kind::Poisoned => Self::Poisoned,
            Kind::SameFilled => match form {
                WORD_UNSIGNED => Self::SameFilled(word),
                WORD_SIGNED => Self::SameFilled(word | u64::MAX << WIDE_BITS),
                WORD_TWICE => Self::SameFilled(word << 32 | word),
                _ => Self::SameFilledInPool(decode_stored(bits)),
            },
            Kind::Compressed => Self::Compressed {
                object: decode_stored(bits),
                encoding: Encoding::from_bits(form),
            },
            kind @ (Kind::Device | Kind::External) => Self::Backing {
                device: kind == Kind::Device,
                id: BackingId((word >> LENGTH_BITS) as u8 & ((1 << BACKING_BITS) - 1)),
                handle: Handle::new((word >> (LENGTH_BITS + BACKING_BITS)) as u32)?,
                length: (word as u16 & ((1 << LENGTH_BITS) - 1)) + 1,
                encoding: Encoding::from_bits(form),
            },
        })
    }
}

#[inline]
fn encode_stored(stored: Stored) -> u64 {
    debug_assert!(stored.location >> PAYLOAD_BITS == 0 && stored.slack >> SLACK_BITS == 0);
    u64::from(stored.slack) << SLACK_SHIFT | stored.location << PAYLOAD_SHIFT
}

#[inline]
fn decode_stored(bits: u64) -> Stored {
    Stored { location: bits >> PAYLOAD_SHIFT, slack: ((bits & SLACK_MASK) >> SLACK_SHIFT) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_packing() {
        let object = Stored { location: (1 << PAYLOAD_BITS) - 1, slack: 63 };
        let mut places = std::vec![
            Place::Page,
            Place::Zero,
            Place::Poisoned,
            Place::SameFilledInPool(object),
            Place::Compressed { object, encoding: Encoding::Zstd },
            Place::Compressed { object: Stored { location: 0, slack: 0 }, encoding: Encoding::Raw },
        ];
        for (handle, length) in [(0, 1), ((1 << 30) - 1, PAGE_SIZE as u16), (12345, 77)] {
            for (device, id) in [(true, 0), (false, 7)] {
                places.push(Place::Backing {
                    device,
                    id: BackingId(id),
                    handle: Handle::new(handle).unwrap(),
                    length,
                    encoding: Encoding::Lz4,
                });
            }
        }
        for place in places {
            let bits = place.encode();
            assert_eq!(Place::decode(bits), Some(place));
            assert_eq!(bits & !super::super::PLACE_MASK, 0, "{place:?} left its fields");
            for id in (0..BACKINGS_MAX as u8).map(BackingId) {
                let here = matches!(place, Place::Backing { id: other, .. } if other == id);
                assert_eq!(Place::is_in(bits, id), here, "{place:?}");
            }
        }
    }

    #[test]
    fn same_filled_words_fit_or_say_so() {
        let inline = [
            1,
            u64::MAX,
            !0 << 44,
            (1 << 45) - 1,
            0xaaaa_aaaa_aaaa_aaaa,
            0x1234_5678 * 0x1_0000_0001,
        ];
        for word in inline {
            let place = Place::same_filled(word).unwrap();
            assert_eq!(Place::decode(place.encode()), Some(Place::SameFilled(word)));
        }
        assert_eq!(Place::same_filled(0), Some(Place::Zero));
        for word in [1 << 45, 0x0123_4567_89ab_cdef, !(1 << 44)] {
            assert_eq!(Place::same_filled(word), None, "{word:x}");
        }
    }
}
