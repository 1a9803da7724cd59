//! Read-ahead on a device: what follows an object is read with it while accesses are in order.
//!
//! Objects that were evicted together lie side by side with those of their size, so this follows the order
//! of eviction for each size, as the kernel's read-ahead by clusters does, whatever the addresses. Several
//! places are followed at once: a merge reads two runs. What was read stays sealed until it is asked
//! for.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswap_core::device::space::OBJECT_BLOCKS_MAX;

use crate::io::Buffer;
use crate::lock::SpinLock;

/// Bytes that are read at once, at most.
pub const WINDOW_MAX: usize = 64 << 10;

/// Bytes that are read after the first step that was in order.
const WINDOW_MIN: usize = 16 << 10;

/// Blocks that may lie between two accesses that are in order: objects that were freed or are zero.
const GAP_BLOCKS: u32 = 64;

/// Sizes of objects, in blocks; and there is no object of none.
const SIZES: usize = OBJECT_BLOCKS_MAX + 1;

/// Places that are followed for each size.
const PLACES: usize = 3;

/// Blocks that were read, and are still what they were then.
#[derive(Debug)]
struct Range {
    first: u32,
    blocks: u32,
    block_bytes: usize,
    buffer: Buffer<'static>,
}

/// Accesses in order to objects of one size.
#[derive(Debug)]
struct Stream {
    range: SpinLock<Option<Range>>,
    /// Behind the last object that was asked for.
    expected: AtomicU32,
    window: AtomicU32,
    /// When it was last of use, in accesses that were not found here.
    used: AtomicU32,
}

/// What to read for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From its first block on.
    pub bytes: usize,
    /// Which of the places it is.
    place: usize,
}

/// What is kept of one device.
#[derive(Debug)]
pub struct ReadAhead {
    streams: [[Stream; PLACES]; SIZES],
    accesses: AtomicU32,
    /// Writes that began and that ended; what was read during one may be older than it.
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A write under way, which ends when this is dropped.
#[derive(Debug)]
#[must_use = "the write is under way for as long as this lives"]
pub struct Writing<'a>(&'a ReadAhead);

