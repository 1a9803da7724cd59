//! A core dump: an ELF file whose segments are the memory of a process, core(5) and elf(5).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;
use vswap_pager::pages_file::Identity;

const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const AT_RANDOM: u64 = 25;

/// The number of segments when it does not fit the header; the first section has it then.
const PN_XNUM: u16 = 0xffff;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;

/// Notes beyond this size are no kernel's: each thread has some kilobytes.
const NOTES_MAX: u64 = 1 << 30;

/// A part of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    address: u64,
    /// Where it is in the file.
    offset: u64,
    /// How much of it is in the file.
    length: u64,
}

/// A core dump that can be written to.
#[derive(Debug)]
pub struct CoreFile {
    file: File,
    /// By their addresses.
    segments: Vec<Segment>,
    /// Whose memory it is.
    pub identity: Identity,
}

impl CoreFile {
    /// Opens one.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let segments = segments(&file)?;
        let notes = notes(&file, &segments)?;
        let mut segments: Vec<Segment> =
            segments.into_iter().filter(|segment| segment.kind == PT_LOAD).collect();
        segments.sort_by_key(|segment| segment.address);
        let mut core = Self { file, segments, identity: Identity { pid: 0, random: [0; 16] } };
        core.identity = core.identity(&notes).context("does not say whose memory it is")?;
        Ok(core)
    }

    /// Writes what belongs at an address; `false` if that memory is not in the core.
    pub fn put(&mut self, address: u64, bytes: &[u8]) -> io::Result<bool> {
        match self.place_of(address, bytes.len() as u64) {
            Some(offset) => self.file.write_all_at(bytes, offset).map(|()| true),
            None => Ok(false),
        }
    }

    /// Waits until it is on disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn place_of(&self, address: u64, length: u64) -> Option<u64> {
        let behind = self.segments.partition_point(|segment| segment.address <= address);
        let segment = self.segments[..behind].last()?;
        let at = address - segment.address;
        (at + length <= segment.length).then(|| segment.offset + at)
    }

    /// Whose memory it is, by its notes.
    fn identity(&self, notes: &[u8]) -> Option<Identity> {
        const PID_IN_PRPSINFO: usize = 24;
        let pid = u32_at(note(notes, NT_PRPSINFO)?, PID_IN_PRPSINFO)?;
        let (pairs, _) = note(notes, NT_AUXV)?.as_chunks::<16>();
        let address = pairs.iter().find(|pair| u64_at(&pair[..], 0) == Some(AT_RANDOM))?;
        let mut random = [0; 16];
        let offset = self.place_of(u64_at(address, 8)?, random.len() as u64)?;
        self.file.read_exact_at(&mut random, offset).ok()?;
        Some(Identity { pid, random })
    }
}

fn segments(file: &File) -> anyhow::Result<Vec<Segment>> {
    const NOT_CORE: &str = "is no core dump of a 64-bit program";
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).context(NOT_CORE)?;
    let little_endian_64 = header.starts_with(b"\x7fELF\x02\x01");
    anyhow::ensure!(little_endian_64 && u16_at(&header, 16) == Some(ET_CORE), NOT_CORE);
    let field = |at| u64_at(&header, at).context(NOT_CORE);
    let (at, sections) = (field(32)?, field(40)?);
    let count = match u16_at(&header, 56).context(NOT_CORE)? {
        PN_XNUM => {
            let mut section = [0; 64];
            file.read_exact_at(&mut section, sections).context(NOT_CORE)?;
            u32_at(&section, 44).context(NOT_CORE)? as usize
        }
        count => count.into(),
    };
    let mut bytes = vec![0; count * SEGMENT_BYTES];
    file.read_exact_at(&mut bytes, at).context(NOT_CORE)?;
    let segment = |bytes: &[u8; SEGMENT_BYTES]| {
        let word = |at| u64_at(bytes, at);
        Some(Segment {
            kind: u32_at(bytes, 0)?,
            offset: word(8)?,
            address: word(16)?,
            length: word(32)?,
        })
    };
    Ok(bytes.as_chunks::<SEGMENT_BYTES>().0.iter().filter_map(segment).collect())
}

