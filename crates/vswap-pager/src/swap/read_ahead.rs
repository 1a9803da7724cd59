//! Read-ahead on a device: what follows an object is read with it while accesses are in order.
//!
//! Objects that were evicted together lie side by side with those of their size, so this follows the order
//! of eviction for each size, as the kernel's read-ahead by clusters does, whatever the addresses. Several
//! places are followed at once: a merge reads two runs. What was read stays sealed until it is asked
//! for.

use core::sync::atomic::{AtomicU32, Ordering};

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

/// Parts of writes that are remembered: more than begin while a read is under way.
const WRITES_MAX: usize = 128;

/// Blocks that were read, and are still what they were then.
#[derive(Debug)]
pub struct Range {
    /// The first block.
    pub first: u32,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// All of them.
    pub buffer: Buffer<'static>,
}

impl Range {
    fn end(&self) -> u32 {
        self.first + (self.buffer.len() / self.block_bytes) as u32
    }

    /// Whether any of these blocks is among them.
    pub fn overlaps(&self, first: u32, blocks: u32) -> bool {
        first < self.end() && self.first < first + blocks
    }

    /// An object's blocks, if they are here.
    pub fn object(&self, first: u32, blocks: u8) -> Option<&[u8]> {
        if first < self.first || first + u32::from(blocks) > self.end() {
            return None;
        }
        let start = (first - self.first) as usize * self.block_bytes;
        Some(&self.buffer[start..start + usize::from(blocks) * self.block_bytes])
    }
}

/// What was written of late, and what is being written.
#[derive(Debug)]
struct Writes {
    /// The first block of each part and the one behind it, in turns.
    parts: [(u32, u32); WRITES_MAX],
    noted: u64,
    /// Writes that have begun and not ended, and what was noted before the first of them.
    under_way: u32,
    since: u64,
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
    writes: SpinLock<Writes>,
}

/// A write under way, which ends when this is dropped.
#[derive(Debug)]
#[must_use = "the write is under way for as long as this lives"]
pub struct Writing<'a>(&'a ReadAhead);

impl Writing<'_> {
    /// Forgets what is about to be written.
    pub fn forget(&self, first: u32, blocks: u32) {
        let mut writes = self.0.writes.lock();
        let place = writes.noted as usize % WRITES_MAX;
        writes.parts[place] = (first, first + blocks);
        writes.noted += 1;
        drop(writes);
        // Noted first: what a read gives from here on is not kept, and what was kept before goes now.
        for stream in self.0.streams.as_flattened() {
            let mut range = stream.range.lock();
            if range.as_ref().is_some_and(|range| range.overlaps(first, blocks)) {
                *range = None;
            }
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writes.lock().under_way -= 1;
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
            writes: SpinLock::new(Writes {
                parts: [(0, 0); WRITES_MAX],
                noted: 0,
                under_way: 0,
                since: 0,
            }),
        }
    }

    /// Gives an object's blocks to `take` if they are here. What it says of them is passed on.
    pub fn find<T>(&self, first: u32, blocks: u8, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        for stream in &self.streams[usize::from(blocks)] {
            let Some(range) = stream.range.try_lock() else { continue };
            if let Some(sealed) = range.as_ref().and_then(|range| range.object(first, blocks)) {
                stream.expected.store(first + u32::from(blocks), Ordering::Relaxed);
                return Some(take(sealed));
            }
        }
        None
    }

    /// Whether an object's blocks are here.
    pub fn holds(&self, first: u32, blocks: u8) -> bool {
        let streams = &self.streams[usize::from(blocks)];
        streams
            .iter()
            .filter_map(|stream| stream.range.try_lock())
            .any(|range| range.as_ref().is_some_and(|range| range.object(first, blocks).is_some()))
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

    /// Now, for [`Self::keep`]: writes that are under way count as later ones.
    pub fn moment(&self) -> Moment {
        let writes = self.writes.lock();
        Moment(if writes.under_way > 0 { writes.since } else { writes.noted })
    }

    /// Whether any of these blocks may have been written since a moment.
    pub fn was_written(&self, since: Moment, first: u32, blocks: u32) -> bool {
        let writes = self.writes.lock();
        let parts = writes.noted - since.0;
        let overlaps = |n: u64| {
            let (start, end) = writes.parts[n as usize % WRITES_MAX];
            first < end && start < first + blocks
        };
        parts > WRITES_MAX as u64 || (since.0..writes.noted).any(overlaps)
    }

    /// Keeps what was read for an object, if none of it was being written from before the read until now.
    pub fn keep(&self, first: u32, blocks: u8, block_bytes: usize, read: Read) {
        let Read { buffer, since, window } = read;
        let mut range = self.streams[usize::from(blocks)][window.place].range.lock();
        // A write that is noted from here on finds it, and forgets it.
        if !self.was_written(since, first, (buffer.len() / block_bytes) as u32) {
            *range = Some(Range { first, block_bytes, buffer });
        }
    }

    /// Begins a write, which [notes](Writing::forget) its parts.
    pub fn begin_write(&self) -> Writing<'_> {
        let mut writes = self.writes.lock();
        if writes.under_way == 0 {
            writes.since = writes.noted;
        }
        writes.under_way += 1;
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
        self.writes.reset_after_fork();
        for stream in self.streams.as_flattened() {
            stream.range.reset_after_fork();
            // The buffers are all taken for free there.
            core::mem::forget(stream.range.lock().take());
        }
    }
}

/// A moment, by the parts of writes that had been noted and were over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

/// What was read, and since when.
#[derive(Debug)]
pub struct Read {
    /// The blocks.
    pub buffer: Buffer<'static>,
    /// [`ReadAhead::moment`], from before the read.
    pub since: Moment,
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
    fn what_was_read_while_it_was_written_is_not_kept() {
        // The write begins after the read, or before it, and ends before it or after it.
        let ahead = ReadAhead::new();
        let before = read(&ahead);
        let writing = ahead.begin_write();
        writing.forget(115, 1);
        let during = read(&ahead);
        ahead.keep(100, 1, 512, before);
        assert!(ahead.find(100, 1, |_| ()).is_none());
        drop(writing);
        ahead.keep(100, 1, 512, during);
        assert!(ahead.find(100, 1, |_| ()).is_none());
        ahead.keep(100, 1, 512, read(&ahead));
        assert!(ahead.find(100, 1, |_| ()).is_some());
    }

    #[test]
    fn a_write_elsewhere_does_not_count_unless_there_were_too_many() {
        let ahead = ReadAhead::new();
        let (kept, lost) = (read(&ahead), read(&ahead));
        ahead.begin_write().forget(116, 10);
        ahead.keep(100, 1, 512, kept);
        assert!(ahead.holds(100, 1));
        for _ in 0..WRITES_MAX {
            ahead.begin_write().forget(300, 1);
        }
        ahead.keep(200, 1, 512, lost);
        assert!(!ahead.holds(200, 1));
    }
}
