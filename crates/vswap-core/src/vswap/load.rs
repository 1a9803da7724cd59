//! Reading entries.

use super::VirtualSwap;
use crate::backing::BackingError;
use crate::codec::Corrupt;
use crate::counters::{Counter, RecordId};
use crate::descriptor::{AtomicDescriptor, Descriptor, Encoding, Place};
use crate::entry::{BackingId, Handle, SwapEntry};
use crate::error::LoadError;
use crate::page::Page;
use crate::platform::Platform;
use crate::worker::{Coder, Worker};

/// What a load does to the entry's backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It stays valid, so that a page that is not written can be dropped again for nothing.
    Backing,
    /// It is released; the entry is in the swap cache, and the page the only copy.
    Page,
}

/// Where a loaded page came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was all zeros.
    Zero,
    /// It repeated one word.
    SameFilled,
    /// The pool.
    Pool,
    /// A backing.
    Backing(BackingId),
}

/// An entry that cannot be freed or moved while this exists.
#[derive(Debug)]
pub struct Pinned<'a, P: Platform> {
    space: &'a VirtualSwap<P>,
    slot: &'a AtomicDescriptor,
    entry: SwapEntry,
}

impl<P: Platform> Pinned<'_, P> {
    /// The entry.
    pub fn entry(&self) -> SwapEntry {
        self.entry
    }

    /// The descriptor. Its place holds for as long as the pin; counts are a hint.
    pub fn descriptor(&self) -> Descriptor {
        self.slot.peek()
    }

    /// The stored object, if it is in the pool.
    pub fn object(&self) -> Option<&[u8]> {
        match self.descriptor().place()? {
            Place::Compressed { object, .. } | Place::SameFilledInPool(object) => {
                // SAFETY: the pin holds the entry lock, so that the object is neither freed nor
                // moved while the slice borrows the pin.
                Some(unsafe { self.space.pool.bytes(object) })
            }
            _ => None,
        }
    }
}

impl<P: Platform> Drop for Pinned<'_, P> {
    fn drop(&mut self) {
        self.space.unlock(self.entry, self.slot);
    }
}

