//! Reclaim that somebody outside asks for (`vswap reclaim`), beyond what the budget does.
//!
//! The coordinator writes how many bytes it wants to
//! [`Member::reclaim_request`](crate::run_page::Member::reclaim_request). The watcher sees that at its
//! next look, takes over a program that was only watched so far, and wakes the reclaimer, which
//! evicts and subtracts. It gives up when nothing more can be moved, or no backing takes it.

use core::sync::atomic::Ordering;

use vswap_core::page::PAGE_SIZE;

use crate::context::Context;
use crate::engine::{Engine, Side};
use crate::handler;
use crate::reclaim::{self, Progress, Take};
use crate::reclaimer::STEPS_MAX;
use crate::run_page::{Counter, Member, ReclaimEnd};
use crate::sys::task;

/// Times that the clock's hand goes round without finding a page before nothing is left: a page
/// survives as many sweeps as its age, 3 at most, and the first may have begun in the middle.
const VAIN_SWEEPS: usize = 5;

/// Bytes that are asked for.
pub fn requested(engine: &Engine) -> u64 {
    engine.member().map_or(0, |member| member.reclaim_request.load(Ordering::Acquire))
}

/// The reclaimer's memory of the request that it works on.
#[derive(Debug, Default)]
pub struct Proactive {
    /// Sweeps that were done when the last page was found; `None` without a request.
    gained_at: Option<usize>,
}

impl Proactive {
    /// Works on the request for a while, if there is one.
    pub fn reclaim(&mut self, engine: &Engine, context: &mut Context) {
        let Some(member) = engine.member().filter(|_| requested(engine) > 0) else {
            self.gained_at = None;
            return;
        };
        let started = task::thread_cpu_ns();
        for _ in 0..STEPS_MAX {
            let swept = reclaim::sweeps();
            match step(engine, context, member) {
                Ok(0) if swept - *self.gained_at.get_or_insert(swept) > VAIN_SWEEPS => {
                    member.give_up_reclaim(ReclaimEnd::NothingLeft);
                }
                Ok(0) => {}
                Ok(_) => self.gained_at = Some(swept),
                Err(end) => member.give_up_reclaim(end),
            }
            handler::serve_queue(engine, context, None);
            if requested(engine) == 0 || engine.mailbox.waiting().is_some() {
                break;
            }
        }
        if requested(engine) == 0 {
            // The next one may come before the reclaimer looks again.
            self.gained_at = None;
        }
        engine.count(Counter::ReclaimNs, task::thread_cpu_ns() - started);
    }
}

/// Evicts one batch, and gives the bytes that left: what was in staging already counts too.
fn step(engine: &Engine, context: &mut Context, member: &Member) -> Result<u64, ReclaimEnd> {
    let moved = match engine.staging.full() {
        0 => engine.move_out_batch(Take::Any, Side::Pager),
        _ => Progress::Some,
    };
    let (emptied, pages) = engine.evict_oldest_tray(context);
    let bytes = pages as u64 * PAGE_SIZE as u64;
    engine.count(Counter::ReclaimedProactively, pages as u64);
    let less = |left: u64| Some(left.saturating_sub(bytes));
    // The request may have been taken back meanwhile, and stays so.
    let _ = member.reclaim_request.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less);
    match (emptied, moved) {
        (Progress::Full, _) => Err(ReclaimEnd::NoRoom),
        (Progress::None, Progress::None) => Err(ReclaimEnd::NothingLeft),
        _ => Ok(bytes),
    }
}
