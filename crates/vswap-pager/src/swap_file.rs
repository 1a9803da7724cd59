//! The swap file as a backing: page-sized slots in extents leased from the run.
//!
//! The minimal form. After a fork both processes refer to the slots written before it, so those
//! are never reused: the bitmap marks them as taken for good in both.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::{Backing, BackingError, Form, Handle, Medium, Outgoing, Room, SwapEntry};

use crate::engine::engine;
use crate::lock::SpinLock;
use crate::run_page::{EXTENT_SIZE, RunPage};
use crate::sys::{Errno, fd};

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

/// Why the file takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All of it is leased.
    Full,
    /// This process has as many extents as it can.
    TooManyExtents,
    /// The file system has no room for what was leased.
    NoSpace,
    /// A write failed, with this error number.
    Failed(i32),
}

/// [`Refusal`]s as words; any other is an error number.
const NOT_REFUSED: u32 = 0;
const FULL: u32 = u32::MAX;
const TOO_MANY_EXTENTS: u32 = u32::MAX - 1;

impl Refusal {
    fn to_word(self) -> u32 {
        match self {
            Self::Full => FULL,
            Self::TooManyExtents => TOO_MANY_EXTENTS,
            Self::NoSpace => Errno::ENOSPC.0 as u32,
            Self::Failed(error) => error as u32,
        }
    }

    fn from_word(word: u32) -> Option<Self> {
        match word {
            NOT_REFUSED => None,
            FULL => Some(Self::Full),
            TOO_MANY_EXTENTS => Some(Self::TooManyExtents),
            error if error == Errno::ENOSPC.0 as u32 => Some(Self::NoSpace),
            error => Some(Self::Failed(error as i32)),
        }
    }

    /// What the swap space is told: whether to try again later.
    fn error(self) -> BackingError {
        match self {
            Self::Failed(error) => BackingError::Io(error),
            Self::Full | Self::TooManyExtents | Self::NoSpace => BackingError::Full,
        }
    }
}

/// The swap file of the run.
pub struct SwapFile {
    extents: SpinLock<Extents>,
    used_pages: AtomicUsize,
    in_use: AtomicBool,
    /// Why the last store was refused; [`NOT_REFUSED`] if it was not.
    refused: AtomicU32,
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
    refused: AtomicU32::new(NOT_REFUSED),
};

impl SwapFile {
    /// Bytes in use by this process.
    pub fn used(&self) -> usize {
        self.used_pages.load(Ordering::Relaxed) * PAGE_SIZE
    }

    /// Why the last store was refused, if it was.
    pub fn refusal(&self) -> Option<Refusal> {
        Refusal::from_word(self.refused.load(Ordering::Relaxed))
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

    fn take_slot(&self) -> Result<Handle, Refusal> {
        let mut extents = self.extents.lock();
        loop {
            let index = extents.first_with_room;
            if index == extents.count {
                if index == EXTENTS_MAX {
                    return Err(Refusal::TooManyExtents);
                }
                let offset = engine().run_page().and_then(RunPage::lease_extent);
                let offset = offset.ok_or(Refusal::Full)?;
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
            let word = extent.used.iter().position(|word| *word != u64::MAX);
            let word = word.ok_or(Refusal::Full)?;
            let bit = extent.used[word].trailing_ones();
            extent.used[word] |= 1 << bit;
            extent.free -= 1;
            let slot = word * 64 + bit as usize;
            let handle = Handle::new((index * SLOTS_PER_EXTENT + slot) as u32);
            return handle.ok_or(Refusal::TooManyExtents);
        }
    }

    /// Writes a page to a free slot.
    fn write(&self, data: &[u8]) -> Result<Handle, Refusal> {
        let handle = self.take_slot()?;
        let refusal = match fd::pwrite(Self::descriptor(), data, self.place(handle)) {
            Ok(written) if written == data.len() => {
                self.used_pages.fetch_add(1, Ordering::Relaxed);
                return Ok(handle);
            }
            Ok(_) | Err(Errno::ENOSPC) => Refusal::NoSpace,
            Err(error) => Refusal::Failed(error.0),
        };
        self.give_slot(handle);
        Err(refusal)
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
        engine().paging_fds(engine().side()).swap_file.load(Ordering::Relaxed)
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

    fn store(&self, object: Outgoing<'_>) -> Result<Handle, BackingError> {
        let data = object.bytes;
        let stored = self.write(data);
        let word = stored.map_or_else(Refusal::to_word, |_| NOT_REFUSED);
        // Read before it is written: several reclaim at once, and it hardly ever changes.
        if self.refused.load(Ordering::Relaxed) != word {
            self.refused.store(word, Ordering::Relaxed);
        }
        stored.map_err(Refusal::error)
    }

    fn load(&self, _entry: SwapEntry, handle: Handle, out: &mut [u8]) -> Result<(), BackingError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_as_words() {
        let all = [Refusal::Full, Refusal::TooManyExtents, Refusal::NoSpace, Refusal::Failed(5)];
        for refusal in all {
            assert_eq!(Refusal::from_word(refusal.to_word()), Some(refusal));
        }
        assert_eq!(Refusal::from_word(NOT_REFUSED), None);
    }

    #[test]
    fn only_an_error_of_the_file_is_for_good() {
        assert_eq!(Refusal::Failed(5).error(), BackingError::Io(5));
        assert_eq!(Refusal::NoSpace.error(), BackingError::Full);
    }
}
