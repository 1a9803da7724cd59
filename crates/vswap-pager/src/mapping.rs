//! The program's mapping calls, as hooks see them coming.
//!
//! A hook runs on a stack of the engine's, with signals blocked, on a thread of the program. It
//! brings regions, table and kernel in line in one step under the mapping lock, and unregisters
//! what goes away first, so that no userfaultfd event makes the program wait for the pager.

use core::sync::atomic::Ordering;

use linux_raw_sys::general as k;
use vswap_core::page::PAGE_SIZE;

use crate::address::{PageNumber, PageRange};
use crate::engine::{Engine, MapsGuard, Phase, Side};
use crate::fault::Access;
use crate::lock::Closed;
use crate::mailbox::Request;
use crate::regions::Attributes;
use crate::run_page::Counter;
use crate::swap::SWAP_DEVICES;
use crate::sys::{Errno, arch, memory, result};
use crate::table::PageState;
use crate::{adopt, commit, events, exclude, locking, start};

/// Step in which memory is populated on behalf of MAP_POPULATE, in bytes.
const POPULATE_STEP: usize = 1 << 20;

/// A system call as the program made it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: usize,
    /// Its arguments.
    pub args: [usize; 6],
}

impl Call {
    /// Makes the call as it is.
    pub fn pass(&self) -> isize {
        // SAFETY: it is the program's own call, with its own arguments.
        unsafe { arch::syscall(self.number, self.args) }
    }
}

/// Whether a call is one that [`on_call`] knows.
pub fn is_mapping_call(call: &Call) -> bool {
    matches!(
        call.number as u32,
        k::__NR_mmap
            | k::__NR_munmap
            | k::__NR_mremap
            | k::__NR_mprotect
            | k::__NR_pkey_mprotect
            | k::__NR_madvise
            | k::__NR_brk
            | k::__NR_mlock
            | k::__NR_mlock2
            | k::__NR_munlock
            | k::__NR_mlockall
            | k::__NR_munlockall
            | k::__NR_sigaltstack
    )
}

/// Handles a mapping call; gives what the program sees as its result.
pub fn on_call(engine: &Engine, call: Call) -> isize {
    engine.count(Counter::MapCalls, 1);
    start::watch_if_wanted(engine);
    SWAP_DEVICES.close_left();
    let result = match call.number as u32 {
        k::__NR_mmap => on_mmap(engine, call),
        k::__NR_munmap => on_munmap(engine, call),
        k::__NR_mremap => on_mremap(engine, call),
        k::__NR_mprotect | k::__NR_pkey_mprotect => on_mprotect(engine, call),
        k::__NR_madvise => on_madvise(engine, call),
        k::__NR_brk => on_brk(engine, call),
        k::__NR_mlock | k::__NR_mlock2 | k::__NR_munlock => locking::on_mlock(engine, call),
        k::__NR_mlockall | k::__NR_munlockall => locking::on_mlockall(engine, call),
        k::__NR_sigaltstack => on_sigaltstack(engine, call),
        _ => call.pass(),
    };
    if engine.phase() == Phase::Active {
        crate::chaos::after_mapping_call(engine);
    }
    result
}

/// What a new private anonymous mapping is to the engine.
fn is_pageable(flags: u32) -> bool {
    const NEVER: u32 = k::MAP_STACK | k::MAP_GROWSDOWN | k::MAP_HUGETLB | k::MAP_LOCKED;
    flags & k::MAP_ANONYMOUS != 0 && flags & k::MAP_TYPE == k::MAP_PRIVATE && flags & NEVER == 0
}

/// Whether a new mapping is a stack, by its flags.
pub fn is_stack(flags: u32) -> bool {
    flags & (k::MAP_STACK | k::MAP_GROWSDOWN) != 0
}

