//! Read-ahead on a device: what follows an object is read with it while accesses are in order.
//!
//! Objects that were evicted together lie side by side, so this follows the order of eviction, as the
//! kernel's read-ahead by clusters does, whatever the addresses. What was read stays sealed until it
//! is asked for.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::io::Buffer;
use crate::lock::SpinLock;

/// Bytes that are read at once, at most.
pub const WINDOW_MAX: usize = 128 << 10;

/// Bytes that are read after the first step that was in order.
const WINDOW_MIN: usize = 16 << 10;

/// Blocks that may lie between two accesses that are in order: objects that were freed or are zero.
const GAP_BLOCKS: u32 = 64;

/// Ranges that are kept: as many threads may read in order, each at a place of its own.
const RANGES: usize = 3;

/// Blocks that were read, and are still what they were then.
#[derive(Debug)]
struct Range {
    first: u32,
    blocks: u32,
    block_bytes: usize,
    buffer: Buffer<'static>,
}

/// What is kept of one device.
#[derive(Debug)]
pub struct ReadAhead {
    ranges: [SpinLock<Option<Range>>; RANGES],
    next: AtomicU32,
    /// Behind the last object that was asked for.
    expected: AtomicU32,
    window: AtomicU32,
    /// Writes begun; what was read during one may be older than it.
    writes: AtomicU64,
}

impl ReadAhead {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            ranges: [const { SpinLock::new(None) }; RANGES],
            next: AtomicU32::new(0),
            expected: AtomicU32::new(0),
            window: AtomicU32::new(0),
            writes: AtomicU64::new(0),
        }
    }

    /// Gives blocks to `take` if they are here. What it says of them is passed on.
    pub fn find<T>(&self, first: u32, blocks: u32, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        for range in &self.ranges {
            let Some(range) = range.try_lock() else { continue };
            let Some(range) = range.as_ref() else { continue };
            if range.first <= first && first + blocks <= range.first + range.blocks {
                let start = (first - range.first) as usize * range.block_bytes;
                let len = blocks as usize * range.block_bytes;
                return Some(take(&range.buffer[start..start + len]));
            }
        }
        None
    }

    /// How many bytes to read from a block on, for an object of so many blocks there.
    pub fn window(&self, first: u32, blocks: u32, block_bytes: usize) -> usize {
        let expected = self.expected.swap(first + blocks, Ordering::Relaxed);
        let object = blocks as usize * block_bytes;
        let in_order = first.wrapping_sub(expected) <= GAP_BLOCKS;
        let window = match self.window.load(Ordering::Relaxed) as usize {
            _ if !in_order => 0,
            window => (2 * window).clamp(WINDOW_MIN, WINDOW_MAX),
        };
        self.window.store(window as u32, Ordering::Relaxed);
        window.max(object)
    }

    /// Notes that an object was found here: the next one is expected behind it.
    pub fn note_found(&self, first: u32, blocks: u32) {
        self.expected.store(first + blocks, Ordering::Relaxed);
    }

    /// How many writes have begun, for [`Self::keep`].
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Keeps what was read, unless something was written since `writes` was asked.
    pub fn keep(&self, first: u32, blocks: u32, buffer: Buffer<'static>, writes: u64) {
        let block_bytes = buffer.len() / blocks.max(1) as usize;
        let index = self.next.fetch_add(1, Ordering::Relaxed) as usize % RANGES;
        let mut range = self.ranges[index].lock();
        // A write that begins from here on finds it, and forgets it.
        if self.writes() == writes {
            *range = Some(Range { first, blocks, block_bytes, buffer });
        }
    }

    /// Forgets what is about to be written.
    pub fn forget(&self, first: u32, blocks: u32) {
        self.writes.fetch_add(1, Ordering::SeqCst);
        for range in &self.ranges {
            let mut range = range.lock();
            let overlaps =
                |range: &Range| first < range.first + range.blocks && range.first < first + blocks;
            if range.as_ref().is_some_and(overlaps) {
                *range = None;
            }
        }
    }

    /// In the child of a fork, where the buffers are empty.
    pub fn reset_after_fork(&self) {
        for range in &self.ranges {
            range.reset_after_fork();
            // The buffers are all taken for free there.
            core::mem::forget(range.lock().take());
        }
    }
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::io::DirectBuffers;

    fn buffer(blocks: u32) -> Buffer<'static> {
        extern crate std;
        let buffers = std::boxed::Box::leak(std::boxed::Box::new(
            DirectBuffers::reserve(&Arena, 1).expect("memory"),
        ));
        let mut buffer = buffers.take(blocks as usize * 512).expect("a buffer");
        for (block, bytes) in buffer.chunks_exact_mut(512).enumerate() {
            bytes.fill(block as u8);
        }
        buffer
    }

    #[test]
    fn the_window_grows_in_order_and_ends_out_of_order() {
        let ahead = ReadAhead::new();
        assert_eq!(ahead.window(1000, 4, 512), 2048);
        assert_eq!(ahead.window(1004, 4, 512), WINDOW_MIN);
        assert_eq!(ahead.window(1010, 4, 512), 2 * WINDOW_MIN);
        assert_eq!(ahead.window(500, 4, 512), 2048);
    }

    #[test]
    fn what_was_read_is_found_until_it_is_written() {
        let ahead = ReadAhead::new();
        ahead.keep(100, 16, buffer(16), ahead.writes());
        assert_eq!(ahead.find(103, 2, |bytes| (bytes.len(), bytes[0])), Some((1024, 3)));
        assert_eq!(ahead.find(115, 2, |_| ()), None);
        ahead.forget(90, 10);
        assert!(ahead.find(100, 1, |_| ()).is_some());
        ahead.forget(115, 1);
        assert!(ahead.find(100, 1, |_| ()).is_none());
    }

    #[test]
    fn what_was_read_during_a_write_is_not_kept() {
        let ahead = ReadAhead::new();
        let before = ahead.writes();
        ahead.forget(100, 16);
        ahead.keep(100, 16, buffer(16), before);
        assert!(ahead.find(100, 1, |_| ()).is_none());
    }
}
