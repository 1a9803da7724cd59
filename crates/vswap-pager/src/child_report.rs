//! What the child of a fork tells its parent, which waits for it inside of the fork: whether there
//! is room for its pager.
//!
//! The engine's memory is the child's own after the fork, so the report is a word of shared memory
//! that exists for this fork only. It is no pipe: a program may have no descriptor left, close them
//! all in another thread, or share its table with the child.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use vswap_core::page::PAGE_SIZE;

use crate::sys::{Errno, memory, task};

/// Between two looks whether the child is still there.
const LOOK_MS: i64 = 20;

const PENDING: u32 = 0;
/// No error number.
const GOES_ON: u32 = u32::MAX;

/// A report, of which parent and child hold one view each.
#[derive(Debug)]
pub struct ChildReport {
    word: NonNull<AtomicU32>,
}

impl ChildReport {
    /// A report that is still to come.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new() -> Result<Self, Errno> {
        memory::map_shared_anonymous(PAGE_SIZE).map(|page| Self { word: page.cast() })
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: the page stays mapped for as long as this view, and any bytes are a valid atomic.
        unsafe { self.word.as_ref() }
    }

    /// The child's part: that it goes on, or the error that fork gives instead.
    pub fn give(&self, failed: Option<Errno>) {
        let word = failed.map_or(GOES_ON, |error| error.0 as u32);
        self.word().store(word, Ordering::Release);
        task::futex_wake_shared(self.word(), 1);
    }

    /// The parent's part: what its child has reported. A child that was killed before it could is
    /// none that failed: the program finds it as any other.
    ///
    /// # Errors
    /// What fork gives; the child is about to end.
    pub fn wait(&self, child: u32) -> Result<(), Errno> {
        loop {
            // Read after the look, so that a report right before the child's end counts.
            let gone = task::has_ended(child);
            match self.word().load(Ordering::Acquire) {
                PENDING if gone => return Ok(()),
                PENDING => task::futex_wait_shared(self.word(), PENDING, LOOK_MS),
                GOES_ON => return Ok(()),
                error => return Err(Errno(error as i32)),
            }
        }
    }
}

impl Drop for ChildReport {
    fn drop(&mut self) {
        // SAFETY: the page is this view's alone, and this was its last use.
        unsafe { memory::unmap(self.word.as_ptr() as usize, PAGE_SIZE) };
    }
}
