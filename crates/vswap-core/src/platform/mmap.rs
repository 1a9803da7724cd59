//! A [`Platform`] for ordinary processes, on top of `mmap` and `madvise`.

use core::ptr::NonNull;

use super::Platform;

/// Anonymous private mappings of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct MmapPlatform;

impl Platform for MmapPlatform {
    fn reserve(&self, len: usize, align: usize) -> Option<NonNull<u8>> {
        let padded = len.checked_add(align)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                padded,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return None;
        }
        let base = base.cast::<u8>();
        let head = base.align_offset(align);
        // SAFETY: head + len <= padded; both trimmed ends belong to the mapping just made, which
        // nobody else knows of yet.
        unsafe {
            let start = base.add(head);
            if head > 0 {
                libc::munmap(base.cast(), head);
            }
            if padded > head + len {
                libc::munmap(start.add(len).cast(), padded - head - len);
            }
            // Sparse use is the point: a huge page behind one touched word would undo it.
            libc::madvise(start.cast(), len, libc::MADV_NOHUGEPAGE);
            NonNull::new(start)
        }
    }

    unsafe fn discard(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the range is ours and dead, as the caller promises.
        let result = unsafe { libc::madvise(ptr.as_ptr().cast(), len, libc::MADV_DONTNEED) };
        assert_eq!(result, 0, "MADV_DONTNEED failed on a range of our own");
    }

    unsafe fn unreserve(&self, ptr: NonNull<u8>, len: usize) {
        // SAFETY: the whole mapping is ours and dead, as the caller promises.
        let result = unsafe { libc::munmap(ptr.as_ptr().cast(), len) };
        assert_eq!(result, 0, "munmap failed on a mapping of our own");
    }

    fn relax(&self, spins: u32) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(shuttle)]
        shuttle::thread::yield_now();
        if spins < 100 {
            core::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
