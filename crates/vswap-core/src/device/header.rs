//! The header of a swap area, as `mkswap` writes it into the area's first page.
//!
//! | offset | what |
//! |---|---|
//! | 0 | 1024 bytes for a boot loader, ignored |
//! | 1024 | version, last page, number of bad pages (32 bits each, in the maker's byte order) |
//! | 1036 | UUID, 16 bytes |
//! | 1052 | label, 16 bytes, filled up with zeros |
//! | 1536 | the bad pages, 32 bits each |
//! | page - 10 | `SWAPSPACE2` |
//!
//! What the kernel's `read_swap_header` refuses is refused here. So is a header in the other byte
//! order, which the kernel takes: whoever wrote it may expect to find its data again, and nobody
//! moves swap between machines. Bytes that look like anything else are not a swap area; nothing
//! here ever suggests to make them one.

use crate::page::{PAGE_SIZE, Page};

/// The most bad pages that a header can list.
pub const BAD_PAGES_MAX: usize = (SIGNATURE_AT - BAD_PAGES_AT) / 4;

const VERSION_AT: usize = 1024;
const LAST_PAGE_AT: usize = 1028;
const BAD_COUNT_AT: usize = 1032;
const UUID_AT: usize = 1036;
const LABEL_AT: usize = 1052;
const BAD_PAGES_AT: usize = 1536;
const SIGNATURE_LEN: usize = 10;
const SIGNATURE_AT: usize = PAGE_SIZE - SIGNATURE_LEN;

const SWAP_V1: &[u8] = b"SWAPSPACE2";
const SWAP_V0: &[u8] = b"SWAP-SPACE";

/// What the writers of hibernation images put in the signature's place: kernel, kernel with its
/// own format, uswsusp, TuxOnIce.
const IMAGES: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];

/// What a newer TuxOnIce puts at the very start instead.
const TUXONICE: [u8; 8] = [0xed, 0xc3, 0x02, 0xe9, 0x98, 0x56, 0xe5, 0x0c];

/// What kind of file the area is. A regular file has no bad pages: its blocks are the file
/// system's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// Why the bytes are not a swap area that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Nothing says that this is a swap area.
    #[error("not a swap area: no signature")]
    NoSignature,
    /// The format before Linux 2.1.117.
    #[error("a swap area of the old format (SWAP-SPACE, version 0)")]
    OldFormat,
    /// A suspended system, whose file systems would be lost with it.
    #[error("a hibernation image ({})", signature.escape_ascii())]
    Hibernation {
        /// What was found, without the padding.
        signature: &'static [u8],
    },
    /// The fields are in the other byte order.
    #[error("a swap area made on a machine of the other byte order")]
    ByteSwapped,
    /// A version that nobody has defined.
    #[error("a swap area of version {0}, only version 1 is known")]
    Version(u32),
    /// The header says that there is no page behind it.
    #[error("an empty swap area: the header is its last page")]
    Empty,
    /// The header promises more than the file or device has.
    #[error("the swap area is shorter than its header says ({actual} pages, not {expected})")]
    Truncated {
        /// Pages by the header, which is one of them.
        expected: u64,
        /// Pages of the file or device.
        actual: u64,
    },
    /// The number of bad pages is more than a header has place for.
    #[error("the swap area lists {0} bad pages, a header has place for {BAD_PAGES_MAX}")]
    TooManyBadPages(u32),
    /// A regular file with bad pages.
    #[error("a swap file with bad pages")]
    BadPagesInFile,
    /// A bad page is the header itself or lies behind the end.
    #[error("the swap area lists page {0} as bad, which it does not have")]
    BadPageOutOfRange(u32),
    /// All pages are bad.
    #[error("no page of the swap area is usable")]
    NoUsablePages,
}

/// A swap area by its header.
#[derive(Clone, Copy, Debug)]
pub struct SwapArea<'a> {
    header: &'a [u8; PAGE_SIZE],
    /// Pages of the area. Page 0 is the header.
    pub pages: u64,
    bad_count: usize,
}

impl<'a> SwapArea<'a> {
    /// Reads the header of an area on a file or device of `length` pages.
    ///
    /// # Errors
    /// What was found instead of a swap area that can be used.
    pub fn parse(first: &'a Page, length: u64, kind: AreaKind) -> Result<Self, HeaderError> {
        let header = &first.0;
        check_signature(header)?;
        check_version(header)?;
        let last_page = word(header, LAST_PAGE_AT);
        if last_page == 0 {
            return Err(HeaderError::Empty);
        }
        let pages = u64::from(last_page) + 1;
        if pages > length {
            return Err(HeaderError::Truncated { expected: pages, actual: length });
        }
        let area = Self { header, pages, bad_count: bad_count(header, kind)? };
        area.check_bad_pages(last_page)?;
        Ok(area)
    }

    /// The pages never to be used, in the order of the list. Page 0, the header, is not among
    /// them, and a page may be listed twice.
    pub fn bad_pages(&self) -> impl Iterator<Item = u32> + Clone + use<'a> {
        let header = self.header;
        (0..self.bad_count).map(move |n| word(header, BAD_PAGES_AT + 4 * n))
    }

    /// The UUID; zeros if there is none.
    pub fn uuid(&self) -> [u8; 16] {
        self.field(UUID_AT)
    }

    /// The label, which can be empty, in whatever encoding it was given.
    pub fn label(&self) -> &'a [u8] {
        let label = &self.header[LABEL_AT..LABEL_AT + 16];
        let length = label.iter().position(|&byte| byte == 0).unwrap_or(label.len());
        &label[..length]
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.header[at..at + N]);
        field
    }

    fn check_bad_pages(&self, last_page: u32) -> Result<(), HeaderError> {
        if let Some(page) = self.bad_pages().find(|&page| page == 0 || page > last_page) {
            return Err(HeaderError::BadPageOutOfRange(page));
        }
        // As in the kernel, a page that is listed twice counts twice.
        if self.bad_count >= last_page as usize {
            return Err(HeaderError::NoUsablePages);
        }
        Ok(())
    }
}

fn word(header: &[u8; PAGE_SIZE], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

fn check_signature(header: &[u8; PAGE_SIZE]) -> Result<(), HeaderError> {
    let found = &header[SIGNATURE_AT..];
    if let Some(signature) = IMAGES.into_iter().find(|image| found.starts_with(image)) {
        return Err(HeaderError::Hibernation { signature });
    }
    if header.starts_with(&TUXONICE) {
        return Err(HeaderError::Hibernation { signature: b"TuxOnIce" });
    }
    match found {
        SWAP_V1 => Ok(()),
        SWAP_V0 => Err(HeaderError::OldFormat),
        _ => Err(HeaderError::NoSignature),
    }
}

fn check_version(header: &[u8; PAGE_SIZE]) -> Result<(), HeaderError> {
    match word(header, VERSION_AT) {
        1 => Ok(()),
        version if version.swap_bytes() == 1 => Err(HeaderError::ByteSwapped),
        version => Err(HeaderError::Version(version)),
    }
}

fn bad_count(header: &[u8; PAGE_SIZE], kind: AreaKind) -> Result<usize, HeaderError> {
    let count = word(header, BAD_COUNT_AT);
    if count > 0 && kind == AreaKind::File {
        return Err(HeaderError::BadPagesInFile);
    }
    if count as usize > BAD_PAGES_MAX {
        return Err(HeaderError::TooManyBadPages(count));
    }
    Ok(count as usize)
}

#[cfg(test)]
mod tests;
