//! Which write of a place is the last one: two bits for each block, as the write's number has them.
//!
//! A write that the device lost leaves an older object in its place, whole and bound to the same place;
//! only its number is another. Objects of four blocks and more have eight bits of it here,
//! smaller ones two per block.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::device::space::Block;

use crate::slot_table::SlotTable;

const BITS: u32 = 2;
const BLOCKS_PER_WORD: u32 = u64::BITS / BITS;
/// Blocks of an object that take part.
const BLOCKS_MAX: u32 = u8::BITS / BITS;

/// What is known of the number of a write: its low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    bits: u8,
    mask: u8,
}

impl Generation {
    /// A number of which the unknown bits are those of `found`: equal to `found` if that may be it.
    pub fn completed_by(self, found: u8) -> u8 {
        self.bits | (found & !self.mask)
    }
}

/// The generations of one device.
#[derive(Debug)]
pub struct Generations {
    words: SlotTable<AtomicU64, { 1 << 13 }, { 1 << 12 }>,
}

impl Generations {
    /// Nothing was written.
    pub const fn new() -> Self {
        Self { words: SlotTable::new() }
    }

    /// Notes a write; `false` without memory. The place is the caller's.
    #[must_use]
    pub fn set(&self, first: Block, blocks: u8, number: u8) -> bool {
        places(first, blocks).zip(0..).all(|((word, shift), at)| {
            let Some(word) = self.words.make(word) else { return false };
            let bits = u64::from(number >> (at * BITS)) & ((1 << BITS) - 1);
            word.fetch_and(!(((1 << BITS) - 1) << shift), Ordering::Relaxed);
            word.fetch_or(bits << shift, Ordering::Relaxed);
            true
        })
    }

    /// What is known of the last write.
    pub fn get(&self, first: Block, blocks: u8) -> Generation {
        let mut generation = Generation { bits: 0, mask: 0 };
        for ((word, shift), at) in places(first, blocks).zip(0..) {
            let word = self.words.get(word).map_or(0, |word| word.load(Ordering::Relaxed));
            let bits = (word >> shift) as u8 & ((1 << BITS) - 1);
            generation.bits |= bits << (at * BITS);
            generation.mask |= ((1 << BITS) - 1) << (at * BITS);
        }
        generation
    }

    /// Bytes of memory for `blocks` blocks in use.
    pub const fn memory(blocks: u32) -> usize {
        (blocks / (u8::BITS / BITS)) as usize
    }
}

impl Default for Generations {
    fn default() -> Self {
        Self::new()
    }
}

/// Words and shifts of an object's blocks.
fn places(first: Block, blocks: u8) -> impl Iterator<Item = (usize, u32)> {
    let blocks = first.raw()..first.raw() + u32::from(blocks).min(BLOCKS_MAX);
    blocks.map(|block| ((block / BLOCKS_PER_WORD) as usize, block % BLOCKS_PER_WORD * BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_has_its_own() {
        let generations = Generations::new();
        let objects = [(30, 4, 0xa7), (34, 1, 0x02), (35, 9, 0x5c), (44, 2, 0x0b)];
        for (first, blocks, number) in objects {
            assert!(generations.set(Block::new(first).unwrap(), blocks, number));
        }
        for (first, blocks, number) in objects {
            let known = generations.get(Block::new(first).unwrap(), blocks);
            assert_eq!(known.completed_by(number), number);
            for other in 0..=u8::MAX {
                let differs = (other ^ number) & known.mask != 0;
                assert_eq!(known.completed_by(other) != other, differs, "{first} {other}");
            }
        }
        assert_eq!(generations.get(Block::new(35).unwrap(), 9).mask, 0xff);
    }
}
