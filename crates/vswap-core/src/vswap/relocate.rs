//! Compaction of a backing: objects move to other places of the same backing, a batch at a time.
//!
//! Objects are read and written with no lock held: whoever faults on one of them meanwhile does not
//! wait. Then each descriptor changes, if it still names the same place and that place still is to
//! be emptied. Nothing is put into such places, so it is the same object then: it needs no comparison,
//! and each object is read and written once.

use super::write_back::{Batch, Leaving, WRITE_BACK_BATCH};
use super::{Cursor, VirtualSwap};
use crate::backing::{Backing, BackingError, Relocation};
use crate::counters::Counter;
use crate::descriptor::{Descriptor, Place};
use crate::entry::{BackingId, Handle, SwapEntry};
use crate::error::BackingSetError;
use crate::platform::Platform;
use crate::worker::Worker;

/// What one batch of [`VirtualSwap::relocate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocated {
    /// Where to go on; `None` when all entries were looked at.
    pub next: Option<Cursor>,
    /// Objects that were read.
    pub read: usize,
    /// Objects that moved.
    pub moved: usize,
    /// Bytes of those that moved.
    pub bytes: u64,
    /// Objects that were freed or moved by others meanwhile.
    pub raced: usize,
    /// Why the backing did not take the batch. All of its objects are where they were.
    pub refused: Option<BackingError>,
}

/// A place in the backing that is to be emptied.
fn leaving(
    word: Descriptor,
    (id, relocation): (BackingId, &dyn Relocation),
) -> Option<(Handle, usize)> {
    match word.place() {
        Some(Place::Backing { id: other, handle, length, .. })
            if other == id && relocation.is_leaving(handle) =>
        {
            Some((handle, length.into()))
        }
        _ => None,
    }
}

impl<P: Platform> VirtualSwap<P> {
    /// Moves objects of a backing away from the places that are to be emptied, up to
    /// [`WRITE_BACK_BATCH`] of them with one store, in the order of their slots. Looks at up to `looks`
    /// entries of the backing. No page table is touched, and the entries stay usable throughout.
    ///
    /// The backing is `relocation`, and one thread calls this at a time. `buffer` is where the copies
    /// are made; it holds a page at least.
    ///
    /// # Errors
    /// If there is no such backing.
    pub fn relocate(
        &self,
        worker: &mut Worker,
        (id, relocation): (BackingId, &dyn Relocation),
        from: Cursor,
        looks: usize,
        buffer: &mut [u8],
    ) -> Result<Relocated, BackingSetError> {
        let backing = self.backings.get(self.platform(), id).ok_or(BackingSetError::Unknown)?;
        let mut batch = Batch::new(buffer);
        let mut done =
            Relocated { next: None, read: 0, moved: 0, bytes: 0, raced: 0, refused: None };
        for (look, (entry, slot)) in self.walk_where(from, |word| word.is_in(id)).enumerate() {
            if !batch.has_room() || look == looks {
                done.next = Some(Cursor::at(entry));
                break;
            }
            let word = slot.peek();
            if let Some((handle, length)) = leaving(word, (id, relocation)) {
                done.read += 1;
                let bytes = batch.space(length);
                match (backing.load(entry, handle, bytes), word.place()) {
                    (Ok(()), Some(Place::Backing { encoding, .. })) => {
                        batch.keep(entry, word, encoding, length);
                    }
                    // It has been freed, or stays until somebody asks for it and learns of it.
                    _ => self.counters.add(&worker.record, Counter::ReadFail, 1),
                }
            }
        }
        self.store_relocated(worker, (id, backing, relocation), &batch, &mut done);
        Ok(done)
    }

    fn store_relocated(
        &self,
        worker: &Worker,
        (id, backing, relocation): (BackingId, &dyn Backing, &dyn Relocation),
        batch: &Batch<'_>,
        done: &mut Relocated,
    ) {
        let Some(objects) = batch.outgoing() else { return };
        let mut handles = [Handle::default(); WRITE_BACK_BATCH];
        let (objects, handles) = (&objects[..batch.count], &mut handles[..batch.count]);
        let count = objects.len() as u64;
        let stored = self.backings.store_by(self.platform(), (id, backing), count, || {
            relocation.store_elsewhere(objects, handles)
        });
        if let Err(error) = stored {
            done.refused = Some(error);
            return;
        }
        for ((one, bytes), &handle) in batch.iter().zip(&*handles) {
            if self.commit_relocated(one, (id, relocation), handle) {
                done.moved += 1;
                done.bytes += bytes.len() as u64;
            } else {
                self.backings.free(self.platform(), id, handle, bytes.len());
                done.raced += 1;
            }
        }
        self.counters.add(&worker.record, Counter::Relocated, done.moved as u64);
        self.counters.add(&worker.record, Counter::RelocatedBytes, done.bytes);
    }

    /// Makes the descriptor say where the object is now; `false` if it may be another object by now. The
    /// charge for the old place becomes that for the new one.
    fn commit_relocated(
        &self,
        one: Leaving,
        (id, relocation): (BackingId, &dyn Relocation),
        new: Handle,
    ) -> bool {
        let entry: SwapEntry = one.entry;
        let Some(slot) = self.descriptor(entry) else { return false };
        let Ok(word) = slot.lock(self.platform()) else { return false };
        let same = word.place() == one.word.place() && word.group() == one.word.group();
        let Some(Place::Backing { device, handle: old, length, encoding, .. }) =
            word.place().filter(|_| same && leaving(word, (id, relocation)).is_some())
        else {
            self.unlock(entry, slot);
            return false;
        };
        let place = Place::Backing { device, id, handle: new, length, encoding };
        if let Some(dead) = slot.unlock_at(place) {
            self.finish_free(entry, dead);
        }
        // No descriptor names the old place any more, so nobody else can be reading it.
        self.backings.free(self.platform(), id, old, length.into());
        true
    }
}
