//! What a core dump lacks.
//!
//! A process that dumps its core serves no faults of its own: the kernel writes what is there, and a hole
//! for a page that is not. But it no longer kills those who share the memory (since Linux 5.16), so the
//! pager outlives the dump, with all that it has swapped out. When the program has ended and left a core,
//! the watcher writes those pages to a file that the coordinator opens, for `vswap core-fix` to put them
//! into the core. Nothing of it is there while the program runs, and it does not matter what the program
//! died of, what it had on its stacks, or what it does with signals.
//!
//! A thread of the program may have died with any lock: under inline faults, with that of a leaf of the page
//! table, and of an entry. Those are tried for a limited time, and then what they protect is read without;
//! nobody changes it any more. Whoever is caught in another lock is ended by the registrar
//! ([`is_under_way`]).

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use vswap_core::SwapEntry;
use vswap_core::codec::{Codec as _, Lz4};
use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::platform::Platform as _;

use crate::address::{LEAF_PAGES, PageNumber, PageRange};
use crate::arena::Arena;
use crate::context::{CORE_CONTEXT, Context};
use crate::engine::{Engine, Phase};
use crate::link;
use crate::lock::{SpinGuard, SpinLock};
use crate::pages_file::{Head, Header, Identity};
use crate::staging::Bitmap;
use crate::swap_in;
use crate::sys::fd::{self, Fd};
use crate::sys::{Errno, exit_status, memory};
use crate::table::PageState;
use crate::wire::CoreSaved;

/// Windows that are remembered: one for each fault that can be read and not served.
const LATE_WINDOWS: usize = 256;

/// Bits of a remembered window that are its length.
const LENGTH_BITS: u32 = 8;

/// Written at once.
const BUFFER_BYTES: usize = 64 << 10;

/// How often a lock is tried that may be a dead thread's: half a second or more, at 70 µs each.
const LOCK_TRIES: u32 = 8_000;

/// Steps that the saving has made; 0 before it begins.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Nothing is to be saved any more.
static DONE: AtomicBool = AtomicBool::new(false);

/// The program is about to replace itself. If it succeeds, and soon leaves a core, that is of other memory.
static REPLACED: AtomicBool = AtomicBool::new(false);

/// Windows that were filled last. A fault that was read before the program died is served after, perhaps
/// behind the dump's back.
pub static LATE: LateWindows =
    LateWindows { windows: [const { AtomicU64::new(0) }; LATE_WINDOWS], next: AtomicUsize::new(0) };

/// The last windows that the pager filled.
#[derive(Debug)]
pub struct LateWindows {
    windows: [AtomicU64; LATE_WINDOWS],
    next: AtomicUsize,
}

impl LateWindows {
    /// Remembers a window.
    pub fn note(&self, pages: PageRange) {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % LATE_WINDOWS;
        let window = (pages.start.0 as u64) << LENGTH_BITS | pages.pages() as u64;
        self.windows[at].store(window, Ordering::Relaxed);
    }

    /// Those pages of a range, offsets in its leaf.
    fn within(&self, range: PageRange) -> Bitmap {
        let mut found = Bitmap::default();
        for window in &self.windows {
            let window = window.load(Ordering::Relaxed);
            let start = PageNumber((window >> LENGTH_BITS) as usize);
            let end = PageNumber(start.0 + (window & ((1 << LENGTH_BITS) - 1)) as usize);
            for page in (PageRange { start, end }).intersection(range).iter() {
                found.insert(page.offset_in_leaf());
            }
        }
        found
    }
}

/// Whether pages are being saved, and have been since the last call, which `seen` remembers.
pub fn is_under_way(seen: &mut u64) -> bool {
    let before = core::mem::replace(seen, STEPS.load(Ordering::Relaxed));
    *seen != before
}

/// Whether a core that the program leaves is of this memory: not while it is in exec.
pub fn expect(core: bool) {
    REPLACED.store(!core, Ordering::Relaxed);
}

/// Forgets, in the child of a fork, what concerns its parent.
pub fn reset_after_fork() {
    STEPS.store(0, Ordering::Relaxed);
    DONE.store(false, Ordering::Relaxed);
    TOOLS.reset_after_fork();
    expect(true);
}

