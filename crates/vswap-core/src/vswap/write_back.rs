//! Writeback: objects of the pool go to a backing, a batch at a time.
//!
//! The objects are copied one by one under their entry's lock, written together with no lock held, and
//! then each descriptor changes, if its entry still holds the same bytes: whoever faults on one of
//! them meanwhile finds it in the pool, and does not wait for a device.

use core::ops::Range;

use super::store::count_refusal;
use super::{Cursor, VirtualSwap};
use crate::backing::{Backing, BackingError, Form, Medium, Outgoing};
use crate::counters::Counter;
use crate::descriptor::{AtomicDescriptor, Descriptor, Encoding, Place};
use crate::entry::{BackingId, Handle, SwapEntry};
use crate::error::BackingSetError;
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::worker::Worker;

/// Objects in one batch, at most.
pub const WRITE_BACK_BATCH: usize = 160;

/// An object of the pool that could be written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooled {
    /// Whose it is.
    pub entry: SwapEntry,
    /// Whether it is a page as it was, since it does not compress: writing it frees most.
    pub is_raw: bool,
}

/// What one batch of writeback did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteBack {
    /// Where to go on; `None` when the whole range was looked at.
    pub next: Option<Cursor>,
    /// Objects that moved.
    pub written: usize,
    /// Objects that were written in vain: their entries were freed or changed meanwhile.
    pub raced: usize,
    /// Why the backing did not take the batch. All of its objects are where they were.
    pub refused: Option<BackingError>,
}

/// A copy in the batch, and the descriptor that it was made from.
#[derive(Clone, Copy)]
pub(super) struct Leaving {
    pub(super) entry: SwapEntry,
    pub(super) word: Descriptor,
    pub(super) encoding: Encoding,
    start: usize,
    length: usize,
}

/// Copies on their way out.
pub(super) struct Batch<'a> {
    buffer: &'a mut [u8],
    filled: usize,
    leaving: [Option<Leaving>; WRITE_BACK_BATCH],
    pub(super) count: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, filled: 0, leaving: [None; WRITE_BACK_BATCH], count: 0 }
    }

    pub(super) fn has_room(&self) -> bool {
        self.count < WRITE_BACK_BATCH && self.buffer.len() - self.filled >= PAGE_SIZE
    }

    /// Where the next copy comes to lie.
    pub(super) fn space(&mut self, length: usize) -> &mut [u8] {
        &mut self.buffer[self.filled..self.filled + length]
    }

    fn add(&mut self, entry: SwapEntry, word: Descriptor, encoding: Encoding, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.keep(entry, word, encoding, bytes.len());
    }

    /// Adds what lies in [`Self::space`].
    pub(super) fn keep(
        &mut self,
        entry: SwapEntry,
        word: Descriptor,
        encoding: Encoding,
        length: usize,
    ) {
        let start = self.filled;
        self.leaving[self.count] = Some(Leaving { entry, word, encoding, start, length });
        self.filled += length;
        self.count += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Leaving, &[u8])> {
        let leaving = self.leaving[..self.count].iter().flatten();
        leaving.map(|one| (*one, &self.buffer[one.start..one.start + one.length]))
    }

    /// The copies, as a backing wants them, [`Self::count`] of them; `None` if there are none.
    pub(super) fn outgoing(&self) -> Option<[Outgoing<'_>; WRITE_BACK_BATCH]> {
        let (first, _) = self.iter().next()?;
        let mut objects = [Outgoing { entry: first.entry, bytes: &[] }; WRITE_BACK_BATCH];
        for (object, (one, bytes)) in objects.iter_mut().zip(self.iter()) {
            *object = Outgoing { entry: one.entry, bytes };
        }
        Some(objects)
    }
}

impl<P: Platform> VirtualSwap<P> {
    /// Moves up to [`WRITE_BACK_BATCH`] objects of the pool to a backing with one store, in the order of
    /// their slots. Entries that are in use at the moment, that `wanted` turns down, or whose group may
    /// not write back or is at its limit are passed over. No page table is touched, and the entries
    /// stay usable throughout.
    ///
    /// `buffer` is where the copies are made; it holds a page at least.
    ///
    /// # Errors
    /// If there is no such backing.
    pub fn write_back(
        &self,
        worker: &mut Worker,
        id: BackingId,
        range: Range<Cursor>,
        buffer: &mut [u8],
        mut wanted: impl FnMut(Pooled) -> bool,
    ) -> Result<WriteBack, BackingSetError> {
        let backing = self.backings.get(self.platform(), id).ok_or(BackingSetError::Unknown)?;
        let mut batch = Batch::new(buffer);
        let mut next = None;
        let slots = self.walk(range.start).take_while(|(entry, _)| Cursor::at(*entry) < range.end);
        for (entry, slot) in slots {
            if !batch.has_room() {
                next = Some(Cursor::at(entry));
                break;
            }
            if pooled(entry, slot.peek()).is_some_and(&mut wanted) {
                self.copy_out(worker, backing, (entry, slot), &mut batch);
            }
        }
        let mut done = WriteBack { next, written: 0, raced: 0, refused: None };
        self.store_batch(worker, (id, backing), &batch, &mut done);
        Ok(done)
    }

