//! Writeback by age (`--writeback-after`): what has lain in the pool untouched for so long goes to a device,
//! however much room the pool has.
//!
//! Clusters carry the number of evictions when they were last filled. A few times in the period that number
//! is noted with the time, so that a cluster whose stamp is not above the number of a period ago is as old as that. What
//! comes back and leaves again has a newer slot, and has its whole period before it: nothing goes to and fro
//! faster than that. Clusters are taken in the order in which they were filled, each once, and when no
//! more of them can have become old nobody looks at them.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::context::Context;
use crate::engine::Engine;
use crate::lock::SpinLock;
use crate::swap::{SWAP_DEVICES, writeback};
use crate::sys::task;
use crate::workingset;

/// Times in a period that the number of evictions is noted: what goes is older than the period by one part at most.
const NOTES_PER_PERIOD: usize = 16;

/// The cluster with this stamp was written last.
static WRITTEN_UP_TO: AtomicU32 = AtomicU32::new(0);

/// All clusters up to this stamp were looked at.
static LOOKED_UP_TO: AtomicU32 = AtomicU32::new(0);

static HISTORY: SpinLock<History> = SpinLock::new(History::NONE);

/// How many evictions there had been at what time.
#[derive(Clone, Copy, Debug)]
struct Note {
    at_ns: u64,
    evicted: u32,
}

/// The notes of a period and a little more.
#[derive(Debug)]
struct History {
    notes: [Option<Note>; NOTES_PER_PERIOD + 2],
    last: usize,
}

impl History {
    const NONE: Self = Self { notes: [None; NOTES_PER_PERIOD + 2], last: 0 };

    /// Takes note of how many there are now; gives how many there had been a period ago, if that is known.
    fn evicted_before(&mut self, now: Note, period_ns: u64) -> Option<u32> {
        let step = period_ns / NOTES_PER_PERIOD as u64;
        if self.notes[self.last].is_none_or(|last| now.at_ns - last.at_ns >= step) {
            self.last = (self.last + 1) % self.notes.len();
            self.notes[self.last] = Some(now);
        }
        let is_old = |note: &&Note| note.at_ns + period_ns <= now.at_ns;
        let old = self.notes.iter().flatten().filter(is_old);
        old.max_by_key(|note| note.at_ns).map(|note| note.evicted)
    }
}

/// Writes the cluster back that has been old for longest; gives whether there may be more.
pub fn write_back(engine: &Engine, context: &mut Context) -> bool {
    let Some(seconds) = engine.config().and_then(|config| config.writeback_after) else {
        return false;
    };
    let now = Note { at_ns: task::now_ns(), evicted: workingset::evicted() };
    let period_ns = u64::from(seconds) * 1_000_000_000;
    let Some(old) = HISTORY.lock().evicted_before(now, period_ns) else { return false };
    if old == LOOKED_UP_TO.load(Ordering::Relaxed) || !SWAP_DEVICES.take_objects() {
        return false;
    }
    let next = workingset::filled_after(WRITTEN_UP_TO.load(Ordering::Relaxed));
    let is_old = |stamp: u32| old.wrapping_sub(stamp).cast_signed() >= 0;
    let Some(cluster) = next.filter(|cluster| is_old(cluster.stamp)) else {
        LOOKED_UP_TO.store(old, Ordering::Relaxed);
        return false;
    };
    let written = writeback::write_cluster(engine, context, cluster);
    if written {
        WRITTEN_UP_TO.store(cluster.stamp, Ordering::Relaxed);
    }
    written
}

/// Frees the lock in the child of a fork.
pub fn reset_after_fork() {
    HISTORY.reset_after_fork();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_evicted_a_period_ago_is_old() {
        let mut history = History::NONE;
        let mut before = |at_ns, evicted| history.evicted_before(Note { at_ns, evicted }, 1600);
        for tick in 0..16 {
            assert_eq!(before(tick * 100, tick as u32 * 10), None);
        }
        assert_eq!(before(1600, 160), Some(0));
        assert_eq!(before(1650, 165), Some(0));
        assert_eq!(before(1700, 165), Some(10));
        // Nothing was noted for long: all that was evicted by then is old.
        assert_eq!(before(9000, 165), Some(165));
        assert_eq!(before(9100, 500), Some(165));
    }

    #[test]
    fn looking_often_does_not_forget() {
        let mut history = History::NONE;
        for at_ns in 0..10_000 {
            let evicted = at_ns as u32;
            let old = history.evicted_before(Note { at_ns, evicted }, 1600);
            let age = old.map(|old| evicted - old);
            assert!(age.is_none_or(|age| (1600..=1700).contains(&age)), "{at_ns}: {age:?}");
            assert!(age.is_some() || at_ns < 1700);
        }
    }
}
