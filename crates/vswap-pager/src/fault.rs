//! Serves page faults.
//!
//! A fault is served with the gate passed and the page's leaf locked, so neither mapping calls nor
//! eviction get in between. From the faulting page on a window is filled, upwards or downwards: it
//! doubles as long as accesses to a leaf go on where the last window ended, and is one page otherwise.
//! The pages of a window come from whatever holds them; contiguous ones are installed with one call. Nothing is
//! freed before its copy is installed. The call that installs also wakes the thread, and what is left
//! to do then keeps it from its CPU, so it is little.

use core::sync::atomic::Ordering;

use vswap_core::descriptor::Place;
use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::{Origin, SwapEntry};

use crate::address::{LEAF_PAGES, PageNumber, PageRange};
use crate::context::{Context, WINDOW_MAX};
use crate::core_dump::LATE;
use crate::engine::{Engine, Side};
use crate::events;
use crate::link;
use crate::mailbox::Request;
use crate::run_page::Counter;
use crate::streams::{Direction, Stream};
use crate::swap::fetched::{Fetched, Wanted};
use crate::swap::fingerprints::FINGERPRINTS;
use crate::swap::{SWAP_DEVICES, tiers};
use crate::sys::Errno;
use crate::sys::uffd::Uffd;
use crate::table::{Leaf, PageState};
use crate::workingset;

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The thread goes on.
    Done,
    /// Mapping events are pending: they have to be applied first, then it is tried again.
    Retry,
    /// The page is registered, but no region is known here: its mapping has to be taken over.
    Unknown,
}

/// What the thread that faults is about to do with the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read it, as far as is known.
    Read,
    /// Write to it.
    Write,
}

impl Access {
    /// By whether it is known to write.
    pub fn from_write(write: bool) -> Self {
        if write { Self::Write } else { Self::Read }
    }
}

impl Engine {
    /// Serves a fault at `page` through `uffd`, which is the main userfaultfd as the calling thread
    /// knows it. The entries of pages that came back are left in the context, for the caller to free
    /// when nobody waits.
    pub fn serve(
        &self,
        context: &mut Context,
        uffd: &Uffd,
        page: PageNumber,
        access: Access,
    ) -> Served {
        let passage = self.gate.pass();
        let Some(region) = self.regions(&passage).find(page).copied() else {
            return Served::Unknown;
        };
        let Ok(mut leaf) = self.table.lock_or_make(page) else {
            // Without a table the page can still be given; it is just never evicted.
            let _ = uffd.zero(page.address(), PAGE_SIZE);
            return Served::Done;
        };
        match leaf.state(page.offset_in_leaf()) {
            PageState::Resident { .. } | PageState::Cached { .. } => check_resident(uffd, page),
            PageState::Staged { tray } => self.unstage(uffd, &mut leaf, page, tray),
            PageState::Poisoned => poison(uffd, page),
            PageState::Missing | PageState::Swapped(_) => {
                let reads = access == Access::Read;
                let keep = Keep {
                    pooled: reads && self.keeps_copies() && self.swap_cache.admits(),
                    on_device: reads && SWAP_DEVICES.keeps_slots(),
                };
                let mut window = Window {
                    engine: self,
                    context,
                    uffd,
                    leaf: &mut leaf,
                    keep,
                    faulting: page,
                    first: page,
                    from_pool: 0,
                    from_device: 0,
                };
                window.fill(region.range)
            }
        }
    }

    /// Takes a page back from staging; it proved to be in use.
    fn unstage(&self, uffd: &Uffd, leaf: &mut Leaf<'_>, page: PageNumber, tray: u8) -> Served {
        let source = self.staging.address(tray, page.offset_in_leaf()) as *const u8;
        // SAFETY: the word says staged and the leaf is locked, so the page is in the tray.
        match unsafe { uffd.copy(page.address(), source, PAGE_SIZE) } {
            Err((_, Errno::EAGAIN)) => return Served::Retry,
            Err((_, Errno::EEXIST)) => uffd.wake(page.address(), PAGE_SIZE),
            Err(_) => {
                uffd.wake(page.address(), PAGE_SIZE);
                return Served::Done;
            }
            Ok(()) => {}
        }
        if self.side() == Side::Pager {
            LATE.note(PageRange { start: page, end: PageNumber(page.0 + 1) });
        }
        let offset = page.offset_in_leaf();
        leaf.set(offset, PageState::unstaged(self.swap_cache.staged(tray, offset)));
        self.budget.add_resident(1);
        self.count(Counter::StagingHits, 1);
        Served::Done
    }
}

/// A fault on a page that should be there: two threads faulted at once, or the table is wrong. The
/// kernel knows.
fn check_resident(uffd: &Uffd, page: PageNumber) -> Served {
    match uffd.zero(page.address(), PAGE_SIZE) {
        Err((_, Errno::EAGAIN)) => Served::Retry,
        // It was there, or has been filled with what the program would find.
        _ => {
            uffd.wake(page.address(), PAGE_SIZE);
            Served::Done
        }
    }
}

