//! From a small program to a paged one.
//!
//! A process that stays small and has one thread never gets a pager: hooks count what it commits,
//! and as long as that is less than half of the budget nothing else happens. Then, or when a second
//! thread starts, a pager is made, which at first only *watches*: mappings beyond that half are
//! deferred (see [`commit`]). When it is used up the pager takes over all mappings.

use core::sync::atomic::Ordering;

use linux_raw_sys::general as k;
use vswap_core::page::PAGE_SIZE;

use crate::address::{PageNumber, PageRange};
use crate::arena::Arena;
use crate::engine::{Engine, MapsGuard, Phase, Side};
use crate::lock::SpinLock;
use crate::mapping::{self, Call};
use crate::regions::Attributes;
use crate::sys::fd::{self, Fd};
use crate::sys::proc_maps::{self, Mapping};
use crate::sys::{elf, pagemap};
use crate::table::PageState;
use crate::{commit, exclude, pager};

/// Zeroed data of an object stays as it is below this size.
const BSS_MIN: usize = 1 << 20;

static STARTING: SpinLock<()> = SpinLock::new(());

/// Whether `bytes` more may be mapped without being registered; starts the pager when they may not.
/// The caller holds no lock.
pub fn may_commit(engine: &Engine, bytes: usize) -> bool {
    match engine.phase() {
        Phase::Active => return false,
        Phase::Off => return true,
        Phase::Idle | Phase::Watching => {}
    }
    if commit::take(engine, &engine.lock_maps(), bytes) {
        return true;
    }
    if engine.phase() == Phase::Idle {
        watch(engine);
    }
    false
}

/// Takes over if `bytes` more could exceed what may be resident unseen. The caller holds no lock.
pub fn make_way(engine: &Engine, bytes: usize) {
    if engine.phase() != Phase::Active && !may_commit(engine, bytes) {
        take_over(engine);
    }
}

/// Starts the pager and takes over at once: the program asks for what only a pager can do.
pub fn start_now(engine: &Engine) {
    if engine.phase() == Phase::Idle {
        watch(engine);
    }
    take_over(engine);
}

/// Makes the pager, which only watches at first.
pub fn watch(engine: &Engine) {
    let Some(config) = engine.config() else { return };
    if engine.phase() != Phase::Idle {
        return;
    }
    let _starting = STARTING.lock();
    if engine.phase() != Phase::Idle {
        return;
    }
    match pager::start(engine) {
        Ok(()) => {
            engine.set_phase(Phase::Watching);
            // A fault that is resolved inline does not reach the pager, which grants chunks.
            if config.chaos.is_some() || engine.inline.load(Ordering::Relaxed) {
                take_over(engine);
            }
        }
        Err(error) => {
            engine.set_phase(Phase::Off);
            pager::say_not_started(engine, error);
        }
    }
}

/// Whether a call concerns nothing that the engine keeps: the program is small and stays so.
pub fn is_simple(engine: &Engine, call: &Call) -> bool {
    if engine.config().is_none() {
        return true;
    }
    match engine.phase() {
        Phase::Off => true,
        Phase::Watching | Phase::Active => false,
        Phase::Idle => match call.number as u32 {
            k::__NR_mmap => {
                let [_, len, prot, flags, ..] = call.args;
                let (prot, flags) = (prot as u32, flags as u32);
                let plain = flags & k::MAP_STACK == 0 && !engine.has_exclusions();
                plain && (!commit::concerns(flags, prot) || commit::take_quickly(engine, len))
            }
            k::__NR_mprotect | k::__NR_pkey_mprotect => {
                let [_, len, prot, ..] = call.args;
                let writable = prot as u32 & k::PROT_WRITE != 0;
                !writable || (!engine.has_exclusions() && commit::take_quickly(engine, len))
            }
            k::__NR_munmap => !engine.has_exclusions(),
            k::__NR_madvise => call.args[2] as u32 != k::MADV_PAGEOUT,
            k::__NR_mremap | k::__NR_brk | k::__NR_sigaltstack => false,
            _ => true,
        },
    }
}

/// Whether so much is resident that it is time to take over, although no more was committed than
/// may be: the others of the run have left less, or memory came from calls that no hook saw.
pub fn is_time_to_take_over(engine: &Engine, anonymous: u64) -> bool {
    anonymous >= commit::limit(engine)
}

