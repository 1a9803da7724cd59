//! The backings that were added to a space.

use crate::backing::{Backing, BackingError, Medium, Outgoing};
use crate::descriptor::BACKINGS_MAX;
use crate::entry::{BackingId, Handle};
use crate::error::BackingSetError;
use crate::platform::Platform;
use crate::sync::{AtomicU32, AtomicU64, Ordering, SpinLock};

/// Whether a backing is given objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum BackingState {
    /// It is.
    Active = 0,
    /// No more: it is being emptied.
    Draining = 1,
    /// No more: a store failed. What it holds is still loaded.
    Failed = 2,
}

impl core::fmt::Debug for dyn Backing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Backing({:?}, {:?})", self.medium(), self.form())
    }
}

#[derive(Debug)]
struct Member {
    /// The lock is held for copying the reference only, never while the backing works.
    backing: SpinLock<Option<&'static dyn Backing>>,
    state: AtomicU32,
    objects: AtomicU64,
}

/// All backings of a space.
#[derive(Debug)]
pub(crate) struct Backings {
    members: [Member; BACKINGS_MAX],
    /// All numbers, in the order in which they are asked to store, four bits each.
    order: AtomicU32,
}

const NUMBER_BITS: u32 = 4;
const _: () = assert!(BACKINGS_MAX as u32 * NUMBER_BITS <= u32::BITS);

/// The order of a word of numbers.
const fn numbers(order: u32) -> [u8; BACKINGS_MAX] {
    let mut numbers = [0; BACKINGS_MAX];
    let mut at = 0;
    while at < BACKINGS_MAX {
        numbers[at] = (order >> (at as u32 * NUMBER_BITS)) as u8 & 0xf;
        at += 1;
    }
    numbers
}

fn word(numbers: impl Iterator<Item = u8>) -> u32 {
    let shifted = numbers.zip(0..).map(|(number, at)| u32::from(number) << (at * NUMBER_BITS));
    shifted.fold(0, |word, number| word | number)
}

impl Backings {
    pub(crate) const fn new() -> Self {
        let members = [const {
            Member {
                backing: SpinLock::new(None),
                state: AtomicU32::new(BackingState::Active as u32),
                objects: AtomicU64::new(0),
            }
        }; BACKINGS_MAX];
        Self { members, order: AtomicU32::new(0x7654_3210) }
    }

    /// Has these asked first, in this order; the others follow as before.
    pub(crate) fn prefer(&self, first: &[BackingId]) {
        let before = numbers(self.order.load(Ordering::Relaxed));
        let others = before.into_iter().filter(|number| !first.contains(&BackingId(*number)));
        let order = word(first.iter().map(|id| id.0).chain(others));
        self.order.store(order, Ordering::Relaxed);
    }

    pub(crate) fn add<P: Platform + ?Sized>(
        &self,
        platform: &P,
        backing: &'static dyn Backing,
    ) -> Result<BackingId, BackingSetError> {
        for (number, member) in self.members.iter().enumerate() {
            let mut place = member.backing.lock(platform);
            if place.is_none() {
                member.state.store(BackingState::Active as u32, Ordering::Relaxed);
                *place = Some(backing);
                return Ok(BackingId(number as u8));
            }
        }
        Err(BackingSetError::TooMany)
    }

    /// Forgets a backing that is empty. It has to be draining, or something could be on its way
    /// there.
    pub(crate) fn remove<P: Platform + ?Sized>(
        &self,
        platform: &P,
        id: BackingId,
    ) -> Result<(), BackingSetError> {
        let member = self.members.get(id.0 as usize).ok_or(BackingSetError::Unknown)?;
        let mut place = member.backing.lock(platform);
        if place.is_none() {
            return Err(BackingSetError::Unknown);
        }
        if self.state(id) == BackingState::Active || member.objects.load(Ordering::SeqCst) > 0 {
            return Err(BackingSetError::InUse);
        }
        *place = None;
        Ok(())
    }