fn on_mmap(engine: &Engine, mut call: Call) -> isize {
    let [address, len, prot, flags, ..] = call.args;
    let (prot, flags) = (prot as u32, flags as u32);
    let pageable = is_pageable(flags) && !memory::new_is_locked();
    let beyond = pageable && commit::concerns(flags, prot) && !start::may_commit(engine, len);
    // A fault that is resolved inline does not reach the pager, which grants chunks.
    let inline = engine.inline.load(Ordering::Relaxed);
    if beyond && (flags & k::MAP_POPULATE != 0 || inline) {
        start::take_over(engine);
    }
    let populate = pageable && flags & k::MAP_POPULATE != 0 && engine.phase() == Phase::Active;
    if populate {
        call.args[3] &= !(k::MAP_POPULATE as usize);
    }
    let mut maps = engine.lock_maps();
    if flags & k::MAP_FIXED != 0 {
        let over = PageRange::touching(address, len);
        maps = adopt::before_call(engine, maps, over);
        detach(engine, &mut maps, over);
    }
    let value = call.pass();
    let Ok(start) = result(value) else { return value };
    let range = PageRange::touching(start, len);
    // What was excluded or deferred before was unmapped since.
    engine.note_exclusion(&mut maps, range, is_stack(flags));
    commit::undefer(engine, &mut maps, range);
    match engine.phase() {
        Phase::Active => {
            let mut maps = settle_stale(engine, maps, range);
            if pageable {
                let attributes = Attributes { prot: prot as u8, ..Attributes::default() };
                attach(engine, &mut maps, range, attributes);
            }
        }
        Phase::Watching if beyond => {
            let deferred = commit::defer(engine, &mut maps, range);
            drop(maps);
            if !deferred {
                start::take_over(engine);
            }
        }
        _ => drop(maps),
    }
    if populate {
        populate_in_steps(range);
    }
    value
}

/// A new mapping where regions are still known: their unmapping was not hooked and its event has
/// not been read. The pager reads it soon.
fn settle_stale<'a>(
    engine: &'a Engine,
    mut maps: MapsGuard<'a>,
    range: PageRange,
) -> MapsGuard<'a> {
    const TRIES: usize = 10_000;
    for _ in 0..TRIES {
        if engine.regions(&maps).within(range).next().is_none() {
            return maps;
        }
        drop(maps);
        crate::sys::task::yield_now();
        maps = engine.lock_maps();
    }
    // No event will come: the range was replaced while it was not registered.
    forget(engine, &mut maps, range);
    maps
}

fn populate_in_steps(range: PageRange) {
    let mut address = range.address();
    let end = range.end.address();
    while address < end {
        let step = POPULATE_STEP.min(end - address);
        // SAFETY: populating does not change contents. MAP_POPULATE reports no errors either.
        let _ = unsafe { memory::advise(address, step, k::MADV_POPULATE_WRITE) };
        address += step;
    }
}

fn on_munmap(engine: &Engine, call: Call) -> isize {
    let [address, len, ..] = call.args;
    if address % PAGE_SIZE != 0 || len == 0 {
        return call.pass();
    }
    let range = PageRange::touching(address, len);
    let mut maps = engine.lock_maps();
    engine.note_exclusion(&mut maps, range, false);
    detach(engine, &mut maps, range);
    // Detached, the range is plain memory; nobody can map there before it is unmapped, so the
    // long part needs no lock.
    drop(maps);
    call.pass()
}

fn on_mremap(engine: &Engine, call: Call) -> isize {
    let [old, old_len, new_len, flags, target, _] = call.args;
    let flags = flags as u32;
    if new_len > old_len {
        start::make_way(engine, new_len - old_len);
    }
    if old % PAGE_SIZE != 0 || old_len == 0 {
        return call.pass();
    }
    let old = PageRange::touching(old, old_len);
    let mut maps = engine.lock_maps();
    maps = adopt::before_call(engine, maps, old);
    if flags & k::MREMAP_FIXED != 0 {
        maps = adopt::before_call(engine, maps, PageRange::touching(target, new_len));
    }
    if engine.phase() != Phase::Active {
        return remap_unmanaged(engine, &mut maps, call, old);
    }
    // The first page may be excluded, or no page that the engine knows.
    let Some(region) = engine.regions(&maps).within(old).next() else {
        if flags & k::MREMAP_FIXED != 0 {
            detach(engine, &mut maps, PageRange::touching(target, new_len));
        }
        return call.pass();
    };
    if flags & k::MREMAP_FIXED != 0 {
        if PageRange::touching(target, new_len).intersection(old).is_empty() {
            detach(engine, &mut maps, PageRange::touching(target, new_len));
        }
    } else if new_len <= old_len {
        let kept = PageRange::touching(old.address(), new_len);
        let tail = PageRange { start: kept.end, end: old.end };
        detach(engine, &mut maps, tail);
        return call.pass();
    }
    let known: usize = engine.regions(&maps).within(old).map(|part| part.range.pages()).sum();
    let closed = engine.gate.close();
    unregister(engine, old);
    let value = call.pass();
    let Ok(new) = result(value) else {
        engine.regions(&closed).within(old).for_each(|part| register(engine, part.range));
        return value;
    };
    let new = PageRange::touching(new, new_len);
    let moved =
        PageRange { start: old.start, end: PageNumber(old.start.0 + old.pages().min(new.pages())) };
    drop(closed);
    let grown = PageRange { start: new.start.max(moved.end), ..new };
    let fresh = if new.start == old.start { grown } else { new };
    events::await_stale(engine, &mut maps, fresh);
    if !is_unknown(engine, &maps, fresh) {
        // No event will come: the range was replaced while it was not registered.
        forget(engine, &mut maps, fresh);
    }
    let closed = engine.gate.close();
    register(engine, new);
    if new.start != old.start {
        events::move_pages(engine, &closed, moved, new.start, Side::Program);
        events::drop_pages(engine, &closed, old);
        // Too many regions: the rest stays known, at the price of a wake-up.
        let _ = engine.regions_mut(&mut maps, &closed).remove(old);
        if flags & k::MREMAP_DONTUNMAP != 0 {
            register(engine, old);
            let _ = engine.regions_mut(&mut maps, &closed).insert(old, region.attributes);
        }
    }
    insert_region(engine, &mut maps, &closed, new, region.attributes);
    if known < old.pages() {
        // What was excluded or unknown is paged at its new place, but not where it was.
        if new.start == old.start {
            leave_out_excluded(engine, &mut maps, &closed, new);
        }
        let parts = engine.regions(&closed).within(new);
        parts.for_each(|part| adopt::note_present(engine, part.range));
    }
    value
}

