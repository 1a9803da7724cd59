//! Reads /proc/self/maps without allocation.

use linux_raw_sys::general as k;

use super::fd::{self, Fd};
use super::{Errno, result};
use crate::syscall;

/// One mapping of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// First address.
    pub start: usize,
    /// First address behind it.
    pub end: usize,
    /// PROT_ bits.
    pub prot: u32,
    /// Whether writes stay private.
    pub private: bool,
    /// Where in the file it begins.
    pub offset: u64,
    /// Inode of the file, 0 for anonymous memory.
    pub inode: u64,
    /// Path, or a name in brackets, or nothing.
    pub name: &'a [u8],
}

impl Mapping<'_> {
    /// Whether an address lies in it.
    pub fn contains(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Calls `found` for each mapping, in ascending order.
///
/// # Errors
/// As open(2) and read(2) of /proc/self/maps; `EIO` if a line does not parse.
pub fn for_each(mut found: impl FnMut(Mapping<'_>)) -> Result<(), Errno> {
    // Longer than PATH_MAX plus the fixed columns, so that a line always fits.
    let mut buffer = [0u8; 8192];
    let file = fd::open(c"/proc/self/maps", k::O_RDONLY)?;
    let mut filled = 0;
    loop {
        let got = fd::read(file.raw(), &mut buffer[filled..])?;
        if got == 0 {
            return Ok(());
        }
        filled += got;
        let mut used = 0;
        while let Some(len) = buffer[used..filled].iter().position(|&byte| byte == b'\n') {
            found(parse(&buffer[used..used + len]).ok_or(Errno::EIO)?);
            used += len + 1;
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}

/// `_IOWR('f', 17, struct procmap_query)`, include/uapi/linux/fs.h; Linux 6.11.
const PROCMAP_QUERY: u32 = 0xc068_6611;
/// Bits of `vma_flags`: readable, writable and executable are those of mmap.
const PROCMAP_QUERY_PROT: u32 = k::PROT_READ | k::PROT_WRITE | k::PROT_EXEC;
const PROCMAP_QUERY_VMA_SHARED: u64 = 8;

/// The kernel's `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    device: [u32; 2],
    sizes: [u32; 2],
    vma_name_addr: u64,
    build_id_addr: u64,
}
const _: () = assert!(size_of::<ProcmapQuery>() == 0x68);

/// Asks for single mappings.
#[derive(Debug)]
pub struct Query(Fd);

impl Query {
    /// Opens /proc/self/maps.
    ///
    /// # Errors
    /// As open(2).
    pub fn open() -> Result<Self, Errno> {
        fd::open(c"/proc/self/maps", k::O_RDONLY).map(Self)
    }

    /// Whether a mapping is still what was read of it, as far as this kernel tells.
    pub fn is_as_read(&self, mapping: &Mapping<'_>) -> bool {
        match self.ask(mapping.start) {
            Ok(now) => {
                (now.vma_start, now.vma_end) == (mapping.start as u64, mapping.end as u64)
                    && now.inode == mapping.inode
            }
            Err(error) => error != Errno::ENOENT,
        }
    }

    /// The mapping of an address, without its name; `None` if there is none, or the kernel does not tell.
    pub fn mapping_of(&self, address: usize) -> Option<Mapping<'static>> {
        let now = self.ask(address).ok()?;
        Some(Mapping {
            start: now.vma_start as usize,
            end: now.vma_end as usize,
            prot: now.vma_flags as u32 & PROCMAP_QUERY_PROT,
            private: now.vma_flags & PROCMAP_QUERY_VMA_SHARED == 0,
            offset: now.vma_offset,
            inode: now.inode,
            name: b"",
        })
    }

    fn ask(&self, address: usize) -> Result<ProcmapQuery, Errno> {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_addr: address as u64,
            ..ProcmapQuery::default()
        };
        // SAFETY: the structure lives across the call, and asks for no name.
        result(unsafe { syscall!(k::__NR_ioctl, self.0.raw(), PROCMAP_QUERY, &raw mut query) })?;
        Ok(query)
    }
}

fn parse(line: &[u8]) -> Option<Mapping<'_>> {
    let text = core::str::from_utf8(&line[..line.len().min(72)])
        .or_else(|error| core::str::from_utf8(&line[..error.valid_up_to()]))
        .ok()?;
    let mut columns = text.split_ascii_whitespace();
    let (start, end) = columns.next()?.split_once('-')?;
    let flags = columns.next()?.as_bytes();
    let (offset, _device) = (columns.next()?, columns.next()?);
    let inode_column = columns.next()?;
    let inode_end = inode_column.as_ptr().addr() - text.as_ptr().addr() + inode_column.len();
    let bit = |index: usize, letter: u8, bit: u32| {
        if flags.get(index) == Some(&letter) { bit } else { 0 }
    };
    Some(Mapping {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        prot: bit(0, b'r', k::PROT_READ) | bit(1, b'w', k::PROT_WRITE) | bit(2, b'x', k::PROT_EXEC),
        private: flags.get(3) == Some(&b'p'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        inode: inode_column.parse().ok()?,
        name: line[inode_end..].trim_ascii_start(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_every_shape_parses() {
        let heap = parse(
            b"55d0c8a4d000-55d0c8a6e000 rw-p 00000000 00:00 0                          [heap]",
        );
        assert_eq!(
            heap,
            Some(Mapping {
                start: 0x55d0_c8a4_d000,
                end: 0x55d0_c8a6_e000,
                prot: k::PROT_READ | k::PROT_WRITE,
                private: true,
                offset: 0,
                inode: 0,
                name: b"[heap]",
            })
        );
        let bare = parse(b"7f00-8000 ---s 00000000 00:00 0 ").unwrap();
        assert_eq!((bare.prot, bare.private, bare.name), (0, false, &b""[..]));
        let file = parse(b"7f00-8000 r-xp 0002d000 fe:00 1234    /lib/a b.so").unwrap();
        assert_eq!((file.offset, file.inode, file.name), (0x2d000, 1234, &b"/lib/a b.so"[..]));
        assert_eq!(parse(b"nonsense"), None);
    }

    #[test]
    fn this_process_has_mappings_in_order() {
        let mut last = 0;
        let mut stack = false;
        for_each(|mapping| {
            assert!(mapping.start >= last && mapping.start < mapping.end);
            last = mapping.end;
            stack |= mapping.name == b"[stack]";
        })
        .unwrap();
        assert!(stack);
    }
}
