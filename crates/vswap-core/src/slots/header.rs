//! The header of a cluster.
//!
//! A cluster is in one of four states. Its state and the number of slots in use share a word, so
//! that a thread which frees a slot learns with one instruction whether something is to be done:
//!
//! - *owned* by a worker: only the worker fills slots, without a lock and without touching this
//!   word, because it took all free slots at once as *credit*. Others free;
//! - *listed*: nobody's, with enough free slots to be worth an owner, on the list of partial ones;
//! - *full*: nobody's, on no list;
//! - *unused*: without memory, its number spare.
//!
//! The state changes under the lock of [`super::Slots`] only; the use count any time. A free that
//! finds a state and use that call for a change goes there, takes the lock and looks again.

use crate::entry::CLUSTER_SLOTS;
use crate::sync::{AtomicU32, Ordering, RawSpinLock};

/// Who has a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// It has no memory.
    Unused = 0,
    /// A worker's.
    Owned = 1,
    /// Nobody's, and on no list.
    Full = 2,
    /// Nobody's, on the list of partial clusters.
    Listed = 3,
}

const USED_MASK: u32 = 0xffff;
const STATE_SHIFT: u32 = 16;
const STATE_MASK: u32 = 0b11 << STATE_SHIFT;
/// The side table of swap counts was used.
const EXCESS: u32 = 1 << 18;

/// Free slots that make a cluster without owner worth listing. Owners then find slots in batches,
/// and a cluster goes through the list once per batch instead of once per slot.
pub(crate) const LISTED_FREE_MIN: usize = 32;

/// State and use of a cluster at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// Who has it.
    pub(crate) state: State,
    /// Slots in use, the owner's credit included.
    pub(crate) used: usize,
    /// Whether the side table of swap counts has memory.
    pub(crate) excess: bool,
}

impl Use {
    fn unpack(word: u32) -> Self {
        let state = match (word & STATE_MASK) >> STATE_SHIFT {
            0 => State::Unused,
            1 => State::Owned,
            2 => State::Full,
            _ => State::Listed,
        };
        Self { state, used: (word & USED_MASK) as usize, excess: word & EXCESS != 0 }
    }

    /// Whether a cluster that nobody owns should change its state.
    pub(crate) fn needs_settling(self) -> bool {
        match self.state {
            State::Full => self.used <= CLUSTER_SLOTS - LISTED_FREE_MIN,
            State::Listed => self.used == 0,
            State::Owned | State::Unused => false,
        }
    }
}

/// What the space knows of a cluster beside its descriptors.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Header {
    word: AtomicU32,
    /// Protects the cluster's part of the side table of swap counts.
    pub(crate) count_lock: RawSpinLock,
    /// Neighbours on the list of partial clusters, or the next spare number; under the list lock.
    pub(crate) previous: AtomicU32,
    pub(crate) next: AtomicU32,
}

const _: () = assert!(size_of::<AtomicU32>() != 4 || size_of::<Header>() == 16);

impl Header {
    #[cfg(loom)]
    pub(crate) fn unused() -> Self {
        Self {
            word: AtomicU32::new(0),
            count_lock: RawSpinLock::new(),
            previous: AtomicU32::new(0),
            next: AtomicU32::new(0),
        }
    }

    /// State and use now.
    pub(crate) fn now(&self) -> Use {
        Use::unpack(self.word.load(Ordering::Acquire))
    }

    /// Makes the cluster owned and hands all its free slots to the owner. Under the list lock.
    pub(crate) fn take(&self) -> usize {
        self.set_state(State::Owned);
        self.claim()
    }

    /// Hands the owner all slots that are free now.
    pub(crate) fn claim(&self) -> usize {
        // Only the owner raises the use, so between load and addition it can only have fallen.
        let free = CLUSTER_SLOTS - self.now().used;
        self.word.fetch_add(free as u32, Ordering::Relaxed);
        free
    }

    /// Takes `n` slots out of use and says what that led to.
    #[inline]
    pub(crate) fn release(&self, n: usize) -> Use {
        // Release: the descriptors that were set free before are seen as free by whoever acts on
        // the new count. Acquire: if that is us, we see those of the others.
        let before = self.word.fetch_sub(n as u32, Ordering::AcqRel);
        debug_assert!(before & USED_MASK >= n as u32, "a cluster freed more slots than it had");
        Use::unpack(before - n as u32)
    }

    /// Changes the state, keeping the use. Under the list lock.
    pub(crate) fn set_state(&self, state: State) {
        let mut old = self.word.load(Ordering::Relaxed);
        loop {
            let new = old & !STATE_MASK | (state as u32) << STATE_SHIFT;
            match self.word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => old = seen,
            }
        }
    }

    /// Notes that the side table has memory, or has none any more.
    pub(crate) fn set_excess(&self, used: bool) {
        if used {
            self.word.fetch_or(EXCESS, Ordering::Relaxed);
        } else {
            self.word.fetch_and(!EXCESS, Ordering::Relaxed);
        }
    }
}
