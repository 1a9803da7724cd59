//! How far a loaded object (a program or a library) reaches: its headers, read from memory.

use super::fd;

/// Size of the header, and where the fields are that are needed (64-bit ELF, elf(5)).
const HEADER: usize = 64;
const SEGMENTS_OFFSET: usize = 32;
const SEGMENT_SIZE: usize = 54;
const SEGMENT_COUNT: usize = 56;

/// The same for the header of a segment.
const SEGMENT: usize = 56;
const TYPE: usize = 0;
const ADDRESS: usize = 16;
const MEMORY_SIZE: usize = 40;
const LOAD: u32 = 1;

/// First address behind the memory of the object whose file begins at `base`, its zeroed data
/// included. `memory` is /proc/self/mem: what is not there is an error and not a fault.
pub fn end_of_memory(memory: i32, base: usize) -> Option<usize> {
    let header: [u8; HEADER] = read(memory, base)?;
    if header[..4] != *b"\x7fELF" {
        return None;
    }
    let first = usize::from_le_bytes(field(&header, SEGMENTS_OFFSET)?);
    let size = u16::from_le_bytes(field(&header, SEGMENT_SIZE)?);
    let count = u16::from_le_bytes(field(&header, SEGMENT_COUNT)?);
    // The loader maps the first segment at `base`, and the others relative to it.
    let (mut start, mut end) = (usize::MAX, 0);
    for index in 0..count {
        let at = base.checked_add(first)?.checked_add(usize::from(index) * usize::from(size))?;
        let segment: [u8; SEGMENT] = read(memory, at)?;
        if u32::from_le_bytes(field(&segment, TYPE)?) == LOAD {
            let address = usize::from_le_bytes(field(&segment, ADDRESS)?);
            let size = usize::from_le_bytes(field(&segment, MEMORY_SIZE)?);
            start = start.min(address);
            end = end.max(address.checked_add(size)?);
        }
    }
    let page = !(vswap_core::page::PAGE_SIZE - 1);
    base.checked_add(end.checked_sub(start & page)?)
}

fn read<const N: usize>(memory: i32, at: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (fd::pread(memory, &mut bytes, at as u64) == Ok(N)).then_some(bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    extern crate std;

    use linux_raw_sys::general::O_RDONLY;

    use super::super::{fd, proc_maps};
    use super::*;

    static ZEROED: [u8; 1 << 20] = [0; 1 << 20];

    /// This program's own zeroed data ends its memory, in the last page at the latest.
    #[test]
    fn zeroed_data_is_within_the_object() {
        let memory = fd::open(c"/proc/self/mem", O_RDONLY).unwrap();
        let zeroed = ZEROED.as_ptr().addr();
        let code = zeroed_data_is_within_the_object as fn() as usize;
        let (mut base, mut found) = (0, None);
        proc_maps::for_each(|mapping| {
            if mapping.inode != 0 && mapping.offset == 0 {
                base = mapping.start;
            }
            if (mapping.start..mapping.end).contains(&code) {
                found = Some(base);
            }
        })
        .unwrap();
        let end = end_of_memory(memory.raw(), found.unwrap()).unwrap();
        assert!(end >= zeroed + ZEROED.len(), "{end:#x} {zeroed:#x}");
        assert!(end < zeroed + ZEROED.len() + (64 << 20), "{end:#x} {zeroed:#x}");
        assert_eq!(end_of_memory(memory.raw(), code & !4095), None, "no header there");
        assert_eq!(end_of_memory(memory.raw(), 0), None, "no memory there");
    }
}
