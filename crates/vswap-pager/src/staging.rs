//! Staging: where evicted pages wait until they are compressed.
//!
//! A *tray* is a window of the engine's address space as large as a leaf of the page table
//! (4 MiB); pages move there by UFFDIO_MOVE at the offset that they have in their leaf. While a page
//! lies in a tray its word says [`PageState::Staged`](crate::table::PageState::Staged), and a fault
//! copies it back without the codec. Moved-out pages are dropped, never refilled: a pipe may still
//! hold one.
//!
//! Trays are filled under the mapping lock and emptied in the order of filling by whoever takes the
//! oldest one. While a tray is filled it is registered with the program's userfaultfd: then the kernel
//! refuses a move while an event of that descriptor is not dealt with, so nothing is taken from where
//! a raw trap has mapped something else meanwhile. Otherwise it is plain memory, since dropping pages
//! of a registered range is an event itself. A page without access behind each tray keeps it a mapping
//! of its own: dividing and merging mappings costs more than registering one.

use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as k;
use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::platform::Platform;

use crate::address::LEAF_PAGES;
use crate::arena::Arena;
use crate::lock::SpinLock;
use crate::sys::uffd::Uffd;
use crate::sys::{Errno, memory};

/// Trays in all.
pub const TRAYS: usize = 16;
const TRAY_BYTES: usize = LEAF_PAGES * PAGE_SIZE;
/// A tray with the page behind it.
const STRIDE: usize = TRAY_BYTES + PAGE_SIZE;
const BITMAP_WORDS: usize = LEAF_PAGES / 64;

/// Which pages of a leaf are in a tray.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bitmap([u64; BITMAP_WORDS]);

impl Bitmap {
    /// Adds a page.
    pub fn insert(&mut self, offset: usize) {
        self.0[offset / 64] |= 1 << (offset % 64);
    }

    /// Whether a page is in.
    pub fn contains(&self, offset: usize) -> bool {
        self.0[offset / 64] >> (offset % 64) & 1 != 0
    }

    /// Number of pages.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Each page, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..LEAF_PAGES).filter(|&offset| self.contains(offset))
    }
}

/// What is known of one tray.
#[derive(Clone, Copy, Debug)]
pub struct Tray {
    /// Its number.
    pub number: u8,
    /// Number of the leaf that its pages came from.
    pub leaf: usize,
    /// The pages.
    pub pages: Bitmap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrayState {
    Free,
    Filling,
    /// Waits to be emptied; the number is its place in the order of filling.
    Full(u64),
    Emptying,
}

#[derive(Debug)]
struct Slot {
    state: TrayState,
    tray: Tray,
    prot: u8,
    guarded: bool,
}

#[derive(Debug)]
struct Slots {
    slots: [Slot; TRAYS],
    filled: u64,
}

/// All trays.
#[derive(Debug)]
pub struct Staging {
    base: AtomicUsize,
    slots: SpinLock<Slots>,
}

impl Staging {
    /// No memory yet.
    pub const fn new() -> Self {
        const EMPTY: Tray = Tray { number: 0, leaf: 0, pages: Bitmap([0; BITMAP_WORDS]) };
        Self {
            base: AtomicUsize::new(0),
            slots: SpinLock::new(Slots {
                slots: [const {
                    Slot {
                        state: TrayState::Free,
                        tray: EMPTY,
                        prot: memory::READ_WRITE as u8,
                        guarded: false,
                    }
                }; TRAYS],
                filled: 0,
            }),
        }
    }

    /// Reserves the trays, once.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn open(&self) -> Result<(), Errno> {
        if self.base.load(Ordering::Acquire) == 0 {
            let base = Arena.reserve(TRAYS * STRIDE, PAGE_SIZE).ok_or(Errno::ENOMEM)?;
            self.base.store(base.as_ptr() as usize, Ordering::Release);
        }
        Ok(())
    }

    /// Address of a page in a tray.
    pub fn address(&self, tray: u8, offset: usize) -> usize {
        self.base.load(Ordering::Relaxed) + usize::from(tray) * STRIDE + offset * PAGE_SIZE
    }

    /// A page in a tray.
    ///
    /// # Safety
    /// The page must be in the tray, and the tray must not be emptied meanwhile.
    pub unsafe fn page(&self, tray: u8, offset: usize) -> &Page {
        // SAFETY: the caller vouches that the page is there; nobody writes to it.
        unsafe { &*(self.address(tray, offset) as *const Page) }
    }

    /// Takes a free tray to fill it through `uffd` with pages of a leaf, of a region that has protection
    /// `prot`; a move works between equal protections only.
    pub fn begin(&self, leaf: usize, prot: u8, uffd: &Uffd) -> Option<u8> {
        let number = self.take_free(leaf, prot)?;
        if uffd.register(self.address(number, 0), TRAY_BYTES).is_err() {
            self.slots.lock().slots[usize::from(number)].state = TrayState::Free;
            return None;
        }
        Some(number)
    }

