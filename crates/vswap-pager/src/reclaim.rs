//! Reclaim: takes pages out of the program, in two steps.
//!
//! *Moving out* takes a batch of pages of one leaf to a staging tray with a single UFFDIO_MOVE: one
//! TLB shootdown for up to 256 pages. *Emptying* a tray stores its pages in the virtual swap space
//! and drops them. Between the two a page can come back without the codec.
//!
//! A batch that is scattered over its leaf costs a TLB flush for nearly every page, which is dear
//! only while the memory is live on another CPU (see [`batch`](crate::batch)). So it is moved by who
//! serves a fault, on the CPU of the thread that faulted, while the reclaimer sleeps; the reclaimer
//! then stores it while the program goes on.
//!
//! The order is a clock over the address space. User space cannot see accessed bits, so the second
//! chance comes from refaults: a page that came back sooner after its eviction than the resident
//! set is large gets an age, and each sweep that passes it takes one off (see
//! [`workingset`]).

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::{GroupId, StoreError, SwapEntry, same_filled};

use crate::address::{LEAF_PAGES, PageNumber, PageRange};
use crate::batch::Batch;
use crate::context::Context;
use crate::engine::{Engine, MapsGuard, Side};
use crate::regions::Region;
use crate::run_page::Counter;
use crate::staging::{Bitmap, Tray};
use crate::swap::fingerprints::FINGERPRINTS;
use crate::swap::writeback::{self, Entries};
use crate::sys::uffd::Uffd;
use crate::sys::{Errno, memory, pagemap};
use crate::table::{Leaf, PageState};
use crate::{events, workingset};

/// Times that a move is tried again when the kernel says that a page is locked just now.
const MOVE_RETRIES: usize = 3;

/// Batches that are moved for one fault, at most.
const BATCHES_AHEAD: usize = 4;

/// Next page that reclaim looks at.
static HAND: AtomicUsize = AtomicUsize::new(0);

/// Times that the hand has come to the end of memory.
static SWEEPS: AtomicUsize = AtomicUsize::new(0);

/// Whether the last batch was scattered. A hint that saves looking at the next one in vain.
static SCATTERED: AtomicBool = AtomicBool::new(false);

/// How often the clock's hand has gone round.
pub fn sweeps() -> usize {
    SWEEPS.load(Ordering::Relaxed)
}

/// What one step of reclaim did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Memory was freed, or pages went to staging.
    Some,
    /// There is nothing to take.
    None,
    /// Pages are in staging, and no backing takes them.
    Full,
}

/// Which batches may be moved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Those that cost few TLB flushes.
    Contiguous,
    /// Any.
    Any,
}

impl Engine {
    /// One step of reclaim for somebody who needs memory now: empties the oldest tray, fills one
    /// first if there is none. What `gather` gives is held while pages move.
    pub fn reclaim_step<T>(
        &self,
        context: &mut Context,
        side: Side,
        gather: impl FnOnce() -> T,
    ) -> Progress {
        if self.staging.full() > 0 {
            return self.empty_oldest_tray(context);
        }
        let gathered = gather();
        let moved = self.move_out_batch(Take::Any, side);
        drop(gathered);
        match self.empty_oldest_tray(context) {
            Progress::None => moved,
            emptied => emptied,
        }
    }

    /// Waits a moment if the tray that the reclaimer is emptying will be there sooner than one of
    /// the caller's own; gives whether it did.
    pub fn wait_for_reclaimer(&self) -> bool {
        let waits = SCATTERED.load(Ordering::Relaxed)
            && self.staging.full() == 0
            && !self.mailbox.quiesce();
        if waits {
            self.relief.wait();
        }
        waits
    }

    /// One step of reclaim ahead of need: empties what staging holds beyond the second chance,
    /// then fills a tray.
    pub fn reclaim_ahead(&self, context: &mut Context, take: Take) -> Progress {
        let hurry = self.budget.free() < self.budget.margin();
        let keep = if hurry { 0 } else { self.budget.staged_trays() };
        if self.staging.full() > keep {
            return self.empty_oldest_tray(context);
        }
        self.move_out_batch(take, Side::Pager)
    }

