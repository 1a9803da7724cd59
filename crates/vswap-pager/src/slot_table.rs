//! Numbers by index, in memory that is made when it is needed.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::arena::Arena;

/// An atomic integer of which zero bytes are a valid value.
///
/// # Safety
/// They are.
pub unsafe trait Number: Sync + 'static {}

// SAFETY: zero is a number.
unsafe impl Number for core::sync::atomic::AtomicU32 {}
// SAFETY: zero is a number.
unsafe impl Number for core::sync::atomic::AtomicU64 {}

/// `PIECES` pieces of `LEN` numbers, zero at first. A piece is memory only where a number was set.
#[derive(Debug)]
pub struct SlotTable<T, const LEN: usize, const PIECES: usize> {
    pieces: [AtomicPtr<T>; PIECES],
}

impl<T: Number, const LEN: usize, const PIECES: usize> SlotTable<T, LEN, PIECES> {
    /// All are zero.
    pub const fn new() -> Self {
        Self { pieces: [const { AtomicPtr::new(ptr::null_mut()) }; PIECES] }
    }

    /// A number that may have been set; `None` if it never was.
    pub fn get(&self, index: usize) -> Option<&T> {
        let piece = self.pieces.get(index / LEN)?.load(Ordering::Acquire);
        if piece.is_null() {
            return None;
        }
        // SAFETY: a piece is never freed, zeros are valid numbers, and the index is within it.
        unsafe { piece.add(index % LEN).as_ref() }
    }

    /// A number, to set it; `None` if there is no memory or the index is too large.
    pub fn make(&self, index: usize) -> Option<&T> {
        let piece = self.pieces.get(index / LEN)?;
        if piece.load(Ordering::Acquire).is_null() {
            let len = LEN * size_of::<T>();
            let memory = Arena.reserve(len, PAGE_SIZE)?;
            let new = memory.as_ptr().cast();
            let null = ptr::null_mut();
            if piece.compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: the reservation was never published.
                unsafe { Arena.unreserve(memory, len) };
            }
        }
        self.get(index)
    }
}

impl<T: Number, const LEN: usize, const PIECES: usize> Default for SlotTable<T, LEN, PIECES> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn numbers_are_zero_until_they_are_set() {
        let table = SlotTable::<AtomicU32, 4096, 2>::new();
        assert!(table.get(5000).is_none());
        table.make(5000).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(table.get(5000).unwrap().load(Ordering::Relaxed), 7);
        assert_eq!(table.get(5001).unwrap().load(Ordering::Relaxed), 0);
        assert!(table.get(0).is_none() && table.make(8192).is_none());
    }
}
