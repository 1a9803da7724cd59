//! The page table: four bytes for each managed page, in leaves that exist only where a page has
//! been touched.
//!
//! A leaf is one page of 1024 words and covers 4 MiB. Its header, with the leaf's lock, lies in a
//! directory of one page that covers 1 GiB. A word changes under its leaf's lock only; the lock is
//! held across the system call that makes the word true, so table and kernel never disagree for
//! anybody who holds it.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use vswap_core::SwapEntry;
use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::address::{LEAF_PAGES, PageNumber};
use crate::arena::Arena;
use crate::lock::{self, SpinLock};

/// Addresses above this are the kernel's: 47 bits.
const ADDRESS_BITS: u32 = 47;
const LEAVES_PER_DIRECTORY: usize = PAGE_SIZE / size_of::<LeafHeader>();
const DIRECTORIES: usize = (1 << ADDRESS_BITS) / PAGE_SIZE / LEAF_PAGES / LEAVES_PER_DIRECTORY;
const TABLE_PAGES_PER_RESERVATION: usize = 256;
const _: () = assert!(size_of::<LeafHeader>() == 16 && size_of::<Directory>() == PAGE_SIZE);

/// What the table says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Not there, and reads as zeros.
    Missing,
    /// In memory. `age` counts the sweeps of reclaim that it survives.
    Resident {
        /// Sweeps left, 0 to 3.
        age: u8,
    },
    /// In memory, and, unless it was written since it came in, in the virtual swap space too.
    Cached {
        /// What it came from.
        entry: SwapEntry,
        /// Whether reclaim spares it at its next sweep.
        protected: bool,
    },
    /// Moved out to the staging tray of this number, at the page's offset in its leaf; not
    /// compressed yet.
    Staged {
        /// Number of the tray.
        tray: u8,
    },
    /// In the virtual swap space.
    Swapped(SwapEntry),
    /// Lost: accesses raise SIGBUS.
    Poisoned,
}

/// Sweeps that a protected page survives.
const SWEEPS: u8 = 2;

impl PageState {
    /// A page in memory that nothing else has.
    pub const fn resident(protected: bool) -> Self {
        Self::Resident { age: if protected { SWEEPS } else { 0 } }
    }

    /// A page that came back from staging, and so proved to be in use; `entry` is the one that it
    /// had when it went there.
    pub fn unstaged(entry: Option<SwapEntry>) -> Self {
        entry.map_or(Self::Resident { age: 1 }, |entry| Self::Cached { entry, protected: true })
    }

    /// A page in memory and in the swap space; without the latter if its slot's number is too
    /// large for the word, which is so from 2 TiB on. Gives back the entry that is not kept.
    pub fn cached(entry: SwapEntry, protected: bool) -> (Self, Option<SwapEntry>) {
        if entry.raw() <= CACHED_SLOT_MAX {
            (Self::Cached { entry, protected }, None)
        } else {
            (Self::resident(protected), Some(entry))
        }
    }
}

/// The packed form of a [`PageState`].
///
/// | bits 31..29 | meaning | bits 28..0 |
/// |---|---|---|
/// | `1xx` | swapped | slot, 31 bits |
/// | `011` | cached, protected | slot |
/// | `010` | cached | slot |
/// | `001` | resident | age |
/// | `000` | 27: poisoned, 28: staged, neither: missing | tray |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word(u32);

const SWAPPED: u32 = 1 << 31;
const KIND_SHIFT: u32 = 29;
const CACHED_PROTECTED: u32 = 3;
const CACHED: u32 = 2;
const RESIDENT: u32 = 1;
const STAGED: u32 = 1 << 28;
const POISONED: u32 = 1 << 27;
const CACHED_SLOT_MAX: u32 = (1 << KIND_SHIFT) - 1;

impl Word {
    /// The state that the word stands for.
    pub fn state(self) -> PageState {
        if self.0 & SWAPPED != 0 {
            return match SwapEntry::from_raw(self.0 & !SWAPPED) {
                Some(entry) => PageState::Swapped(entry),
                None => PageState::Poisoned,
            };
        }
        match self.0 >> KIND_SHIFT {
            RESIDENT => PageState::Resident { age: self.0 as u8 & 3 },
            kind @ (CACHED | CACHED_PROTECTED) => {
                match SwapEntry::from_raw(self.0 & CACHED_SLOT_MAX) {
                    Some(entry) => PageState::Cached { entry, protected: kind != CACHED },
                    None => PageState::Poisoned,
                }
            }
            _ if self.0 & STAGED != 0 => PageState::Staged { tray: self.0 as u8 },
            _ if self.0 & POISONED != 0 => PageState::Poisoned,
            _ => PageState::Missing,
        }
    }