    /// Moves pages to staging when little is free: for who serves a fault, since it runs on the CPU
    /// of the thread that waits. Nothing scattered is moved while the reclaimer is at work, nor
    /// unless `gather` gives leave, which is held meanwhile.
    pub fn move_out_ahead<T>(&self, side: Side, gather: impl FnOnce() -> Option<T>) {
        let free = self.budget.free();
        if free >= self.budget.high_watermark() {
            return;
        }
        if !SCATTERED.load(Ordering::Relaxed) {
            if free < self.budget.low_watermark() {
                self.move_out_batch(Take::Contiguous, side);
                self.mailbox.ring();
            }
            return;
        }
        if !self.mailbox.quiesce() {
            return;
        }
        let Some(_gathering) = gather() else { return };
        let reclaimed = self.counted(Counter::Reclaimed);
        let enough = reclaimed + self.budget.batch_pages() as u64 / 2;
        for _ in 0..BATCHES_AHEAD {
            let moved = self.move_out_batch(Take::Any, side);
            if moved != Progress::Some || self.counted(Counter::Reclaimed) >= enough {
                break;
            }
        }
        self.mailbox.ring();
    }

    /// Moves one batch to staging, wherever the clock's hand points.
    pub fn move_out_batch(&self, take: Take, side: Side) -> Progress {
        let mut maps = self.lock_maps();
        events::drain(self, &mut maps, side);
        for _ in 0..2 {
            let hand = PageNumber(HAND.load(Ordering::Relaxed));
            if let Some((region, part)) = self.next_candidate(&maps, hand) {
                let moved = self.move_out(&region, part, take, side);
                HAND.store(moved.next.0, Ordering::Relaxed);
                return moved.progress;
            }
            HAND.store(0, Ordering::Relaxed);
            SWEEPS.fetch_add(1, Ordering::Relaxed);
        }
        Progress::None
    }

    /// Moves out all that can be moved in a range, now and whatever its age.
    pub fn move_out_range(&self, context: &mut Context, range: PageRange) {
        let mut from = range.start;
        while from < range.end {
            let mut maps = self.lock_maps();
            events::drain(self, &mut maps, Side::Pager);
            let rest = PageRange { start: from, end: range.end };
            let next = self.regions(&maps).within(rest).find(may_move);
            let Some(region) = next else { return };
            let Some(part) = region.range.by_leaf().next() else { return };
            from = self.move_out_part(&region, part);
            drop(maps);
            while self.staging.full() > 0 {
                if self.empty_oldest_tray(context) != Progress::Some {
                    return;
                }
            }
        }
    }

    /// Moves pages of `part`, which lies in one leaf, whatever their age; gives the page to go on at.
    fn move_out_part(&self, region: &Region, part: PageRange) -> PageNumber {
        let Some(mut leaf) = self.table.lock(part.start) else { return part.end };
        let batch = Batch::choose(&leaf, part, LEAF_PAGES, true);
        if batch.span.is_empty() || self.move_batch(&mut leaf, region, &batch, Side::Pager) {
            batch.next
        } else {
            part.start
        }
    }

    /// The part of a leaf with resident pages at or behind `hand`.
    fn next_candidate(
        &self,
        maps: &MapsGuard<'_>,
        hand: PageNumber,
    ) -> Option<(Region, PageRange)> {
        let regions = self.regions(maps);
        let mut from = hand;
        loop {
            let region = *regions.at_or_behind(from)?;
            let start = from.max(region.range.start);
            let last_leaf = PageNumber(region.range.end.0 - 1).leaf();
            let leaf = self.table.next_leaf(start.leaf(), last_leaf + 1);
            let Some(leaf) = leaf.filter(|_| may_move(&region)) else {
                from = region.range.end;
                continue;
            };
            let start = start.max(PageNumber(leaf * LEAF_PAGES));
            let part = PageRange { start, end: region.range.end }.by_leaf().next()?;
            if self.any_resident(part) {
                return Some((region, part));
            }
            from = part.end;
        }
    }

    fn any_resident(&self, part: PageRange) -> bool {
        self.table.lock(part.start).is_some_and(|leaf| {
            part.iter().any(|page| leaf.word(page.offset_in_leaf()).is_resident())
        })
    }