/// Takes what is excluded out of a region that grew around it.
fn leave_out_excluded(
    engine: &Engine,
    maps: &mut MapsGuard<'_>,
    closed: &Closed<'_>,
    range: PageRange,
) {
    let mut rest = range;
    loop {
        let part = maps.excluded.within(rest).next().map(|part| part.range);
        let Some(part) = part else { return };
        unregister(engine, part);
        // Too many regions: its pages are paged until there is room.
        let _ = engine.regions_mut(maps, closed).remove(part);
        rest.start = part.end;
    }
}

/// A mapping has to be one to the kernel to grow or move, and grants may have divided a deferred
/// one.
fn remap_unmanaged(engine: &Engine, maps: &mut MapsGuard<'_>, call: Call, old: PageRange) -> isize {
    let [_, _, new_len, flags, target, _] = call.args;
    let deferred = maps.deferred.within(old).next().is_some();
    commit::undefer(engine, maps, old);
    if flags as u32 & k::MREMAP_FIXED != 0 {
        commit::undefer(engine, maps, PageRange::touching(target, new_len));
    }
    let value = call.pass();
    if deferred {
        let new = result(value).map_or(old, |new| PageRange::touching(new, new_len));
        // A list that is full leaves it unregistered; the watcher sees it fill.
        commit::defer(engine, maps, new);
    }
    value
}

fn on_mprotect(engine: &Engine, call: Call) -> isize {
    let [address, len, prot, ..] = call.args;
    let makes_writable = prot as u32 & k::PROT_WRITE != 0 && engine.phase() != Phase::Active;
    if makes_writable && !is_known(engine, PageRange::touching(address, len)) {
        start::make_way(engine, len);
    }
    if engine.phase() != Phase::Active {
        return call.pass();
    }
    let mut maps = engine.lock_maps();
    let value = call.pass();
    if value == 0 {
        let closed = engine.gate.close();
        let prot = prot as u8 & (k::PROT_READ | k::PROT_WRITE | k::PROT_EXEC) as u8;
        // Too many regions: a move between unequal protections fails, and the page stays.
        let _ = engine
            .regions_mut(&mut maps, &closed)
            .change(PageRange::touching(address, len), |attributes| attributes.prot = prot);
    }
    value
}

/// Whether a range is a stack, or deferred.
fn is_known(engine: &Engine, range: PageRange) -> bool {
    let maps = engine.lock_maps();
    [&maps.excluded, &maps.deferred].iter().any(|known| known.within(range).next().is_some())
}

