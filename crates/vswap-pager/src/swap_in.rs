//! Bringing all of a program's pages back because somebody outside asks for it (`vswap swapin`): for a
//! debugger, to which the kernel gives no page that is not there.
//!
//! The coordinator sets [`Member::hold`](crate::run_page::Member::hold). From the watcher's next look on
//! the budget has no end for this process, so nothing is evicted ahead of need or for want of room,
//! and the reclaimer goes through memory until it finds nothing out. What somebody asks to evict by
//! name (`vswap reclaim`, MADV_PAGEOUT) is. When the coordinator takes the hold back, the budget holds
//! again. The child of a fork is a member of its own, and not held.

use crate::address::{PageNumber, PageRange};
use crate::context::Context;
use crate::engine::{Engine, Side};
use crate::fault::Access;
use crate::handler;
use crate::run_page::Member;
use crate::staging::Bitmap;
use crate::sys::task;
use crate::table::PageState;

/// Leaves of the page table between two looks at what else there is to do.
const LEAVES_AT_ONCE: usize = 16;

/// A pause before what could not be brought back is tried again: events are pending, or a thread of the
/// program is about to change the mapping.
const PAUSE_US: u64 = 1000;

/// Whether the reclaimer has pages to bring back.
pub fn is_wanted(engine: &Engine) -> bool {
    engine.member().is_some_and(|member| member.hold() != 0 && !member.is_held())
}

/// Lets the budget hold, or not, as the coordinator wants it. On the watcher.
pub fn follow(engine: &Engine) {
    let hold = engine.member().is_some_and(|member| member.hold() != 0);
    engine.budget.set_held(hold);
    if is_wanted(engine) {
        engine.mailbox.ring();
    }
}

/// The reclaimer's way through memory.
#[derive(Debug, Default)]
pub struct SwapIn {
    hold: u32,
    next: usize,
    found: bool,
}

impl SwapIn {
    /// Works on it for a while, if it is asked for.
    pub fn advance(&mut self, engine: &Engine, context: &mut Context) {
        let Some(member) = engine.member().filter(|_| is_wanted(engine)) else { return };
        if !engine.budget.is_held() {
            return;
        }
        if self.hold != member.hold() {
            *self = Self { hold: member.hold(), next: 0, found: true };
        }
        for _ in 0..LEAVES_AT_ONCE {
            let Some(part) = next_part(engine, PageNumber(self.next)) else {
                return self.end_pass(member);
            };
            self.found |= bring_in(engine, context, part);
            self.next = part.end.0;
            handler::serve_queue(engine, context, None);
        }
    }

    /// What was being evicted when the first pass began is found by the next.
    fn end_pass(&mut self, member: &Member) {
        if self.found {
            task::sleep_us(PAUSE_US);
        } else {
            member.set_held(self.hold);
        }
        (self.next, self.found) = (0, false);
    }
}

/// The next pages of one leaf that are managed.
fn next_part(engine: &Engine, from: PageNumber) -> Option<PageRange> {
    let passage = engine.gate.pass();
    let region = engine.regions(&passage).at_or_behind(from)?;
    let rest = PageRange { start: region.range.start.max(from), end: region.range.end };
    rest.by_leaf().next()
}

/// Brings the pages of one leaf back; whether any was out.
fn bring_in(engine: &Engine, context: &mut Context, part: PageRange) -> bool {
    let Some(leaf) = engine.table.lock(part.start) else { return false };
    let mut out = Bitmap::default();
    for page in part.iter().filter(|page| is_out(leaf.state(page.offset_in_leaf()))) {
        out.insert(page.offset_in_leaf());
    }
    drop(leaf);
    let is_still_out = |page: PageNumber| {
        let leaf = engine.table.lock(page);
        leaf.is_some_and(|leaf| is_out(leaf.state(page.offset_in_leaf())))
    };
    for page in part.iter().filter(|page| out.contains(page.offset_in_leaf())) {
        // Read ahead with one before it, perhaps.
        if is_still_out(page) {
            // As for a write: what it came from is not kept, which would be a second copy.
            engine.with_uffd(Side::Pager, |uffd| engine.serve(context, uffd, page, Access::Write));
        }
    }
    context.returned.flush();
    out.count() > 0
}

fn is_out(state: PageState) -> bool {
    matches!(state, PageState::Swapped(_) | PageState::Staged { .. })
}
