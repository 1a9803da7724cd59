//! Takes mappings over that exist already: all of them when paging begins, and later what no hook saw.
//!
//! A raw trap maps memory without the engine noticing, and what is mapped may change while
//! /proc/self/maps is read. Nothing is ever to be moved out of memory that is not registered, so a
//! range becomes a region in this order, while no event of the userfaultfd is open:
//!
//! 1. it is registered: whatever changes it from now on causes an event;
//! 2. it has no hole: what was unmapped since its line was read would be part of the region, and what
//!    is mapped there later would not be registered;
//! 3. no event is open: what was changed since step 1 caused one. It is given up then, until the next
//!    look. It stays registered, which costs a fault there another look;
//! 4. it is a region. Changes from now on are events, which are applied before any page of it moves
//!    (the kernel sees to that, see [`staging`](crate::staging)).

use linux_raw_sys::general as k;
use vswap_core::page::PAGE_SIZE;

use crate::address::{PageNumber, PageRange};
use crate::arena::Arena;
use crate::engine::{Engine, MapsGuard, Phase, Side};
use crate::regions::{Attributes, Region, Regions};
use crate::sys::fd::{self, Fd};
use crate::sys::proc_maps::{self, Mapping, Query};
use crate::sys::uffd::Uffd;
use crate::sys::{Errno, elf, memory, pagemap, task};
use crate::table::PageState;
use crate::{events, mapping};

/// Zeroed data of an object stays as it is below this size.
const BSS_MIN: usize = 1 << 20;

/// Looks for what no hook saw take less than one part in this many of a CPU's time.
const COST_SHARE: u64 = 20;

/// A budget that is exceeded is a reason to look again after so many nanoseconds.
const SHORT_NS: u64 = 100_000_000;

/// What became of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// All that can be paged is known.
    Complete,
    /// Something changed meanwhile.
    Disturbed,
}

/// Takes over the mappings with pages in a range as far as they can be paged and are not known, and notes
/// how what is known is protected. The caller has [settled](events::settle) what is pending. Mappings
/// are taken as a whole: to the kernel one that is registered in part is two, which no mremap of the
/// program could move.
fn within(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange) -> Result<Look, Errno> {
    let mut objects = Objects::new();
    let query = Query::open()?;
    let mut look = Look::Complete;
    let mut left_alone = NOTHING;
    // Registering splits and merges mappings, but only behind the reader.
    proc_maps::for_each(|mapping| {
        let mut found = objects.pageable(&mapping);
        if found.is_empty() && is_registered(engine, &mapping) {
            found = pages_of(&mapping);
        }
        if found.is_empty() {
            left_alone = pages_of(&mapping);
        }
        if found.intersection(range).is_empty() || is_known(engine, maps, found, mapping.prot) {
            return;
        }
        let read = Read { mapping: &mapping, left_alone };
        if !query.is_as_read(&mapping) || !adopt(engine, maps, &query, found, &read) {
            look = Look::Disturbed;
        }
    })?;
    Ok(look)
}

/// No page.
const NOTHING: PageRange = PageRange { start: PageNumber(0), end: PageNumber(0) };

/// A mapping as it was read.
#[derive(Clone, Copy)]
struct Read<'a> {
    mapping: &'a Mapping<'a>,
    /// The last one in front of it that is not paged.
    left_alone: PageRange,
}

fn pages_of(mapping: &Mapping<'_>) -> PageRange {
    PageRange::touching(mapping.start, mapping.end - mapping.start)
}

/// Whether a mapping that does not look pageable was a region's, or part of one: what a trap maps in front
/// of it can make it look like zeroed data of an object.
fn is_registered(engine: &Engine, mapping: &Mapping<'_>) -> bool {
    mapping.private
        && mapping.inode == 0
        && !is_special(mapping.name)
        && !Arena::owns(mapping.start)
        && engine.with_uffd(engine.side(), |uffd| uffd.reports_on(mapping.start))
}

