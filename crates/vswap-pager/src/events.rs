//! Mapping events of userfaultfd: what no hook saw coming.
//!
//! The thread whose call caused an event goes on when the event is *read*, so reading and applying
//! are one piece, under the mapping lock. Faults that come with the same read are served later:
//! removals have to be applied first.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::{GroupId, same_filled};

use crate::address::{LEAF_PAGES, PageNumber, PageRange};
use crate::adopt;
use crate::context::MOVING_CONTEXT;
use crate::engine::{Engine, MapsGuard, Side};
use crate::entry_batch::EntryBatch;
use crate::fault::Access;
use crate::late_moves::{LateMoves, Move};
use crate::lock::{Closed, SpinLock};
use crate::regions::{Attributes, Regions};
use crate::run_page::Counter;
use crate::sys::task;
use crate::sys::uffd::{Message, MessageBuffer, Uffd};
use crate::table::PageState;
use crate::workingset;

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

/// A trap has dropped pages, in this process or one that it was forked from.
static DROPS_PAST_HOOKS: AtomicBool = AtomicBool::new(false);

/// Whether a page that is there though the table calls it missing may be about to go: the kernel drops
/// pages after the event about it was dealt with, and nothing tells when. Such a page is let alone.
pub fn may_be_dropped() -> bool {
    DROPS_PAST_HOOKS.load(Ordering::Relaxed)
}

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

/// Looks at what is pending before giving up: some 20 ms.
const SETTLE_TRIES: usize = 1000;
/// The first of them, which follow each other without a sleep.
const QUICK_TRIES: usize = 100;
const SETTLE_SLEEP_US: u64 = 20;

/// Waits until no event is open, and gives whether none is: what the kernel shows of the memory then
/// is what the regions and the table are about. An event is open from the change to its causer's next
/// step, which has to be scheduled; the lock is released meanwhile. In the program nobody reads but
/// threads that fault inline: faults that come with the events are the handler's.
pub fn settle<'a>(
    engine: &'a Engine,
    mut maps: MapsGuard<'a>,
    side: Side,
) -> (MapsGuard<'a>, bool) {
    let reads = side == Side::Pager || engine.inline.load(Ordering::Relaxed);
    for attempt in 0..SETTLE_TRIES {
        if reads {
            drain(engine, &mut maps, side);
        }
        if !engine.with_uffd(side, Uffd::is_changing) {
            return (maps, true);
        }
        drop(maps);
        wait(attempt);
        maps = engine.lock_maps();
    }
    (maps, false)
}

/// Before pages move to a place where the kernel has just put a mapping: what was there before may still be
/// known, if a trap has unmapped or moved it, and the event about it would be taken for one about what
/// comes. The mapping lock is held all the time, since what is about to move is known at its old place
/// only, where others may map something meanwhile; so the events are read here.
pub fn await_stale(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange) {
    let is_stale = |maps: &MapsGuard<'_>| engine.regions(maps).within(range).next().is_some();
    for attempt in 0..SETTLE_TRIES {
        if !is_stale(maps) || !engine.with_uffd(Side::Program, Uffd::is_changing) {
            break;
        }
        if drain(engine, maps, Side::Program) > 0 {
            // Faults among it are served from the queue.
            engine.mailbox.ring();
        }
        wait(attempt);
    }
}

/// Reads all that is pending, applies the events and queues the faults. Gives the number of
/// messages.
///
/// The gate is closed before an event is read: who caused it goes on then, and the kernel drops the pages.
/// A page that somebody was just about to fill, from what the table said before, would stay there.
/// Where only faults are to be expected, nobody has to wait for that.
pub fn drain(engine: &Engine, maps: &mut MapsGuard<'_>, side: Side) -> usize {
    let expected = may_be_dropped() || engine.with_uffd(side, Uffd::is_changing);
    let closed = expected.then(|| engine.gate.close());
    let mut drain = Drain { engine, maps, side, closed, late: LateMoves::default() };
    let mut total = drain.read_pending();
    for attempt in 0..SETTLE_TRIES {
        let is_expected = || FAULTS.has_room() && engine.with_uffd(side, Uffd::is_changing);
        if drain.late.is_empty() || !is_expected() {
            break;
        }
        wait(attempt);
        total += drain.read_pending();
    }
    drain.apply_late(|_, _| true);
    total
}

/// Reading and applying, with the gate closed from the first event on.
struct Drain<'a, 'm> {
    engine: &'a Engine,
    maps: &'a mut MapsGuard<'m>,
    side: Side,
    closed: Option<Closed<'a>>,
    late: LateMoves,
}

impl Drain<'_, '_> {
    fn read_pending(&mut self) -> usize {
        let (engine, side) = (self.engine, self.side);
        let mut buffer = MessageBuffer::new();
        let mut total = 0;
        while FAULTS.has_room() {
            let read = |uffd: &Uffd| uffd.read(&mut buffer, |message| self.take(message));
            let Ok(count) = engine.with_uffd(side, read) else { break };
            total += count;
            if count < READ_AT_ONCE {
                break;
            }
        }
        total
    }