    /// Moves the first batch of pages of `part`, which lies in one leaf, to a tray.
    fn move_out(&self, region: &Region, part: PageRange, take: Take, side: Side) -> Moved {
        let nothing = Moved { next: part.start, progress: Progress::None };
        let Some(mut leaf) = self.table.lock(part.start) else {
            return Moved { next: part.end, ..nothing };
        };
        let batch = Batch::choose(&leaf, part, self.budget.batch_pages(), false);
        SCATTERED.store(batch.is_scattered(), Ordering::Relaxed);
        if take == Take::Contiguous && batch.is_scattered() {
            return nothing;
        }
        batch.age_protected(&mut leaf, |entry| {
            // A slot on a device takes no memory.
            let in_memory = !FINGERPRINTS.knows(entry);
            if in_memory {
                self.forget_copy(entry);
            }
            in_memory
        });
        if batch.span.is_empty() {
            return Moved { next: batch.next, progress: Progress::Some };
        }
        if !self.move_batch(&mut leaf, region, &batch, side) {
            return nothing;
        }
        Moved { next: batch.next, progress: Progress::Some }
    }

    /// Moves a batch to a tray; `false` if none is free.
    fn move_batch(&self, leaf: &mut Leaf<'_>, region: &Region, batch: &Batch, side: Side) -> bool {
        let prot = region.attributes.prot;
        let leaf_number = batch.span.start.leaf();
        let number = self.with_uffd(side, |uffd| self.staging.begin(leaf_number, prot, uffd));
        let Some(number) = number else { return false };
        let mut tray = Tray { number, leaf: leaf_number, pages: Bitmap::default() };
        let mut stuck = Bitmap::default();
        let parts = if events::may_be_dropped() { Parts::Resident } else { Parts::Whole };
        for segment in batch.segments() {
            for part in parts.of(leaf, segment) {
                self.move_segment(part, number, &mut stuck, side);
            }
        }
        if self.with_uffd(side, |uffd| self.staging.seal(number, uffd)).is_err() {
            crate::link::die(self, "staging memory cannot be unregistered");
        }
        self.note_moved(leaf, &mut tray, batch, &stuck, side);
        self.count(Counter::Reclaimed, tray.pages.count() as u64);
        self.staging.finish(tray);
        true
    }

    /// Moves what is present in `span` to the tray; adds the pages that refuse to `stuck`.
    fn move_segment(&self, span: PageRange, tray: u8, stuck: &mut Bitmap, side: Side) {
        let mut from = span.start;
        let mut retries = 0;
        let mut made_private = None;
        let mut pages_at_once = span.pages();
        while from < span.end {
            let pages = pages_at_once.min(span.end.0 - from.0);
            let bytes = pages * PAGE_SIZE;
            let to = self.staging.address(tray, from.offset_in_leaf());
            // SAFETY: the pages are the program's; while its leaf is locked nobody else of the
            // engine touches them, and the program's own accesses wait for us at the leaf's lock.
            let moved =
                self.with_uffd(side, |uffd| unsafe { uffd.move_pages(to, from.address(), bytes) });
            let Err((done, error)) = moved else {
                from = PageNumber(from.0 + pages);
                pages_at_once = span.pages();
                continue;
            };
            from = PageNumber(from.0 + PageNumber::containing(done).0);
            if matches!(error, Errno::EINVAL | Errno::ENOENT) && pages > 1 {
                // A region can be several mappings to the kernel, and a move has to stay in one.
                pages_at_once = pages / 2;
                continue;
            }
            if error == Errno::EAGAIN && self.with_uffd(side, Uffd::is_changing) {
                // What lies here now may not be what the table tells of.
                let rest = PageRange { start: from, end: span.end };
                rest.iter().for_each(|page| stuck.insert(page.offset_in_leaf()));
                return;
            }
            if error == Errno::EAGAIN && retries < MOVE_RETRIES {
                retries += 1;
                continue;
            }
            if error == Errno::EBUSY && from < span.end && made_private != Some(from) {
                // Its own copy leaves at once: a sweep that only made copies would take as much
                // memory again as is shared before it freed any.
                make_private(from);
                made_private = Some(from);
                continue;
            }
            if from < span.end {
                self.count(Counter::MoveBusy, 1);
                stuck.insert(from.offset_in_leaf());
            }
            retries = 0;
            from = PageNumber(from.0 + 1);
        }
    }

