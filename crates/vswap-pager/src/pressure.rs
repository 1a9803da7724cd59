//! What happens when reclaim does not get on: harder measures, a pause, and at last the end of the
//! program, alone and with a line that says why.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::{CodecKind, Cursor};

use crate::context::Context;
use crate::engine::{Engine, Side};
use crate::link;
use crate::reclaim::Progress;
use crate::shortage::Shortage;
use crate::sys::task;

/// The longest that one allocation is held up before the program is ended.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Steps without gain after which harder measures are taken.
const PATIENT_STEPS: u32 = 64;

/// Bytes that one round of compaction may move.
const COMPACTED_AT_ONCE: usize = 1 << 20;

/// Entries that one round of recompression looks at.
const RECOMPRESSED_AT_ONCE: usize = 256;

/// The codec of last resort: about twice the ratio of lz4, for data that would not fit otherwise.
const STRONG: CodecKind = CodecKind::Zstd(3);

/// After harder measures were in vain, a member of many does without them for this long: every fault
/// of it would pay for them again.
const VAIN_NS: u64 = 100_000_000;

/// When the harder measures were in vain, in nanoseconds. A hint.
static IN_VAIN_SINCE: AtomicU64 = AtomicU64::new(0);

/// One struggle for memory.
#[derive(Debug)]
pub struct Pressure {
    idle_steps: u32,
    best_free: i64,
    stuck_since: Option<u64>,
    /// Where recompression goes on; `None` when it has been everywhere.
    recompress_from: Option<Cursor>,
}

impl Pressure {
    /// The beginning of one.
    pub const fn new() -> Self {
        Self {
            idle_steps: 0,
            best_free: i64::MIN,
            stuck_since: None,
            recompress_from: Some(Cursor::START),
        }
    }

    /// One step of reclaim for somebody who waits, up to ending the program. Gives `false` when
    /// there is nothing to gain and others hold the memory: then who waits goes on, over its
    /// share, and the others give way.
    pub fn step(&mut self, engine: &Engine, context: &mut Context) -> bool {
        let progress = engine.reclaim_step(context, Side::Pager, || ());
        if self.gained(engine) {
            self.stuck_since = None;
            return true;
        }
        if progress == Progress::Some && self.idle_steps < PATIENT_STEPS {
            return true;
        }
        let others_give_way = engine.is_one_of_many() && engine.budget.is_divided();
        let in_vain_for = task::now_ns().saturating_sub(IN_VAIN_SINCE.load(Ordering::Relaxed));
        if others_give_way && in_vain_for < VAIN_NS {
            return false;
        }
        if self.squeeze(engine, context) {
            return true;
        }
        let now = task::now_ns();
        let since = *self.stuck_since.get_or_insert(now);
        if others_give_way {
            IN_VAIN_SINCE.store(now, Ordering::Relaxed);
            return false;
        }
        if now - since > PATIENCE_NS {
            link::end_out_of_memory(engine, format_args!("{}", Shortage::of(engine)));
        }
        task::sleep_us(1000);
        true
    }

    /// Whether more is free than ever before in this struggle, or enough: what others have taken
    /// since does not count against it.
    fn gained(&mut self, engine: &Engine) -> bool {
        let free = engine.budget.free();
        if free >= engine.budget.min_watermark() {
            self.best_free = i64::MIN;
            self.idle_steps = 0;
            return true;
        }
        let gained = free > self.best_free;
        self.best_free = self.best_free.max(free);
        self.idle_steps = if gained { 0 } else { self.idle_steps + 1 };
        gained
    }

    /// Makes the pool smaller: copies of resident pages go, then compaction, then the strong codec over
    /// everything once.
    fn squeeze(&mut self, engine: &Engine, context: &mut Context) -> bool {
        if engine.shrink_swap_cache() {
            engine.update_engine_bytes();
            return true;
        }
        let passage = engine.gate.pass();
        let compacted = engine.compact_pool(context, COMPACTED_AT_ONCE);
        drop(passage);
        engine.update_engine_bytes();
        if compacted > 0 {
            return true;
        }
        let Some(from) = self.recompress_from.take() else { return false };
        let passage = engine.gate.pass();
        let done = engine.with_room_in_pool(|space| {
            space.recompress(&mut context.worker, from, RECOMPRESSED_AT_ONCE, STRONG)
        });
        drop(passage);
        engine.update_engine_bytes();
        self.recompress_from = done.ok().and_then(|done| done.next);
        true
    }
}

impl Default for Pressure {
    fn default() -> Self {
        Self::new()
    }
}