fn poison(uffd: &Uffd, page: PageNumber) -> Served {
    match uffd.poison(page.address(), PAGE_SIZE) {
        Err(Errno::EAGAIN) => Served::Retry,
        // Poisoned twice by two threads: the second only has to be woken.
        _ => {
            uffd.wake(page.address(), PAGE_SIZE);
            Served::Done
        }
    }
}

/// Whether pages that come in keep what they came from, by where that is.
#[derive(Clone, Copy)]
struct Keep {
    pooled: bool,
    on_device: bool,
}

/// A window being filled, under its leaf's lock.
struct Window<'a, 'l> {
    engine: &'a Engine,
    context: &'a mut Context,
    uffd: &'a Uffd,
    leaf: &'a mut Leaf<'l>,
    keep: Keep,
    /// The page that a thread waits for.
    faulting: PageNumber,
    /// The window's lowest page.
    first: PageNumber,
    /// A bit for each page that was loaded from the pool.
    from_pool: u64,
    /// The same for those from a device.
    from_device: u64,
}

const _: () = assert!(WINDOW_MAX <= u64::BITS as usize);

impl Window<'_, '_> {
    fn fill(&mut self, region: PageRange) -> Served {
        let stream = self.engine.streams.take(self.faulting);
        let direction = stream.map(|stream| stream.direction);
        let size = self.next_size(stream);
        self.keep.pooled &= size > 1 || self.engine.inline.load(Ordering::Relaxed);
        let mut pages = self.next_pages(size, direction).intersection(region);
        let fetched = self.fetch(pages);
        if fetched.as_ref().is_some_and(Fetched::is_silent) {
            // Each of the others would wait for the device, one after the other.
            pages = PageRange { start: self.faulting, end: PageNumber(self.faulting.0 + 1) };
        }
        self.first = pages.start;
        let served = self.fill_pages(pages);
        drop(fetched);
        self.engine.streams.expect(pages, size, direction);
        served
    }

    fn fill_pages(&mut self, pages: PageRange) -> Served {
        let mut run = PageRange { start: pages.start, end: pages.start };
        for page in pages.iter() {
            let next = PageNumber(page.0 + 1);
            match self.prepare(page) {
                Prepared::Ready => run.end = next,
                Prepared::Lost if page == self.faulting => {
                    return self.install(run).unwrap_or_else(|| self.lose(page));
                }
                Prepared::Lost | Prepared::There => {
                    // What lies behind is still part of the window, in a run of its own.
                    if let Some(served) = self.install(run) {
                        return served;
                    }
                    run = PageRange { start: next, end: next };
                }
            }
        }
        self.install(run).unwrap_or(Served::Done)
    }

    /// Pages to fill: twice the last window where accesses are in order, one elsewhere, and no
    /// more than there is room for.
    fn next_size(&self, stream: Option<Stream>) -> usize {
        let wanted = stream.map_or(1, |stream| stream.window * 2).min(WINDOW_MAX);
        let room = (self.engine.budget.free() / 2).max(0) as usize / PAGE_SIZE;
        wanted.min(room.max(1))
    }

    /// So many pages from the faulting one on, as far as its leaf goes.
    fn next_pages(&self, size: usize, direction: Option<Direction>) -> PageRange {
        let page = self.faulting;
        let leaf = PageNumber(page.leaf() * LEAF_PAGES);
        let leaf = PageRange { start: leaf, end: PageNumber(leaf.0 + LEAF_PAGES) };
        let pages = if direction == Some(Direction::Down) {
            let end = PageNumber(page.0 + 1);
            PageRange { start: PageNumber(end.0.saturating_sub(size)), end }
        } else {
            PageRange { start: page, end: PageNumber(page.0 + size) }
        };
        pages.intersection(leaf)
    }

    /// Has what is on devices read at once. Places may change until the pages are loaded: what is
    /// not found then is read by itself.
    fn fetch(&self, pages: PageRange) -> Option<Fetched> {
        if pages.pages() < 2 {
            return None;
        }
        let mut wanted = Wanted::new();
        for page in pages.iter() {
            if let PageState::Swapped(entry) = self.leaf.state(page.offset_in_leaf())
                && let Some(Place::Backing { device: true, id, handle, length, .. }) =
                    self.engine.space.peek(entry).place()
            {
                wanted.add(id, handle, length.into());
            }
        }
        wanted.fetch()
    }

    /// Puts the contents of a page into the window's buffer.
    fn prepare(&mut self, page: PageNumber) -> Prepared {
        let index = page.0 - self.first.0;
        match self.leaf.state(page.offset_in_leaf()) {
            PageState::Missing => {
                let (_, buffer) = self.context.worker_and_page(index);
                *buffer = Page([0; PAGE_SIZE]);
                Prepared::Ready
            }
            PageState::Swapped(entry) => {
                let (worker, buffer) = self.context.worker_and_page(index);
                match self.engine.space.load(worker, entry, buffer) {
                    Ok(origin) => {
                        self.from_pool |= u64::from(origin == Origin::Pool) << index;
                        let stays = |from| !tiers::promotes(self.engine, from);
                        self.from_device |=
                            u64::from(matches!(origin, Origin::Backing(from) if stays(from)))
                                << index;
                        Prepared::Ready
                    }
                    Err(_) => Prepared::Lost,
                }
            }
            _ => Prepared::There,
        }
    }

