//! What the virtual swap space needs from whoever hosts it.
//!
//! The core makes no system calls and has no allocator. All its memory is address space from
//! [`Platform::reserve`], used sparsely: a reservation costs nothing until it is written, and
//! [`Platform::discard`] is the only way in which memory goes back. That is what lets a slot's
//! descriptor be found by adding an index to a base address, with no tree in between.

use core::ptr::NonNull;

#[cfg(any(test, feature = "std"))]
mod mmap;
#[cfg(any(test, feature = "std"))]
pub use mmap::MmapPlatform;

/// Memory and patience. Implementations must not call back into the core.
pub trait Platform: Sync {
    /// Reserves `len` bytes of address space at a multiple of `align`. It reads as zeros, and
    /// physical memory is taken on the first write. `len` is a multiple of the page size, `align`
    /// a power of two that is at least the page size.
    fn reserve(&self, len: usize, align: usize) -> Option<NonNull<u8>>;

    /// Gives back the physical memory of a page-aligned range, which reads as zeros afterwards.
    ///
    /// # Safety
    /// The range lies within one reservation, and nothing depends on its contents any more.
    unsafe fn discard(&self, ptr: NonNull<u8>, len: usize);

    /// Gives back a reservation.
    ///
    /// # Safety
    /// `ptr` and `len` are those of one [`Platform::reserve`], and nothing points into it any more.
    unsafe fn unreserve(&self, ptr: NonNull<u8>, len: usize);

    /// Called in spin loops with the number of turns so far, so that a host can pause first and
    /// yield the CPU later.
    fn relax(&self, spins: u32);
}

impl<P: Platform + ?Sized> Platform for &P {
    fn reserve(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        (**self).reserve(len, align)
    }

    unsafe fn discard(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).discard(ptr, len) }
    }

    unsafe fn unreserve(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).unreserve(ptr, len) }
    }

    fn relax(&self, spins: u32) {
        (**self).relax(spins);
    }
}