/// Saves what is swapped out, if the program, which has ended, left a core dump. On the watcher.
pub fn save(engine: &Engine) {
    if lacks_pages(engine) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        save_all(engine);
    }
    DONE.store(true, Ordering::Relaxed);
}

/// Says that a core dump stays incomplete, if it does because the watcher is stuck. On the registrar.
pub fn say_if_missed(engine: &Engine) {
    if !DONE.load(Ordering::Relaxed) && lacks_pages(engine) {
        let program = engine.program.load(Ordering::Relaxed);
        link::say(
            engine,
            format_args!(
                "the core dump of process {program} lacks the pages that were swapped out; they are \
                 lost, because a thread died with a lock that vswap needs"
            ),
        );
    }
}

fn lacks_pages(engine: &Engine) -> bool {
    let pidfd = engine.fds.program.load(Ordering::Relaxed);
    engine.phase() == Phase::Active
        && !REPLACED.load(Ordering::Relaxed)
        && exit_status::left_core(pidfd, engine.program.load(Ordering::Relaxed))
}

fn save_all(engine: &Engine) {
    let Some(random) = exit_status::random_of_exec() else { return };
    let identity = Identity { pid: engine.program.load(Ordering::Relaxed), random };
    let Some(file) = link::ask_for_pages_file(engine, identity) else { return };
    let mut saved = CoreSaved::default();
    let written = Saver::new(engine, file, exit_status::core_limit()).map(|mut saver| {
        let result = saver.save_all(Header(identity));
        saved = saver.saved;
        result
    });
    if let Err(error) | Ok(Err(error)) = written {
        saved.error = error.0;
    }
    link::say_core_saved(engine, saved);
}

/// What saving takes. It is made beforehand: afterwards a dead thread may have the locks that it takes.
struct Tools {
    codec: Lz4,
    page: &'static mut Page,
    buffer: &'static mut [u8],
}

impl Tools {
    fn new() -> Option<Self> {
        let codec = Lz4::new(&Arena)?;
        let space = Arena.reserve(PAGE_SIZE + BUFFER_BYTES, PAGE_SIZE)?;
        // SAFETY: the memory was just reserved, is never given back, and any bytes are valid in both parts.
        let (page, buffer) = unsafe {
            let buffer = space.as_ptr().add(PAGE_SIZE);
            (&mut *space.as_ptr().cast(), core::slice::from_raw_parts_mut(buffer, BUFFER_BYTES))
        };
        Some(Self { codec, page, buffer })
    }
}

/// The child of a fork has its parent's.
static TOOLS: SpinLock<Option<Tools>> = SpinLock::new(None);

/// Makes what [`save`] needs. On the watcher.
pub fn prepare(engine: &Engine) {
    // Without memory for it a core stays as it is.
    let _ = engine.contexts.of_pager(CORE_CONTEXT);
    let mut tools = TOOLS.lock();
    if tools.is_none() {
        *tools = Tools::new();
    }
}

/// The pages on their way to the file.
struct Saver<'e> {
    engine: &'e Engine,
    context: SpinGuard<'e, Option<Context>>,
    tools: Tools,
    filled: usize,
    file: Fd,
    /// Bytes that may still be written.
    room: u64,
    saved: CoreSaved,
}

impl<'e> Saver<'e> {
    fn new(engine: &'e Engine, file: Fd, room: u64) -> Result<Self, Errno> {
        let context = engine.contexts.of_pager(CORE_CONTEXT).map_err(|_| Errno::ENOMEM)?;
        let tools = TOOLS.lock().take().ok_or(Errno::ENOMEM)?;
        let saved = CoreSaved::default();
        Ok(Self { engine, context, tools, filled: 0, file, room, saved })
    }

    fn save_all(&mut self, header: Header) -> Result<(), Errno> {
        self.put(&header.to_bytes())?;
        let engine = self.engine;
        let mut from = 0;
        while let Some(number) = engine.table.next_leaf(from, usize::MAX) {
            STEPS.fetch_add(1, Ordering::Relaxed);
            let first = PageNumber(number * LEAF_PAGES);
            match engine.table.lock_patiently(first, LOCK_TRIES) {
                Ok(Some(leaf)) => {
                    self.save_leaf(first, |page| leaf.state(page.offset_in_leaf()), false)?;
                }
                Ok(None) => {}
                Err(_) => {
                    self.save_leaf(first, |page| engine.table.state_past_lock(page), true)?;
                }
            }
            from = number + 1;
        }
        self.put(&Head::END)?;
        self.flush()
    }