fn on_madvise(engine: &Engine, mut call: Call) -> isize {
    let [address, len, advice, ..] = call.args;
    if advice as u32 == k::MADV_PAGEOUT && engine.phase() != Phase::Off {
        start::start_now(engine);
    }
    if engine.phase() != Phase::Active || address % PAGE_SIZE != 0 || len == 0 {
        return call.pass();
    }
    let range = PageRange::touching(address, len);
    let mut maps = engine.lock_maps();
    maps = match advice as u32 {
        k::MADV_PAGEOUT => adopt::before_eviction(engine, maps, range),
        k::MADV_DONTNEED | k::MADV_FREE if !is_unknown(engine, &maps, range) => {
            adopt::before_call(engine, maps, range)
        }
        _ => maps,
    };
    if is_unknown(engine, &maps, range) {
        drop(maps);
        return call.pass();
    }
    match advice as u32 {
        // The kernel refuses these for locked memory; nothing may be dropped then.
        k::MADV_DONTNEED | k::MADV_FREE
            if engine.regions(&maps).within(range).any(|part| part.attributes.locked) =>
        {
            drop(maps);
            call.pass()
        }
        // Lazily freed pages could vanish from staging, so they go at once.
        k::MADV_DONTNEED | k::MADV_FREE => {
            call.args[2] = k::MADV_DONTNEED as usize;
            let closed = engine.gate.close();
            events::drop_pages(engine, &closed, range);
            with_parts_unregistered(engine, &maps, range, || call.pass())
        }
        k::MADV_DONTFORK | k::MADV_DOFORK => {
            let closed = engine.gate.close();
            let dont_fork = advice as u32 == k::MADV_DONTFORK;
            // Registered ranges carry MADV_DONTFORK anyway; a covered fork looks at this.
            let _ = engine
                .regions_mut(&mut maps, &closed)
                .change(range, |attributes| attributes.dont_fork = dont_fork);
            0
        }
        k::MADV_WIPEONFORK | k::MADV_KEEPONFORK => {
            let value = call.pass();
            if value == 0 {
                let closed = engine.gate.close();
                let wipe = advice as u32 == k::MADV_WIPEONFORK;
                let _ = engine
                    .regions_mut(&mut maps, &closed)
                    .change(range, |attributes| attributes.wipe_on_fork = wipe);
            }
            value
        }
        k::MADV_PAGEOUT => {
            drop(maps);
            engine.mailbox.ask(Request::PageOut, range);
            0
        }
        k::MADV_WILLNEED => {
            drop(maps);
            engine.mailbox.ask(Request::Prefetch, range);
            0
        }
        k::MADV_COLD => {
            crate::reclaim::make_old(engine, range);
            0
        }
        k::MADV_POPULATE_READ | k::MADV_POPULATE_WRITE => {
            drop(maps);
            call.pass()
        }
        _ => call.pass(),
    }
}

fn is_unknown(engine: &Engine, maps: &MapsGuard<'_>, range: PageRange) -> bool {
    engine.regions(maps).within(range).next().is_none()
}

/// Runs `call` while the regions' parts in `range` are not registered, so that it causes no event.
fn with_parts_unregistered(
    engine: &Engine,
    maps: &MapsGuard<'_>,
    range: PageRange,
    call: impl FnOnce() -> isize,
) -> isize {
    engine.regions(maps).within(range).for_each(|part| unregister(engine, part.range));
    let value = call();
    engine.regions(maps).within(range).for_each(|part| register(engine, part.range));
    value
}

fn on_brk(engine: &Engine, call: Call) -> isize {
    let wanted = PageRange::touching(call.args[0], 0).start;
    if call.args[0] == 0 {
        return call.pass();
    }
    let mut maps = engine.lock_maps();
    // Not what it was at the last call: a raw trap may have moved it.
    let old_break = program_break(0);
    let old_end = PageNumber::containing(old_break.next_multiple_of(PAGE_SIZE));
    let wanted = PageNumber(wanted.0 + usize::from(!call.args[0].is_multiple_of(PAGE_SIZE)));
    if wanted > old_end {
        drop(maps);
        start::make_way(engine, (wanted.0 - old_end.0) * PAGE_SIZE);
        maps = engine.lock_maps();
    }
    let active = engine.phase() == Phase::Active;
    if active && wanted < old_end && old_break > call.args[0] {
        detach(engine, &mut maps, PageRange { start: wanted, end: old_end });
    }
    let value = call.pass();
    let end = PageNumber::containing((value as usize).next_multiple_of(PAGE_SIZE));
    if active && end > old_end {
        let prot = memory::READ_WRITE as u8;
        let attributes = Attributes { prot, ..Attributes::default() };
        attach(engine, &mut maps, PageRange { start: old_end, end }, attributes);
    }
    value
}