    fn take_free(&self, leaf: usize, prot: u8) -> Option<u8> {
        let mut slots = self.slots.lock();
        let number = slots.slots.iter().position(|slot| slot.state == TrayState::Free)?;
        let slot = &mut slots.slots[number];
        let start = self.address(number as u8, 0);
        if !slot.guarded {
            // SAFETY: the page is the engine's, and nobody uses it.
            unsafe { memory::protect(start + TRAY_BYTES, PAGE_SIZE, k::PROT_NONE) }.ok()?;
            slot.guarded = true;
        }
        if slot.prot != prot {
            // SAFETY: the tray is free, so nobody uses its memory.
            unsafe { memory::protect(start, TRAY_BYTES, u32::from(prot)) }.ok()?;
            slot.prot = prot;
        }
        slot.state = TrayState::Filling;
        slot.tray.leaf = leaf;
        Some(number as u8)
    }

    /// The tray that pages of a leaf were being moved to by a thread that died. Who moves has the mapping lock,
    /// so there is one at most.
    pub fn left_filling_from(&self, leaf: usize) -> Option<u8> {
        let slots = self.slots.try_lock()?;
        let is_it = |slot: &Slot| slot.state == TrayState::Filling && slot.tray.leaf == leaf;
        slots.slots.iter().position(is_it).map(|number| number as u8)
    }

    /// Makes a tray that has been filled plain memory again.
    ///
    /// # Errors
    /// As ioctl(UFFDIO_UNREGISTER).
    pub fn seal(&self, number: u8, uffd: &Uffd) -> Result<(), Errno> {
        uffd.unregister(self.address(number, 0), TRAY_BYTES)
    }

    /// Puts a filled tray at the end of the queue, or frees it if it stayed empty.
    pub fn finish(&self, tray: Tray) {
        let mut slots = self.slots.lock();
        slots.filled += 1;
        let order = slots.filled;
        let slot = &mut slots.slots[usize::from(tray.number)];
        slot.state = if tray.pages.count() == 0 { TrayState::Free } else { TrayState::Full(order) };
        slot.tray = tray;
    }

    /// Takes the tray that was filled first, to empty it.
    pub fn take_oldest(&self) -> Option<Tray> {
        let mut slots = self.slots.lock();
        let oldest = slots
            .slots
            .iter_mut()
            .filter_map(|slot| match slot.state {
                TrayState::Full(order) => Some((order, slot)),
                _ => None,
            })
            .min_by_key(|(order, _)| *order)?
            .1;
        oldest.state = TrayState::Emptying;
        Some(oldest.tray)
    }

    /// Puts a tray back that could not be emptied; it is again the oldest.
    pub fn put_back(&self, tray: Tray) {
        let mut slots = self.slots.lock();
        let slot = &mut slots.slots[usize::from(tray.number)];
        slot.state = TrayState::Full(0);
        slot.tray = tray;
    }

    /// Drops the pages of an emptied tray, and frees it.
    pub fn discard(&self, tray: &Tray) {
        let mut offsets = tray.pages.iter();
        if let Some(first) = offsets.next() {
            let last = offsets.last().unwrap_or(first);
            let start = self.address(tray.number, first) as *mut u8;
            if let Some(start) = core::ptr::NonNull::new(start) {
                // SAFETY: every page that is still wanted has been copied or stored, and the tray
                // is ours until its state changes below.
                unsafe { Arena.discard(start, (last + 1 - first) * PAGE_SIZE) };
            }
        }
        self.slots.lock().slots[usize::from(tray.number)].state = TrayState::Free;
    }

    /// Number of trays that wait to be emptied.
    pub fn full(&self) -> usize {
        let slots = self.slots.lock();
        slots.slots.iter().filter(|slot| matches!(slot.state, TrayState::Full(_))).count()
    }

    /// In the child of a fork: trays that a thread of the parent was emptying are full again.
    /// What it had already committed is skipped by whoever empties them now.
    pub fn reset_after_fork(&self) {
        self.slots.reset_after_fork();
        let mut slots = self.slots.lock();
        for slot in &mut slots.slots {
            if slot.state == TrayState::Emptying {
                slot.state = TrayState::Full(0);
            }
        }
    }
}

impl Default for Staging {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trays_are_emptied_in_the_order_of_filling() {
        let staging = Staging::new();
        staging.open().unwrap();
        let fill = |leaf| {
            let number = staging.take_free(leaf, memory::READ_WRITE as u8).unwrap();
            assert_eq!(staging.left_filling_from(leaf), Some(number));
            assert_eq!(staging.left_filling_from(leaf + 1), None);
            let mut pages = Bitmap::default();
            pages.insert(leaf);
            staging.finish(Tray { number, leaf, pages });
        };
        (0..TRAYS).for_each(fill);
        assert!(staging.take_free(0, memory::READ_WRITE as u8).is_none());
        let first = staging.take_oldest().unwrap();
        assert_eq!(first.leaf, 0);
        staging.put_back(first);
        assert_eq!(staging.full(), TRAYS);
        let again = staging.take_oldest().unwrap();
        assert_eq!(again.leaf, 0);
        assert_eq!(staging.take_oldest().unwrap().leaf, 1);
    }
}
