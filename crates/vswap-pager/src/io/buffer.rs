//! Memory that devices read and write: page-aligned, of the engine's own, handed out in runs.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::sys::memory;

/// Pages of the largest buffer: one write-out.
pub const RUN_PAGES_MAX: usize = 64;

/// Bytes of the largest buffer.
pub const RUN_BYTES_MAX: usize = RUN_PAGES_MAX * PAGE_SIZE;

/// Largest set of buffers, in units of [`RUN_PAGES_MAX`].
const GROUPS_MAX: usize = 16;

/// Buffers for the I/O of one thread, or of several: taking and giving back are lock-free.
///
/// The memory is reserved for good. A device may write to a buffer long after the request was given
/// up, so there is no moment at which giving it back would be known to be safe.
#[derive(Debug)]
pub struct DirectBuffers {
    base: NonNull<u8>,
    /// One bit for each page that is taken. A buffer lies within one word.
    taken: [AtomicU64; GROUPS_MAX],
    groups: usize,
}

// SAFETY: the memory is reached through buffers only, each of which has its pages to itself.
unsafe impl Send for DirectBuffers {}
// SAFETY: as above; the bits that say so are atomic.
unsafe impl Sync for DirectBuffers {}

impl DirectBuffers {
    /// Reserves `groups` times [`RUN_PAGES_MAX`] pages, at most 16 times. `None` without memory.
    ///
    /// A child of a fork finds zeros there: it needs none of the contents, and neither process pays
    /// for copies.
    pub fn reserve(platform: &impl Platform, groups: usize) -> Option<Self> {
        let groups = groups.clamp(1, GROUPS_MAX);
        let len = groups * RUN_BYTES_MAX;
        let base = platform.reserve(len, PAGE_SIZE)?;
        let start = base.as_ptr() as usize;
        // SAFETY: the memory was just reserved, and the advice changes nothing in this process. A
        // kernel that refuses gives the child a copy, which is as good.
        let _ = unsafe { memory::advise(start, len, linux_raw_sys::general::MADV_WIPEONFORK) };
        Some(Self { base, taken: [const { AtomicU64::new(0) }; GROUPS_MAX], groups })
    }

    /// Moves the set itself to memory that is never freed.
    pub fn leak(self, platform: &impl Platform) -> Option<&'static Self> {
        let place = platform.reserve(size_of::<Self>(), PAGE_SIZE)?.cast::<Self>();
        // SAFETY: the memory is fresh, large enough, aligned to a page, and reserved for good.
        unsafe {
            place.write(self);
            Some(place.as_ref())
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.groups * RUN_BYTES_MAX
    }

    /// A buffer of `len` bytes that starts at a page; `None` if no run of pages is free, or `len`
    /// is 0 or above [`RUN_BYTES_MAX`]. Its contents are whatever was there.
    pub fn take(&self, len: usize) -> Option<Buffer<'_>> {
        if len == 0 || len > RUN_BYTES_MAX {
            return None;
        }
        let pages = len.div_ceil(PAGE_SIZE) as u32;
        (0..self.groups).find_map(|group| {
            let first = take_bits(&self.taken[group], pages)?;
            let page = group * RUN_PAGES_MAX + first as usize;
            Some(Buffer { owner: self, page: page as u16, pages: pages as u16, len: len as u32 })
        })
    }

    /// Pages that are taken.
    pub fn taken(&self) -> usize {
        self.taken.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Makes all buffers free in the child of a fork: their holders, threads and kernel, are the
    /// parent's.
    pub fn reset_after_fork(&self) {
        for word in &self.taken {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn mask(first: u32, pages: u32) -> u64 {
    (u64::MAX >> (u64::BITS - pages)) << first
}

/// Takes `pages` adjoining bits; the number of the first.
fn take_bits(word: &AtomicU64, pages: u32) -> Option<u32> {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let first = first_run(!seen, pages)?;
        // Acquire pairs with the Release of a buffer's drop: the last holder's accesses are over.
        let taken = word.compare_exchange_weak(
            seen,
            seen | mask(first, pages),
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        match taken {
            Ok(_) => return Some(first),
            Err(now) => seen = now,
        }
    }
}

/// The lowest run of `pages` ones.
fn first_run(mut free: u64, pages: u32) -> Option<u32> {
    // After each step a one stands for `have` ones from there on.
    let mut have = 1;
    while have < pages {
        let step = have.min(pages - have);
        free &= free >> step;
        have += step;
    }
    (free != 0).then(|| free.trailing_zeros())
}

/// A run of pages of [`DirectBuffers`], given back when dropped.
#[derive(Debug)]
pub struct Buffer<'p> {
    owner: &'p DirectBuffers,
    page: u16,
    pages: u16,
    len: u32,
}

impl Buffer<'_> {
    fn start(&self) -> NonNull<u8> {
        // SAFETY: the page lies within the reservation.
        unsafe { self.owner.base.add(self.page as usize * PAGE_SIZE) }
    }

    /// Its address, for the kernel.
    pub(super) fn address(&self) -> *mut u8 {
        self.start().as_ptr()
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages belong to this buffer, and reserved memory is initialised.
        unsafe { core::slice::from_raw_parts(self.address(), self.len as usize) }
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.address(), self.len as usize) }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let (group, first) = (self.page as usize / RUN_PAGES_MAX, self.page as u32 % 64);
        let mask = mask(first, u32::from(self.pages));
        self.owner.taken[group].fetch_and(!mask, Ordering::Release);
    }
}

const _: () = assert!(RUN_PAGES_MAX == u64::BITS as usize);

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::arena::Arena;

    #[test]
    fn buffers_are_aligned_apart_and_come_back() {
        let pool = DirectBuffers::reserve(&Arena, 2).unwrap();
        let lengths = [1, 4096, 4097, 65536, 512, RUN_BYTES_MAX];
        let mut held: Vec<Buffer<'_>> =
            lengths.iter().map(|&len| pool.take(len).unwrap()).collect();
        for (index, buffer) in held.iter_mut().enumerate() {
            assert_eq!(buffer.address() as usize % PAGE_SIZE, 0);
            buffer.fill(index as u8 + 1);
        }
        for (index, buffer) in held.iter().enumerate() {
            assert_eq!(buffer.len(), lengths[index]);
            assert!(buffer.iter().all(|&byte| byte == index as u8 + 1));
        }
        assert_eq!(pool.taken(), 1 + 1 + 2 + 16 + 1 + 64);
        assert!(pool.take(RUN_BYTES_MAX).is_none());
        drop(held);
        assert_eq!(pool.taken(), 0);
        assert!(pool.take(0).is_none() && pool.take(RUN_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn a_run_is_found_where_it_just_fits() {
        assert_eq!(first_run(u64::MAX, 64), Some(0));
        assert_eq!(first_run(u64::MAX >> 1, 64), None);
        assert_eq!(first_run(0b0111_0110, 3), Some(4));
        assert_eq!(first_run(0b0101_0101, 2), None);
        for pages in 1..=64 {
            assert_eq!(first_run(u64::MAX << (64 - pages), pages), Some(64 - pages));
        }
    }

    #[test]
    fn a_child_of_a_fork_starts_with_all() {
        let pool = DirectBuffers::reserve(&Arena, 1).unwrap();
        core::mem::forget(pool.take(RUN_BYTES_MAX));
        assert!(pool.take(1).is_none());
        pool.reset_after_fork();
        assert!(pool.take(RUN_BYTES_MAX).is_some());
    }
}