/// Takes over everything that can be paged, for the first time.
///
/// # Errors
/// As reading /proc/self/maps; a part may have been taken over.
pub fn everything(engine: &Engine, maps: &mut MapsGuard<'_>) -> Result<(), Errno> {
    within(engine, maps, PageRange::EVERYTHING).map(drop)
}

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It belongs to a region.
    Yes,
    /// It does not: its mapping is none that is paged.
    No,
    /// Events are open: the caller tries again.
    NotYet,
}

/// Takes over the mapping of a page unless it is known.
pub fn mapping_of(engine: &Engine, page: PageNumber) -> Known {
    let (mut maps, settled) = events::settle(engine, engine.lock_maps(), engine.side());
    if engine.regions(&maps).find(page).is_some() {
        return Known::Yes;
    }
    if !settled {
        return Known::NotYet;
    }
    let (mut found, mut left_alone) = (None, NOTHING);
    let mut objects = Objects::new();
    let read = proc_maps::for_each(|mapping| {
        let pageable = objects.pageable(&mapping);
        let anonymous = mapping.private && mapping.inode == 0 && !is_special(mapping.name);
        if anonymous && mapping.contains(page.address()) {
            found = Some(Mapping { name: b"", ..mapping });
        } else if found.is_none() && pageable.is_empty() {
            left_alone = pages_of(&mapping);
        }
    });
    if let (Some(mapping), Ok(()), Ok(query)) = (&found, read, Query::open())
        && !Arena::owns(page.address())
        && !adopt(engine, &mut maps, &query, pages_of(mapping), &Read { mapping, left_alone })
    {
        return Known::NotYet;
    }
    if engine.regions(&maps).find(page).is_some() {
        Known::Yes
    } else if engine.with_uffd(engine.side(), Uffd::is_changing) {
        Known::NotYet
    } else {
        // If it is registered all the same, nobody would ever serve its faults.
        let _ = engine.with_uffd(engine.side(), |uffd| uffd.unregister(page.address(), PAGE_SIZE));
        Known::No
    }
}

/// Takes over what is not known of a range that a hook is about to change, so that what is registered
/// there is known: an event of it would wait for the lock that the hook holds.
pub fn before_call<'a>(engine: &'a Engine, maps: MapsGuard<'a>, range: PageRange) -> MapsGuard<'a> {
    match engine.phase() {
        Phase::Watching => unregister_all(engine, range),
        Phase::Active if !is_covered(engine, &maps, range) => {
            return settle_and_adopt(engine, maps, range);
        }
        _ => {}
    }
    maps
}

/// While nothing is paged yet, what is registered is deferred, or was before a trap moved it.
fn unregister_all(engine: &Engine, range: PageRange) {
    let unregister = |part: PageRange| {
        engine.with_uffd(Side::Program, |uffd| uffd.unregister(part.address(), part.bytes()))
    };
    if range.is_empty() || unregister(range).is_ok() {
        return;
    }
    // It begins with a hole, or holds what cannot be registered.
    let _ = proc_maps::for_each(|mapping| {
        let part = pages_of(&mapping).intersection(range);
        if mapping.private && mapping.inode == 0 && !part.is_empty() {
            let _ = unregister(part);
        }
    });
}

/// The same for a range that the program asks to evict, which is in vain where a trap has made memory
/// writable that is known as read-only.
pub fn before_eviction<'a>(
    engine: &'a Engine,
    maps: MapsGuard<'a>,
    range: PageRange,
) -> MapsGuard<'a> {
    let read_only = |part: Region| u32::from(part.attributes.prot) & k::PROT_WRITE == 0;
    if engine.regions(&maps).within(range).any(read_only) {
        return settle_and_adopt(engine, maps, range);
    }
    before_call(engine, maps, range)
}

