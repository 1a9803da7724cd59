//! Ordered access: where the next page of each stream is expected.
//!
//! A program reads several arrays at a time, so what is remembered is not a place per thread or per
//! mapping but a small table of *expected pages* for each direction: the page behind each window that
//! was filled, or the one before it, with the window's size. A fault there, or a little farther, goes
//! on with the stream; a fault anywhere else starts one with a single page, which may go on either
//! way (`sort` merges its arrays from the end). The tables are hints: entries are overwritten and
//! read without a lock.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::address::{PageNumber, PageRange};

/// Places for streams that go up. Each is one more place where a random fault may find one by chance.
const UP: usize = 512;
/// Those for streams that go down, which are fewer.
const DOWN: usize = 128;
/// Neighbouring pages share a place in the table, so that a stream that skips some is found.
const GRANULE_SHIFT: u32 = 3;
/// A stream may skip this part of its last window. One that has just begun skips nothing: in a
/// small memory a random fault often lies a little behind some window.
const SKIPPED_PART: usize = 8;
const WINDOW_BITS: u32 = 16;

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To higher addresses.
    Up,
    /// To lower ones.
    Down,
}

/// A stream that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Where to.
    pub direction: Direction,
    /// Pages of its last window.
    pub window: usize,
}

/// The tables of expected pages.
#[derive(Debug)]
pub struct Streams {
    up: [AtomicU64; UP],
    down: [AtomicU64; DOWN],
}

impl Streams {
    /// Nothing is expected.
    pub const fn new() -> Self {
        Self { up: [const { AtomicU64::new(0) }; UP], down: [const { AtomicU64::new(0) }; DOWN] }
    }

    /// The stream whose last window ended next to `page`; `None` if none did. Forgets it.
    pub fn take(&self, page: PageNumber) -> Option<Stream> {
        let granule = page.0 >> GRANULE_SHIFT;
        let up = [granule, granule.wrapping_sub(1)].into_iter().find_map(|granule| {
            let window = take_at(&self.up, granule, |next| page.0.checked_sub(next))?;
            Some(Stream { direction: Direction::Up, window })
        });
        let mut down = [granule, granule + 1].into_iter();
        up.or_else(|| {
            down.find_map(|granule| {
                let window = take_at(&self.down, granule, |next| next.checked_sub(page.0))?;
                Some(Stream { direction: Direction::Down, window })
            })
        })
    }

    /// Expects a stream to go on next to the pages that were filled: in its direction, or in either if
    /// it has just begun.
    pub fn expect(&self, filled: PageRange, window: usize, direction: Option<Direction>) {
        if direction != Some(Direction::Down) {
            note(&self.up, filled.end.0, window);
        }
        if direction != Some(Direction::Up)
            && let Some(next) = filled.start.0.checked_sub(1)
        {
            note(&self.down, next, window);
        }
    }
}

/// Takes the window of an entry out of a table, if `skipped` tells a number of pages from its expected
/// page on that is small enough.
fn take_at(
    table: &[AtomicU64],
    granule: usize,
    skipped: impl Fn(usize) -> Option<usize>,
) -> Option<usize> {
    let entry = &table[granule % table.len()];
    let packed = entry.load(Ordering::Relaxed);
    let (next, window) = unpack(packed);
    if packed == 0 || skipped(next)? > window / SKIPPED_PART {
        return None;
    }
    entry.store(0, Ordering::Relaxed);
    Some(window)
}

fn note(table: &[AtomicU64], next: usize, window: usize) {
    let entry = &table[(next >> GRANULE_SHIFT) % table.len()];
    entry.store((next as u64) << WINDOW_BITS | window as u64, Ordering::Relaxed);
}

impl Default for Streams {
    fn default() -> Self {
        Self::new()
    }
}

fn unpack(packed: u64) -> (usize, usize) {
    ((packed >> WINDOW_BITS) as usize, packed as usize & ((1 << WINDOW_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: usize, pages: usize) -> PageRange {
        PageRange { start: PageNumber(start), end: PageNumber(start + pages) }
    }

    fn took(streams: &Streams, page: usize) -> Option<(Direction, usize)> {
        streams.take(PageNumber(page)).map(|stream| (stream.direction, stream.window))
    }

    #[test]
    fn a_stream_goes_on_where_its_window_ended() {
        let streams = Streams::new();
        streams.expect(range(968, 32), 32, Some(Direction::Up));
        streams.expect(range(69_996, 4), 4, Some(Direction::Up));
        assert_eq!(took(&streams, 967), None);
        assert_eq!(took(&streams, 999), None);
        assert_eq!(took(&streams, 1004), Some((Direction::Up, 32)));
        assert_eq!(took(&streams, 1004), None);
        assert_eq!(took(&streams, 70_001), None);
        assert_eq!(took(&streams, 70_000), Some((Direction::Up, 4)));
    }

    #[test]
    fn a_stream_goes_down_too() {
        let streams = Streams::new();
        streams.expect(range(1000, 32), 32, Some(Direction::Down));
        assert_eq!(took(&streams, 1000), None);
        assert_eq!(took(&streams, 1032), None);
        assert_eq!(took(&streams, 994), None);
        assert_eq!(took(&streams, 995), Some((Direction::Down, 32)));
        assert_eq!(took(&streams, 995), None);
        // Before the first page of memory nothing is expected.
        streams.expect(range(0, 1), 1, Some(Direction::Down));
    }

    #[test]
    fn one_that_has_just_begun_goes_either_way() {
        for (next, direction) in [(501, Direction::Up), (499, Direction::Down)] {
            let streams = Streams::new();
            streams.expect(range(500, 1), 1, None);
            assert_eq!(took(&streams, 500), None);
            assert_eq!(took(&streams, next), Some((direction, 1)));
        }
    }

    #[test]
    fn random_faults_in_a_small_memory_find_no_stream() {
        const PAGES: usize = 1 << 16;
        let streams = Streams::new();
        let mut page = 12_345_usize;
        let mut around = 0;
        for _ in 0..10_000 {
            page = page.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let place = (page >> 20) % PAGES;
            let stream = streams.take(PageNumber(place));
            let window = stream.map_or(1, |stream| stream.window * 2);
            around += window - 1;
            let start = match stream.map(|stream| stream.direction) {
                Some(Direction::Down) => (place + 1).saturating_sub(window),
                _ => place,
            };
            streams.expect(range(start, window), window, stream.map(|stream| stream.direction));
        }
        assert!(around < 250, "{around} pages in vain for 10000");
    }
}
