//! fork: the child gets the engine with the rest of the memory, and starts a pager of its own.
//!
//! The engine's state lies in the program's memory, so a fork copies it, page for page when
//! needed: the child's page table, slots and pool are as they were, and swapped-out data is shared
//! until freed. What has to be made anew is what is not memory: the userfaultfd, its registrations,
//! and the pager.
//!
//! The fork runs under the mapping lock with the gate closed, so that no operation is cut in two.
//! The child registers its memory before it returns to the program; what runs between is the
//! engine's, on a stack of the engine's. Its parent waits until the child has a pager
//! ([`child_report`](crate::child_report)). Where there is no room for one the child ends and the fork
//! fails: its swapped-out pages could not be served, and in memory they could exceed the budget. Where
//! one is not permitted (the program has given up its privileges) no later fork could do better, so
//! the child gets all its pages and runs unmanaged.

use core::mem;
use core::sync::atomic::Ordering;

use linux_raw_sys::general as k;
use vswap_core::page::Page;

use crate::address::{PageNumber, PageRange};
use crate::adopt;
use crate::child_report::ChildReport;
use crate::core_dump;
use crate::engine::{Engine, PagingFds, Phase, Side};
use crate::events::{self, FAULTS};
use crate::mapping::{self, Call};
use crate::pager::StartError;
use crate::run_page::Counter;
use crate::swap::{SWAP_DEVICES, compaction, draining, idle_age, tiers};
use crate::sys::{fd::Fd, memory, result, task};
use crate::table::PageState;
use crate::{hook_stack, link, pager, rendezvous, signals, start};

/// Makes the program's fork; returns twice, as it does.
pub fn fork(engine: &Engine, call: Call) -> isize {
    match engine.phase() {
        Phase::Active => fork_active(engine, call),
        Phase::Watching => {
            let maps = engine.lock_maps();
            let value = call.pass();
            if value == 0 {
                mem::forget(maps);
                start_over(engine);
            }
            value
        }
        Phase::Idle | Phase::Off => {
            let value = call.pass();
            if value == 0 {
                reset(engine);
            }
            value
        }
    }
}

fn fork_active(engine: &Engine, call: Call) -> isize {
    let report = match ChildReport::new() {
        Ok(report) => report,
        Err(error) => return error.as_value(),
    };
    let maps = adopt::before_fork(engine, engine.lock_maps());
    let closed = engine.gate.close();
    let forking = SWAP_DEVICES.before_fork();
    let regions = engine.regions(&closed);
    let inherited = || regions.runs(|region| !region.attributes.dont_fork);
    for run in inherited() {
        // SAFETY: the advice concerns children only.
        let _ = unsafe { memory::advise(run.address(), run.bytes(), k::MADV_DOFORK) };
    }
    let value = call.pass();
    if value == 0 {
        // The guards were taken by the parent's thread; in the child the locks are made anew.
        mem::forget(closed);
        mem::forget(maps);
        become_child(engine, &report);
        return value;
    }
    inherited().for_each(mapping::dont_fork);
    if value > 0 {
        SWAP_DEVICES.share_with_child();
    }
    // The child may take a while; the program's other threads need not wait for it.
    drop(closed);
    drop(maps);
    let joined = result(value).map(|child| report.wait(child as u32));
    SWAP_DEVICES.after_fork(forking);
    let Ok(joined) = joined else { return value };
    if let Err(error) = joined {
        let child = value;
        task::reap(child as u32);
        task::take_sigchld(child as u32);
        return error.as_value();
    }
    engine.count(Counter::Forks, 1);
    value
}

/// In the child of a process that only had a watching pager: nothing is registered any more. What
/// was deferred is beyond what the child may commit as well, so it is deferred again.
fn start_over(engine: &Engine) {
    reset(engine);
    engine.set_phase(Phase::Idle);
    if engine.lock_maps().deferred.all().is_empty() {
        return;
    }
    start::watch(engine);
    let maps = engine.lock_maps();
    if engine.phase() == Phase::Watching {
        for region in maps.deferred.all() {
            mapping::register_only(engine, region.range);
        }
    }
}

