//! Compression of single pages.
//!
//! Codecs run where the program's malloc is swapped out and thread-local storage is out of reach. So
//! a codec's working memory is its owner's: a [`Scratch`] is made by each worker that compresses, in
//! address space of the platform, and reused for every page.

mod lz4;
pub mod zstd;

pub use lz4::Lz4;
pub use zstd::Zstd;

use crate::page::Page;
use crate::platform::Platform;

/// Compressed bytes that do not decode to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the compressed page is corrupt")]
pub struct Corrupt;

/// Turns pages into fewer bytes, and back. Neither direction panics, whatever the bytes.
pub trait Codec {
    /// Compresses `page` into `out` and returns the length, or none if it does not fit there.
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize>;

    /// Restores a page.
    ///
    /// # Errors
    /// [`Corrupt`] unless `bytes` decode to exactly one page. `page` may have been written then.
    fn decompress(&mut self, bytes: &[u8], page: &mut Page) -> Result<(), Corrupt>;
}

/// Which codec compresses new objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecKind {
    /// The fast one.
    Lz4,
    /// The thorough one, at a level of [`zstd::LEVELS`].
    Zstd(i32),
    /// Pages stay as they are.
    None,
}

/// One worker's codec with its working memory, which goes back with [`Scratch::release`]. It keeps
/// no platform, so that a worker's type does not depend on the host's.
#[derive(Debug)]
pub enum Scratch {
    /// See [`Lz4`].
    Lz4(Lz4),
    /// See [`Zstd`].
    Zstd(Zstd),
    /// Nothing to work with.
    None,
}

impl Scratch {
    /// Working memory for a codec; none if the platform has no more.
    pub fn new<P: Platform>(kind: CodecKind, platform: &P) -> Option<Self> {
        Some(match kind {
            CodecKind::Lz4 => Self::Lz4(Lz4::new(platform)?),
            CodecKind::Zstd(level) => Self::Zstd(Zstd::new(level, platform)?),
            CodecKind::None => Self::None,
        })
    }

    /// Bytes of the working memory.
    pub fn reserved(&self) -> usize {
        match self {
            Self::Lz4(codec) => codec.reserved(),
            Self::Zstd(codec) => codec.reserved(),
            Self::None => 0,
        }
    }

    /// Gives the working memory back to the platform that it came from.
    pub fn release<P: Platform>(self, platform: &P) {
        match self {
            Self::Lz4(codec) => codec.release(platform),
            Self::Zstd(codec) => codec.release(platform),
            Self::None => {}
        }
    }
}

impl Codec for Scratch {
    #[inline]
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        match self {
            Self::Lz4(codec) => codec.compress(page, out),
            Self::Zstd(codec) => codec.compress(page, out),
            Self::None => {
                out.get_mut(..page.0.len())?.copy_from_slice(&page.0);
                Some(page.0.len())
            }
        }
    }

    #[inline]
    fn decompress(&mut self, bytes: &[u8], page: &mut Page) -> Result<(), Corrupt> {
        match self {
            Self::Lz4(codec) => codec.decompress(bytes, page),
            Self::Zstd(codec) => codec.decompress(bytes, page),
            Self::None => {
                page.0 = bytes.try_into().map_err(|_| Corrupt)?;
                Ok(())
            }
        }
    }
}
