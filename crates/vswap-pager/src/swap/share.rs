//! The share of the reclaimer's time that work in the background has: a fifth while the program faults,
//! half while it does not.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Engine;
use crate::run_page::Counter;
use crate::sys::task;

/// With no fault for this long nobody waits for a device.
const QUIET_NS: u64 = 20_000_000;

/// Rests between two steps, in times that the step took.
const RESTS: u64 = 4;
const RESTS_WHILE_QUIET: u64 = 1;

/// When the last fault was seen.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    faults: u64,
    faulted_ns: u64,
}

/// When a step began.
#[derive(Clone, Copy, Debug)]
pub struct Began(u64);

impl Share {
    /// Nothing was seen yet.
    pub const START: Self = Self { faults: 0, faulted_ns: 0 };

    /// Begins a step.
    pub fn begin() -> Began {
        Began(task::now_ns())
    }

    /// How long to rest after a step that ends now.
    pub fn rest(&mut self, engine: &Engine, Began(began): Began) -> u64 {
        let (faults, now) = (engine.counted(Counter::Faults), task::now_ns());
        if faults != self.faults {
            *self = Self { faults, faulted_ns: now };
        }
        let is_quiet = now - self.faulted_ns > QUIET_NS;
        (now - began) * if is_quiet { RESTS_WHILE_QUIET } else { RESTS }
    }

    /// Whether the next step may begin.
    pub fn is_due(due_ns: &AtomicU64) -> bool {
        task::now_ns() >= due_ns.load(Ordering::Relaxed)
    }

    /// Says that it may, after a rest.
    pub fn set_due(due_ns: &AtomicU64, rest: u64) {
        due_ns.store(task::now_ns() + rest, Ordering::Relaxed);
    }

    /// Milliseconds until then, begun ones included.
    pub fn due_in_ms(due_ns: &AtomicU64) -> i64 {
        let left = due_ns.load(Ordering::Relaxed).saturating_sub(task::now_ns());
        (left / 1_000_000) as i64 + 1
    }
}