fn notes(file: &File, segments: &[Segment]) -> anyhow::Result<Vec<u8>> {
    let segment =
        segments.iter().find(|segment| segment.kind == PT_NOTE).context("has no notes")?;
    anyhow::ensure!(segment.length <= NOTES_MAX, "has notes without end");
    let mut notes = vec![0; segment.length as usize];
    file.read_exact_at(&mut notes, segment.offset).context("is cut off")?;
    Ok(notes)
}

/// What the first note of the kernel's of a type holds.
fn note(notes: &[u8], wanted: u32) -> Option<&[u8]> {
    let mut rest = notes;
    loop {
        let (name, length) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize);
        let kind = u32_at(rest, 8)?;
        let body = 12 + name.next_multiple_of(4);
        let found = rest.get(body..body.checked_add(length)?)?;
        if kind == wanted && rest.get(12..)?.starts_with(b"CORE\0") {
            return Some(found);
        }
        rest = rest.get(body + length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core of one segment of 8 KiB at 0x10000, whose second page begins with the random bytes.
    fn core(pid: u32) -> Vec<u8> {
        let mut notes = Vec::new();
        let mut add = |kind: u32, body: &[u8]| {
            for word in [5, body.len() as u32, kind] {
                notes.extend(word.to_le_bytes());
            }
            notes.extend(b"CORE\0\0\0\0");
            notes.extend(body);
        };
        let mut info = [0; 136];
        info[24..28].copy_from_slice(&pid.to_le_bytes());
        add(1, &[0; 336]);
        add(NT_PRPSINFO, &info);
        let auxv: Vec<u8> =
            [6, 4096, AT_RANDOM, 0x11000].iter().flat_map(|w| u64::to_le_bytes(*w)).collect();
        add(NT_AUXV, &auxv);

        let mut file = vec![0; 4096 + 8192];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16] = ET_CORE as u8;
        file[32] = HEADER_BYTES as u8;
        file[56] = 2;
        let segments = [(PT_NOTE, 1024, 0, notes.len() as u64), (PT_LOAD, 4096, 0x10000, 8192)];
        for (index, (kind, offset, address, length)) in segments.into_iter().enumerate() {
            let at = HEADER_BYTES + index * SEGMENT_BYTES;
            file[at..][..4].copy_from_slice(&kind.to_le_bytes());
            for (field, value) in [(8, offset), (16, address), (32, length)] {
                file[at + field..][..8].copy_from_slice(&u64::to_le_bytes(value));
            }
        }
        file[1024..][..notes.len()].copy_from_slice(&notes);
        file[8192..][..16].copy_from_slice(b"0123456789abcdef");
        file
    }

    #[test]
    fn pages_go_to_the_segment_that_they_are_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), core(4711)).unwrap();
        let mut core = CoreFile::open(file.path()).unwrap();
        assert_eq!(core.identity, Identity { pid: 4711, random: *b"0123456789abcdef" });
        assert!(core.put(0x11000, &[7; 4096]).unwrap());
        assert!(!core.put(0x12000, &[7; 4096]).unwrap());
        assert!(!core.put(0xf000, &[7; 4096]).unwrap());
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 12288);
        assert!(bytes[8192..].iter().all(|&byte| byte == 7));
        assert!(bytes[4096..8192].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn what_is_no_core_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut executable = core(1);
        executable[16] = 2;
        let mut cut_off = core(1);
        cut_off.truncate(1030);
        for bytes in [Vec::new(), vec![0; 4096], executable, cut_off] {
            std::fs::write(file.path(), &bytes).unwrap();
            assert!(CoreFile::open(file.path()).is_err());
        }
    }
}
