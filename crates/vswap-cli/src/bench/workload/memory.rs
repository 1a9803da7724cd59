//! Anonymous memory of the measured program, as libc's `mmap` gives it, huge pages and all.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::super::contents::{PAGE_BYTES, Page};

/// Pages of zeros, unmapped when dropped. The default has none.
pub struct Memory {
    start: NonNull<Page>,
    pages: usize,
}

// SAFETY: the pages are plain numbers that only their owner refers to.
unsafe impl Send for Memory {}

impl Default for Memory {
    fn default() -> Self {
        Self { start: NonNull::dangling(), pages: 0 }
    }
}

impl Memory {
    /// Maps so many pages, which is not none.
    ///
    /// # Errors
    /// That of `mmap`.
    pub fn map(pages: usize) -> io::Result<Self> {
        let (access, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let bytes = pages * PAGE_BYTES;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        match NonNull::new(start.cast()) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED.cast() => Ok(Self { start, pages }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether a page is in memory, as the kernel sees it.
    pub fn is_resident(&self, page: usize) -> bool {
        let mut resident = 0u8;
        let start = (&raw const self[page]).cast_mut().cast();
        // SAFETY: mincore reads no memory, and writes one byte for the one page asked about.
        let result = unsafe { libc::mincore(start, PAGE_BYTES, &raw mut resident) };
        result == 0 && resident & 1 != 0
    }

    /// The same memory as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: a page has no padding, any byte is valid, and they are borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.pages * PAGE_BYTES) }
    }

    /// The same memory as bytes.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        let bytes = self.pages * PAGE_BYTES;
        // SAFETY: as above, any bytes are valid words, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), bytes) }
    }
}

impl Deref for Memory {
    type Target = [Page];

    fn deref(&self) -> &[Page] {
        // SAFETY: `start` is the start of so many mapped pages (or of none, and aligned); they
        // read as zeros or what was written, both valid words, and are borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.pages) }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [Page] {
        // SAFETY: as above, and `self` is borrowed mutably, so there is no other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.pages) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.pages > 0 {
            // SAFETY: the mapping is `self`'s alone, and no reference into it outlives `self`.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.pages * PAGE_BYTES) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_touched_pages_are_resident() {
        let mut memory = Memory::map(3).unwrap();
        memory.as_bytes_mut()[PAGE_BYTES + 8] = 7;
        assert_eq!([0, 1, 2].map(|page| memory.is_resident(page)), [false, true, false]);
        assert_eq!((memory[1][1], memory.as_bytes()[PAGE_BYTES + 8]), (7, 7));
    }

    #[test]
    fn memory_reads_as_zeros_keeps_what_is_written_and_goes_when_dropped() {
        let mut memory = Memory::map(3).unwrap();
        assert!(memory.iter().flatten().all(|&word| word == 0));
        memory[2][511] = 7;
        assert_eq!((memory.len(), memory[2][511]), (3, 7));
        let mut resident = [0u8; 3];
        let start = memory.start.as_ptr().cast();
        drop(memory);
        // SAFETY: `resident` has a byte for each page; mincore writes nothing else.
        let result = unsafe { libc::mincore(start, 3 * PAGE_BYTES, resident.as_mut_ptr()) };
        assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOMEM)));
        assert!(Memory::default().is_empty());
    }
}
