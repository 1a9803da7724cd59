//! Moving an entry's data from one place to another, without the client noticing.
//!
//! The new copy is complete before the descriptor changes, and the old one goes last. The object
//! is decoded on the way, so that a damaged one is found while its origin is still known.
//!
//! # Measured
//!
//! `VSWAP_TEST_LONG=1 cargo test -p vswap-core --test on_devices swapoff -- --nocapture`, 2 vCPUs shared
//! with other work, idle-class scheduling: swapoff finds and moves 83 of 8.4 million pages (32 GiB) in
//! 24 to 27 ms, where a walk that unpacked each descriptor took 47 ms.

use super::store::{COMPRESSED_MAX, Object, Owner};
use super::{Cursor, VirtualSwap};
use crate::backing::{Form, Medium};
use crate::backings::BackingState;
use crate::counters::Counter;
use crate::descriptor::{AtomicDescriptor, Descriptor, Encoding, Place};
use crate::entry::{BackingId, SwapEntry};
use crate::error::{BackingSetError, LoadError, StoreError, TransferError};
use crate::platform::Platform;
use crate::worker::Worker;

/// Where an object should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The pool.
    Pool,
    /// This backing.
    Backing(BackingId),
    /// Wherever a page of its kind would be stored now.
    Anywhere,
}

/// What a transfer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The object moved.
    Moved,
    /// The entry has no object that could move.
    Nothing,
}

/// How far [`VirtualSwap::rehome`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rehoming {
    /// Where to go on; `None` when all entries were looked at, or the backing is small enough.
    pub next: Option<Cursor>,
    /// Objects that moved.
    pub moved: usize,
    /// Objects that could not be read, or that no other place took.
    pub failed: usize,
}

impl<P: Platform> VirtualSwap<P> {
    /// Moves an entry's object to another place.
    ///
    /// # Errors
    /// If the object cannot be read, or the target does not take it. It is where it was then.
    pub fn transfer(
        &self,
        worker: &mut Worker,
        entry: SwapEntry,
        target: Target,
    ) -> Result<Transfer, TransferError> {
        let slot = self.descriptor(entry).ok_or(LoadError::NoEntry)?;
        let word = slot.lock(self.platform()).map_err(|_| LoadError::NoEntry)?;
        self.transfer_locked(worker, entry, slot, word, target)
    }

    /// The rest of a transfer, which gives the lock back.
    fn transfer_locked(
        &self,
        worker: &mut Worker,
        entry: SwapEntry,
        slot: &AtomicDescriptor,
        word: Descriptor,
        target: Target,
    ) -> Result<Transfer, TransferError> {
        match self.copy_object(worker, Owner { entry, group: word.group() }, word, target) {
            Ok(Some(place)) => {
                self.move_to(entry, slot, word, place);
                self.counters.add(&worker.record, Counter::Transferred, 1);
                Ok(Transfer::Moved)
            }
            Ok(None) => {
                self.unlock(entry, slot);
                Ok(Transfer::Nothing)
            }
            Err(error) => {
                self.unlock(entry, slot);
                Err(error)
            }
        }
    }

    /// Puts a copy of an object at its target.
    fn copy_object(
        &self,
        worker: &mut Worker,
        owner: Owner,
        word: Descriptor,
        target: Target,
    ) -> Result<Option<Place>, TransferError> {
        let Some(place @ (Place::Compressed { .. } | Place::Backing { .. })) = word.place() else {
            return Ok(None);
        };
        let Worker { pool, record, coder, page, .. } = worker;
        self.decode_place(coder, record, (owner.entry, place), page)?;
        let (bytes, encoding) = match place {
            Place::Compressed { object, encoding } if encoding != Encoding::Raw => {
                // SAFETY: the caller holds the entry lock, and releases the object after this.
                (unsafe { self.pool.bytes(object) }, encoding)
            }
            Place::Backing { encoding, length, .. } if encoding != Encoding::Raw => {
                (&*coder.fetched(usize::from(length)), encoding)
            }
            _ => coder.compress(page, COMPRESSED_MAX).unwrap_or((&page.0, Encoding::Raw)),
        };
        let object = Object { owner, bytes, encoding };
        let copy = match target {
            Target::Pool => self.place_in_pool(pool, record, object),
            Target::Backing(id) => {
                let backing = self.backings.get(self.platform(), id).ok_or(StoreError::Full)?;
                let object = match backing.form() {
                    Form::Objects => object,
                    Form::Pages => Object::raw(owner, page),
                };
                self.place_in_backing(record, id, backing, object)
            }
            Target::Anywhere => self
                .place_in_pool(pool, record, object)
                .or_else(|_| self.place_on(record, Medium::Ram, object, page))
                .or_else(|_| self.place_on(record, Medium::Device, object, page)),
        }?;
        let written_back = matches!(place, Place::Compressed { .. })
            && matches!(copy, Place::Backing { device: true, .. });
        if written_back {
            self.counters.add(record, Counter::WrittenBackPages, 1);
        }
        Ok(Some(copy))
    }

    /// Moves objects out of a backing: all of them if it was closed
    /// ([`Self::set_backing_state`]), else as many as it holds beyond its capacity. Looks at up to
    /// `budget` entries of the backing, so that a caller can do other things in between; no
    /// page table is touched, and the entries stay usable throughout.
    ///
    /// # Errors
    /// If there is no such backing.
    pub fn rehome(
        &self,
        worker: &mut Worker,
        id: BackingId,
        from: Cursor,
        budget: usize,
    ) -> Result<Rehoming, BackingSetError> {
        let backing = self.backings.get(self.platform(), id).ok_or(BackingSetError::Unknown)?;
        let mut done = Rehoming { next: None, moved: 0, failed: 0 };
        for (entry, slot) in self.walk_where(from, |word| word.is_in(id)) {
            let enough = match self.backings.state(id) {
                BackingState::Active => backing.room().excess() == 0,
                BackingState::Draining | BackingState::Failed => self.backings.objects(id) == 0,
            };
            if enough {
                break;
            }
            if done.moved + done.failed == budget {
                done.next = Some(Cursor::at(entry));
                break;
            }
            let Ok(word) = slot.lock(self.platform()) else { continue };
            if !word.is_in(id) {
                self.unlock(entry, slot);
                continue;
            }
            match self.transfer_locked(worker, entry, slot, word, Target::Anywhere) {
                Ok(_) => done.moved += 1,
                Err(_) => done.failed += 1,
            }
        }
        Ok(done)
    }
}