    /// Installs a run of prepared pages with as few calls as the kernel allows.
    fn install(&mut self, run: PageRange) -> Option<Served> {
        let mut from = run.start;
        let mut pages_at_once = run.pages();
        while from < run.end {
            let source = self.context.page_address(from.0 - self.first.0);
            let bytes = pages_at_once.min(run.end.0 - from.0) * PAGE_SIZE;
            // SAFETY: the buffer holds the pages of the window from `from` to the run's end.
            let copied = unsafe { self.uffd.copy(from.address(), source, bytes) };
            let (done, error) = match copied {
                Ok(()) => (bytes, None),
                Err((done, error)) => (done, Some(error)),
            };
            let end = PageNumber(from.0 + done / PAGE_SIZE);
            self.note_resident(PageRange { start: from, end });
            from = end;
            match error {
                None => {}
                Some(Errno::EEXIST) => {
                    // Somebody else filled it, outside our view. What is there is what the
                    // program has seen.
                    self.uffd.wake(from.address(), PAGE_SIZE);
                    let state = self.leaf.state(from.offset_in_leaf());
                    if state != PageState::Missing || !events::may_be_dropped() {
                        let page = PageRange { start: from, end: PageNumber(from.0 + 1) };
                        self.note_resident(page);
                    }
                    from = PageNumber(from.0 + 1);
                }
                Some(Errno::EAGAIN) => return Some(Served::Retry),
                // A region can be several mappings to the kernel, and a copy has to stay in one.
                Some(Errno::ENOENT) if pages_at_once > 1 => pages_at_once = 1,
                Some(_) => {
                    // The mapping is going away, or the program is. Its thread finds out.
                    self.uffd.wake(self.faulting.address(), PAGE_SIZE);
                    return Some(Served::Done);
                }
            }
        }
        None
    }

    fn note_resident(&mut self, pages: PageRange) {
        let (mut major, mut around) = (0, 0);
        for page in pages.iter() {
            let offset = page.offset_in_leaf();
            let mut state = PageState::Resident { age: 0 };
            if let PageState::Swapped(entry) = self.leaf.state(offset) {
                state = self.returned(entry, page);
                major += u64::from(page == self.faulting);
            }
            around += u64::from(page != self.faulting);
            self.leaf.set(offset, state);
        }
        if self.engine.side() == Side::Pager {
            LATE.note(pages);
        }
        self.engine.budget.add_resident(pages.pages() as i64);
        self.engine.count(Counter::ReadAhead, around);
        self.engine.count(Counter::MajorFaults, major);
    }

    /// The state of a page of the window, which is back from `entry`. Read-ahead says nothing
    /// about a page's use, so only the faulting page can earn protection.
    fn returned(&mut self, entry: SwapEntry, page: PageNumber) -> PageState {
        let protected = page == self.faulting && workingset::note_refault(self.engine, entry);
        let (state, unneeded) = if self.keeps(entry, page.0 - self.first.0) {
            PageState::cached(entry, protected)
        } else {
            (PageState::resident(protected), Some(entry))
        };
        match unneeded {
            Some(entry) => self.context.returned.add(entry),
            None => self.engine.swap_cache.add(1),
        }
        state
    }

    /// Whether page `index` of the window keeps what it came from, so that it can go again for nothing.
    fn keeps(&mut self, entry: SwapEntry, index: usize) -> bool {
        if self.keep.on_device && self.from_device >> index & 1 != 0 {
            let (_, page) = self.context.worker_and_page(index);
            return FINGERPRINTS.note(entry, page);
        }
        let keeps = self.keep.pooled && self.from_pool >> index & 1 != 0;
        if keeps {
            FINGERPRINTS.forget(entry);
        }
        keeps
    }

    /// The page cannot be restored: it alone is poisoned.
    fn lose(&mut self, page: PageNumber) -> Served {
        if poison(self.uffd, page) == Served::Retry {
            return Served::Retry;
        }
        if let PageState::Swapped(entry) = self.leaf.state(page.offset_in_leaf()) {
            self.context.returned.add(entry);
        }
        self.leaf.set(page.offset_in_leaf(), PageState::Poisoned);
        self.engine.count(Counter::Poisoned, 1);
        if self.engine.side() == Side::Pager {
            link::say_lost_page(self.engine, page.address());
        } else {
            let lost = PageRange { start: page, end: PageNumber(page.0 + 1) };
            self.engine.registrar.ask(Request::Lost, lost);
        }
        Served::Done
    }
}

enum Prepared {
    /// In the buffer.
    Ready,
    /// In the program's memory, or on its way out of it.
    There,
    /// Its backing failed.
    Lost,
}
