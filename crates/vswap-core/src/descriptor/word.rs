//! The transitions of a descriptor word, each one compare-and-swap.
//!
//! **Who frees.** Exactly one thread sees a slot die and releases its place. `put` or
//! `uncache` of an unlocked word that thereby loses its last reason goes straight to `FREE` and
//! returns the old word: nobody else can have the place any more. If the word is locked it is left
//! dying (not live, locked), and `unlock` of the holder does the same. So freeing never waits for
//! a load that is reading the object.
//!
//! **Ordering.** `lock` acquires and `unlock` releases: what a holder did to the object happens
//! before the next holder's work. Every transition to `FREE` is a release, and the cluster's owner
//! reads words with acquire before it hands a slot out again.
//!
//! **Large counts.** A count field of 7 means 7 plus the slot's number in the side table of its
//! cluster. While the field is 7 only a holder of the cluster's count lock changes the field or the
//! number, so the pair is consistent for any such holder; below 7 the number is 0.

use super::{COUNT_OVERFLOW, Descriptor, Place};
use crate::platform::Platform;
use crate::sync::{AtomicU64, Ordering, RawSpinLock};

/// A descriptor in its cluster.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct AtomicDescriptor(AtomicU64);

/// The slot is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dead;

/// What taking a reason away did to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It lives on, or its holder will free it.
    Done,
    /// It is free, and the place of this word is the caller's to release.
    Freed(Descriptor),
    /// The count is in the side table; use [`put_excess`].
    Overflow,
    /// There was nothing to take away.
    Refused,
}

/// What [`AtomicDescriptor::dup`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dup {
    /// Counted.
    Done,
    /// The count is in the side table; use [`dup_excess`].
    Overflow,
}

impl AtomicDescriptor {
    /// A free slot.
    #[cfg(loom)]
    pub(crate) fn free() -> Self {
        Self(AtomicU64::new(Descriptor::FREE.0))
    }

    /// A look at the word; a hint unless the caller holds the lock.
    #[inline]
    pub(crate) fn peek(&self) -> Descriptor {
        Descriptor(self.0.load(Ordering::Acquire))
    }

    /// Fills a free slot. Only the owner of its cluster may.
    #[inline]
    pub(crate) fn publish(&self, word: Descriptor) {
        debug_assert_eq!(self.peek(), Descriptor::FREE);
        self.0.store(word.0, Ordering::Release);
    }

    /// Replaces the word by what `change` makes of it, until that succeeds or `change` declines.
    /// Gives the old word and the new one.
    #[inline]
    fn change<E>(
        &self,
        mut change: impl FnMut(Descriptor) -> Result<Descriptor, E>,
    ) -> Result<(Descriptor, Descriptor), E> {
        let mut old = self.0.load(Ordering::Relaxed);
        loop {
            let new = change(Descriptor(old))?;
            match self.0.compare_exchange_weak(old, new.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok((Descriptor(old), new)),
                Err(seen) => old = seen,
            }
        }
    }

    /// Waits for the entry lock and gives the word under it.
    #[inline]
    pub(crate) fn lock<P: Platform + ?Sized>(&self, platform: &P) -> Result<Descriptor, Dead> {
        let mut spins = 0;
        loop {
            if let Some(word) = self.try_lock()? {
                return Ok(word);
            }
            platform.relax(spins);
            spins = spins.saturating_add(1);
        }
    }

