//! The disk as a program uses it that has nothing else to do: what `dd oflag=direct bs=1M` writes, and
//! reads of one page.

use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use anyhow::Context as _;

use super::super::contents::{PAGE_BYTES, Random};
use super::super::kernel::Journal;
use super::super::kernel::swap_file::AreaFile;
use super::super::workload::{Latencies, Memory};

/// What dd is told to write at once.
const WRITE_BYTES: usize = 1 << 20;

/// A file that is written as it is, and then is a swap device.
pub struct Disk<'j> {
    area: AreaFile<'j>,
    bytes: u64,
    /// Aligned as direct I/O wants it.
    buffer: Memory,
    random: Random,
}

impl<'j> Disk<'j> {
    /// Creates the file and gives it its blocks: all later writes find them there.
    ///
    /// # Errors
    /// It cannot be created or written.
    pub fn create(journal: &'j Journal, dir: &std::path::Path, bytes: u64) -> anyhow::Result<Self> {
        let bytes = bytes.next_multiple_of(WRITE_BYTES as u64);
        let area = AreaFile::create(journal, dir, bytes)?;
        let mut buffer = Memory::map(WRITE_BYTES / PAGE_BYTES).context("a buffer")?;
        let mut random = Random::new(0x5EED_0009);
        buffer.iter_mut().flatten().for_each(|word| *word = random.next());
        let disk = Self { area, bytes, buffer, random };
        disk.write(bytes)?;
        Ok(disk)
    }

    /// Writes so many bytes of it, in order; gives how many MiB that were in a second.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, bytes: u64) -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut written = 0;
        while written < bytes.min(self.bytes) {
            self.area.file.write_all_at(self.buffer.as_bytes(), written).context("writing")?;
            written += WRITE_BYTES as u64;
        }
        Ok((written >> 20) as f64 / started.elapsed().as_secs_f64())
    }

    /// Makes an empty swap device of it, and gives its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn format(&self) -> anyhow::Result<&std::path::Path> {
        self.area.format()?;
        Ok(self.area.path())
    }

    /// Reads so many pages anywhere, each by itself.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_pages(&mut self, count: u64, times: &mut Latencies) -> anyhow::Result<()> {
        let pages = (self.bytes / PAGE_BYTES as u64) as usize;
        for _ in 0..count {
            let place = (self.random.below(pages) * PAGE_BYTES) as u64;
            let page = &mut self.buffer.as_bytes_mut()[..PAGE_BYTES];
            let started = Instant::now();
            self.area.file.read_exact_at(page, place).context("reading")?;
            times.record(started.elapsed().as_nanos() as u64);
        }
        Ok(())
    }
}
