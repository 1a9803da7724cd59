//! Committed memory: what the program can make resident without the engine seeing it.
//!
//! Far from its budget a process is not to pay, so its mappings are not registered and fault as
//! they would without vswap, huge pages included. How fast they fill cannot be watched:
//! MAP_POPULATE and huge pages bring in gigabytes between two looks. So what is not registered is
//! bounded, by half of the allowance. A new mapping beyond that is *deferred*: registered, but no
//! region. A fault in it grants a chunk, which is unregistered and committed from then on; when
//! nothing is left to grant, the engine takes over everything. So a program that maps much and
//! touches little pays a fault for each chunk that it uses.
//!
//! The count is an estimate from above, since unmapping does not lower it. Before it is believed,
//! /proc/self/maps is read.

use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as k;
use vswap_core::page::PAGE_SIZE;

use crate::address::{PageNumber, PageRange};
use crate::arena::Arena;
use crate::engine::{Engine, MapsGuard, Phase, Side};
use crate::mapping;
use crate::regions::{Attributes, Regions};
use crate::sys::proc_maps;

/// The least that is granted, in pages, and what chunks are aligned to: a huge page.
const CHUNK_PAGES: usize = 512;

/// A grant is at most this part of what is left, so that a sparse program gets several.
const GRANTED_PART: u64 = 4;

/// Mappings are read again when the count has grown by this part of its bound.
const RECOUNTED_PART: u64 = 8;

/// The count right after the mappings were last read.
static COUNTED: AtomicU64 = AtomicU64::new(0);

/// What may be committed, in bytes.
pub fn limit(engine: &Engine) -> u64 {
    let ram = match engine.phase() {
        Phase::Idle => engine.config().map_or(0, |config| config.ram),
        _ => engine.budget.allowance(),
    };
    ram / 2
}

/// Whether a mapping call makes private anonymous memory that can be written to.
pub fn concerns(flags: u32, prot: u32) -> bool {
    let private = flags & k::MAP_TYPE == k::MAP_PRIVATE && flags & k::MAP_ANONYMOUS != 0;
    private && flags & k::MAP_STACK == 0 && prot & k::PROT_WRITE != 0
}

/// Commits `bytes` if the estimate allows it. Takes no lock.
pub fn take_quickly(engine: &Engine, bytes: usize) -> bool {
    let limit = limit(engine);
    let sum = |committed: u64| committed.checked_add(bytes as u64).filter(|sum| *sum < limit);
    engine.committed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// Commits `bytes` if they fit; reads the mappings again if the estimate says that they do not.
pub fn take(engine: &Engine, maps: &MapsGuard<'_>, bytes: usize) -> bool {
    take_quickly(engine, bytes) || (recount(engine, maps) && take_quickly(engine, bytes))
}

/// Sets the count right; `false` if there is little to hope for since the last time.
fn recount(engine: &Engine, maps: &MapsGuard<'_>) -> bool {
    let counted = COUNTED.load(Ordering::Relaxed);
    let grown = engine.committed.load(Ordering::Relaxed).saturating_sub(counted);
    if grown < limit(engine) / RECOUNTED_PART {
        return false;
    }
    let mut pages = 0;
    let read = proc_maps::for_each(|mapping| {
        let writable = mapping.private && mapping.prot & k::PROT_WRITE != 0;
        if !writable || mapping.inode != 0 || Arena::owns(mapping.start) {
            return;
        }
        let range = PageRange::touching(mapping.start, mapping.end - mapping.start);
        let known = pages_within(&maps.excluded, range) + pages_within(&maps.deferred, range);
        pages += range.pages().saturating_sub(known);
    });
    if read.is_err() {
        return false;
    }
    let committed = (pages * PAGE_SIZE) as u64;
    engine.committed.store(committed, Ordering::Relaxed);
    COUNTED.store(committed, Ordering::Relaxed);
    true
}

fn pages_within(regions: &Regions, range: PageRange) -> usize {
    regions.within(range).map(|part| part.range.pages()).sum()
}

/// Registers a new mapping that may not be committed; `false` if the list of them is full.
pub fn defer(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange) -> bool {
    let listed = maps.deferred.insert(range, Attributes::default()).is_ok();
    if listed {
        mapping::register_only(engine, range);
    }
    listed
}

/// The deferred parts of a range are about to go away, or to be touched where a fault cannot be
/// served.
pub fn undefer(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange) {
    if maps.deferred.within(range).next().is_none() {
        return;
    }
    maps.deferred.within(range).for_each(|part| mapping::unregister(engine, part.range));
    // A list without room for one more part: what is left in it costs a look at a fault that never
    // comes.
    let _ = maps.deferred.remove(range);
}

/// Makes part of a deferred mapping plain memory, for a fault at `page`; `false` if no more may be
/// committed. On a thread of the pager.
pub fn grant(engine: &Engine, maps: &mut MapsGuard<'_>, page: PageNumber) -> bool {
    // Granted since this fault was read, or moved by a call that no hook saw: the page alone, then.
    let one = PageRange { start: page, end: PageNumber(page.0 + 1) };
    let whole = maps.deferred.find(page).map_or(one, |region| region.range);
    let committed = engine.committed.load(Ordering::Relaxed);
    let left = limit(engine).saturating_sub(committed) / GRANTED_PART;
    let wanted = (left as usize / PAGE_SIZE).max(CHUNK_PAGES) / CHUNK_PAGES * CHUNK_PAGES;
    let start = PageNumber(page.0 / CHUNK_PAGES * CHUNK_PAGES);
    let chunk = PageRange { start, end: PageNumber(start.0 + wanted) }.intersection(whole);
    if !take(engine, maps, chunk.bytes()) || maps.deferred.remove(chunk).is_err() {
        return false;
    }
    engine.with_uffd(Side::Pager, |uffd| uffd.unregister(chunk.address(), chunk.bytes())).is_ok()
}