    /// Takes the entry lock if nobody has it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Result<Option<Descriptor>, Dead> {
        let taken = self.change(|word| {
            if !word.is_live() {
                Err(Some(Dead))
            } else if word.is_locked() {
                Err(None)
            } else {
                Ok(word.with_locked(true))
            }
        });
        match taken {
            Ok((_, locked)) => Ok(Some(locked)),
            Err(None) => Ok(None),
            Err(Some(dead)) => Err(dead),
        }
    }

    /// Gives the entry lock back. A word means that the slot died meanwhile: it is free now, and
    /// the word's place is the caller's to release.
    #[inline]
    #[must_use]
    pub(crate) fn unlock(&self) -> Option<Descriptor> {
        self.unlock_with(None)
    }

    /// Like [`Self::unlock`], with the data at a new place. The caller has released the old one,
    /// or is about to; a returned word has the new place.
    #[inline]
    #[must_use]
    pub(crate) fn unlock_at(&self, place: Place) -> Option<Descriptor> {
        self.unlock_with(Some(place))
    }

    #[inline]
    fn unlock_with(&self, place: Option<Place>) -> Option<Descriptor> {
        let changed = self.change(|word| {
            debug_assert!(word.is_locked());
            Ok::<_, Dead>(if !word.is_live() {
                Descriptor::FREE
            } else if let Some(place) = place {
                moved(word, place).with_locked(false)
            } else {
                word.with_locked(false)
            })
        });
        match changed {
            Ok((old, Descriptor::FREE)) => Some(place.map_or(old, |place| old.with_place(place))),
            _ => None,
        }
    }

    /// Changes the place and keeps the lock.
    #[inline]
    pub(crate) fn replace(&self, place: Place) {
        let _ = self.change(|word| {
            debug_assert!(word.is_locked());
            Ok::<_, Dead>(moved(word, place))
        });
    }

    /// Counts one more reference.
    #[inline]
    pub(crate) fn dup(&self) -> Result<Dup, Dead> {
        let counted = self.change(|word| {
            if !word.is_live() {
                Err(Err(Dead))
            } else if word.count() == COUNT_OVERFLOW {
                Err(Ok(Dup::Overflow))
            } else {
                Ok(word.with_count(word.count() + 1))
            }
        });
        counted.map_or_else(|outcome| outcome, |_| Ok(Dup::Done))
    }

    /// Counts one reference less.
    #[inline]
    pub(crate) fn put(&self) -> Put {
        self.settle(|word| match word.count() {
            0 => Err(Put::Refused),
            COUNT_OVERFLOW => Err(Put::Overflow),
            count => Ok(word.with_count(count - 1)),
        })
    }

    /// Puts the slot into the swap cache; gives whether it was there before.
    #[inline]
    pub(crate) fn cache(&self) -> Result<bool, Dead> {
        let (old, _) = self
            .change(|word| if word.is_live() { Ok(word.with_cached(true)) } else { Err(Dead) })?;
        Ok(old.is_cached())
    }

    /// Takes the slot out of the swap cache; refused if only the resident page has counted data.
    #[inline]
    pub(crate) fn uncache(&self) -> Put {
        self.settle(|word| {
            let lost = word.place() == Some(Place::Page) && word.count() > 0;
            if !word.is_cached() || lost { Err(Put::Refused) } else { Ok(word.with_cached(false)) }
        })
    }

    #[inline]
    fn settle(&self, mut step: impl FnMut(Descriptor) -> Result<Descriptor, Put>) -> Put {
        let changed = self.change(|word| {
            let next = step(word)?;
            Ok(if next.is_live() || next.is_locked() { next } else { Descriptor::FREE })
        });
        match changed {
            Ok((old, Descriptor::FREE)) => Put::Freed(old),
            Ok(_) => Put::Done,
            Err(refusal) => refusal,
        }
    }

    /// Moves the count field between 6 and 7 on behalf of the count lock's holder.
    fn set_count(&self, count: u8) {
        let _ = self.change(|word| Ok::<_, Dead>(word.with_count(count)));
    }
}

/// The word with its data at a new place. Data that moves to the resident page alone puts a live
/// slot into the swap cache in the same step, or an `uncache` in between would lose it.
fn moved(word: Descriptor, place: Place) -> Descriptor {
    let resident = place == Place::Page && word.is_live();
    word.with_place(place).with_cached(word.is_cached() || resident)
}

/// Counts one more reference to a slot whose field is 7, in its `number` of the side table, under
/// the count lock of its cluster. `None` if the field has changed, so that the caller has to begin
/// again.
pub(crate) fn dup_excess<P: Platform + ?Sized>(
    slot: &AtomicDescriptor,
    lock: &RawSpinLock,
    number: &AtomicU64,
    platform: &P,
) -> Option<()> {
    lock.acquire(platform);
    let counted = slot.peek().count() == COUNT_OVERFLOW;
    if counted {
        number.store(number.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    lock.release();
    counted.then_some(())
}

/// Counts one reference less to a slot whose field is 7; `None` as in [`dup_excess`]. A slot that
/// has no number yet has the number 0: who raises it made it before taking the lock.
pub(crate) fn put_excess<'a, P: Platform + ?Sized>(
    slot: &AtomicDescriptor,
    lock: &RawSpinLock,
    number: impl FnOnce() -> Option<&'a AtomicU64>,
    platform: &P,
) -> Option<()> {
    lock.acquire(platform);
    let counted = slot.peek().count() == COUNT_OVERFLOW;
    if counted {
        match number().map(|number| (number, number.load(Ordering::Relaxed))) {
            None | Some((_, 0)) => slot.set_count(COUNT_OVERFLOW - 1),
            Some((number, beyond)) => number.store(beyond - 1, Ordering::Relaxed),
        }
    }
    lock.release();
    counted.then_some(())
}