    /// Whether the page is in memory, cached or not; cheaper than [`state`](Self::state).
    pub fn is_resident(self) -> bool {
        matches!(self.0 >> KIND_SHIFT, RESIDENT | CACHED | CACHED_PROTECTED)
    }

    /// Whether the page is in memory, and no sweep spares it.
    pub fn is_reclaimable(self) -> bool {
        self.0 == RESIDENT << KIND_SHIFT || self.0 >> KIND_SHIFT == CACHED
    }
}

impl From<PageState> for Word {
    fn from(state: PageState) -> Self {
        Self(match state {
            PageState::Missing => 0,
            PageState::Resident { age } => RESIDENT << KIND_SHIFT | u32::from(age & 3),
            PageState::Cached { entry, protected } => {
                debug_assert!(entry.raw() <= CACHED_SLOT_MAX);
                let kind = if protected { CACHED_PROTECTED } else { CACHED };
                kind << KIND_SHIFT | entry.raw()
            }
            PageState::Staged { tray } => STAGED | u32::from(tray),
            PageState::Swapped(entry) => SWAPPED | entry.raw(),
            PageState::Poisoned => POISONED,
        })
    }
}

#[repr(C)]
struct LeafHeader {
    words: AtomicPtr<[UnsafeCell<Word>; LEAF_PAGES]>,
    lock: AtomicU32,
}

#[repr(C)]
struct Directory([LeafHeader; LEAVES_PER_DIRECTORY]);

type Root = [AtomicPtr<Directory>; DIRECTORIES];

/// Pages for directories and leaves; freed ones are kept for reuse.
struct TablePages {
    free: Option<NonNull<u8>>,
    next: usize,
    end: usize,
}

// SAFETY: the pages belong to the table, whatever thread touches them.
unsafe impl Send for TablePages {}

/// The page table of this address space.
pub struct Table {
    root: AtomicPtr<Root>,
    pages: SpinLock<TablePages>,
    pages_in_use: AtomicUsize,
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("pages_in_use", &self.pages_in_use).finish_non_exhaustive()
    }
}

/// The engine's arena has no address space left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address space for the page table")]
pub struct TableFull;

/// Who holds the lock does not give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the leaf stays locked")]
pub struct Stuck;

/// A locked leaf.
pub struct Leaf<'a> {
    header: &'a LeafHeader,
    words: &'a [UnsafeCell<Word>; LEAF_PAGES],
}

impl core::fmt::Debug for Leaf<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Leaf")
    }
}

// SAFETY: words and streams change under the leaf's lock only, everything else is atomic or locked.
unsafe impl Sync for Table {}

impl Table {
    /// A table without a page.
    pub const fn new() -> Self {
        Self {
            root: AtomicPtr::new(core::ptr::null_mut()),
            pages: SpinLock::new(TablePages { free: None, next: 0, end: 0 }),
            pages_in_use: AtomicUsize::new(0),
        }
    }

    /// Bytes of memory taken.
    pub fn memory(&self) -> usize {
        self.pages_in_use.load(Ordering::Relaxed) * PAGE_SIZE
    }

