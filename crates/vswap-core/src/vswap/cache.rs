//! The swap cache: entries whose page is resident.

use super::VirtualSwap;
use crate::descriptor::{AtomicDescriptor, Put};
use crate::entry::SwapEntry;
use crate::error::OutOfMemory;
use crate::error::{CacheError, DupError};
use crate::platform::Platform;
use crate::slots::DupFailure;

impl<P: Platform> VirtualSwap<P> {
    /// Puts an entry into the swap cache: of the threads that fault on it, the one that succeeds
    /// reads the page, and the others wait for it.
    ///
    /// # Errors
    /// If the entry is not live, or in the swap cache already.
    pub fn cache_add(&self, entry: SwapEntry) -> Result<(), CacheError> {
        match self.descriptor(entry).map(AtomicDescriptor::cache) {
            None | Some(Err(_)) => Err(CacheError::NoEntry),
            Some(Ok(true)) => Err(CacheError::Exists),
            Some(Ok(false)) => Ok(()),
        }
    }

    /// Takes an entry out of the swap cache, because its page is dropped or has become the
    /// program's own. Frees it if nothing counts it.
    ///
    /// # Errors
    /// If it is not in the cache, or counted and its page is the only copy.
    pub fn cache_remove(&self, entry: SwapEntry) -> Result<(), CacheError> {
        let slot = self.descriptor(entry).ok_or(CacheError::NoEntry)?;
        match slot.uncache() {
            Put::Freed(word) => self.finish_free(entry, word),
            Put::Done | Put::Overflow => {}
            Put::Refused => {
                let word = slot.peek();
                return Err(if !word.is_live() {
                    CacheError::NoEntry
                } else if word.is_cached() {
                    CacheError::NoBacking
                } else {
                    CacheError::NotCached
                });
            }
        }
        Ok(())
    }

    /// Counts one more reference to an entry.
    ///
    /// # Errors
    /// If the entry is not live, or there is no memory for a large count.
    #[inline]
    pub fn dup(&self, entry: SwapEntry) -> Result<(), DupError> {
        self.slots.dup(self.platform(), entry).map_err(|failure| match failure {
            DupFailure::Dead => DupError::NoEntry,
            DupFailure::Memory => DupError::OutOfMemory(OutOfMemory),
        })
    }

    /// [`Self::dup`] of `n` contiguous entries, all or none.
    ///
    /// # Errors
    /// As for [`Self::dup`]; no entry is counted then.
    pub fn dup_run(&self, first: SwapEntry, n: usize) -> Result<(), DupError> {
        for index in 0..n {
            if let Err(error) = self.dup(first.nth(index)) {
                self.free_run(first, index);
                return Err(error);
            }
        }
        Ok(())
    }
}
