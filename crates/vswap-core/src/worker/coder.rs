//! A worker's codecs with their buffers.

use super::Block;
use crate::codec::{Codec, CodecKind, Corrupt, Lz4, Scratch};
use crate::descriptor::Encoding;
use crate::error::OutOfMemory;
use crate::page::{PAGE_SIZE, Page};
use crate::platform::Platform;

/// Compresses with one codec, and decompresses what any of them made.
#[derive(Debug)]
pub(crate) struct Coder {
    codecs: Codecs,
    /// What `compress` made.
    coded: Block<[u8; PAGE_SIZE]>,
    /// What a backing gave.
    fetched: Block<[u8; PAGE_SIZE]>,
}

#[derive(Debug)]
struct Codecs {
    kind: CodecKind,
    main: Scratch,
    /// A codec other than the main one, made when a request or an object first needs it.
    other: Option<(CodecKind, Scratch)>,
    /// The other codec's memory has not been reported yet.
    grew: bool,
}

/// The name in descriptors of what a codec makes.
pub(crate) const fn encoding_of(kind: CodecKind) -> Encoding {
    match kind {
        CodecKind::Lz4 => Encoding::Lz4,
        CodecKind::Zstd(_) => Encoding::Zstd,
        CodecKind::None => Encoding::Raw,
    }
}

impl Coder {
    pub(super) fn new<P: Platform>(platform: &P, kind: CodecKind) -> Result<Self, OutOfMemory> {
        let coded = Block::<[u8; PAGE_SIZE]>::new(platform)?;
        let fetched = match Block::<[u8; PAGE_SIZE]>::new(platform) {
            Ok(fetched) => fetched,
            Err(error) => {
                coded.release(platform);
                return Err(error);
            }
        };
        let Some(main) = Scratch::new(kind, platform) else {
            coded.release(platform);
            fetched.release(platform);
            return Err(OutOfMemory);
        };
        Ok(Self { codecs: Codecs { kind, main, other: None, grew: false }, coded, fetched })
    }

    pub(crate) fn release<P: Platform>(self, platform: &P) {
        self.codecs.main.release(platform);
        if let Some((_, other)) = self.codecs.other {
            other.release(platform);
        }
        self.coded.release(platform);
        self.fetched.release(platform);
    }

    /// Bytes of memory for codecs and buffers.
    pub(crate) fn memory(&self) -> usize {
        let other = self.codecs.other.as_ref().map_or(0, |(_, other)| other.reserved());
        self.codecs.main.reserved() + other + 2 * PAGE_SIZE
    }

    /// The same, if it has changed since this was last asked.
    #[inline]
    pub(crate) fn grown(&mut self) -> Option<usize> {
        core::mem::take(&mut self.codecs.grew).then(|| self.memory())
    }

    /// Compresses a page with the worker's codec; `None` if the result is longer than `limit`.
    #[inline]
    pub(crate) fn compress(&mut self, page: &Page, limit: usize) -> Option<(&[u8], Encoding)> {
        let Codecs { kind, main, .. } = &mut self.codecs;
        if *kind == CodecKind::None {
            return None;
        }
        let length = main.compress(page, &mut self.coded[..limit])?;
        Some((&self.coded[..length], encoding_of(*kind)))
    }

    /// Compresses a page with a codec of the caller's choice.
    pub(crate) fn compress_with<P: Platform>(
        &mut self,
        platform: &P,
        kind: CodecKind,
        page: &Page,
        limit: usize,
    ) -> Result<Option<(&[u8], Encoding)>, OutOfMemory> {
        let codec = self.codecs.get(platform, kind)?;
        let length = codec.compress(page, &mut self.coded[..limit]);
        Ok(length.map(|length| (&self.coded[..length], encoding_of(kind))))
    }

    /// Restores a page from an object.
    #[inline]
    pub(crate) fn decompress<P: Platform>(
        &mut self,
        platform: &P,
        encoding: Encoding,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), Corrupt> {
        self.codecs.decompress(platform, encoding, object, page)
    }

    /// Lets `fetch` fill a buffer with an object of this length, for [`Self::decompress_fetched`].
    pub(crate) fn fetched(&mut self, length: usize) -> &mut [u8] {
        &mut self.fetched[..length]
    }

    /// Restores a page from what was put into the buffer of [`Self::fetched`].
    pub(crate) fn decompress_fetched<P: Platform>(
        &mut self,
        platform: &P,
        encoding: Encoding,
        length: usize,
        page: &mut Page,
    ) -> Result<(), Corrupt> {
        self.codecs.decompress(platform, encoding, &self.fetched[..length], page)
    }
}

impl Codecs {
    fn get<P: Platform>(
        &mut self,
        platform: &P,
        kind: CodecKind,
    ) -> Result<&mut Scratch, OutOfMemory> {
        if kind == self.kind {
            return Ok(&mut self.main);
        }
        if self.other.as_ref().is_none_or(|(other, _)| *other != kind) {
            let scratch = Scratch::new(kind, platform).ok_or(OutOfMemory)?;
            self.grew = true;
            if let Some((_, old)) = self.other.replace((kind, scratch)) {
                old.release(platform);
            }
        }
        self.other.as_mut().map(|(_, scratch)| scratch).ok_or(OutOfMemory)
    }

    #[inline]
    fn decompress<P: Platform>(
        &mut self,
        platform: &P,
        encoding: Encoding,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), Corrupt> {
        match encoding {
            Encoding::Raw => {
                page.0 = object.try_into().map_err(|_| Corrupt)?;
                Ok(())
            }
            Encoding::Lz4 => Lz4::restore(object, page),
            Encoding::Zstd => self.zstd(platform)?.decompress(object, page),
        }
    }

    /// Any zstd codec: all levels decompress alike. Without memory for one, an object cannot be
    /// told from a damaged one.
    fn zstd<P: Platform>(&mut self, platform: &P) -> Result<&mut Scratch, Corrupt> {
        let kind = match (&self.main, &self.other) {
            (Scratch::Zstd(_), _) => self.kind,
            (_, Some((kind @ CodecKind::Zstd(_), _))) => *kind,
            _ => CodecKind::Zstd(1),
        };
        self.get(platform, kind).map_err(|_| Corrupt)
    }
}
