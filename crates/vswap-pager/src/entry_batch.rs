//! Entries that are freed together: one visit to a cluster serves all of its slots.

use vswap_core::SwapEntry;

use crate::engine::engine;

const BATCH: usize = 64;

/// Collects entries, and frees them when it is full, flushed or dropped.
#[derive(Debug)]
pub struct EntryBatch {
    entries: [Option<SwapEntry>; BATCH],
    count: usize,
}

impl EntryBatch {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { entries: [None; BATCH], count: 0 }
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: SwapEntry) {
        if self.count == BATCH {
            self.flush();
        }
        self.entries[self.count] = Some(entry);
        self.count += 1;
    }

    /// Frees what has been collected.
    pub fn flush(&mut self) {
        let Some(first) = self.entries[0].filter(|_| self.count > 0) else { return };
        let mut entries = [first; BATCH];
        for (entry, noted) in entries.iter_mut().zip(self.entries.iter().flatten()) {
            *entry = *noted;
        }
        engine().space.free_many(&entries[..self.count]);
        self.count = 0;
    }
}

impl Default for EntryBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for EntryBatch {
    fn drop(&mut self) {
        self.flush();
    }
}