impl Writing<'_> {
    /// Forgets what is about to be written.
    pub fn forget(&self, first: u32, blocks: u32) {
        for stream in self.0.streams.as_flattened() {
            let mut range = stream.range.lock();
            let overlaps =
                |range: &Range| first < range.first + range.blocks && range.first < first + blocks;
            if range.as_ref().is_some_and(overlaps) {
                *range = None;
            }
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl ReadAhead {
    /// Nothing.
    pub const fn new() -> Self {
        Self {
            streams: [const {
                [const {
                    Stream {
                        range: SpinLock::new(None),
                        expected: AtomicU32::new(0),
                        window: AtomicU32::new(0),
                        used: AtomicU32::new(0),
                    }
                }; PLACES]
            }; SIZES],
            accesses: AtomicU32::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// Gives an object's blocks to `take` if they are here. What it says of them is passed on.
    pub fn find<T>(&self, first: u32, blocks: u8, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let end = first + u32::from(blocks);
        for stream in &self.streams[usize::from(blocks)] {
            let Some(range) = stream.range.try_lock() else { continue };
            let Some(range) = range.as_ref() else { continue };
            if range.first <= first && end <= range.first + range.blocks {
                stream.expected.store(end, Ordering::Relaxed);
                let start = (first - range.first) as usize * range.block_bytes;
                let len = usize::from(blocks) * range.block_bytes;
                return Some(take(&range.buffer[start..start + len]));
            }
        }
        None
    }

    /// What to read for an object of so many blocks, from a block on.
    pub fn window(&self, first: u32, blocks: u8, block_bytes: usize) -> Window {
        let now = self.accesses.fetch_add(1, Ordering::Relaxed);
        let streams = &self.streams[usize::from(blocks)];
        let follows = |stream: &Stream| {
            first.wrapping_sub(stream.expected.load(Ordering::Relaxed)) <= GAP_BLOCKS
        };
        let in_order = streams.iter().position(follows);
        let idle = |place: &usize| now.wrapping_sub(streams[*place].used.load(Ordering::Relaxed));
        let place = in_order.or_else(|| (0..PLACES).max_by_key(idle)).unwrap_or(0);
        let stream = &streams[place];
        let window = match stream.window.load(Ordering::Relaxed) as usize {
            _ if in_order.is_none() => 0,
            window => (2 * window).clamp(WINDOW_MIN, WINDOW_MAX),
        };
        stream.window.store(window as u32, Ordering::Relaxed);
        stream.expected.store(first + u32::from(blocks), Ordering::Relaxed);
        stream.used.store(now, Ordering::Relaxed);
        Window { bytes: window.max(usize::from(blocks) * block_bytes), place }
    }

    /// A moment without a write, for [`Self::keep`]; `None` while one is under way.
    pub fn moment(&self) -> Option<Moment> {
        // In this order: no more writes have ended than had begun when the second is read, so that
        // equal numbers say that none was under way at the first.
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        (begun == ended).then_some(Moment(begun))
    }

    /// Keeps what was read for an object, if nothing was being written from before the read until now.
    pub fn keep(&self, first: u32, blocks: u8, block_bytes: usize, read: Read) {
        let count = (read.buffer.len() / block_bytes) as u32;
        let mut range = self.streams[usize::from(blocks)][read.window.place].range.lock();
        // A write that begins from here on finds it, and forgets it.
        if read.since.is_some_and(|Moment(begun)| begun == self.begun.load(Ordering::SeqCst)) {
            *range = Some(Range { first, blocks: count, block_bytes, buffer: read.buffer });
        }
    }

    /// Keeps nothing from now on that is read before the write has ended.
    pub fn begin_write(&self) -> Writing<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        Writing(self)
    }

    /// Gives all buffers back.
    pub fn give_up(&self) {
        for stream in self.streams.as_flattened() {
            *stream.range.lock() = None;
        }
    }

    /// In the child of a fork, where the buffers are empty.
    pub fn reset_after_fork(&self) {
        for stream in self.streams.as_flattened() {
            stream.range.reset_after_fork();
            // The buffers are all taken for free there.
            core::mem::forget(stream.range.lock().take());
        }
    }
}

/// A moment at which no write was under way, by how many had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

/// What was read, and since when.
#[derive(Debug)]
pub struct Read {
    /// The blocks.
    pub buffer: Buffer<'static>,
    /// [`ReadAhead::moment`], from before the read.
    pub since: Option<Moment>,
    /// What was to be read.
    pub window: Window,
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
        let bytes = |first, blocks| ahead.window(first, blocks, 512).bytes;
        assert_eq!(bytes(1000, 4), 2048);
        assert_eq!(bytes(1004, 4), WINDOW_MIN);
        // Objects of another size are elsewhere.
        assert_eq!(bytes(7000, 5), 2560);
        assert_eq!(bytes(1010, 4), 2 * WINDOW_MIN);
        // Two more places, in turns.
        assert_eq!((bytes(5000, 4), bytes(9000, 4)), (2048, 2048));
        assert_eq!((bytes(5004, 4), bytes(9004, 4)), (WINDOW_MIN, WINDOW_MIN));
        // Another one takes the place of the one that was of no use for longest.
        assert_eq!(bytes(500, 4), 2048);
        assert_eq!(bytes(1014, 4), 2048);
    }

    fn read(ahead: &ReadAhead) -> Read {
        let window = Window { bytes: 16 * 512, place: 0 };
        Read { buffer: buffer(16), since: ahead.moment(), window }
    }

    #[test]
    fn what_was_read_is_found_until_it_is_written() {
        let ahead = ReadAhead::new();
        ahead.keep(100, 2, 512, read(&ahead));
        assert_eq!(ahead.find(103, 2, |bytes| (bytes.len(), bytes[0])), Some((1024, 3)));
        assert_eq!(ahead.find(115, 2, |_| ()), None);
        ahead.begin_write().forget(90, 10);
        assert!(ahead.find(100, 2, |_| ()).is_some());
        ahead.begin_write().forget(115, 1);
        assert!(ahead.find(100, 2, |_| ()).is_none());
    }

    #[test]
    fn what_was_read_during_a_write_is_not_kept() {
        // The write begins after the read, or before it, and ends before it or after it.
        let ahead = ReadAhead::new();
        let before = read(&ahead);
        let writing = ahead.begin_write();
        let during = read(&ahead);
        ahead.keep(100, 1, 512, before);
        assert!(ahead.find(100, 1, |_| ()).is_none());
        drop(writing);
        ahead.keep(100, 1, 512, during);
        assert!(ahead.find(100, 1, |_| ()).is_none());
        ahead.keep(100, 1, 512, read(&ahead));
        assert!(ahead.find(100, 1, |_| ()).is_some());
    }
}