    /// Makes the words of the batch say what the tray really holds.
    fn note_moved(
        &self,
        leaf: &mut Leaf<'_>,
        tray: &mut Tray,
        batch: &Batch,
        stuck: &Bitmap,
        side: Side,
    ) {
        let span = batch.span;
        let start = self.staging.address(tray.number, span.start.offset_in_leaf());
        let first = span.start.offset_in_leaf();
        let pagemap = self.paging_fds(side).pagemap.load(Ordering::Relaxed);
        let pages = &mut tray.pages;
        let scanned =
            pagemap::for_each_present(pagemap, start, start + span.bytes(), |from, to| {
                for index in PageRange::touching(from - start, to - from).iter() {
                    pages.insert(first + index.0);
                }
            });
        if scanned.is_err() {
            // Without the scan the words tell; a page that the table wrongly called resident
            // would read as zeros from the tray, which is what it holds in the program.
            batch
                .segments()
                .flat_map(PageRange::iter)
                .map(PageNumber::offset_in_leaf)
                .filter(|&offset| leaf.word(offset).is_resident() && !stuck.contains(offset))
                .for_each(|offset| pages.insert(offset));
        }
        for offset in batch.segments().flat_map(PageRange::iter).map(PageNumber::offset_in_leaf) {
            let resident = leaf.word(offset).is_resident();
            let copy = match leaf.state(offset) {
                PageState::Cached { entry, .. } => Some(entry),
                _ => None,
            };
            if tray.pages.contains(offset) {
                if let PageState::Swapped(entry) = leaf.state(offset) {
                    self.space.free(entry);
                }
                self.swap_cache.stage(tray.number, offset, copy);
                if !resident {
                    self.budget.add_resident(1);
                }
                leaf.set(offset, PageState::Staged { tray: tray.number });
            } else if resident && !stuck.contains(offset) {
                if let Some(entry) = copy {
                    self.forget_copy(entry);
                }
                self.budget.add_resident(-1);
                leaf.set(offset, PageState::Missing);
            }
        }
    }

    /// Stores the pages of the tray that was filled first, and drops them.
    pub fn empty_oldest_tray(&self, context: &mut Context) -> Progress {
        self.evict_oldest_tray(context).0
    }

    /// The same; gives the pages that left, too.
    pub fn evict_oldest_tray(&self, context: &mut Context) -> (Progress, usize) {
        let Some(tray) = self.staging.take_oldest() else { return (Progress::None, 0) };
        let pages = tray.pages.count();
        writeback::make_room(self, context);
        let mut refused = 0;
        let mut stored = Entries::default();
        for offset in tray.pages.iter() {
            match self.store_staged(context, &tray, offset) {
                Ok(entry) => stored.add(entry),
                Err(_) => refused += 1,
            }
        }
        writeback::write_incompressible(self, context, stored);
        self.update_engine_bytes();
        if refused > 0 {
            self.drop_stored(tray);
            return (Progress::Full, pages - refused);
        }
        let _passage = self.gate.pass();
        self.staging.discard(&tray);
        self.budget.add_resident(-(pages as i64));
        self.relief.give();
        (Progress::Some, pages)
    }

    /// Keeps the pages of a tray that are still staged, and drops the rest.
    fn drop_stored(&self, mut tray: Tray) {
        let _passage = self.gate.pass();
        let mut kept = Bitmap::default();
        for offset in tray.pages.iter() {
            let page = PageNumber(tray.leaf * LEAF_PAGES + offset);
            let staged = self
                .table
                .lock(page)
                .is_some_and(|leaf| leaf.state(offset) == PageState::Staged { tray: tray.number });
            if staged {
                kept.insert(offset);
                continue;
            }
            let address = self.staging.address(tray.number, offset);
            // SAFETY: the page is stored or back in its place; nobody looks for it here.
            let _ = unsafe {
                memory::advise(address, PAGE_SIZE, linux_raw_sys::general::MADV_DONTNEED)
            };
            self.budget.add_resident(-1);
        }
        tray.pages = kept;
        self.staging.put_back(tray);
    }

    /// Stores one page of a tray, unless it has gone back or away meanwhile. Gives its new entry.
    fn store_staged(
        &self,
        context: &mut Context,
        tray: &Tray,
        offset: usize,
    ) -> Result<Option<SwapEntry>, StoreError> {
        let _passage = self.gate.pass();
        let page =
            StagedPage { page: PageNumber(tray.leaf * LEAF_PAGES + offset), tray: tray.number };
        let Some(leaf) = self.lock_staged(page) else { return Ok(None) };
        let copy = self.swap_cache.staged(tray.number, offset);
        drop(leaf);
        // SAFETY: the tray is ours to empty, and it holds the page.
        let contents = unsafe { self.staging.page(tray.number, offset) };
        if let Some(entry) = copy
            && self.store_again(context, page, contents, entry)
        {
            return Ok(None);
        }
        let stored = if same_filled::repeated_word(contents) == Some(0) {
            // A zero page needs no slot: a missing page reads as zeros.
            self.count(Counter::SwpoutZero, 1);
            PageState::Missing
        } else {
            PageState::Swapped(self.space.swap_out(&mut context.worker, GroupId::ROOT, contents)?)
        };
        if let PageState::Swapped(entry) = stored {
            workingset::note_evicted(self, entry);
        }
        match (self.lock_staged(page), stored) {
            (Some(mut leaf), stored) => leaf.set(offset, stored),
            (None, PageState::Swapped(entry)) => self.space.free(entry),
            (None, _) => {}
        }
        Ok(match stored {
            PageState::Swapped(entry) => Some(entry),
            _ => None,
        })
    }