    /// Adds an entry's object to the batch, and charges for the place that it is going to take.
    fn copy_out(
        &self,
        worker: &mut Worker,
        backing: &dyn Backing,
        (entry, slot): (SwapEntry, &AtomicDescriptor),
        batch: &mut Batch<'_>,
    ) {
        let Ok(Some(word)) = slot.try_lock() else { return };
        if let Some(place @ Place::Compressed { object, encoding }) = word.place() {
            // SAFETY: the entry lock is held.
            let bytes = unsafe { self.pool.bytes(object) };
            let Worker { record, coder, page, .. } = worker;
            match backing.form() {
                Form::Objects if self.charge_backing(word.group(), backing, bytes.len()) => {
                    batch.add(entry, word, encoding, bytes);
                }
                Form::Pages
                    if self.decode_place(coder, record, (entry, place), page).is_ok()
                        && self.charge_backing(word.group(), backing, PAGE_SIZE) =>
                {
                    batch.add(entry, word, Encoding::Raw, &page.0);
                }
                _ => {}
            }
        }
        self.unlock(entry, slot);
    }

    fn store_batch(
        &self,
        worker: &mut Worker,
        (id, backing): (BackingId, &dyn Backing),
        batch: &Batch<'_>,
        done: &mut WriteBack,
    ) {
        let Some(objects) = batch.outgoing() else { return };
        let mut handles = [Handle::default(); WRITE_BACK_BATCH];
        let (objects, handles) = (&objects[..batch.count], &mut handles[..batch.count]);
        let stored = self.backings.store(self.platform(), (id, backing), objects, handles);
        if let Err(error) = stored {
            count_refusal(&self.counters, &worker.record, error);
            for (one, bytes) in batch.iter() {
                self.uncharge_backing(one.word.group(), backing, bytes.len());
            }
            done.refused = Some(error);
            return;
        }
        for ((one, bytes), handle) in batch.iter().zip(handles) {
            let device = backing.medium() == Medium::Device;
            let length = bytes.len() as u16;
            let place =
                Place::Backing { device, id, handle: *handle, length, encoding: one.encoding };
            if self.commit(worker, one, bytes, place) {
                done.written += 1;
            } else {
                self.uncharge_backing(one.word.group(), backing, bytes.len());
                self.backings.free(self.platform(), id, *handle, bytes.len());
                done.raced += 1;
            }
        }
        if backing.medium() == Medium::Device {
            let written = done.written as u64;
            self.counters.add(&worker.record, Counter::WrittenBackPages, written);
            self.counters.add(&worker.record, Counter::Pswpout, written);
        } else {
            self.counters.add(&worker.record, Counter::ExternalOut, done.written as u64);
        }
    }

    /// Makes the descriptor say where the object is now; `false` if it is another object by now.
    fn commit(&self, worker: &mut Worker, one: Leaving, written: &[u8], place: Place) -> bool {
        let Some(slot) = self.descriptor(one.entry) else { return false };
        let Ok(word) = slot.lock(self.platform()) else { return false };
        let same = word.group() == one.word.group()
            && word.place() == one.word.place()
            && self.is_still(worker, one, written);
        if same {
            self.move_to(one.entry, slot, word, place);
        } else {
            self.unlock(one.entry, slot);
        }
        same
    }

    /// Whether the object at the place that was copied still is what was copied: the entry can have
    /// been freed and come back, with another page at the same place. The entry lock is held.
    fn is_still(&self, worker: &mut Worker, one: Leaving, written: &[u8]) -> bool {
        let Some(place @ Place::Compressed { object, encoding }) = one.word.place() else {
            return false;
        };
        if encoding == one.encoding {
            // SAFETY: the caller holds the entry lock, and found the entry at this place.
            return unsafe { self.pool.bytes(object) } == written;
        }
        let Worker { record, coder, page, .. } = worker;
        self.decode_place(coder, record, (one.entry, place), page).is_ok() && page.0 == *written
    }
}

fn pooled(entry: SwapEntry, word: Descriptor) -> Option<Pooled> {
    match word.place() {
        Some(Place::Compressed { encoding, .. }) => {
            Some(Pooled { entry, is_raw: encoding == Encoding::Raw })
        }
        _ => None,
    }
}
