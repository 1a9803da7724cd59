//! Mapping events of userfaultfd: what no hook saw coming.
//!
//! The thread whose call caused an event goes on when the event is *read*, so reading and applying
//! are one piece, under the mapping lock. Faults that come with the same read are served later:
//! removals have to be applied first.

use core::fmt;

use crate::address::{LEAF_PAGES, PageNumber, PageRange};
use crate::engine::{Engine, MapsGuard, Side};
use crate::entry_batch::EntryBatch;
use crate::fault::Access;
use crate::lock::{Closed, SpinLock};
use crate::run_page::Counter;
use crate::sys::uffd::{Message, MessageBuffer};
use crate::table::PageState;

/// Faults that can wait between being read and being served. A thread waits for one fault at a
/// time, and reading stops before the queue is full.
const QUEUE: usize = 256;
const READ_AT_ONCE: usize = 16;

/// A thread that waits for a page.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its page.
    pub page: PageNumber,
    /// Its thread ID.
    pub thread: u32,
    /// What it wants of the page.
    pub access: Access,
}

/// Faults that have been read and not served.
pub struct FaultQueue {
    faults: SpinLock<Queue>,
}

struct Queue {
    faults: [Fault; QUEUE],
    head: usize,
    count: usize,
}

impl fmt::Debug for FaultQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultQueue")
    }
}

/// The faults of this process that wait to be served.
pub static FAULTS: FaultQueue = FaultQueue {
    faults: SpinLock::new(Queue {
        faults: [Fault { page: PageNumber(0), thread: 0, access: Access::Read }; QUEUE],
        head: 0,
        count: 0,
    }),
};

impl FaultQueue {
    /// Takes the fault that has waited longest.
    pub fn pop(&self) -> Option<Fault> {
        let mut queue = self.faults.lock();
        if queue.count == 0 {
            return None;
        }
        let fault = queue.faults[queue.head];
        queue.head = (queue.head + 1) % QUEUE;
        queue.count -= 1;
        Some(fault)
    }

    /// Puts a fault at the end of the queue.
    pub fn push(&self, fault: Fault) {
        let mut queue = self.faults.lock();
        debug_assert!(queue.count < QUEUE, "reading stops in time");
        let tail = (queue.head + queue.count) % QUEUE;
        queue.faults[tail] = fault;
        queue.count += 1;
    }

    fn has_room(&self) -> bool {
        self.faults.lock().count + 2 * READ_AT_ONCE <= QUEUE
    }

    /// Empties the queue in the child of a fork: the threads that wait are the parent's.
    pub fn reset_after_fork(&self) {
        self.faults.reset_after_fork();
        self.faults.lock().count = 0;
    }
}

