//! Giving back what fragmentation holds, by moving the objects of sparse segments.

use super::{Cursor, VirtualSwap};
use crate::counters::Counter;
use crate::descriptor::{Descriptor, Place};
use crate::platform::Platform;
use crate::pool::Stored;
use crate::worker::Worker;

/// The object that a descriptor names in the pool.
fn pool_object(word: Descriptor) -> Option<Stored> {
    match word.place()? {
        Place::Compressed { object, .. } | Place::SameFilledInPool(object) => Some(object),
        _ => None,
    }
}

/// The same kind of place, with the object moved.
fn moved_to(place: Place, object: Stored) -> Place {
    match place {
        Place::Compressed { encoding, .. } => Place::Compressed { object, encoding },
        _ => Place::SameFilledInPool(object),
    }
}

impl<P: Platform> VirtualSwap<P> {
    /// Empties sparse pages of the pool, moving up to about `bytes_moved_max` bytes, and returns
    /// how many bytes of memory that gave back. Objects keep their entries; an entry that is in
    /// use at the moment is passed over.
    pub fn compact(&self, worker: &mut Worker, bytes_moved_max: usize) -> usize {
        let before = self.pool.memory();
        // Pages that are less than half full are worth more than what moves, and come first; if
        // fuller ones have to be taken as well, the bound ends the work early.
        if self.pool.choose_victims(bytes_moved_max) > 0 {
            self.empty_victims(worker, bytes_moved_max);
            self.pool.release_victims();
        }
        before.saturating_sub(self.pool.memory())
    }

    /// The pool keeps no owners of objects, so they are found among all descriptors.
    fn empty_victims(&self, worker: &mut Worker, bytes_moved_max: usize) {
        let (mut bytes, mut objects) = (0, 0);
        let is_victim =
            |word| pool_object(word).filter(|object: &Stored| self.pool.is_victim(object.location));
        for (entry, slot) in self.walk(Cursor::START) {
            if is_victim(slot.peek()).is_none() {
                continue;
            }
            // Neighbours were stored together, so what was moved until here did empty pages.
            if bytes >= bytes_moved_max {
                break;
            }
            let Ok(Some(word)) = slot.try_lock() else { continue };
            let (Some(object), Some(place)) = (is_victim(word), word.place()) else {
                self.unlock(entry, slot);
                continue;
            };
            // SAFETY: we hold the entry lock, and free the object only after the copy is made.
            let data = unsafe { self.pool.bytes(object) };
            let Ok(copy) = self.pool.store(&mut worker.pool, data) else {
                self.unlock(entry, slot);
                break;
            };
            (bytes, objects) = (bytes + data.len(), objects + 1);
            if let Some(dead) = slot.unlock_at(moved_to(place, copy)) {
                self.finish_free(entry, dead);
            }
            // The charge is the same wherever the object lies, so only the memory goes.
            self.pool.free(object);
        }
        self.counters.add(&worker.record, Counter::Compacted, objects);
    }
}