/// Takes over every mapping that can be paged. Called on a thread of the program or of the pager.
pub fn take_over(engine: &Engine) {
    let mut maps = engine.lock_maps();
    if engine.phase() != Phase::Watching {
        return;
    }
    engine.set_phase(Phase::Active);
    // Whichever thread takes over: the kernel kills a thread whose rseq area it cannot write.
    let first = exclude::control_block(engine.main_thread.load(Ordering::Relaxed));
    engine.note_exclusion(&mut maps, first, true);
    let mut objects = Objects::new();
    // The mappings are registered while they are read; registering splits and merges them, but
    // only behind the reader.
    let read = proc_maps::for_each(|mapping| {
        let zeroed = objects.zeroed_data(&mapping);
        if mapping.inode != 0 || !mapping.private || is_special(mapping.name) {
            return;
        }
        if mapping.name == b"[heap]" {
            maps.heap_end = mapping.end;
        }
        let start = if zeroed.stays() { zeroed.end } else { mapping.start };
        if start < mapping.end && !Arena::owns(start) {
            adopt(engine, &mut maps, PageRange::touching(start, mapping.end - start), mapping.prot);
        }
    });
    // A region now, or of a kind that is never paged.
    let everything = PageRange { start: PageNumber(0), end: PageNumber(usize::MAX / PAGE_SIZE) };
    let _ = maps.deferred.remove(everything);
    if read.is_err() {
        crate::link::say(
            engine,
            format_args!("/proc/self/maps cannot be read; only new memory is paged"),
        );
    }
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

    fn zeroed_data(&mut self, mapping: &Mapping<'_>) -> Zeroed {
        let engine = core::ptr::from_ref(crate::engine::engine()) as usize;
        let holds_engine = (mapping.start..mapping.end).contains(&engine);
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

/// Registers what is not excluded of a range, and notes the pages that are there.
fn adopt(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange, prot: u32) {
    let mut from = range.start;
    while from < range.end {
        let rest = PageRange { start: from, end: range.end };
        let hole = maps.excluded.within(rest).next().map(|region| region.range);
        let end = hole.map_or(range.end, |hole| hole.start);
        let part = PageRange { start: from, end };
        if !part.is_empty() {
            adopt_part(engine, maps, part, prot);
        }
        from = hole.map_or(range.end, |hole| hole.end);
    }
}

fn adopt_part(engine: &Engine, maps: &mut MapsGuard<'_>, part: PageRange, prot: u32) {
    let registered =
        engine.with_uffd(engine.side(), |uffd| uffd.register(part.address(), part.bytes()));
    // A mapping that refuses (the program's own userfaultfd, device memory) stays unmanaged.
    if registered.is_err() {
        return;
    }
    mapping::dont_fork(part);
    let closed = engine.gate.close();
    let attributes = Attributes { prot: prot as u8, ..Attributes::default() };
    if engine.regions_mut(maps, &closed).insert(part, attributes).is_err() {
        return;
    }
    note_present(engine, part);
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

/// A fault in a deferred mapping. On a thread of the pager.
fn grant(engine: &Engine, page: PageNumber) {
    let mut maps = engine.lock_maps();
    crate::events::drain(engine, &mut maps, Side::Pager);
    let goes_on = engine.phase() != Phase::Watching || commit::grant(engine, &mut maps, page);
    drop(maps);
    if !goes_on {
        take_over(engine);
    }
    engine.with_uffd(Side::Pager, |uffd| uffd.wake(page.address(), PAGE_SIZE));
}

/// Takes over the mapping of a page that is registered but unknown: deferred, or a region that grew
/// in place without a hook seeing it. On a thread of the pager.
pub fn adopt_unknown(engine: &Engine, address: usize) {
    let page = PageNumber::containing(address);
    if engine.phase() == Phase::Watching {
        return grant(engine, page);
    }
    let mut maps = engine.lock_maps();
    crate::events::drain(engine, &mut maps, Side::Pager);
    if engine.regions(&maps).find(page).is_some() {
        engine.with_uffd(Side::Pager, |uffd| uffd.wake(page.address(), PAGE_SIZE));
        return;
    }
    let mut found = None;
    let _ = proc_maps::for_each(|mapping| {
        if (mapping.start..mapping.end).contains(&address) {
            found = Some((mapping.start, mapping.end, mapping.prot));
        }
    });
    if let Some((start, end, prot)) = found {
        let mut from = PageRange::touching(start, end - start);
        // Only what no region covers: the rest is known better here.
        while from.start < from.end {
            let known = engine.regions(&maps).within(from).next().map(|region| region.range);
            let end = known.map_or(from.end, |known| known.start);
            let part = PageRange { start: from.start, end };
            if !part.is_empty() {
                adopt_part(engine, &mut maps, part, prot);
            }
            from.start = known.map_or(from.end, |known| known.end);
        }
    }
    // The thread tries again, and finds the page managed, or gone.
    engine.with_uffd(Side::Pager, |uffd| uffd.wake(page.address(), PAGE_SIZE));
}
