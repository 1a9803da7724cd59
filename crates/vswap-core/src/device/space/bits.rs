//! The bits of a cluster: one per block, set while the block belongs to an object or is bad.

use super::geometry::{ClusterId, Geometry};
use crate::pieces::Pieces;
use crate::sync::{AtomicU64, Ordering};

/// A piece is 2 MiB of address space, the bits of 2^24 blocks.
pub(super) const PIECE_SHIFT: u32 = 18;
pub(super) type Words = Pieces<AtomicU64, PIECE_SHIFT, 64>;

const WORD_BITS: u32 = u64::BITS;

/// The bits of one cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits<'a> {
    words: &'a Words,
    first_word: usize,
    count: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn of(words: &'a Words, cluster: ClusterId, geometry: Geometry) -> Self {
        let count = geometry.words();
        Self { words, first_word: cluster.0 as usize * count, count }
    }

    #[inline]
    fn word(&self, n: usize) -> &'a AtomicU64 {
        debug_assert!(n < self.count);
        self.words.get(self.first_word + n).expect("a leased cluster has bits")
    }

    /// The words and masks of `len` bits from `at` on.
    fn parts(self, at: u32, len: u32) -> impl Iterator<Item = (&'a AtomicU64, u64)> + Clone {
        let end = at + len;
        (at / WORD_BITS..end.div_ceil(WORD_BITS)).map(move |n| {
            let from = at.saturating_sub(n * WORD_BITS);
            let to = (end - n * WORD_BITS).min(WORD_BITS);
            (self.word(n as usize), u64::MAX >> (WORD_BITS - (to - from)) << from)
        })
    }

    /// Whether none of the bits is set. Acquire: what was done before they were cleared is done.
    #[inline]
    pub(super) fn are_clear(self, at: u32, len: u32) -> bool {
        self.parts(at, len).all(|(word, mask)| word.load(Ordering::Acquire) & mask == 0)
    }

    /// Whether all of the bits are set.
    pub(super) fn are_set(self, at: u32, len: u32) -> bool {
        self.parts(at, len).all(|(word, mask)| word.load(Ordering::Acquire) & mask == mask)
    }

    /// Sets the bits, some of which may be set.
    pub(super) fn set(self, at: u32, len: u32) {
        for (word, mask) in self.parts(at, len) {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Clears the bits, if all of them were set. Only who freed an object clears its bits, so
    /// nothing comes between the look and the change.
    pub(super) fn clear(self, at: u32, len: u32) -> bool {
        let set = self.are_set(at, len);
        if set {
            for (word, mask) in self.parts(at, len) {
                word.fetch_and(!mask, Ordering::Release);
            }
        }
        set
    }

    /// Clears all bits.
    pub(super) fn reset(self) {
        for n in 0..self.count {
            self.word(n).store(0, Ordering::Relaxed);
        }
    }
}