/// Before a fork: what is registered without being known is not inherited.
pub fn before_fork<'a>(engine: &'a Engine, maps: MapsGuard<'a>) -> MapsGuard<'a> {
    settle_and_adopt(engine, maps, PageRange::EVERYTHING)
}

/// Tries for as long as it takes: other threads' calls that caused events are about to return.
fn settle_and_adopt<'a>(
    engine: &'a Engine,
    mut maps: MapsGuard<'a>,
    range: PageRange,
) -> MapsGuard<'a> {
    loop {
        let settled;
        (maps, settled) = events::settle(engine, maps, engine.side());
        // What cannot be read stays unknown.
        if settled && within(engine, &mut maps, range) != Ok(Look::Disturbed) {
            return maps;
        }
    }
}

/// Whether every page of a range belongs to a region or is excluded.
pub fn is_covered(engine: &Engine, maps: &MapsGuard<'_>, range: PageRange) -> bool {
    let pages =
        |regions: &Regions| -> usize { regions.within(range).map(|part| part.range.pages()).sum() };
    pages(engine.regions(maps)) + pages(&maps.excluded) >= range.pages()
}

/// When the watcher looks for what no hook saw.
#[derive(Debug, Default)]
pub struct Newcomers {
    due_ns: u64,
    /// What was unmanaged after the last look, and less if it has shrunk since.
    unmanaged: u64,
    looked_ns: u64,
    /// Whether something changed during the last look: a mapping may be registered in part.
    disturbed: bool,
}

impl Newcomers {
    /// Looks if more memory is unmanaged than at the last look, if that was disturbed, or if the budget is
    /// exceeded in spite of reclaim: a trap may have made memory writable that reclaim passes over. On the
    /// pager's watcher.
    pub fn look(&mut self, engine: &Engine) {
        let unmanaged = engine.budget.unmanaged();
        self.unmanaged = self.unmanaged.min(unmanaged);
        let now = task::now_ns();
        let grown = unmanaged - self.unmanaged >= engine.budget.margin() as u64;
        let short =
            engine.budget.free() < engine.budget.min_watermark() && now - self.looked_ns > SHORT_NS;
        if !(grown || short || self.disturbed)
            || now < self.due_ns
            || engine.phase() != Phase::Active
        {
            return;
        }
        let before = task::thread_cpu_ns();
        // Whoever has it is done at the next look, or died with it: then there is a core dump to look after.
        let Some(maps) = engine.lock_maps_patiently() else { return };
        let (mut maps, settled) = events::settle(engine, maps, Side::Pager);
        // What cannot be read now can perhaps at the next look. The second time takes over the rest of
        // what has come while the first was under way, and is registered in part.
        let look = settled.then(|| {
            within(engine, &mut maps, PageRange::EVERYTHING)
                .and_then(|_| within(engine, &mut maps, PageRange::EVERYTHING))
        });
        self.disturbed = matches!(look, None | Some(Ok(Look::Disturbed)));
        if look == Some(Ok(Look::Complete)) {
            self.unmanaged = engine.budget.unmanaged();
        }
        drop(maps);
        let cost = task::thread_cpu_ns() - before;
        (self.looked_ns, self.due_ns) = (now, now + cost * COST_SHARE);
    }
}

/// Whether a mapping, or what is not excluded of it, is known with this protection.
fn is_known(engine: &Engine, maps: &MapsGuard<'_>, range: PageRange, prot: u32) -> bool {
    let differs = |part: Region| u32::from(part.attributes.prot) != prot;
    is_covered(engine, maps, range) && !engine.regions(maps).within(range).any(differs)
}

