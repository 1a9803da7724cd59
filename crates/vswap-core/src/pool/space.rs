//! The pool's address space: segments by number, in pieces that are reserved as the pool grows.
//!
//! A piece is one reservation: the headers of its segments, then their data. Headers and data never
//! share a page, so that a free after fork copies bookkeeping only. A table of pieces makes a number
//! an address in two loads; it is a sparse reservation itself. Pieces are kept until the pool is
//! dropped: what they cost when empty is addresses.

use core::ptr::NonNull;

use super::segment::{Header, SEGMENT_SHIFT, SEGMENT_SIZE};
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::sync::{AtomicPtr, AtomicU32, Ordering, SpinLock};

/// Bits of a segment's number: 32 TiB of slots that are a page long, 2^35 objects of any size.
pub const SEGMENT_BITS: u32 = 27;

/// 64 MiB to a piece: small enough to be had under `ulimit -v`.
const PIECE_BITS: u32 = 26 - SEGMENT_SHIFT;
const PIECE_SEGMENTS: usize = 1 << PIECE_BITS;
const HEADERS_LEN: usize = PIECE_SEGMENTS * size_of::<Header>();
const PIECE_LEN: usize = HEADERS_LEN + PIECE_SEGMENTS * SEGMENT_SIZE;
const PIECES_MAX: usize = 1 << (SEGMENT_BITS - PIECE_BITS);
const TABLE_LEN: usize = PIECES_MAX * size_of::<AtomicPtr<u8>>();

const _: () = assert!(HEADERS_LEN.is_multiple_of(PAGE_SIZE));

/// Address space for segments, and which of them are free.
#[derive(Debug)]
pub struct Space {
    table: AtomicPtr<AtomicPtr<u8>>,
    /// Segments below this number exist. Written under the lock.
    known: AtomicU32,
    free: SpinLock<u32>,
}

/// A segment: its header and where its slots begin.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Its number.
    pub number: u32,
    /// Its bookkeeping.
    pub header: &'a Header,
    /// Its first slot.
    pub data: NonNull<u8>,
}

impl Space {
    /// Holds nothing and has reserved nothing.
    pub const fn new() -> Self {
        Self {
            table: AtomicPtr::new(core::ptr::null_mut()),
            known: AtomicU32::new(0),
            free: SpinLock::new(0),
        }
    }

    /// How many segments have ever been used; their numbers are the ones below.
    pub fn known(&self) -> u32 {
        self.known.load(Ordering::Acquire)
    }

    /// The segment of that number, which must be known.
    #[inline]
    pub fn segment(&self, number: u32) -> Segment<'_> {
        // Relaxed, twice: whoever has a number got it from somebody who saw the piece come to be,
        // and everything that publishes a number publishes that as well.
        let table = self.table.load(Ordering::Relaxed);
        debug_assert!(!table.is_null() && number < self.known());
        let within = number as usize % PIECE_SEGMENTS;
        // SAFETY: the number is known, so the table exists, has an entry for the piece, and the
        // entry points at a piece, which has this many headers and segments and is never moved.
        unsafe {
            let piece = (*table.add(number as usize / PIECE_SEGMENTS)).load(Ordering::Relaxed);
            Segment {
                number,
                header: &*piece.cast::<Header>().add(within),
                data: NonNull::new_unchecked(piece.add(HEADERS_LEN + within * SEGMENT_SIZE)),
            }
        }
    }

    /// A free segment for the caller alone, or none if there is no address space left.
    pub fn take<P: Platform>(&self, platform: &P) -> Option<Segment<'_>> {
        let mut free = self.free.lock(platform);
        if let Some(number) = free.checked_sub(1) {
            let segment = self.segment(number);
            *free = segment.header.next.load(Ordering::Relaxed);
            return Some(segment);
        }
        let number = self.known.load(Ordering::Relaxed);
        if number >= 1 << SEGMENT_BITS {
            return None;
        }
        if (number as usize).is_multiple_of(PIECE_SEGMENTS) {
            self.add_piece(number as usize / PIECE_SEGMENTS, platform)?;
        }
        // Release pairs with `known`: who sees the number sees the piece in the table.
        self.known.store(number + 1, Ordering::Release);
        Some(self.segment(number))
    }

    /// Takes back a segment that is free and holds no physical memory.
    pub fn give<P: Platform>(&self, segment: Segment<'_>, platform: &P) {
        let mut free = self.free.lock(platform);
        segment.header.next.store(*free, Ordering::Relaxed);
        *free = segment.number + 1;
    }

    fn add_piece<P: Platform>(&self, piece: usize, platform: &P) -> Option<()> {
        let mut table = self.table.load(Ordering::Relaxed);
        if table.is_null() {
            table = platform.reserve(TABLE_LEN, PAGE_SIZE)?.as_ptr().cast();
            self.table.store(table, Ordering::Relaxed);
        }
        let memory = platform.reserve(PIECE_LEN, PAGE_SIZE)?;
        // SAFETY: the table has PIECES_MAX entries, and zeros are null pointers.
        unsafe { (*table.add(piece)).store(memory.as_ptr(), Ordering::Relaxed) };
        Some(())
    }

    /// Pages of physical memory behind headers and table: they are touched in the order of numbers.
    pub fn metadata_pages(&self) -> usize {
        let segments = self.known() as usize;
        let headers = segments.div_ceil(PAGE_SIZE / size_of::<Header>());
        let table = segments.div_ceil(PIECE_SEGMENTS) * size_of::<AtomicPtr<u8>>();
        headers + table.div_ceil(PAGE_SIZE)
    }

    /// Gives back everything.
    ///
    /// # Safety
    /// No reference to a segment or an object is left.
    pub unsafe fn destroy<P: Platform>(&mut self, platform: &P) {
        let Some(table) = NonNull::new(self.table.load(Ordering::Relaxed)) else { return };
        for piece in 0..(self.known() as usize).div_ceil(PIECE_SEGMENTS) {
            // SAFETY: pieces of known segments are in the table, and nothing refers to them.
            unsafe {
                let memory = (*table.as_ptr().add(piece)).load(Ordering::Relaxed);
                platform.unreserve(NonNull::new_unchecked(memory), PIECE_LEN);
            }
        }
        // SAFETY: reserved in `add_piece` with this length.
        unsafe { platform.unreserve(table.cast(), TABLE_LEN) };
    }
}