fn reset(engine: &Engine) {
    engine.reset_locks_after_fork();
    link::reset_after_fork();
    FAULTS.reset_after_fork();
    SWAP_DEVICES.reset_after_fork();
    draining::reset_after_fork();
    compaction::reset_after_fork();
    idle_age::reset_after_fork();
    tiers::reset_after_fork();
    hook_stack::reset_after_fork();
    core_dump::reset_after_fork();
    rendezvous::reset_after_fork();
    signals::reset_after_fork();
    engine.program.store(task::process_id(), Ordering::Relaxed);
    let PagingFds { uffd, pagemap } = &engine.program_fds;
    for inherited in [uffd, pagemap] {
        drop(Fd::new(inherited.swap(-1, Ordering::Relaxed)));
    }
}

fn become_child(engine: &Engine, report: &ChildReport) {
    reset(engine);
    forget_what_stayed(engine);
    let started = pager::start(engine);
    let no_room = started.err().and_then(StartError::of_fork);
    report.give(no_room);
    if no_room.is_some() {
        // Nothing of the program has run here, so nothing of it is to be ended.
        task::exit_process(0);
    }
    if let Err(error) = started {
        bring_everything_back(engine);
        engine.set_phase(Phase::Off);
        pager::say_not_started(engine, error);
        return;
    }
    let maps = engine.lock_maps();
    let regions = engine.regions(&maps);
    for run in regions.runs(|_| true) {
        if engine.with_uffd(Side::Program, |uffd| uffd.register(run.address(), run.bytes())).is_ok()
        {
            mapping::dont_fork(run);
            continue;
        }
        for region in regions.within(run) {
            mapping::register(engine, region.range);
        }
    }
}

/// Forgets what the program asked not to be inherited: regions, or what is in them.
fn forget_what_stayed(engine: &Engine) {
    let mut maps = engine.lock_maps();
    let closed = engine.gate.close();
    for region in engine.regions(&closed).all().iter().filter(|r| r.attributes.wipe_on_fork) {
        events::drop_pages(engine, &closed, region.range);
    }
    loop {
        let regions = engine.regions(&closed).all();
        let Some(stayed) = regions.iter().find(|r| r.attributes.dont_fork).map(|r| r.range) else {
            return;
        };
        events::drop_pages(engine, &closed, stayed);
        if engine.regions_mut(&mut maps, &closed).remove(stayed).is_err() {
            return;
        }
    }
}

/// Copies every page that is not in memory to its place. Nothing is registered in the child yet.
fn bring_everything_back(engine: &Engine) {
    let maps = engine.lock_maps();
    for region in engine.regions(&maps).all() {
        let writable = u32::from(region.attributes.prot) & k::PROT_WRITE != 0;
        let (start, len) = (region.range.address(), region.range.bytes());
        if !writable {
            // SAFETY: widening the access of the program's own mapping for a moment.
            let _ = unsafe { memory::protect(start, len, memory::READ_WRITE) };
        }
        bring_range_back(engine, region.range);
        if !writable {
            // SAFETY: back to what the program has set.
            let _ = unsafe { memory::protect(start, len, u32::from(region.attributes.prot)) };
        }
    }
}

fn bring_range_back(engine: &Engine, range: PageRange) {
    let Ok(mut context) = engine.contexts.borrow() else {
        link::die(engine, "no memory to give a child of fork its pages")
    };
    let Some(context) = context.as_mut() else { return };
    for page in range.iter() {
        let state = engine.table.lock(page).map(|leaf| leaf.state(page.offset_in_leaf()));
        let source: *const Page = match state {
            Some(PageState::Swapped(entry)) => {
                let (worker, buffer) = context.worker_and_page(0);
                if engine.space.load(worker, entry, buffer).is_err() {
                    link::die(engine, "a swapped-out page of a child of fork is lost");
                }
                buffer
            }
            Some(PageState::Staged { tray }) => {
                engine.staging.address(tray, page.offset_in_leaf()) as *const Page
            }
            _ => continue,
        };
        copy_page(source, page);
    }
}

fn copy_page(source: *const Page, to: PageNumber) {
    // SAFETY: the source is a whole page of the engine's, the target a writable page of this
    // single-threaded child that it has not seen since the fork.
    unsafe { core::ptr::copy_nonoverlapping(source, to.address() as *mut Page, 1) };
}