/// Takes over the parts of `range`, of a mapping, that are neither known nor excluded; `false` if
/// something changed meanwhile.
fn adopt(
    engine: &Engine,
    maps: &mut MapsGuard<'_>,
    query: &Query,
    range: PageRange,
    read: &Read<'_>,
) -> bool {
    let prot = read.mapping.prot as u8;
    let mut rest = range;
    loop {
        let first = |regions: &Regions| regions.within(rest).next();
        let (excluded, known) = (first(&maps.excluded), first(engine.regions(maps)));
        let obstacle = [excluded, known].into_iter().flatten().min_by_key(|part| part.range.start);
        let end = obstacle.map_or(rest.end, |part| part.range.start);
        let part = PageRange { start: rest.start, end };
        if !part.is_empty() && !adopt_part(engine, maps, query, part, read) {
            return false;
        }
        let Some(obstacle) = obstacle else { return true };
        if known == Some(obstacle) && obstacle.attributes.prot != prot {
            let closed = engine.gate.close();
            // Too many regions: a move between unequal protections fails, and the page stays.
            let _ = engine
                .regions_mut(maps, &closed)
                .change(obstacle.range, |attributes| attributes.prot = prot);
        }
        rest.start = obstacle.range.end;
    }
}

fn adopt_part(
    engine: &Engine,
    maps: &mut MapsGuard<'_>,
    query: &Query,
    part: PageRange,
    read: &Read<'_>,
) -> bool {
    let side = engine.side();
    let registered = engine.with_uffd(side, |uffd| uffd.register(part.address(), part.bytes()));
    // A mapping that refuses (the program's own userfaultfd, device memory) stays unmanaged.
    if registered.is_err() {
        return true;
    }
    // Before a page is filled, and before the parts can merge with another region beside them: what has
    // anonymous memory of two origins cannot become one mapping any more.
    let whole = register_rest(engine, maps, query, part, read);
    mapping::dont_fork(whole);
    let mapped = memory::is_mapped(part.address(), part.bytes());
    if !mapped || engine.with_uffd(side, Uffd::is_changing) {
        // It stays registered: a region may just have moved there, of which no event tells yet.
        return false;
    }
    let closed = engine.gate.close();
    let attributes = Attributes { prot: read.mapping.prot as u8, ..Attributes::default() };
    if engine.regions_mut(maps, &closed).insert(part, attributes).is_ok() {
        note_present(engine, part);
    }
    true
}

/// Registers what lies beside a part that reached to an end of its mapping and is alike: a trap has put a
/// longer mapping there since that was read, which is two to the kernel now, and could not be moved. Not
/// what was there and is not paged, zeroed data of an object: no child would have it. Gives all of it, the
/// part included.
fn register_rest(
    engine: &Engine,
    maps: &MapsGuard<'_>,
    query: &Query,
    part: PageRange,
    &Read { mapping, left_alone }: &Read<'_>,
) -> PageRange {
    let mut all = part;
    let (start, end) = (part.start.address(), part.end.address());
    let before = (start == mapping.start).then(|| (start, start - 1));
    let behind = (end == mapping.end).then(|| (end - 1, end));
    for (inside, address) in [before, behind].into_iter().flatten() {
        // What is there now may be protected otherwise than what was read.
        let (part, other) = (query.mapping_of(inside), query.mapping_of(address));
        let (Some(part), Some(other)) = (part, other) else { continue };
        let alike = other.private && other.inode == 0 && other.prot == part.prot;
        let engines = Arena::owns(address) || other.contains(core::ptr::from_ref(engine) as usize);
        let new = pages_of(&other) != left_alone;
        if alike && new && !engines && maps.excluded.within(pages_of(&other)).next().is_none() {
            // What refuses is the program's own userfaultfd's.
            let _ = engine.with_uffd(engine.side(), |uffd| {
                uffd.register(other.start, pages_of(&other).bytes())
            });
            let other = pages_of(&other);
            all = PageRange { start: all.start.min(other.start), end: all.end.max(other.end) };
        }
    }
    all
}

