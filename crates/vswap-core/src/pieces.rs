//! Very large arrays of atomics, in reserved address space.
//!
//! An array is made of pieces, each one reservation, because one huge reservation fails under an
//! address-space limit (`ulimit -v`). A piece is reserved when its first element is needed and
//! stays; finding an element is a shift, a load that is nearly always cached, and an addition.

use core::ptr::{NonNull, null_mut};

use crate::error::OutOfMemory;
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::sync::{AtomicPtr, Ordering};

/// Types that zeroed memory is a valid value of, and that threads may share.
///
/// # Safety
/// All-zero bytes are a valid value, dropping it does nothing, and its alignment divides a page.
pub(crate) unsafe trait Zeroable: Sync {}

/// `PIECES` pieces of 2^`SHIFT` elements.
#[derive(Debug)]
pub(crate) struct Pieces<T, const SHIFT: u32, const PIECES: usize> {
    bases: [AtomicPtr<T>; PIECES],
}

impl<T: Zeroable, const SHIFT: u32, const PIECES: usize> Pieces<T, SHIFT, PIECES> {
    const PIECE_BYTES: usize = (size_of::<T>() << SHIFT).next_multiple_of(PAGE_SIZE);

    /// An array that has no memory yet.
    pub(crate) const fn new() -> Self {
        Self { bases: [const { AtomicPtr::new(null_mut()) }; PIECES] }
    }

    /// Reserves the piece of an element, unless that was done before.
    pub(crate) fn ensure<P: Platform + ?Sized>(
        &self,
        platform: &P,
        index: usize,
    ) -> Result<(), OutOfMemory> {
        let base = self.bases.get(index >> SHIFT).ok_or(OutOfMemory)?;
        if !base.load(Ordering::Acquire).is_null() {
            return Ok(());
        }
        let piece = platform.reserve(Self::PIECE_BYTES, PAGE_SIZE).ok_or(OutOfMemory)?;
        let ours = piece.cast::<T>().as_ptr();
        // Release: who sees the base sees memory that reads as zeros.
        if base.compare_exchange(null_mut(), ours, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: another thread was faster, and nobody else has seen our reservation.
            unsafe { platform.unreserve(piece, Self::PIECE_BYTES) };
        }
        Ok(())
    }

    /// The element, if its piece was ever needed.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        let base = self.bases.get(index >> SHIFT)?.load(Ordering::Acquire);
        // SAFETY: a base that is not null starts 2^SHIFT elements that live as long as `self`; they
        // are zeroed or were only changed through shared references (T is Zeroable and Sync).
        unsafe {
            base.as_ref()?;
            Some(&*base.add(index & ((1 << SHIFT) - 1)))
        }
    }

    /// `N` elements from `index` on, which is a multiple of `N`.
    #[inline]
    pub(crate) fn row<const N: usize>(&self, index: usize) -> Option<&[T; N]> {
        const { assert!(N.is_power_of_two() && N <= 1 << SHIFT) };
        debug_assert!(index.is_multiple_of(N));
        let first = core::ptr::from_ref(self.get(index)?);
        // SAFETY: as in `get`; the elements up to index + N are in the same piece, since N is a
        // power of two that divides both the piece and the index.
        Some(unsafe { &*first.cast::<[T; N]>() })
    }

    /// Gives back the memory of a page-aligned row of elements; they are zero afterwards.
    ///
    /// # Safety
    /// Nobody uses the elements, and `len` times their size is a multiple of the page size, as
    /// is the offset of `index` in its piece.
    pub(crate) unsafe fn discard<P: Platform + ?Sized>(
        &self,
        platform: &P,
        index: usize,
        len: usize,
    ) {
        if let Some(first) = self.get(index) {
            let bytes = len * size_of::<T>();
            debug_assert!(bytes.is_multiple_of(PAGE_SIZE));
            // SAFETY: the range is in one piece, and nothing in it is in use.
            unsafe { platform.discard(NonNull::from(first).cast(), bytes) };
        }
    }

    /// Gives all address space back.
    pub(crate) fn unreserve<P: Platform + ?Sized>(&mut self, platform: &P) {
        for base in &self.bases {
            if let Some(piece) = NonNull::new(base.swap(null_mut(), Ordering::AcqRel)) {
                // SAFETY: references to elements borrow `self`, which is ours alone.
                unsafe { platform.unreserve(piece.cast(), Self::PIECE_BYTES) };
            }
        }
    }
}
