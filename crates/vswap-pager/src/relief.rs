//! Where threads that need memory wait until some was freed.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::sys::task;

/// The longest wait, in milliseconds: memory may have been freed in another way.
const LOOK_UP_MS: i64 = 1;

/// Counts what gave relief, and who waits for it.
#[derive(Debug)]
pub struct Relief {
    given: AtomicU32,
    waiting: AtomicU32,
}

impl Relief {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { given: AtomicU32::new(0), waiting: AtomicU32::new(0) }
    }

    /// Waits until memory was freed, or a moment has passed.
    pub fn wait(&self) {
        // Either the giver sees who waits, or the count that it raised before is seen here.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let given = self.given.load(Ordering::SeqCst);
        task::futex_wait(&self.given, given, LOOK_UP_MS);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes who waits: memory was freed.
    pub fn give(&self) {
        self.given.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            task::futex_wake(&self.given, u32::MAX >> 1);
        }
    }

    /// Nobody waits in the child of a fork.
    pub fn reset_after_fork(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }
}

impl Default for Relief {
    fn default() -> Self {
        Self::new()
    }
}