/// Reads all that is pending, applies the events and queues the faults. Gives the number of
/// messages.
pub fn drain(engine: &Engine, maps: &mut MapsGuard<'_>, side: Side) -> usize {
    let mut buffer = MessageBuffer::new();
    let mut total = 0;
    while FAULTS.has_room() {
        let read = engine.with_uffd(side, |uffd| {
            uffd.read(&mut buffer, |message| apply(engine, maps, message, side))
        });
        match read {
            Ok(count) => {
                total += count;
                if count < READ_AT_ONCE {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    total
}

fn apply(engine: &Engine, maps: &mut MapsGuard<'_>, message: Message, side: Side) {
    match message {
        Message::Fault { address, thread, write } => {
            let page = PageNumber::containing(address);
            FAULTS.push(Fault { page, thread, access: Access::from_write(write) });
            return;
        }
        Message::Remove { start, end } => {
            let closed = engine.gate.close();
            drop_pages(engine, &closed, PageRange::touching(start, end - start));
        }
        Message::Unmap { start, end } => {
            let range = PageRange::touching(start, end - start);
            let closed = engine.gate.close();
            drop_pages(engine, &closed, range);
            // Too many regions: the range stays known, which costs nothing but a wake-up.
            let _ = engine.regions_mut(maps, &closed).remove(range);
        }
        Message::Remap { from, to, len } => {
            let closed = engine.gate.close();
            let from = PageRange::touching(from, len);
            let region = engine.regions(&closed).find(from.start).copied();
            move_pages(engine, &closed, from, PageNumber::containing(to), side);
            if let Some(region) = region {
                let to = PageRange::touching(to, len);
                let _ = engine.regions_mut(maps, &closed).insert(to, region.attributes);
            }
        }
        Message::Other => {}
    }
    engine.count(Counter::MapEvents, 1);
}

/// Forgets the pages of a range: they read as zeros from now on.
pub fn drop_pages(engine: &Engine, _closed: &Closed<'_>, range: PageRange) {
    let end_leaf = PageNumber(range.end.0.saturating_sub(1)).leaf() + 1;
    let mut leaf_number = range.start.leaf();
    while let Some(number) = engine.table.next_leaf(leaf_number, end_leaf) {
        leaf_number = number + 1;
        let whole = PageRange {
            start: PageNumber(number * LEAF_PAGES),
            end: PageNumber((number + 1) * LEAF_PAGES),
        };
        let part = whole.intersection(range);
        let Some(mut leaf) = engine.table.lock(part.start) else { continue };
        let mut freed = EntryBatch::new();
        let (mut resident, mut cached) = (0, 0);
        for offset in part.iter().map(PageNumber::offset_in_leaf) {
            match leaf.state(offset) {
                PageState::Missing => continue,
                PageState::Resident { .. } => resident += 1,
                PageState::Cached { entry, .. } => {
                    resident += 1;
                    cached += 1;
                    freed.add(entry);
                }
                PageState::Swapped(entry) => freed.add(entry),
                PageState::Staged { tray } => {
                    if let Some(entry) = engine.swap_cache.staged(tray, offset) {
                        cached += 1;
                        freed.add(entry);
                    }
                }
                PageState::Poisoned => {}
            }
            leaf.set(offset, PageState::Missing);
        }
        engine.budget.add_resident(-resident);
        engine.swap_cache.add(-cached);
        if part == whole || leaf.is_empty() {
            engine.table.release(leaf);
        }
    }
}

/// Moves the words of a range to another place, whose pages are dropped.
pub fn move_pages(
    engine: &Engine,
    closed: &Closed<'_>,
    from: PageRange,
    to: PageNumber,
    side: Side,
) {
    drop_pages(engine, closed, PageRange { start: to, end: PageNumber(to.0 + from.pages()) });
    for page in from.iter() {
        let Some(mut source) = engine.table.lock(page) else { continue };
        let state = source.state(page.offset_in_leaf());
        if state == PageState::Missing {
            continue;
        }
        source.set(page.offset_in_leaf(), PageState::Missing);
        drop(source);
        let target = PageNumber(to.0 + page.0 - from.start.0);
        let state = match state {
            PageState::Staged { tray } => return_staged(engine, page, target, tray, side),
            other => other,
        };
        match engine.table.lock_or_make(target) {
            Ok(mut leaf) => leaf.set(target.offset_in_leaf(), state),
            Err(_) => crate::link::die(engine, "no memory for the page table of a moved mapping"),
        }
    }
}

/// A tray holds a page by its offset in the old leaf, so a page that moves leaves staging.
fn return_staged(
    engine: &Engine,
    page: PageNumber,
    target: PageNumber,
    tray: u8,
    side: Side,
) -> PageState {
    let source = engine.staging.address(tray, page.offset_in_leaf()) as *const u8;
    let copy = |uffd: &crate::sys::uffd::Uffd| {
        // SAFETY: the word said staged and the gate is closed, so the page is in the tray.
        unsafe { uffd.copy(target.address(), source, vswap_core::page::PAGE_SIZE) }
    };
    let copied = engine.with_uffd(side, copy);
    if copied.is_err() {
        crate::link::die(engine, "a page could not follow its mapping");
    }
    engine.budget.add_resident(1);
    PageState::unstaged(engine.swap_cache.staged(tray, page.offset_in_leaf()))
}
