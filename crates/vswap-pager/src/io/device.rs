//! What the engines know of a device: its descriptor, how its I/O is aligned, how it fares.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use linux_raw_sys::general::O_DIRECT;
use vswap_core::page::PAGE_SIZE;

use crate::sys::Errno;
use crate::sys::file::{self, DirectIo};

/// Smallest block of any device.
const SECTOR: u32 = 512;

/// How the I/O of an open file is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Whether it goes past the page cache (O_DIRECT).
    pub direct: bool,
    /// Offsets and lengths are multiples of this; at most a page.
    pub block: u32,
}

impl Geometry {
    /// Turns direct I/O on where the file has it and a page can be read alone. It holds for all
    /// descriptors of this open file, so whoever opens a device does this once, before any use.
    ///
    /// # Errors
    /// What fcntl says about the descriptor.
    pub fn prefer_direct(fd: i32) -> Result<Self, Errno> {
        let flags = file::status_flags(fd)?;
        let wanted = match file::direct_io(fd) {
            DirectIo::None => false,
            DirectIo::Aligned { memory, offset } => memory.max(offset) as usize <= PAGE_SIZE,
            DirectIo::Unknown => true,
        };
        let flags = if wanted { flags | O_DIRECT } else { flags & !O_DIRECT };
        match file::set_status_flags(fd, flags) {
            // The file system has none.
            Err(Errno::EINVAL) => {}
            result => result?,
        }
        Self::of(fd)
    }

    /// As the file was opened.
    ///
    /// # Errors
    /// What fcntl says about the descriptor.
    pub fn of(fd: i32) -> Result<Self, Errno> {
        let direct = file::status_flags(fd)? & O_DIRECT != 0;
        let block = match (file::direct_io(fd), file::logical_block(fd)) {
            (DirectIo::Aligned { offset, .. }, _) if direct => offset,
            (_, Some(block)) => block,
            // Every file system takes whole pages; few say whether they take less.
            (_, None) if direct => PAGE_SIZE as u32,
            (_, None) => SECTOR,
        };
        Ok(Self { direct, block: block.clamp(SECTOR, PAGE_SIZE as u32) })
    }
}

/// How a device fares. Plain atomics, so that members of a run can share it.
#[derive(Debug, Default)]
pub struct Health {
    suspect: AtomicBool,
    timeouts: AtomicU32,
    errors: AtomicU32,
}

impl Health {
    /// A device that nothing is known against.
    pub const fn new() -> Self {
        Self {
            suspect: AtomicBool::new(false),
            timeouts: AtomicU32::new(0),
            errors: AtomicU32::new(0),
        }
    }

    /// Whether a request was not answered in time. Nothing new should go to the device until its
    /// owner has [cleared](Self::clear) it.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Takes the mark away: late answers arrived, or somebody looked after it.
    pub fn clear(&self) {
        self.suspect.store(false, Ordering::Relaxed);
    }

    /// Requests that were not answered in time.
    pub fn timeouts(&self) -> u32 {
        self.timeouts.load(Ordering::Relaxed)
    }

    /// Requests that failed with an error number.
    pub fn errors(&self) -> u32 {
        self.errors.load(Ordering::Relaxed)
    }

    pub(super) fn note_timeout(&self) {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
        self.suspect.store(true, Ordering::Relaxed);
    }

    pub(super) fn note_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// A swap device, as one process knows it: descriptors differ between a program and its pager.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// The open file.
    pub fd: i32,
    /// A number of the owner's choice; [late answers](super::Late) carry it.
    pub id: u32,
    /// How its I/O is aligned.
    pub geometry: Geometry,
    /// How it fares.
    pub health: &'a Health,
}

impl Device<'_> {
    /// Whether a transfer that stopped after `done` bytes can be continued: direct I/O starts at a
    /// block only.
    pub(super) fn can_continue_at(&self, done: usize) -> bool {
        !self.geometry.direct || done.is_multiple_of(self.geometry.block as usize)
    }
}
