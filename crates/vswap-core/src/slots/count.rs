//! Swap counts of entries, large ones included.

use super::Slots;
use crate::descriptor::{Dead, Dup, Put, dup_excess, put_excess};
use crate::entry::SwapEntry;
use crate::platform::Platform;
use crate::sync::{AtomicU64, Ordering};

/// Why an entry could not be counted once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DupFailure {
    /// The slot is not live.
    Dead,
    /// The host has no memory for a side table.
    Memory,
}

impl From<Dead> for DupFailure {
    fn from(_: Dead) -> Self {
        Self::Dead
    }
}

impl Slots {
    /// Counts one more reference to an entry.
    pub(crate) fn dup<P: Platform + ?Sized>(
        &self,
        platform: &P,
        entry: SwapEntry,
    ) -> Result<(), DupFailure> {
        let slot = self.descriptor(entry).ok_or(DupFailure::Dead)?;
        while slot.dup()? == Dup::Overflow {
            let number = self.make_excess(platform, entry)?;
            let lock = &self.header(entry.cluster()).count_lock;
            if dup_excess(slot, lock, number, platform).is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Counts one reference less; never answers [`Put::Overflow`].
    #[inline]
    pub(crate) fn put<P: Platform + ?Sized>(&self, platform: &P, entry: SwapEntry) -> Put {
        let Some(slot) = self.descriptor(entry) else { return Put::Refused };
        loop {
            match slot.put() {
                Put::Overflow => {}
                outcome => return outcome,
            }
            let lock = &self.header(entry.cluster()).count_lock;
            if put_excess(slot, lock, || self.excess_of(entry), platform).is_some() {
                return Put::Done;
            }
        }
    }

    /// How many references an entry has.
    pub(crate) fn count(&self, entry: SwapEntry) -> u64 {
        let Some(slot) = self.descriptor(entry) else { return 0 };
        let beyond = self.excess_of(entry).map_or(0, |number| number.load(Ordering::Relaxed));
        u64::from(slot.peek().count()) + beyond
    }

    fn excess_of(&self, entry: SwapEntry) -> Option<&AtomicU64> {
        self.excess.get(entry.raw() as usize)
    }

    /// Makes sure that the entry has a number in the side table.
    #[cold]
    fn make_excess<P: Platform + ?Sized>(
        &self,
        platform: &P,
        entry: SwapEntry,
    ) -> Result<&AtomicU64, DupFailure> {
        let reserved = self.excess.ensure(platform, entry.raw() as usize);
        reserved.map_err(|_| DupFailure::Memory)?;
        let header = self.header(entry.cluster());
        if !header.now().excess {
            let mut lists = self.lists.lock(platform);
            if !header.now().excess {
                header.set_excess(true);
                lists.excess += 1;
            }
        }
        self.excess_of(entry).ok_or(DupFailure::Memory)
    }
}