    /// See [`crate::VirtualSwap::reset_after_fork`].
    pub(crate) fn reset_after_fork(&self) {
        self.members.iter().for_each(|member| member.backing.reset_after_fork());
    }

    pub(crate) fn get<P: Platform + ?Sized>(
        &self,
        platform: &P,
        id: BackingId,
    ) -> Option<&'static dyn Backing> {
        *self.members.get(id.0 as usize)?.backing.lock(platform)
    }

    /// All backings of a medium, in the order in which they were added.
    pub(crate) fn of<P: Platform + ?Sized>(
        &self,
        platform: &P,
        medium: Medium,
    ) -> impl Iterator<Item = (BackingId, &'static dyn Backing)> {
        self.all(platform).filter(move |(_, backing)| backing.medium() == medium)
    }

    /// All backings, in the order in which they are to be asked.
    pub(crate) fn all<P: Platform + ?Sized>(
        &self,
        platform: &P,
    ) -> impl Iterator<Item = (BackingId, &'static dyn Backing)> {
        let order = numbers(self.order.load(Ordering::Relaxed));
        let ids = order.into_iter().map(BackingId);
        ids.filter_map(move |id| Some((id, self.get(platform, id)?)))
    }

    pub(crate) fn state(&self, id: BackingId) -> BackingState {
        match self.members[id.0 as usize].state.load(Ordering::SeqCst) {
            0 => BackingState::Active,
            1 => BackingState::Draining,
            _ => BackingState::Failed,
        }
    }

    pub(crate) fn set_state(&self, id: BackingId, state: BackingState) {
        self.members[id.0 as usize].state.store(state as u32, Ordering::SeqCst);
    }

    /// Objects in a backing.
    pub(crate) fn objects(&self, id: BackingId) -> u64 {
        self.members[id.0 as usize].objects.load(Ordering::Relaxed)
    }

    /// Stores objects in an active backing, all or none.
    pub(crate) fn store<P: Platform + ?Sized>(
        &self,
        platform: &P,
        (id, backing): (BackingId, &dyn Backing),
        objects: &[Outgoing<'_>],
        handles: &mut [Handle],
    ) -> Result<(), BackingError> {
        let count = objects.len() as u64;
        self.store_by(platform, (id, backing), count, || backing.store_many(objects, handles))
    }

    /// Has `store` put so many objects into an active backing, all or none.
    pub(crate) fn store_by<P: Platform + ?Sized>(
        &self,
        platform: &P,
        (id, backing): (BackingId, &dyn Backing),
        count: u64,
        store: impl FnOnce() -> Result<(), BackingError>,
    ) -> Result<(), BackingError> {
        let member = &self.members[id.0 as usize];
        // Counted before the state is looked at, while `remove` looks at the count after the state
        // was changed. With both sequentially consistent, one of the two sees the other: either
        // nothing is stored here, or the backing stays.
        member.objects.fetch_add(count, Ordering::SeqCst);
        let is_same = |now: &dyn Backing| core::ptr::addr_eq(now, backing);
        let stored = match self.state(id) {
            // Before it was counted it may have gone, and another may have its number.
            BackingState::Active if self.get(platform, id).is_some_and(is_same) => store(),
            _ => Err(BackingError::Full),
        };
        if let Err(error) = stored {
            if matches!(error, BackingError::Io(_)) {
                self.set_state(id, BackingState::Failed);
            }
            member.objects.fetch_sub(count, Ordering::Release);
        }
        stored
    }

    pub(crate) fn free<P: Platform + ?Sized>(
        &self,
        platform: &P,
        id: BackingId,
        handle: Handle,
        length: usize,
    ) {
        if let Some(backing) = self.get(platform, id) {
            backing.free(handle, length);
            self.members[id.0 as usize].objects.fetch_sub(1, Ordering::Release);
        }
    }
}