    /// Locks the leaf of a page, if there is one.
    pub fn lock(&self, page: PageNumber) -> Option<Leaf<'_>> {
        let header = self.header(page.leaf(), false).ok().flatten()?;
        (!header.words.load(Ordering::Acquire).is_null()).then(|| Leaf::lock(header)).flatten()
    }

    /// The same for who may find it locked for ever: tries so often.
    ///
    /// # Errors
    /// [`Stuck`].
    pub fn lock_patiently(&self, page: PageNumber, tries: u32) -> Result<Option<Leaf<'_>>, Stuck> {
        let Ok(Some(header)) = self.header(page.leaf(), false) else { return Ok(None) };
        if header.words.load(Ordering::Acquire).is_null() {
            return Ok(None);
        }
        let mut spins = 0;
        while header.lock.load(Ordering::Relaxed) != 0 {
            if spins == tries {
                return Err(Stuck);
            }
            lock::relax(spins);
            spins += 1;
        }
        Ok(Leaf::lock(header))
    }

    /// What the table says of a page whose leaf is locked by a thread that died.
    pub fn state_past_lock(&self, page: PageNumber) -> PageState {
        let header = self.header(page.leaf(), false).ok().flatten();
        let words = header.map(|header| header.words.load(Ordering::Acquire));
        // SAFETY: the words are freed by the holder of the lock only, who does nothing any more.
        let words = words.and_then(|words| unsafe { words.as_ref() });
        words.map_or(PageState::Missing, |words| {
            // SAFETY: as above, nobody writes to it.
            unsafe { *words[page.offset_in_leaf()].get() }.state()
        })
    }

    /// Locks the leaf of a page; makes it if it is not there.
    ///
    /// # Errors
    /// [`TableFull`].
    pub fn lock_or_make(&self, page: PageNumber) -> Result<Leaf<'_>, TableFull> {
        let header = self.header(page.leaf(), true)?.ok_or(TableFull)?;
        loop {
            if header.words.load(Ordering::Acquire).is_null() {
                self.install(&header.words)?;
            }
            if let Some(leaf) = Leaf::lock(header) {
                return Ok(leaf);
            }
        }
    }

    /// First leaf at or behind `leaf` that exists, below `end`.
    pub fn next_leaf(&self, leaf: usize, end: usize) -> Option<usize> {
        let root = self.root()?;
        let mut leaf = leaf;
        while leaf < end {
            let directory = root.get(leaf / LEAVES_PER_DIRECTORY)?.load(Ordering::Acquire);
            // SAFETY: a directory is never freed.
            match unsafe { directory.as_ref() } {
                None => leaf = (leaf / LEAVES_PER_DIRECTORY + 1) * LEAVES_PER_DIRECTORY,
                Some(directory) => {
                    let header = &directory.0[leaf % LEAVES_PER_DIRECTORY];
                    if !header.words.load(Ordering::Acquire).is_null() {
                        return Some(leaf);
                    }
                    leaf += 1;
                }
            }
        }
        None
    }

    fn root(&self) -> Option<&Root> {
        // SAFETY: the root is never freed.
        unsafe { self.root.load(Ordering::Acquire).as_ref() }
    }

    fn header(&self, leaf: usize, make: bool) -> Result<Option<&LeafHeader>, TableFull> {
        if self.root.load(Ordering::Acquire).is_null() {
            if !make {
                return Ok(None);
            }
            self.install_root()?;
        }
        let Some(slot) = self.root().and_then(|root| root.get(leaf / LEAVES_PER_DIRECTORY)) else {
            return Ok(None);
        };
        if slot.load(Ordering::Acquire).is_null() {
            if !make {
                return Ok(None);
            }
            self.install(slot)?;
        }
        // SAFETY: a directory is never freed, and all zeros are a valid one.
        let directory = unsafe { slot.load(Ordering::Acquire).as_ref() };
        Ok(directory.map(|directory| &directory.0[leaf % LEAVES_PER_DIRECTORY]))
    }

    fn install_root(&self) -> Result<(), TableFull> {
        let root = Arena.reserve(size_of::<Root>(), PAGE_SIZE).ok_or(TableFull)?;
        let installed = self.root.compare_exchange(
            core::ptr::null_mut(),
            root.as_ptr().cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if installed.is_err() {
            // SAFETY: the reservation was never published.
            unsafe { Arena.unreserve(root, size_of::<Root>()) };
        }
        Ok(())
    }

    /// Puts a zeroed page into an empty slot; who comes second gives its page back.
    fn install<T>(&self, slot: &AtomicPtr<T>) -> Result<(), TableFull> {
        let page = self.take_page()?;
        let installed = slot.compare_exchange(
            core::ptr::null_mut(),
            page.as_ptr().cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if installed.is_err() {
            self.give_page(page);
        }
        Ok(())
    }

    fn take_page(&self) -> Result<NonNull<u8>, TableFull> {
        let mut pages = self.pages.lock();
        self.pages_in_use.fetch_add(1, Ordering::Relaxed);
        if let Some(page) = pages.free {
            // SAFETY: a free page belongs to the list, and its first word links to the next.
            unsafe {
                pages.free = *page.as_ptr().cast();
                page.as_ptr().write_bytes(0, size_of::<Option<NonNull<u8>>>());
            }
            return Ok(page);
        }
        if pages.next == pages.end {
            let len = TABLE_PAGES_PER_RESERVATION * PAGE_SIZE;
            let base = Arena.reserve(len, PAGE_SIZE).ok_or(TableFull)?.as_ptr() as usize;
            (pages.next, pages.end) = (base, base + len);
        }
        let page = pages.next as *mut u8;
        pages.next += PAGE_SIZE;
        NonNull::new(page).ok_or(TableFull)
    }

    /// Takes back a page whose contents are all zeros.
    fn give_page(&self, page: NonNull<u8>) {
        let mut pages = self.pages.lock();
        // SAFETY: the page is the table's and unused, so its first word may hold the link.
        unsafe { page.as_ptr().cast::<Option<NonNull<u8>>>().write(pages.free) };
        pages.free = Some(page);
        self.pages_in_use.fetch_sub(1, Ordering::Relaxed);
    }

    /// Frees a locked leaf whose words are all zero.
    pub fn release(&self, leaf: Leaf<'_>) {
        let words = leaf.header.words.swap(core::ptr::null_mut(), Ordering::AcqRel);
        // The next to get the lock finds no words and gives up.
        drop(leaf);
        if let Some(page) = NonNull::new(words.cast()) {
            self.give_page(page);
        }
    }

    /// Frees the locks in the child of a fork: no leaf is locked while the gate is closed.
    pub fn reset_after_fork(&self) {
        self.pages.reset_after_fork();
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Leaf<'a> {
    fn lock(header: &'a LeafHeader) -> Option<Self> {
        let mut spins = 0;
        // Acquire pairs with the Release of the drop: words written under the lock are seen.
        while header.lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            lock::relax(spins);
            spins += 1;
        }
        let words = header.words.load(Ordering::Acquire);
        if words.is_null() {
            header.lock.store(0, Ordering::Release);
            return None;
        }
        // SAFETY: the words are freed by the holder of the lock only.
        Some(Self { header, words: unsafe { &*words } })
    }

    /// The word at an offset.
    pub fn word(&self, offset: usize) -> Word {
        // SAFETY: the lock is held.
        unsafe { *self.words[offset].get() }
    }

    /// What the table says of the page at an offset.
    pub fn state(&self, offset: usize) -> PageState {
        self.word(offset).state()
    }

    /// Changes what it says.
    pub fn set(&mut self, offset: usize, state: PageState) {
        // SAFETY: the lock is held, and this is the only reference to the word.
        unsafe { *self.words[offset].get() = state.into() };
    }

    /// Whether every page is [`PageState::Missing`].
    pub fn is_empty(&self) -> bool {
        (0..LEAF_PAGES).all(|offset| self.word(offset) == Word::default())
    }
}

impl Drop for Leaf<'_> {
    fn drop(&mut self) {
        self.header.lock.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_packing() {
        let last_cached = SwapEntry::from_raw(CACHED_SLOT_MAX).unwrap();
        let states = [
            PageState::Missing,
            PageState::Resident { age: 0 },
            PageState::Resident { age: 3 },
            PageState::Cached { entry: last_cached, protected: false },
            PageState::Cached { entry: SwapEntry::from_raw(1).unwrap(), protected: true },
            PageState::Staged { tray: 0 },
            PageState::Staged { tray: 255 },
            PageState::Swapped(SwapEntry::from_raw((1 << 31) - 1).unwrap()),
            PageState::Swapped(SwapEntry::from_raw(1).unwrap()),
            PageState::Poisoned,
        ];
        for state in states {
            assert_eq!(Word::from(state).state(), state);
            let (resident, reclaimable) = match state {
                PageState::Resident { age } => (true, age == 0),
                PageState::Cached { protected, .. } => (true, !protected),
                _ => (false, false),
            };
            assert_eq!(Word::from(state).is_resident(), resident);
            assert_eq!(Word::from(state).is_reclaimable(), reclaimable);
        }
    }

    #[test]
    fn slots_that_do_not_fit_are_not_kept() {
        let entry = SwapEntry::from_raw(CACHED_SLOT_MAX + 1).unwrap();
        assert_eq!(PageState::cached(entry, true), (PageState::resident(true), Some(entry)));
        let entry = SwapEntry::from_raw(CACHED_SLOT_MAX).unwrap();
        let cached = PageState::Cached { entry, protected: false };
        assert_eq!(PageState::cached(entry, false), (cached, None));
    }

    #[test]
    fn leaves_come_and_go_with_their_pages() {
        let table = Table::new();
        let page = PageNumber(0x7f12_3456_7890 >> 12);
        assert!(table.lock(page).is_none());
        let mut leaf = table.lock_or_make(page).unwrap();
        leaf.set(page.offset_in_leaf(), PageState::Resident { age: 0 });
        drop(leaf);
        let memory = table.memory();
        assert_eq!(table.next_leaf(0, usize::MAX), Some(page.leaf()));
        let mut leaf = table.lock(page).unwrap();
        assert!(!leaf.is_empty());
        leaf.set(page.offset_in_leaf(), PageState::Missing);
        assert!(leaf.is_empty());
        table.release(leaf);
        assert!(table.lock(page).is_none());
        assert_eq!(table.memory(), memory - PAGE_SIZE);
        assert!(table.lock_or_make(page).unwrap().is_empty());
        assert_eq!(table.memory(), memory);
    }
}
