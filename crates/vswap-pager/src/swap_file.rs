//! The swap file as a backing: page-sized slots in extents leased from the run.
//!
//! The minimal form. After a fork both processes refer to the slots written before it, so those
//! are never reused: the bitmap marks them as taken for good in both.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::{Backing, BackingError, Form, Handle, Medium, Room};

use crate::engine::engine;
use crate::lock::SpinLock;
use crate::run_page::EXTENT_SIZE;
use crate::sys::{Errno, fd, task};

const SLOTS_PER_EXTENT: usize = EXTENT_SIZE as usize / PAGE_SIZE;
const EXTENTS_MAX: usize = 4096;
const WORDS: usize = SLOTS_PER_EXTENT / 64;

#[derive(Clone, Copy)]
struct Extent {
    /// Place in the file, in units of [`EXTENT_SIZE`].
    number: u32,
    free: u32,
    used: [u64; WORDS],
}

struct Extents {
    list: [Extent; EXTENTS_MAX],
    count: usize,
    /// Extents below were full when last seen, or belong to both sides of a fork.
    first_with_room: usize,
    /// Extents below were written before the last fork.
    sealed: usize,
}

/// The swap file of the run.
pub struct SwapFile {
    extents: SpinLock<Extents>,
    used_pages: AtomicUsize,
    in_use: AtomicBool,
}

impl core::fmt::Debug for SwapFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SwapFile").field("used_pages", &self.used_pages).finish_non_exhaustive()
    }
}

/// The swap file of this process.
pub static SWAP_FILE: SwapFile = SwapFile {
    extents: SpinLock::new(Extents {
        list: [Extent { number: 0, free: 0, used: [0; WORDS] }; EXTENTS_MAX],
        count: 0,
        first_with_room: 0,
        sealed: 0,
    }),
    used_pages: AtomicUsize::new(0),
    in_use: AtomicBool::new(false),
};

impl SwapFile {
    /// Bytes in use by this process.
    pub fn used(&self) -> usize {
        self.used_pages.load(Ordering::Relaxed) * PAGE_SIZE
    }

    /// Whether this is the first time that the file is put to use; the child of a fork has it in
    /// its copy of the swap space already.
    pub fn begin(&self) -> bool {
        !self.in_use.swap(true, Ordering::Relaxed)
    }

    /// Gives up the right to reuse any slot written so far: the other side of a fork may refer to
    /// it.
    pub fn seal(&self) {
        let mut extents = self.extents.lock();
        extents.sealed = extents.count;
        extents.first_with_room = extents.count;
    }

    /// Frees the lock in the child of a fork.
    pub fn reset_after_fork(&self) {
        self.extents.reset_after_fork();
    }

    fn take_slot(&self) -> Option<Handle> {
        let mut extents = self.extents.lock();
        loop {
            let index = extents.first_with_room;
            if index == extents.count {
                if index == EXTENTS_MAX {
                    return None;
                }
                let offset = engine().run_page()?.lease_extent()?;
                extents.list[index] = Extent {
                    number: (offset / EXTENT_SIZE) as u32,
                    free: SLOTS_PER_EXTENT as u32,
                    used: [0; WORDS],
                };
                extents.count += 1;
            }
            let extent = &mut extents.list[index];
            if extent.free == 0 {
                extents.first_with_room += 1;
                continue;
            }
            let word = extent.used.iter().position(|word| *word != u64::MAX)?;
            let bit = extent.used[word].trailing_ones();
            extent.used[word] |= 1 << bit;
            extent.free -= 1;
            let slot = word * 64 + bit as usize;
            return Handle::new((index * SLOTS_PER_EXTENT + slot) as u32);
        }
    }

    fn give_slot(&self, handle: Handle) {
        let mut extents = self.extents.lock();
        let (index, slot) = split(handle);
        if index < extents.sealed {
            return;
        }
        let extent = &mut extents.list[index];
        extent.used[slot / 64] &= !(1 << (slot % 64));
        extent.free += 1;
        extents.first_with_room = extents.first_with_room.min(index);
    }

    fn place(&self, handle: Handle) -> u64 {
        let (index, slot) = split(handle);
        let number = self.extents.lock().list[index].number;
        u64::from(number) * EXTENT_SIZE + (slot * PAGE_SIZE) as u64
    }

    /// The file as the calling thread's process knows it: threads of the program load pages too,
    /// when they fault inline and when memory is excluded from paging.
    fn descriptor() -> i32 {
        let in_pager = task::process_id() == engine().pager.load(Ordering::Relaxed);
        let fd = if in_pager { &engine().fds.swap_file } else { &engine().program_swap_file };
        fd.load(Ordering::Relaxed)
    }
}

fn split(handle: Handle) -> (usize, usize) {
    let number = handle.raw() as usize;
    (number / SLOTS_PER_EXTENT, number % SLOTS_PER_EXTENT)
}

impl Backing for SwapFile {
    fn medium(&self) -> Medium {
        Medium::Device
    }

    fn form(&self) -> Form {
        Form::Pages
    }

    fn store(&self, data: &[u8]) -> Result<Handle, BackingError> {
        let handle = self.take_slot().ok_or(BackingError::Full)?;
        match fd::pwrite(Self::descriptor(), data, self.place(handle)) {
            Ok(written) if written == data.len() => {
                self.used_pages.fetch_add(1, Ordering::Relaxed);
                Ok(handle)
            }
            Ok(_) => {
                self.give_slot(handle);
                Err(BackingError::Full)
            }
            Err(error) => {
                self.give_slot(handle);
                let full = error == Errno::ENOSPC;
                Err(if full { BackingError::Full } else { BackingError::Io(error.0) })
            }
        }
    }

    fn load(&self, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
        match fd::pread(Self::descriptor(), out, self.place(handle)) {
            Ok(read) if read == out.len() => Ok(()),
            Ok(_) => Err(BackingError::Io(Errno::EIO.0)),
            Err(error) => Err(BackingError::Io(error.0)),
        }
    }

    fn free(&self, handle: Handle, _len: usize) {
        self.give_slot(handle);
        self.used_pages.fetch_sub(1, Ordering::Relaxed);
    }

    fn room(&self) -> Room {
        let capacity = engine().run_page().map_or(0, |run| run.swap_limit.load(Ordering::Relaxed));
        Room { capacity, used: self.used() as u64, metadata: 0 }
    }
}