impl<P: Platform> VirtualSwap<P> {
    /// Finds an entry and keeps it from being freed or moved until the pin is dropped.
    pub fn pin(&self, entry: SwapEntry) -> Option<Pinned<'_, P>> {
        let slot = self.descriptor(entry)?;
        slot.lock(self.platform()).ok()?;
        Some(Pinned { space: self, slot, entry })
    }

    /// Gives an entry lock back, and frees the entry if its last reference went meanwhile.
    pub(super) fn unlock(&self, entry: SwapEntry, slot: &AtomicDescriptor) {
        if let Some(word) = slot.unlock() {
            self.finish_free(entry, word);
        }
    }

    /// Gives an entry lock back with the data at a new place, and releases the old one, which
    /// `word` names.
    pub(super) fn move_to(
        &self,
        entry: SwapEntry,
        slot: &AtomicDescriptor,
        word: Descriptor,
        place: Place,
    ) {
        if let Some(dead) = slot.unlock_at(place) {
            self.finish_free(entry, dead);
        }
        // No descriptor names the old place any more, so nobody else can be reading it.
        if let Some(old) = word.place() {
            self.release_place(entry, word.group(), old);
        }
    }

    /// Reads an entry and keeps it as it is.
    ///
    /// # Errors
    /// See [`LoadError`]; the entry is as it was, and `out` may hold anything.
    #[inline]
    pub fn load(
        &self,
        worker: &mut Worker,
        entry: SwapEntry,
        out: &mut Page,
    ) -> Result<Origin, LoadError> {
        let slot = self.descriptor(entry).ok_or(LoadError::NoEntry)?;
        let word = slot.peek();
        // A word without an object is all there is to read, so it needs no lock.
        if let (true, Some(place @ (Place::Zero | Place::SameFilled(_)))) =
            (word.is_live(), word.place())
        {
            return self.read_place(&mut worker.coder, &worker.record, (entry, place), out);
        }
        let word = slot.lock(self.platform()).map_err(|_| LoadError::NoEntry)?;
        let read = self.read_word(worker, (entry, word), out);
        self.unlock(entry, slot);
        read
    }

    /// The same where a thread may have died with the entry lock, which is tried so often.
    ///
    /// # Safety
    /// Who does not give an entry lock back meanwhile never will, or does before long: what is read then is
    /// read again.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub unsafe fn load_past_lock(
        &self,
        worker: &mut Worker,
        entry: SwapEntry,
        out: &mut Page,
        tries: u32,
    ) -> Result<Origin, LoadError> {
        let slot = self.descriptor(entry).ok_or(LoadError::NoEntry)?;
        for spins in 0..tries {
            match slot.try_lock().map_err(|_| LoadError::NoEntry)? {
                Some(word) => {
                    let read = self.read_word(worker, (entry, word), out);
                    self.unlock(entry, slot);
                    return read;
                }
                None => self.platform().relax(spins),
            }
        }
        // The dead thread's lock keeps all others from freeing or moving the object, and a place is
        // named by the descriptor before the one before it is released.
        let word = slot.peek();
        let read = self.read_word(worker, (entry, word), out);
        let now = slot.peek();
        if now.is_locked() && now.place() == word.place() {
            return read;
        }
        // Somebody was slow, not dead, and what was read may have been given away meanwhile.
        self.load(worker, entry, out)
    }

    /// Reads what a descriptor names. The caller holds the entry lock.
    #[inline]
    fn read_word(
        &self,
        worker: &mut Worker,
        (entry, word): (SwapEntry, Descriptor),
        out: &mut Page,
    ) -> Result<Origin, LoadError> {
        let place = word.place().ok_or(LoadError::NoEntry)?;
        self.read_place(&mut worker.coder, &worker.record, (entry, place), out)
    }

    /// Reads an entry and makes the page the only copy: the backing is released, and the entry is
    /// in the swap cache.
    ///
    /// # Errors
    /// See [`LoadError`]; the entry is as it was, and `out` may hold anything.
    pub fn load_erasing(
        &self,
        worker: &mut Worker,
        entry: SwapEntry,
        out: &mut Page,
    ) -> Result<Origin, LoadError> {
        let slot = self.descriptor(entry).ok_or(LoadError::NoEntry)?;
        let word = slot.lock(self.platform()).map_err(|_| LoadError::NoEntry)?;
        let Some(place) = word.place() else { return Err(LoadError::NoEntry) };
        let read = self.read_place(&mut worker.coder, &worker.record, (entry, place), out);
        if read.is_ok() {
            self.move_to(entry, slot, word, Place::Page);
        } else {
            self.unlock(entry, slot);
        }
        read
    }

    /// Gives an entry's data up: later loads fail with [`LoadError::Poisoned`].
    pub fn poison(&self, entry: SwapEntry) {
        let Some(slot) = self.descriptor(entry) else { return };
        let Ok(word) = slot.lock(self.platform()) else { return };
        self.move_to(entry, slot, word, Place::Poisoned);
    }

    /// Reads a place and counts that. The caller holds the entry lock, if the place has an object.
    #[inline]
    fn read_place(
        &self,
        coder: &mut Coder,
        record: &RecordId,
        at: (SwapEntry, Place),
        out: &mut Page,
    ) -> Result<Origin, LoadError> {
        let (origin, counter) = self.decode_place(coder, record, at, out)?;
        self.counters.add(record, counter, 1);
        self.note_memory(coder, record);
        Ok(origin)
    }

    /// Reads a place, for any purpose; names the counter for swapping it in.
    #[inline]
    pub(super) fn decode_place(
        &self,
        coder: &mut Coder,
        record: &RecordId,
        (entry, place): (SwapEntry, Place),
        out: &mut Page,
    ) -> Result<(Origin, Counter), LoadError> {
        Ok(match place {
            Place::Page => return Err(LoadError::Resident),
            Place::Poisoned => return Err(LoadError::Poisoned),
            Place::Zero => {
                out.0.fill(0);
                (Origin::Zero, Counter::SwpinZero)
            }
            Place::SameFilled(value) => {
                out.fill(value);
                (Origin::SameFilled, Counter::SameFilledIn)
            }
            Place::SameFilledInPool(object) => {
                // SAFETY: the caller holds the entry lock.
                let bytes = unsafe { self.pool.bytes(object) };
                let value = bytes.try_into().map_err(|_| LoadError::Corrupt)?;
                out.fill(u64::from_ne_bytes(value));
                (Origin::SameFilled, Counter::SameFilledIn)
            }
            Place::Compressed { object, encoding } => {
                // SAFETY: the caller holds the entry lock.
                let bytes = unsafe { self.pool.bytes(object) };
                let decoded = coder.decompress(self.platform(), encoding, bytes, out);
                self.count_corrupt(record, decoded)?;
                (Origin::Pool, Counter::Zswpin)
            }
            Place::Backing { device, id, handle, length, encoding } => {
                let length = usize::from(length);
                if encoding == Encoding::Raw {
                    self.fetch(record, id, (entry, handle), &mut out.0[..length])?;
                } else {
                    self.fetch(record, id, (entry, handle), coder.fetched(length))?;
                    let decoded = coder.decompress_fetched(self.platform(), encoding, length, out);
                    self.count_corrupt(record, decoded)?;
                }
                let counter = if device { Counter::Pswpin } else { Counter::ExternalIn };
                (Origin::Backing(id), counter)
            }
        })
    }

    /// Accounts for a codec that the worker had to make.
    #[inline]
    pub(super) fn note_memory(&self, coder: &mut Coder, record: &RecordId) {
        if let Some(bytes) = coder.grown() {
            self.counters.set_memory(record, bytes);
        }
    }

    fn count_corrupt(
        &self,
        record: &RecordId,
        decoded: Result<(), Corrupt>,
    ) -> Result<(), LoadError> {
        decoded.map_err(|Corrupt| {
            self.counters.add(record, Counter::DecompressFail, 1);
            LoadError::Corrupt
        })
    }

    /// Copies an object out of a backing.
    pub(super) fn fetch(
        &self,
        record: &RecordId,
        id: BackingId,
        (entry, handle): (SwapEntry, Handle),
        out: &mut [u8],
    ) -> Result<(), LoadError> {
        let backing = self.backings.get(self.platform(), id).ok_or(LoadError::Io(0))?;
        backing.load(entry, handle, out).map_err(|error| {
            self.counters.add(record, Counter::ReadFail, 1);
            match error {
                BackingError::Io(number) => LoadError::Io(number),
                BackingError::Full => LoadError::Io(0),
            }
        })
    }
}
