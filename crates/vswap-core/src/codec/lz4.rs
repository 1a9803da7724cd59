//! LZ4, by the C library.
//!
//! Its object file imports `malloc`, `calloc`, `free`, `memcpy`, `memmove` and `memset` (`nm -u` on
//! liblz4.a), and nothing of threads, errno or thread-local storage. The first three serve functions
//! that create streams; those used here reach none of them, since the state is ours and
//! decompression has none (`tests/codec_malloc.rs` counts).

use core::ffi::{c_char, c_int, c_void};
use core::ptr::NonNull;

use lz4_sys as _;

use super::{Codec, Corrupt};
use crate::page::{PAGE_SIZE, Page};
use crate::platform::Platform;

unsafe extern "C" {
    fn LZ4_sizeofState() -> c_int;
    fn LZ4_compress_fast_extState_fastReset(
        state: *mut c_void,
        source: *const c_char,
        destination: *mut c_char,
        source_len: c_int,
        destination_len: c_int,
        acceleration: c_int,
    ) -> c_int;
    fn LZ4_decompress_safe(
        source: *const c_char,
        destination: *mut c_char,
        source_len: c_int,
        destination_len: c_int,
    ) -> c_int;
}

/// LZ4 with the state for one thread that compresses.
#[derive(Debug)]
pub struct Lz4 {
    state: NonNull<u8>,
}

// SAFETY: the state is memory that only this value refers to.
unsafe impl Send for Lz4 {}

impl Lz4 {
    /// Reserves the state; none if the platform has no more memory.
    pub fn new<P: Platform>(platform: &P) -> Option<Self> {
        Some(Self { state: platform.reserve(state_len(), PAGE_SIZE)? })
    }

    /// Bytes of the state.
    pub fn reserved(&self) -> usize {
        state_len()
    }

    /// Gives the state back to the platform that it came from.
    pub fn release<P: Platform>(self, platform: &P) {
        // SAFETY: reserved in `new` with this length, and nobody else refers to it.
        unsafe { platform.unreserve(self.state, state_len()) };
    }

    /// Restores a page. Needs no state, so that any thread may do it.
    ///
    /// # Errors
    /// [`Corrupt`] unless `bytes` decode to exactly one page.
    #[inline]
    pub fn restore(bytes: &[u8], page: &mut Page) -> Result<(), Corrupt> {
        let len = c_int::try_from(bytes.len()).map_err(|_| Corrupt)?;
        // SAFETY: both ranges are valid for these lengths and do not overlap; the function reads
        // and writes within them whatever the bytes are.
        let written = unsafe {
            LZ4_decompress_safe(
                bytes.as_ptr().cast(),
                page.0.as_mut_ptr().cast(),
                len,
                PAGE_SIZE as c_int,
            )
        };
        if written == PAGE_SIZE as c_int { Ok(()) } else { Err(Corrupt) }
    }
}

impl Codec for Lz4 {
    #[inline]
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        let room = c_int::try_from(out.len()).unwrap_or(c_int::MAX);
        // SAFETY: the ranges are valid for these lengths; the state is large enough, aligned, ours
        // alone, and initialized: it began as zeros, which is what LZ4_initStream makes of it, and
        // a call with a page of input leaves it reusable whether or not the output fitted.
        let written = unsafe {
            LZ4_compress_fast_extState_fastReset(
                self.state.as_ptr().cast(),
                page.0.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                PAGE_SIZE as c_int,
                room,
                1,
            )
        };
        usize::try_from(written).ok().filter(|&len| len > 0)
    }

    #[inline]
    fn decompress(&mut self, bytes: &[u8], page: &mut Page) -> Result<(), Corrupt> {
        Self::restore(bytes, page)
    }
}

fn state_len() -> usize {
    // SAFETY: a function without arguments that returns a constant.
    let len = unsafe { LZ4_sizeofState() };
    (len as usize).next_multiple_of(PAGE_SIZE)
}
