//! Addresses, pages and ranges of pages: the one place where they are converted.

use vswap_core::page::{PAGE_SHIFT, PAGE_SIZE};

/// Pages in a leaf of the page table: a leaf is one page of 4-byte words.
pub const LEAF_PAGES: usize = PAGE_SIZE / 4;

/// Number of a page of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageNumber(pub usize);

impl PageNumber {
    /// The page that holds an address.
    pub const fn containing(address: usize) -> Self {
        Self(address >> PAGE_SHIFT)
    }

    /// First address of the page.
    pub const fn address(self) -> usize {
        self.0 << PAGE_SHIFT
    }

    /// Number of the leaf that holds the page's word.
    pub const fn leaf(self) -> usize {
        self.0 / LEAF_PAGES
    }

    /// Place of the word in its leaf.
    pub const fn offset_in_leaf(self) -> usize {
        self.0 % LEAF_PAGES
    }
}

/// Pages `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// First page.
    pub start: PageNumber,
    /// First page behind.
    pub end: PageNumber,
}

impl PageRange {
    /// The whole address space.
    pub const EVERYTHING: Self =
        Self { start: PageNumber(0), end: PageNumber(usize::MAX / PAGE_SIZE) };

    /// The pages that `len` bytes at `address` touch.
    pub const fn touching(address: usize, len: usize) -> Self {
        let end = address.saturating_add(len).saturating_add(PAGE_SIZE - 1);
        Self { start: PageNumber::containing(address), end: PageNumber::containing(end) }
    }

    /// Number of pages.
    pub const fn pages(self) -> usize {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Number of bytes.
    pub const fn bytes(self) -> usize {
        self.pages() << PAGE_SHIFT
    }

    /// First address.
    pub const fn address(self) -> usize {
        self.start.address()
    }

    /// Whether no page is in it.
    pub const fn is_empty(self) -> bool {
        self.end.0 <= self.start.0
    }

    /// The pages in both.
    pub fn intersection(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }

    /// The parts of the range that lie in one leaf each, in ascending order.
    pub fn by_leaf(self) -> impl Iterator<Item = PageRange> {
        let mut start = self.start;
        core::iter::from_fn(move || {
            if start >= self.end {
                return None;
            }
            let leaf_end = PageNumber((start.leaf() + 1) * LEAF_PAGES);
            let part = PageRange { start, end: self.end.min(leaf_end) };
            start = part.end;
            Some(part)
        })
    }

    /// Each page.
    pub fn iter(self) -> impl Iterator<Item = PageNumber> {
        (self.start.0..self.end.0).map(PageNumber)
    }
}

/// Pages that hold `bytes`, rounded up.
pub const fn pages_of(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_range_splits_at_leaves() {
        let range = PageRange { start: PageNumber(1000), end: PageNumber(3000) };
        let parts: Vec<_> = range.by_leaf().map(|part| (part.start.0, part.end.0)).collect();
        assert_eq!(parts, [(1000, 1024), (1024, 2048), (2048, 3000)]);
    }

    #[test]
    fn bytes_touch_their_last_page() {
        assert_eq!(PageRange::touching(PAGE_SIZE - 1, 2).pages(), 2);
        assert_eq!(PageRange::touching(PAGE_SIZE, 0).pages(), 0);
    }
}