    /// Stores a page that has a copy since it last came in: `false` if it was written, and so has
    /// none any more.
    fn store_again(
        &self,
        context: &mut Context,
        page: StagedPage,
        contents: &Page,
        entry: SwapEntry,
    ) -> bool {
        let same = FINGERPRINTS.is_same(entry, contents).unwrap_or_else(|| {
            let same = self.space.holds(&mut context.worker, entry, contents);
            self.swap_cache.note_compared(same);
            same
        });
        self.count(if same { Counter::SwapCacheClean } else { Counter::SwapCacheStale }, 1);
        // Who takes a page back from staging takes its copy as well, so that is ours for as long as
        // the page is there.
        let Some(mut leaf) = self.lock_staged(page) else { return true };
        let offset = page.page.offset_in_leaf();
        if !same {
            self.swap_cache.stage(page.tray, offset, None);
            self.forget_copy(entry);
            return false;
        }
        let entry = self.space.renew(&mut context.worker, entry);
        workingset::note_evicted(self, entry);
        self.swap_cache.add(-1);
        leaf.set(offset, PageState::Swapped(entry));
        true
    }

    /// Locks the leaf of a page if the page is still in the tray.
    fn lock_staged(&self, page: StagedPage) -> Option<Leaf<'_>> {
        let staged = PageState::Staged { tray: page.tray };
        self.table.lock(page.page).filter(|leaf| leaf.state(page.page.offset_in_leaf()) == staged)
    }
}

/// A page, and the tray that it was moved to.
#[derive(Clone, Copy)]
struct StagedPage {
    page: PageNumber,
    tray: u8,
}

/// Takes the age off the pages of a range (MADV_COLD), so that the next sweep takes them.
pub fn make_old(engine: &Engine, range: PageRange) {
    for part in range.by_leaf() {
        let Some(mut leaf) = engine.table.lock(part.start) else { continue };
        for offset in part.iter().map(PageNumber::offset_in_leaf) {
            match leaf.state(offset) {
                PageState::Resident { .. } => leaf.set(offset, PageState::resident(false)),
                PageState::Cached { entry, .. } => {
                    leaf.set(offset, PageState::Cached { entry, protected: false });
                }
                _ => {}
            }
        }
    }
}

/// What of a segment is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parts {
    /// All that is there: one call, whatever holes there are.
    Whole,
    /// What the table calls resident.
    Resident,
}

impl Parts {
    fn of(self, leaf: &Leaf<'_>, segment: PageRange) -> impl Iterator<Item = PageRange> {
        let mut rest = segment;
        core::iter::from_fn(move || {
            let is_taken = |page: &PageNumber| {
                self == Self::Whole || leaf.word(page.offset_in_leaf()).is_resident()
            };
            let start = rest.iter().find(is_taken)?;
            let behind = PageRange { start, ..rest }.iter().find(|page| !is_taken(page));
            rest.start = behind.unwrap_or(rest.end);
            Some(PageRange { start, end: rest.start })
        })
    }
}

struct Moved {
    next: PageNumber,
    progress: Progress,
}

/// Whether the pages of a region can be moved: it is writable, neither locked nor known to refuse.
fn may_move(region: &Region) -> bool {
    u32::from(region.attributes.prot) & linux_raw_sys::general::PROT_WRITE != 0
        && !region.attributes.locked
        && !region.attributes.immovable
}

/// Gives this process its own copy of a page that it shares since a fork. A pinned page stays as
/// it is.
fn make_private(page: PageNumber) {
    // SAFETY: populating for writing does not change contents. The page was present a moment ago
    // and its leaf is locked, so the kernel does not wait for the pager.
    let _ = unsafe {
        memory::advise(page.address(), PAGE_SIZE, linux_raw_sys::general::MADV_POPULATE_WRITE)
    };
}
