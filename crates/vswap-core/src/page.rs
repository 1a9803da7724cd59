//! The one place that knows how large a page is.

/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// The contents of one page.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; PAGE_SIZE]);

const _: () = assert!(size_of::<Page>() == PAGE_SIZE && align_of::<Page>() == PAGE_SIZE);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE]);

    /// Overwrites the page with one repeated word.
    pub fn fill(&mut self, word: u64) {
        for chunk in self.0.as_chunks_mut::<8>().0 {
            *chunk = word.to_ne_bytes();
        }
    }
}

impl core::fmt::Debug for Page {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Page({:02x?}..)", &self.0[..16])
    }
}
