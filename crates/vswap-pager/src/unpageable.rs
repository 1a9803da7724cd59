//! What of the program's memory is never paged, and why: measured by the watcher, rarely.
//!
//! Only mappings that are not paged are looked into, so this costs nothing for the bulk of a large
//! program, and what it does cost says when it is done again.

use linux_raw_sys::general as k;

use crate::address::{PageNumber, PageRange};
use crate::engine::{Engine, MapsGuard};
use crate::run_page::{Gauge, Member};
use crate::sys::proc_maps::{self, Mapping};
use crate::sys::{fd, pagemap, task};

/// Nanoseconds between two measurements, at least.
const INTERVAL_NS: u64 = 1_000_000_000;

/// They take less than one part in this many of a CPU's time.
const COST_SHARE: u64 = 1000;

/// When to measure again.
#[derive(Debug, Default)]
pub struct Unpageable {
    due_ns: u64,
}

impl Unpageable {
    /// Measures and publishes if it is time to.
    pub fn look(&mut self, engine: &Engine, member: &Member) {
        let now = task::now_ns();
        if now < self.due_ns {
            return;
        }
        // Not the time that passes: on a busy machine most of that is somebody else's.
        let before = task::thread_cpu_ns();
        publish(engine, member);
        let cost = task::thread_cpu_ns() - before;
        self.due_ns = now + INTERVAL_NS.max(cost * COST_SHARE);
    }
}

/// Measures and publishes.
pub fn publish(engine: &Engine, member: &Member) {
    let Ok(pagemap) = fd::open(c"/proc/self/pagemap", k::O_RDONLY) else { return };
    let resident = |range: PageRange| {
        let mut bytes = 0;
        let _ = pagemap::for_each_present(
            pagemap.raw(),
            range.address(),
            range.end.address(),
            |start, end| bytes += (end - start) as u64,
        );
        bytes
    };
    let (mut shared, mut file, mut stack) = (0, 0, 0);
    let read = proc_maps::for_each(|mapping| {
        let sum = match Kind::of(engine, &mapping) {
            Kind::Shared => &mut shared,
            Kind::File => &mut file,
            Kind::Stack => &mut stack,
            Kind::Other => return,
        };
        *sum += resident(PageRange::touching(mapping.start, mapping.end - mapping.start));
    });
    if read.is_err() {
        return;
    }
    let (Some(excluded), Some(locked)) =
        (sum(engine, next_excluded, resident), sum(engine, next_locked, resident))
    else {
        return;
    };
    stack += excluded;
    for (gauge, bytes) in [
        (Gauge::UnpageableShared, shared),
        (Gauge::UnpageableLocked, locked),
        (Gauge::UnpageableFile, file),
        (Gauge::UnpageableStack, stack),
    ] {
        member.set_gauge(gauge, bytes);
    }
}

/// What a mapping is as a whole. Stacks of threads and locked memory are known as ranges.
enum Kind {
    Shared,
    File,
    Stack,
    Other,
}

impl Kind {
    fn of(engine: &Engine, mapping: &Mapping<'_>) -> Self {
        let run_page = engine.run_page().map_or(0, |page| core::ptr::from_ref(page) as usize);
        match mapping {
            _ if mapping.start == run_page => Self::Other,
            Mapping { name: b"[stack]", .. } => Self::Stack,
            Mapping { private: false, .. } => Self::Shared,
            Mapping { inode: 0, .. } => Self::Other,
            _ => Self::File,
        }
    }
}

/// Sums up over ranges that `next` finds, each in its turn: the mapping lock is not held meanwhile. `None` if
/// somebody else has it, who may have died with it.
fn sum(
    engine: &Engine,
    next: fn(&Engine, &MapsGuard<'_>, PageNumber) -> Option<PageRange>,
    resident: impl Fn(PageRange) -> u64,
) -> Option<u64> {
    let mut bytes = 0;
    let mut from = PageNumber(0);
    loop {
        let found = {
            let maps = engine.lock_maps_patiently()?;
            next(engine, &maps, from)
        };
        let Some(range) = found else { return Some(bytes) };
        bytes += resident(range);
        from = range.end;
    }
}

fn next_excluded(_: &Engine, maps: &MapsGuard<'_>, from: PageNumber) -> Option<PageRange> {
    maps.excluded.at_or_behind(from).map(|region| region.range)
}

fn next_locked(engine: &Engine, maps: &MapsGuard<'_>, from: PageNumber) -> Option<PageRange> {
    let all = PageRange { start: from, end: PageNumber(usize::MAX) };
    let mut regions = engine.regions(maps).within(all);
    regions.find(|region| region.attributes.locked).map(|region| region.range)
}
