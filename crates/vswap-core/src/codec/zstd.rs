//! Zstandard, by the C library, in static contexts.
//!
//! A static context lives in memory that its user hands over and fails rather than ask for more.
//! That makes it fit for a place without malloc: the library's object files import `malloc`,
//! `calloc`, `free`, `memcpy`, `memmove` and `memset` and nothing else from outside (`nm -u` on
//! libzstd.a as built without `zstdmt`: no pthread function, no errno, no thread-local storage), and
//! with a static context the first three are not reached (`tests/codec_malloc.rs` counts). Working
//! memory for both directions is 172 KiB at levels up to 1 and 368 at the highest; the deepest stack
//! seen was 2 KiB.
//!
//! Frames have no magic number, no length and no checksum: each holds one page, and what the pool
//! returns was in memory all along.

use core::ffi::c_int;
use core::ptr::NonNull;

use zstd_sys::{
    ZSTD_CCtx, ZSTD_DCtx, ZSTD_cParameter as CParameter, ZSTD_dParameter as DParameter,
    ZSTD_format_e as Format,
};

use super::{Codec, Corrupt};
use crate::page::{PAGE_SIZE, Page};
use crate::platform::Platform;

/// Levels outside this range gain nothing on a page.
pub const LEVELS: core::ops::RangeInclusive<i32> = -7..=19;

/// No level needs as much for one page of input; a library that wants more is refused.
const CONTEXT_MAX: usize = 1 << 20;

/// Zstandard at one level, with the contexts for one thread.
///
/// Both contexts lie in one reservation and are set up by their first use, so that a worker that
/// only compresses never touches the memory for the other direction.
#[derive(Debug)]
pub struct Zstd {
    level: i32,
    memory: NonNull<u8>,
    compress_len: usize,
    decompress_len: usize,
    compressor: Option<NonNull<ZSTD_CCtx>>,
    decompressor: Option<NonNull<ZSTD_DCtx>>,
}

// SAFETY: the contexts are memory that only this value refers to, and belong to no thread.
unsafe impl Send for Zstd {}

impl Zstd {
    /// Reserves the contexts for a level, which is brought into [`LEVELS`]; none if the platform
    /// has no more memory.
    pub fn new<P: Platform>(level: i32, platform: &P) -> Option<Self> {
        let level = level.clamp(*LEVELS.start(), *LEVELS.end());
        // SAFETY: three functions that compute from their arguments alone.
        let (compress_len, decompress_len) = unsafe {
            let parameters = zstd_sys::ZSTD_getCParams(level, PAGE_SIZE as u64, 0);
            (
                zstd_sys::ZSTD_estimateCCtxSize_usingCParams(parameters),
                zstd_sys::ZSTD_estimateDCtxSize(),
            )
        };
        if compress_len > CONTEXT_MAX || decompress_len > CONTEXT_MAX {
            return None;
        }
        let compress_len = compress_len.next_multiple_of(PAGE_SIZE);
        let decompress_len = decompress_len.next_multiple_of(PAGE_SIZE);
        let memory = platform.reserve(compress_len + decompress_len, PAGE_SIZE)?;
        Some(Self {
            level,
            memory,
            compress_len,
            decompress_len,
            compressor: None,
            decompressor: None,
        })
    }

    /// Gives the contexts back to the platform that their memory came from.
    pub fn release<P: Platform>(self, platform: &P) {
        // SAFETY: reserved in `new` with this length; the contexts in it go with this value.
        unsafe { platform.unreserve(self.memory, self.reserved()) };
    }

    /// Bytes reserved for working memory.
    pub fn reserved(&self) -> usize {
        self.compress_len + self.decompress_len
    }

    fn compressor(&mut self) -> Option<NonNull<ZSTD_CCtx>> {
        if self.compressor.is_none() {
            // SAFETY: the first part of the reservation is ours, unused, and aligned to a page.
            let context = NonNull::new(unsafe {
                zstd_sys::ZSTD_initStaticCCtx(self.memory.as_ptr().cast(), self.compress_len)
            })?;
            let format = Format::ZSTD_f_zstd1_magicless as c_int;
            for (parameter, value) in [
                (CParameter::ZSTD_c_compressionLevel, self.level),
                (CParameter::ZSTD_c_experimentalParam2, format),
                (CParameter::ZSTD_c_contentSizeFlag, 0),
                (CParameter::ZSTD_c_checksumFlag, 0),
                (CParameter::ZSTD_c_dictIDFlag, 0),
            ] {
                // SAFETY: the context was just made.
                succeed(unsafe {
                    zstd_sys::ZSTD_CCtx_setParameter(context.as_ptr(), parameter, value)
                })?;
            }
            self.compressor = Some(context);
        }
        self.compressor
    }

    fn decompressor(&mut self) -> Option<NonNull<ZSTD_DCtx>> {
        if self.decompressor.is_none() {
            // SAFETY: the second part of the reservation is ours, unused, and aligned to a page.
            let context = NonNull::new(unsafe {
                let memory = self.memory.add(self.compress_len);
                zstd_sys::ZSTD_initStaticDCtx(memory.as_ptr().cast(), self.decompress_len)
            })?;
            let format = Format::ZSTD_f_zstd1_magicless as c_int;
            let parameter = DParameter::ZSTD_d_experimentalParam1;
            // SAFETY: the context was just made.
            succeed(unsafe {
                zstd_sys::ZSTD_DCtx_setParameter(context.as_ptr(), parameter, format)
            })?;
            self.decompressor = Some(context);
        }
        self.decompressor
    }
}

impl Codec for Zstd {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        let context = self.compressor()?;
        // SAFETY: the context is set up and ours alone, the ranges are valid for these lengths.
        // After an error, the call starts anew.
        succeed(unsafe {
            zstd_sys::ZSTD_compress2(
                context.as_ptr(),
                out.as_mut_ptr().cast(),
                out.len(),
                page.0.as_ptr().cast(),
                PAGE_SIZE,
            )
        })
    }

    fn decompress(&mut self, bytes: &[u8], page: &mut Page) -> Result<(), Corrupt> {
        let context = self.decompressor().ok_or(Corrupt)?;
        // SAFETY: the context is set up and ours alone, the ranges are valid for these lengths, and
        // the function stays within them whatever the bytes are.
        let written = succeed(unsafe {
            zstd_sys::ZSTD_decompressDCtx(
                context.as_ptr(),
                page.0.as_mut_ptr().cast(),
                PAGE_SIZE,
                bytes.as_ptr().cast(),
                bytes.len(),
            )
        });
        if written == Some(PAGE_SIZE) { Ok(()) } else { Err(Corrupt) }
    }
}

fn succeed(result: usize) -> Option<usize> {
    // SAFETY: a function of its argument alone.
    (unsafe { zstd_sys::ZSTD_isError(result) } == 0).then_some(result)
}