    fn take(&mut self, message: Message) {
        if let Message::Fault { address, thread, write } = message {
            let page = PageNumber::containing(address);
            FAULTS.push(Fault { page, thread, access: Access::from_write(write) });
            return;
        }
        self.closed.get_or_insert_with(|| self.engine.gate.close());
        match message {
            Message::Remap { from, to, len } => {
                let from = PageRange::touching(from, len);
                let moved = Move { from, to: PageNumber::containing(to) };
                if !moved.is_late(self.engine.regions(self.maps)) || self.late.push(moved).is_err()
                {
                    self.follow(moved);
                }
            }
            Message::Remove { start, end } => {
                DROPS_PAST_HOOKS.store(true, Ordering::Relaxed);
                self.forget(PageRange::touching(start, end - start), Kept::Mapping);
            }
            Message::Unmap { start, end } => {
                self.forget(PageRange::touching(start, end - start), Kept::Nothing);
            }
            Message::Fault { .. } | Message::Other => {}
        }
        self.engine.count(Counter::MapEvents, 1);
        self.apply_late(|moved, regions| !moved.is_late(regions));
    }

    fn apply_late(&mut self, may_go: impl Fn(&Move, &Regions) -> bool) {
        loop {
            let regions = self.engine.regions(self.maps);
            let Some(moved) = self.late.take(|moved| may_go(moved, regions)) else { return };
            self.follow(moved);
        }
    }

    /// Forgets the pages of a range, and that it is paged if nothing of it is kept.
    fn forget(&mut self, range: PageRange, kept: Kept) {
        let closed = self.closed.get_or_insert_with(|| self.engine.gate.close());
        drop_pages(self.engine, closed, range);
        if kept == Kept::Nothing {
            // Too many regions: the range stays known, which costs nothing but a wake-up.
            let _ = self.engine.regions_mut(self.maps, closed).remove(range);
            let _ = self.maps.deferred.remove(range);
        }
    }

    /// Has the table and the regions follow a mapping to its new place.
    fn follow(&mut self, moved: Move) {
        let Self { engine, side, .. } = *self;
        let closed = self.closed.get_or_insert_with(|| engine.gate.close());
        let (from, target) = (moved.from, moved.target());
        let region = engine.regions(closed).find(from.start).copied();
        move_pages(engine, closed, from, moved.to, side);
        if let Some(region) = region
            && engine.regions_mut(self.maps, closed).insert(target, region.attributes).is_ok()
        {
            // What moved between its registration and the look at what was there.
            adopt::note_present(engine, target);
        }
        if self.maps.deferred.find(from.start).is_some() {
            // A list that is full: its faults are granted page by page.
            let _ = self.maps.deferred.insert(target, Attributes::default());
        }
    }
}

/// What an event leaves of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// A mapping without pages.
    Mapping,
    Nothing,
}

/// Lets others go on for a moment, in whose course an event is expected.
fn wait(attempt: usize) {
    if attempt < QUICK_TRIES {
        task::yield_now();
    } else {
        task::sleep_us(SETTLE_SLEEP_US);
    }
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

/// A tray holds a page by its offset in the old leaf, so a page that moves leaves staging: for its new
/// place, or for the swap space where the kernel fills no page because an event is open.
fn return_staged(
    engine: &Engine,
    page: PageNumber,
    target: PageNumber,
    tray: u8,
    side: Side,
) -> PageState {
    let source = engine.staging.address(tray, page.offset_in_leaf()) as *const u8;
    let copy = |uffd: &Uffd| {
        // SAFETY: the word said staged and the gate is closed, so the page is in the tray.
        unsafe { uffd.copy(target.address(), source, PAGE_SIZE) }
    };
    let kept = engine.swap_cache.staged(tray, page.offset_in_leaf());
    if engine.with_uffd(side, copy).is_ok() {
        engine.budget.add_resident(1);
        return PageState::unstaged(kept);
    }
    if let Some(entry) = kept {
        engine.forget_copy(entry);
    }
    // SAFETY: as above, and the tray is not emptied while the gate is closed.
    let contents = unsafe { engine.staging.page(tray, page.offset_in_leaf()) };
    match store(engine, contents) {
        Some(state) => state,
        None => crate::link::die(engine, "a page could not follow its mapping"),
    }
}

/// Stores a page as emptying its tray would, but in a pool that is full too. The gate is closed.
fn store(engine: &Engine, contents: &Page) -> Option<PageState> {
    if same_filled::repeated_word(contents) == Some(0) {
        return Some(PageState::Missing);
    }
    let mut context = engine.contexts.of_pager(MOVING_CONTEXT).ok()?;
    let worker = &mut context.as_mut()?.worker;
    let entry = engine.with_room_in_pool(|space| space.swap_out(worker, GroupId::ROOT, contents));
    let entry = entry.ok()?;
    workingset::note_evicted(engine, entry);
    Some(PageState::Swapped(entry))
}
