//! What pages were like when they came in from a device: if they are the same when they are evicted,
//! the slot that they still have there is enough.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vswap_core::SwapEntry;
use vswap_core::fingerprint::{Fingerprint, Fingerprinter, KEY};
use vswap_core::page::Page;

use crate::slot_table::SlotTable;
use crate::sys::task;

/// Fingerprints by entry, two words each; 0 for none.
pub struct Fingerprints {
    maker: UnsafeCell<Option<Fingerprinter>>,
    made: AtomicBool,
    words: SlotTable<AtomicU64, { 1 << 17 }, { 1 << 15 }>,
}

// SAFETY: the maker is written once, before `made` says that it is there; the rest is atomic.
unsafe impl Sync for Fingerprints {}

impl core::fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Fingerprints").finish_non_exhaustive()
    }
}

/// Those of this process.
pub static FINGERPRINTS: Fingerprints = Fingerprints {
    maker: UnsafeCell::new(None),
    made: AtomicBool::new(false),
    words: SlotTable::new(),
};

/// Bytes of memory for one.
pub const BYTES: usize = 2 * size_of::<u64>();

impl Fingerprints {
    /// Makes the key. Without randomness no slot is kept.
    ///
    /// # Safety
    /// On the thread that makes the pager, before there are others of it.
    pub unsafe fn begin(&self) {
        let mut key = [0; KEY];
        if !self.made.load(Ordering::Relaxed) && task::random(&mut key) {
            // SAFETY: nobody looks before `made` is set.
            unsafe { *self.maker.get() = Some(Fingerprinter::new(&key)) };
            self.made.store(true, Ordering::Release);
        }
    }

    fn of(&self, page: &Page) -> Option<Fingerprint> {
        // SAFETY: it does not change after `made` was set.
        let maker = self.made.load(Ordering::Acquire).then(|| unsafe { &*self.maker.get() });
        Some(maker?.as_ref()?.of(page))
    }

    /// Notes what the page of an entry is like; `false` without memory.
    #[must_use]
    pub fn note(&self, entry: SwapEntry, page: &Page) -> bool {
        let words = self.of(page).zip(self.words.make(2 * entry.raw() as usize));
        let Some((Fingerprint(now), first)) = words else { return false };
        // A piece holds whole fingerprints.
        let Some(second) = self.words.get(2 * entry.raw() as usize + 1) else { return false };
        first.store(now[0], Ordering::Relaxed);
        second.store(now[1], Ordering::Relaxed);
        true
    }

    /// Forgets what is known of an entry.
    pub fn forget(&self, entry: SwapEntry) {
        if let Some(first) = self.words.get(2 * entry.raw() as usize) {
            first.store(0, Ordering::Relaxed);
        }
    }

    /// Whether something is known of an entry.
    pub fn knows(&self, entry: SwapEntry) -> bool {
        let first = self.words.get(2 * entry.raw() as usize);
        first.is_some_and(|first| first.load(Ordering::Relaxed) != 0)
    }

    /// Whether a page is what the entry was noted with; `None` if nothing is known of it.
    pub fn is_same(&self, entry: SwapEntry, page: &Page) -> Option<bool> {
        let index = 2 * entry.raw() as usize;
        let words = [index, index + 1].map(|index| self.words.get(index));
        let [Some(first), Some(second)] = words else { return None };
        let noted = [first, second].map(|word| word.load(Ordering::Relaxed));
        if noted[0] == 0 {
            return None;
        }
        Some(self.of(page)? == Fingerprint(noted))
    }
}