/// Marks the pages of a range that are in memory as resident.
pub fn note_present(engine: &Engine, range: PageRange) {
    // Both descriptor tables see the same memory; the caller's own is sure to be open.
    let Ok(pagemap) = fd::open(c"/proc/self/pagemap", k::O_RDONLY) else { return };
    let (start, end) = (range.address(), range.end.address());
    let _ = pagemap::for_each_present(pagemap.raw(), start, end, |start, end| {
        for part in PageRange::touching(start, end - start).by_leaf() {
            let Ok(mut leaf) = engine.table.lock_or_make(part.start) else { return };
            for page in part.iter() {
                if leaf.state(page.offset_in_leaf()) == PageState::Missing {
                    leaf.set(page.offset_in_leaf(), PageState::Resident { age: 0 });
                    engine.budget.manage(1);
                }
            }
        }
    });
}

/// Stack, vDSO and their like.
fn is_special(name: &[u8]) -> bool {
    name.starts_with(b"[") && name != b"[heap]" && !name.starts_with(b"[anon:")
}

/// Follows the objects (the program and its libraries) while mappings are read in ascending order.
struct Objects {
    /// /proc/self/mem; without it the size of zeroed data is a guess.
    memory: Option<Fd>,
    /// The mapping that an object's file begins with, and the file.
    base: usize,
    inode: u64,
    /// End of the mapping before, if that was an object's data.
    data_end: usize,
    /// Whether it was the engine's.
    of_engine: bool,
}

/// The part of a mapping that is an object's zeroed data; it ends where the mapping starts if there
/// is none.
struct Zeroed {
    start: usize,
    end: usize,
    of_engine: bool,
}

impl Zeroed {
    fn stays(&self) -> bool {
        self.of_engine || self.end - self.start < BSS_MIN
    }
}

impl Objects {
    fn new() -> Self {
        let memory = fd::open(c"/proc/self/mem", k::O_RDONLY).ok();
        Self { memory, base: 0, inode: 0, data_end: 0, of_engine: false }
    }

    /// The part of a mapping that can be paged. Asked about all mappings, in ascending order.
    fn pageable(&mut self, mapping: &Mapping<'_>) -> PageRange {
        let zeroed = self.zeroed_data(mapping);
        let never = mapping.inode != 0 || !mapping.private || is_special(mapping.name);
        let start = if zeroed.stays() { zeroed.end } else { mapping.start };
        if never || start >= mapping.end || Arena::owns(start) {
            return NOTHING;
        }
        PageRange::touching(start, mapping.end - start)
    }

    fn zeroed_data(&mut self, mapping: &Mapping<'_>) -> Zeroed {
        let engine = core::ptr::from_ref(crate::engine::engine()) as usize;
        let holds_engine = mapping.contains(engine);
        let behind_data = core::mem::take(&mut self.data_end) == mapping.start;
        let of_engine = holds_engine || (core::mem::take(&mut self.of_engine) && behind_data);
        if mapping.inode != 0 {
            if mapping.offset == 0 {
                (self.base, self.inode) = (mapping.start, mapping.inode);
            }
            if mapping.private && mapping.prot & k::PROT_WRITE != 0 {
                (self.data_end, self.of_engine) = (mapping.end, of_engine);
                // Data of another file than the one that began last: not a loaded object.
                if mapping.inode != self.inode {
                    self.base = 0;
                }
            }
        }
        let end = match (mapping.inode, behind_data) {
            (0, true) => self.end_of_zeroed(mapping),
            _ if holds_engine => mapping.end,
            _ => mapping.start,
        };
        Zeroed { start: mapping.start, end, of_engine }
    }

    /// The kernel merges zeroed data with what the program maps right behind it, so the mapping does
    /// not tell; the object's headers do.
    fn end_of_zeroed(&self, mapping: &Mapping<'_>) -> usize {
        let memory = self.memory.as_ref().filter(|_| self.base != 0);
        let end = memory.and_then(|memory| elf::end_of_memory(memory.raw(), self.base));
        end.map_or(mapping.end, |end| {
            end.next_multiple_of(PAGE_SIZE).clamp(mapping.start, mapping.end)
        })
    }
}
