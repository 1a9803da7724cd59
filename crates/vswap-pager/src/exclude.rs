//! Memory that is never paged, though it lies in a mapping that is: thread control blocks and
//! stacks that the program allocated itself, and alternate signal stacks. The kernel touches them
//! where a fault cannot be served; with a control block evicted, `pthread_join` hung for ever. And
//! memory whose faults the program wants to serve itself.

use vswap_core::page::PAGE_SIZE;

use crate::address::PageRange;
use crate::engine::{Engine, Phase};
use crate::mapping;
use crate::sys::task;
use crate::{commit, events};

/// Bytes above a thread pointer that hold the control block: glibc's `struct pthread`, with the rseq
/// area in it. It ends where its mapping ends, and what lies behind is somebody else's.
const CONTROL_BLOCK_ABOVE: usize = 2304;

/// Bytes below it that may hold the rseq area where glibc puts it behind the static TLS.
const CONTROL_BLOCK_BELOW: usize = 512;

/// The pages of a thread's control block.
pub fn control_block(thread_pointer: usize) -> PageRange {
    PageRange::touching(
        thread_pointer.saturating_sub(CONTROL_BLOCK_BELOW),
        CONTROL_BLOCK_BELOW + CONTROL_BLOCK_ABOVE,
    )
}

/// Brings a range back and never takes it again.
pub fn exclude(engine: &Engine, range: PageRange) {
    let mut maps = engine.lock_maps();
    engine.note_exclusion(&mut maps, range, true);
    commit::undefer(engine, &mut maps, range);
    if engine.phase() != Phase::Active {
        return;
    }
    loop {
        let part = engine.regions(&maps).within(range).next();
        let Some(part) = part.map(|region| region.range) else { return };
        if !mapping::bring_back(engine, part) {
            // The pager needs the lock to apply what is pending.
            drop(maps);
            task::yield_now();
            maps = engine.lock_maps();
            continue;
        }
        mapping::unregister(engine, part);
        let closed = engine.gate.close();
        events::drop_pages(engine, &closed, part);
        if engine.regions_mut(&mut maps, &closed).remove(part).is_err() {
            return;
        }
    }
}

/// Excludes what the program is about to register with a userfaultfd of its own: a mapping has one.
/// Bit by bit, since it may be much, and all of it is resident from now on.
pub fn own_userfaultfd(engine: &Engine, start: usize, len: usize) {
    const STEP: usize = 1 << 20;
    if !start.is_multiple_of(PAGE_SIZE) || start.checked_add(len).is_none() {
        return;
    }
    for from in (start..start + len).step_by(STEP) {
        exclude(engine, PageRange::touching(from, STEP.min(start + len - from)));
    }
}

/// Excludes the control block and the stack of a thread that is about to start, also while nothing
/// is paged yet: taking over cannot tell them from other memory.
pub fn new_thread(engine: &Engine, tls: usize, stack: usize, stack_size: usize) {
    exclude(engine, control_block(tls));
    exclude(engine, PageRange::touching(stack, stack_size));
}
