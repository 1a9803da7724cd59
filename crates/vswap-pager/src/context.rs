//! What a thread needs to serve faults: codec state and room for a window of pages.
//!
//! The pager's threads own one each. Threads of the program (inline faults, hooks that bring pages
//! back) borrow one from a small set.

use core::ptr::NonNull;

use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::platform::Platform;
use vswap_core::{CodecKind, Worker};

use crate::arena::Arena;
use crate::config::CodecChoice;
use crate::engine::engine;
use crate::entry_batch::EntryBatch;
use crate::lock::{SpinGuard, SpinLock};

/// Largest window of a fault, in pages.
pub const WINDOW_MAX: usize = 64;

const SHARED_CONTEXTS: usize = 4;

/// Threads of the pager that serve faults or reclaim.
pub const PAGER_CONTEXTS: usize = 8;

/// The reclaimer's place among them; handlers take those below.
pub const RECLAIMER_CONTEXT: usize = PAGER_CONTEXTS - 1;

/// The place of whoever moves mappings: one at a time, with the gate closed.
pub const MOVING_CONTEXT: usize = RECLAIMER_CONTEXT - 1;

/// The place of who saves what a core dump lacks.
pub const CORE_CONTEXT: usize = MOVING_CONTEXT - 1;

/// Codec state, a window of pages, and the entries to free behind it.
#[derive(Debug)]
pub struct Context {
    /// Clusters, pool segments and codec state.
    pub worker: Worker,
    window: NonNull<Page>,
    /// Entries whose pages are back.
    pub returned: EntryBatch,
}

// SAFETY: the window's memory belongs to the context.
unsafe impl Send for Context {}

/// The engine's arena has no memory left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for the engine")]
pub struct NoMemory;

impl Context {
    /// A context with the run's codec.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new() -> Result<Self, NoMemory> {
        let codec = engine().config().map_or(CodecKind::Lz4, |config| codec_kind(config.codec));
        let worker = engine().space.worker(codec).map_err(|_| NoMemory)?;
        let Some(window) = Arena.reserve(WINDOW_MAX * PAGE_SIZE, PAGE_SIZE) else {
            engine().space.retire(worker);
            return Err(NoMemory);
        };
        Ok(Self { worker, window: window.cast(), returned: EntryBatch::new() })
    }

    /// The worker, and page `index` of the window.
    ///
    /// # Panics
    /// If the window has no such page.
    pub fn worker_and_page(&mut self, index: usize) -> (&mut Worker, &mut Page) {
        assert!(index < WINDOW_MAX, "window overrun");
        // SAFETY: the index is within the reservation, any bytes are a valid page, and the borrow
        // of `self` makes this the only reference.
        (&mut self.worker, unsafe { &mut *self.window.as_ptr().add(index) })
    }

    /// The worker, and the window as bytes.
    pub fn worker_and_window(&mut self) -> (&mut Worker, &mut [u8]) {
        // SAFETY: the reservation is as long and initialised, and the borrow of `self` makes this the
        // only reference.
        let window = unsafe {
            core::slice::from_raw_parts_mut(self.window.as_ptr().cast(), WINDOW_MAX * PAGE_SIZE)
        };
        (&mut self.worker, window)
    }

    /// Gives up what a thread without work need not hold, so that what is empty goes back meanwhile.
    pub fn idle(&mut self) {
        let _passage = engine().gate.pass();
        self.give_up();
    }

    /// The same, with a passage through the gate.
    fn give_up(&mut self) {
        self.returned.flush();
        engine().space.idle(&mut self.worker);
    }

    /// Address of page `index` of the window, to copy from.
    pub fn page_address(&self, index: usize) -> *const u8 {
        self.window.as_ptr().wrapping_add(index).cast()
    }
}

/// The core's name for a codec.
pub fn codec_kind(choice: CodecChoice) -> CodecKind {
    match choice {
        CodecChoice::Zstd(level) => CodecKind::Zstd(level),
        CodecChoice::None => CodecKind::None,
        CodecChoice::Lz4 => CodecKind::Lz4,
    }
}

/// All contexts. They outlive the threads that use them: the child of a fork takes over those of
/// its parent's pager, with what they hold.
#[derive(Debug)]
pub struct Contexts {
    pager: [SpinLock<Option<Context>>; PAGER_CONTEXTS],
    shared: [SpinLock<Option<Context>>; SHARED_CONTEXTS],
}

impl Contexts {
    /// None made yet.
    pub const fn new() -> Self {
        Self {
            pager: [const { SpinLock::new(None) }; PAGER_CONTEXTS],
            shared: [const { SpinLock::new(None) }; SHARED_CONTEXTS],
        }
    }

    /// The context of a thread of the pager, for as long as the thread lives.
    ///
    /// # Errors
    /// [`NoMemory`] if it has to be made and cannot.
    pub fn of_pager(&self, thread: usize) -> Result<SpinGuard<'_, Option<Context>>, NoMemory> {
        made(self.pager[thread].lock())
    }

    /// Borrows a context for a thread of the program; waits for one if all are in use.
    ///
    /// # Errors
    /// [`NoMemory`] if one has to be made and cannot.
    pub fn borrow(&self) -> Result<SpinGuard<'_, Option<Context>>, NoMemory> {
        let free = self.shared.iter().find_map(SpinLock::try_lock);
        made(free.unwrap_or_else(|| self.shared[0].lock()))
    }

    /// [`Context::idle`] for those of threads of the program that nobody uses.
    pub fn idle_shared(&self) {
        let _passage = engine().gate.pass();
        for mut context in self.shared.iter().filter_map(SpinLock::try_lock) {
            if let Some(context) = context.as_mut() {
                context.give_up();
            }
        }
    }

    /// Frees the locks in the child of a fork: with the gate closed, no context is in use.
    pub fn reset_after_fork(&self) {
        self.pager.iter().chain(&self.shared).for_each(SpinLock::reset_after_fork);
    }
}

fn made(
    mut slot: SpinGuard<'_, Option<Context>>,
) -> Result<SpinGuard<'_, Option<Context>>, NoMemory> {
    if slot.is_none() {
        *slot = Some(Context::new()?);
    }
    Ok(slot)
}

impl Default for Contexts {
    fn default() -> Self {
        Self::new()
    }
}