    /// Saves the pages of a leaf that are out. If a thread died with its lock, in the middle of a change, its
    /// words may say less than is true: what is there is in the core, and need not be saved.
    fn save_leaf(
        &mut self,
        first: PageNumber,
        state: impl Fn(PageNumber) -> PageState,
        half_done: bool,
    ) -> Result<(), Errno> {
        let all = PageRange { start: first, end: PageNumber(first.0 + LEAF_PAGES) };
        let late = LATE.within(all);
        // A debugger's pages were coming back when it died.
        let anything_is_late = swap_in::is_wanted(self.engine);
        for page in all.iter() {
            let is_there = |page: PageNumber| memory::peek(page.address(), &mut [0]).is_ok();
            let saved = match state(page) {
                PageState::Missing | PageState::Poisoned => continue,
                PageState::Resident { .. } | PageState::Cached { .. } => {
                    let offset = page.offset_in_leaf();
                    let may_be_late = anything_is_late || late.contains(offset);
                    if half_done && !is_there(page) {
                        // Moved out, and not noted yet.
                        let tray = self.engine.staging.left_filling_from(page.leaf());
                        tray.is_some_and(|tray| {
                            self.copy(self.engine.staging.address(tray, offset))
                        })
                    } else if may_be_late && self.copy(page.address()) {
                        true
                    } else {
                        continue;
                    }
                }
                _ if half_done && is_there(page) => continue,
                PageState::Staged { tray } => {
                    self.copy(self.engine.staging.address(tray, page.offset_in_leaf()))
                }
                PageState::Swapped(entry) => self.load(entry),
            };
            if saved {
                self.put_page(page)?;
            } else {
                self.saved.lost += 1;
            }
        }
        Ok(())
    }

    /// Fetches a page from this address space; whether it is there.
    fn copy(&mut self, address: usize) -> bool {
        memory::peek(address, &mut self.tools.page.0).is_ok()
    }

    /// Fetches a page that is swapped out; whether it can be read.
    fn load(&mut self, entry: SwapEntry) -> bool {
        let Some(context) = self.context.as_mut() else { return false };
        let (worker, _) = context.worker_and_page(0);
        // SAFETY: threads of the program are dead, and those of the pager give a lock back: after microseconds or,
        // in a transfer, when the device has answered.
        unsafe { self.engine.space.load_past_lock(worker, entry, self.tools.page, LOCK_TRIES) }
            .is_ok()
    }

    fn put_page(&mut self, page: PageNumber) -> Result<(), Errno> {
        if self.filled + Head::SIZE + PAGE_SIZE > self.tools.buffer.len() {
            self.flush()?;
        }
        let (head, body) = self.tools.buffer[self.filled..].split_at_mut(Head::SIZE);
        // Not as long as a page, which is what is not compressed.
        let length = match self.tools.codec.compress(self.tools.page, &mut body[..PAGE_SIZE - 1]) {
            Some(length) => length,
            None => {
                body[..PAGE_SIZE].copy_from_slice(&self.tools.page.0);
                PAGE_SIZE
            }
        };
        STEPS.fetch_add(1, Ordering::Relaxed);
        head.copy_from_slice(&Head { page: page.0, length }.to_bytes());
        self.filled += Head::SIZE + length;
        self.saved.pages += 1;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if self.filled + bytes.len() > self.tools.buffer.len() {
            self.flush()?;
        }
        self.tools.buffer[self.filled..][..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Errno> {
        STEPS.fetch_add(1, Ordering::Relaxed);
        self.room = self.room.checked_sub(self.filled as u64).ok_or(Errno::EFBIG)?;
        let mut rest = &self.tools.buffer[..core::mem::take(&mut self.filled)];
        while !rest.is_empty() {
            match fd::write(self.file.raw(), rest) {
                Ok(0) => return Err(Errno::ENOSPC),
                Ok(written) => rest = &rest[written..],
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
