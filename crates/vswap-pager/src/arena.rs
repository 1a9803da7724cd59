//! The engine's own memory.
//!
//! Anonymous mappings merge with their neighbours, so each reservation is bracketed by pages
//! without access: nothing that is registered for paging can ever grow into the engine's memory.
//! Reservations are remembered, so that taking over a program's mappings leaves them out.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::lock::{self, SpinLock};
use crate::sys::memory;

/// Reservations that can be remembered; with 64 MiB each, this is half a tebibyte of pool.
const RESERVATIONS_MAX: usize = 8192;

struct Reservations {
    ranges: [(usize, usize); RESERVATIONS_MAX],
    count: usize,
}

static RESERVATIONS: SpinLock<Reservations> =
    SpinLock::new(Reservations { ranges: [(0, 0); RESERVATIONS_MAX], count: 0 });

static RESERVED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Memory for the virtual swap space and for the pager's tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arena;

impl Arena {
    /// Whether an address lies in a reservation or its guard pages.
    pub fn owns(address: usize) -> bool {
        let reservations = RESERVATIONS.lock();
        reservations.ranges[..reservations.count]
            .iter()
            .any(|&(start, end)| (start..end).contains(&address))
    }

    /// Frees the lock in the child of a fork.
    pub fn reset_after_fork() {
        RESERVATIONS.reset_after_fork();
    }
}

impl Platform for Arena {
    fn reserve(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        // The slack of an alignment above a page stays without access and costs address space
        // only.
        let slack = align.saturating_sub(PAGE_SIZE);
        let total = len.checked_add(slack)?.checked_add(2 * PAGE_SIZE)?;
        let mut reservations = RESERVATIONS.lock();
        if reservations.count == RESERVATIONS_MAX {
            return None;
        }
        let base = memory::map_anonymous(total, 0).ok()?.as_ptr() as usize;
        let start = (base + PAGE_SIZE).next_multiple_of(align);
        // SAFETY: the range was just mapped and nobody knows it.
        unsafe {
            if memory::protect(start, len, memory::READ_WRITE).is_err() {
                memory::unmap(base, total);
                return None;
            }
            // Huge pages would make the pool take memory that holds nothing. Kernels without
            // them refuse the advice, which is as good.
            let _ = memory::advise(start, len, linux_raw_sys::general::MADV_NOHUGEPAGE);
        }
        let index = reservations.count;
        reservations.ranges[index] = (base, base + total);
        reservations.count += 1;
        RESERVED_BYTES.fetch_add(total, Ordering::Relaxed);
        NonNull::new(start as *mut u8)
    }

    unsafe fn discard(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the caller owns the range; it is private and anonymous, so it reads as zeros
        // afterwards. It is never locked, so the advice cannot fail.
        let _ = unsafe {
            memory::advise(ptr.as_ptr() as usize, len, linux_raw_sys::general::MADV_DONTNEED)
        };
    }

    unsafe fn unreserve(&self, ptr: NonNull<u8>, _len: usize) {
        let address = ptr.as_ptr() as usize;
        let mut reservations = RESERVATIONS.lock();
        let count = reservations.count;
        let found =
            reservations.ranges[..count].iter().position(|&(s, e)| (s..e).contains(&address));
        if let Some(index) = found {
            let (start, end) = reservations.ranges[index];
            reservations.ranges[index] = reservations.ranges[count - 1];
            reservations.count -= 1;
            RESERVED_BYTES.fetch_sub(end - start, Ordering::Relaxed);
            // SAFETY: the caller gives up the whole reservation.
            unsafe { memory::unmap(start, end - start) };
        }
    }

    fn relax(&self, spins: u32) {
        lock::relax(spins);
    }
}