fn program_break(address: usize) -> usize {
    // SAFETY: asking for break 0 changes nothing.
    unsafe { crate::syscall!(k::__NR_brk, address) as usize }
}

/// The kernel writes signal frames to an alternate stack where a fault may not be served.
fn on_sigaltstack(engine: &Engine, call: Call) -> isize {
    let value = call.pass();
    let stack = call.args[0] as *const k::stack_t;
    if value == 0 && !stack.is_null() {
        // SAFETY: the kernel has just read the same structure.
        let stack = unsafe { &*stack };
        exclude::exclude(engine, PageRange::touching(stack.ss_sp as usize, stack.ss_size as usize));
    }
    value
}

/// Takes a range into the set of paged mappings.
pub fn attach(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange, attributes: Attributes) {
    register(engine, range);
    let closed = engine.gate.close();
    insert_region(engine, maps, &closed, range, attributes);
}

fn insert_region(
    engine: &Engine,
    maps: &mut MapsGuard<'_>,
    closed: &Closed<'_>,
    range: PageRange,
    attributes: Attributes,
) {
    if engine.regions_mut(maps, closed).insert(range, attributes).is_err() {
        // Not managed, then.
        unregister(engine, range);
    }
}

/// Forgets a range and its pages, and stops being told of its faults: it is about to go away.
pub fn detach(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange) {
    commit::undefer(engine, maps, range);
    if engine.regions(maps).within(range).next().is_none() {
        return;
    }
    engine.regions(maps).within(range).for_each(|part| unregister(engine, part.range));
    forget(engine, maps, range);
}

fn forget(engine: &Engine, maps: &mut MapsGuard<'_>, range: PageRange) {
    let closed = engine.gate.close();
    events::drop_pages(engine, &closed, range);
    let _ = engine.regions_mut(maps, &closed).remove(range);
}

/// Registers a range through the program's own descriptor, or through the pager if the program has
/// closed it.
pub fn register(engine: &Engine, range: PageRange) {
    register_only(engine, range);
    dont_fork(range);
}

/// As [`register`], for memory of which nothing is ever swapped out: a child may have it.
pub fn register_only(engine: &Engine, range: PageRange) {
    let done =
        engine.with_uffd(Side::Program, |uffd| uffd.register(range.address(), range.bytes()));
    if done.is_err() && program_lost_uffd(engine) {
        engine.registrar.ask(Request::Register, range);
    }
}

/// The counterpart of [`register`].
pub fn unregister(engine: &Engine, range: PageRange) {
    let done =
        engine.with_uffd(Side::Program, |uffd| uffd.unregister(range.address(), range.bytes()));
    if done.is_err() && program_lost_uffd(engine) {
        engine.registrar.ask(Request::Unregister, range);
    }
}

/// Whether the program has closed its userfaultfd, or something else has taken the number.
pub fn program_lost_uffd(engine: &Engine) -> bool {
    // An empty range is refused as such by a userfaultfd, and in another way by anything else.
    engine.with_uffd(Side::Program, |uffd| uffd.unregister(0, 0)) != Err(Errno::EINVAL)
}

/// A fork that the engine does not cover must not hand out memory whose swapped-out pages read as
/// zeros: without the mapping the child gets SIGSEGV.
pub fn dont_fork(range: PageRange) {
    // SAFETY: the advice concerns children only.
    let _ = unsafe { memory::advise(range.address(), range.bytes(), k::MADV_DONTFORK) };
}

/// Makes every page of a registered range resident; `false` if some could not be brought back yet,
/// because mapping events are pending that the pager applies when the mapping lock is free. The
/// caller holds that lock, so nothing is evicted meanwhile.
pub fn bring_back(engine: &Engine, range: PageRange) -> bool {
    let Ok(mut context) = engine.contexts.borrow() else { return false };
    let Some(context) = context.as_mut() else { return false };
    for page in range.iter().filter(|page| is_out(engine, *page)) {
        engine.with_uffd(Side::Program, |uffd| engine.serve(context, uffd, page, Access::Write));
    }
    context.returned.flush();
    !range.iter().any(|page| is_out(engine, page))
}

fn is_out(engine: &Engine, page: PageNumber) -> bool {
    engine.table.lock(page).is_some_and(|leaf| {
        let state = leaf.state(page.offset_in_leaf());
        matches!(state, PageState::Swapped(_) | PageState::Staged { .. })
    })
}
