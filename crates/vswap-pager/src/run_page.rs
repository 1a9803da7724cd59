//! The memory that a run's coordinator shares with its members: counters one way, commands the
//! other.
//!
//! It is a memfd that the coordinator creates and every member with a pager maps. All fields are
//! atomics and all-zero bytes are a valid page, so either side may die at any time.

use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswap_core::device::set::DEVICES_MAX;
use vswap_core::group::shared::{GroupIndex, SharedGroups};

use crate::run_devices::RunDevices;

/// How many processes with a pager one run can hold; a member beyond it runs on its own share.
pub const MEMBERS_MAX: usize = 120;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// What a member counts. Where the kernel has the counter, it carries the kernel's name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All counters, in the order of their index.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];

            /// Name in the statistics file.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Pages stored compressed (or raw) in the pool.
    Zswpout => "zswpout",
    /// Pages loaded from the pool.
    Zswpin => "zswpin",
    /// Pages that a swap-out found to be zero.
    SwpoutZero => "swpout_zero",
    /// Zero entries that were faulted in.
    SwpinZero => "swpin_zero",
    /// Pages stored as one repeated word.
    SameFilledOut => "same_filled_out",
    /// Pages written to a swap device.
    Pswpout => "pswpout",
    /// Pages read from a swap device.
    Pswpin => "pswpin",
    /// Objects moved from the pool to a swap device.
    WrittenBack => "written_back_pages",
    /// Objects of the pool that a stronger codec made smaller.
    Recompressed => "recompressed",
    /// Objects moved closer together on their device.
    SwapCompacted => "swap_compacted",
    /// Their bytes.
    SwapCompactedBytes => "swap_compacted_bytes",
    /// Objects moved to a slower tier.
    SwapDemoted => "swap_demoted",
    /// Pages that came in from a slower tier and gave up their slots there.
    SwapPromoted => "swap_promoted",
    /// Page faults served.
    Faults => "pgfault",
    /// Page faults that needed data from a backing.
    MajorFaults => "pgmajfault",
    /// Pages installed around the faulting one.
    ReadAhead => "swap_ra",
    /// Pages taken out of the program.
    Reclaimed => "pgsteal",
    /// Pages that somebody outside asked to evict, and that were.
    ReclaimedProactively => "pgsteal_proactive",
    /// Pages that came back before they were compressed.
    StagingHits => "staging_hit",
    /// Evicted pages that came back.
    Refaults => "workingset_refault_anon",
    /// Pages that left again as they had come in, without being compressed.
    SwapCacheClean => "swap_cache_clean",
    /// Pages that had been written since, so that keeping their copy was in vain.
    SwapCacheStale => "swap_cache_stale",
    /// Refaults soon enough after eviction that the page is protected.
    Activations => "workingset_activate_anon",
    /// Stores that the pool had no room for.
    PoolLimitHit => "pool_limit_hit",
    /// Pages that did not compress.
    RejectCompressPoor => "reject_compress_poor",
    /// Pages whose stored copy did not decompress.
    DecompressFail => "decompress_fail",
    /// Pages poisoned because they could not be restored.
    Poisoned => "poisoned",
    /// Pages that refused to move (pinned or shared after a fork).
    MoveBusy => "move_busy",
    /// Mapping events read from userfaultfd, that is, calls which no hook saw coming.
    MapEvents => "map_events",
    /// Mapping calls seen by a hook.
    MapCalls => "map_calls",
    /// Faults that had to reclaim memory themselves.
    DirectReclaim => "allocstall",
    /// Nanoseconds that handlers spent serving faults.
    FaultNs => "fault_ns",
    /// Nanoseconds that threads of the program waited because memory was short.
    StallNs => "stall_ns",
    /// Nanoseconds of CPU time spent reclaiming.
    ReclaimNs => "reclaim_ns",
    /// Nanoseconds of CPU time spent moving objects of the pool closer together.
    PoolCompactNs => "pool_compact_ns",
    /// Forks that the engine covered.
    Forks => "forks",
}

macro_rules! gauges {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// What a member holds right now, in bytes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Gauge { $($(#[$doc])* $variant,)* }

        impl Gauge {
            /// All gauges, in the order of their index.
            pub const ALL: &'static [Gauge] = &[$(Gauge::$variant,)*];

            /// Name in the statistics file.
            pub const fn name(self) -> &'static str {
                match self { $(Gauge::$variant => $name,)* }
            }
        }
    };
}

gauges! {
    /// Resident pages of managed memory.
    Resident => "resident_bytes",
    /// Memory that the pool takes.
    Pool => "pool_bytes",
    /// Compressed bytes inside it.
    Payload => "payload_bytes",
    /// Page table, descriptors and all other bookkeeping.
    Metadata => "metadata_bytes",
    /// What of that is for virtual slots: nothing without any.
    Slots => "slot_metadata_bytes",
    /// Pages that are in a backing.
    Swapped => "swapped_bytes",
    /// Those of them that are not on a swap device.
    Pooled => "pooled_bytes",
    /// Resident pages that are in a backing too.
    SwapCached => "swapcached_bytes",
    /// Space in use on swap devices.
    SwapUsed => "swap_used_bytes",
    /// Anonymous memory of the process outside managed mappings.
    Unmanaged => "unmanaged_bytes",
    /// Mapped memory that cannot be paged: shared mappings.
    UnpageableShared => "unpageable_shared_bytes",
    /// Mapped memory that cannot be paged: locked.
    UnpageableLocked => "unpageable_locked_bytes",
    /// Mapped memory that cannot be paged: private file mappings.
    UnpageableFile => "unpageable_file_bytes",
    /// Mapped memory that cannot be paged: stacks and thread control blocks.
    UnpageableStack => "unpageable_stack_bytes",
    /// Anonymous resident memory of the whole process, the engine included, as the kernel counts it.
    ProcessAnon => "process_anon_bytes",
}

const COUNTER_SLOTS: usize = 48;
const GAUGE_SLOTS: usize = 16;
const _: () = assert!(Counter::ALL.len() <= COUNTER_SLOTS && Gauge::ALL.len() <= GAUGE_SLOTS);

/// Life of a [`Member`] slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemberState {
    /// Nobody's.
    Free = 0,
    /// Handed out to a process.
    Live = 1,
    /// The process ended; its counters have been added to the totals.
    Ended = 2,
}

/// What became of the last [`Member::reclaim_request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReclaimEnd {
    /// Nothing ended early.
    Done = 0,
    /// Nothing else can be moved out.
    NothingLeft = 1,
    /// No backing takes more.
    NoRoom = 2,
}

/// One process of the run that has a pager.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Member {
    /// A [`MemberState`].
    pub state: AtomicU32,
    /// Process ID of the program, as the coordinator sees it.
    pub pid: AtomicU32,
    /// The number of its group.
    group: AtomicU32,
    /// Set by the coordinator to ask for eviction of this many bytes, whatever the budget says; 0
    /// takes it back. The member subtracts what it did, and sets 0 when it can do no more.
    pub reclaim_request: AtomicU64,
    /// A [`ReclaimEnd`], set before the request becomes 0.
    reclaim_end: AtomicU32,
    /// Set by the coordinator: all pages are to be in memory, whatever the budget says. A number that
    /// is another's at each request; 0 without one.
    hold: AtomicU32,
    /// The last of these requests that the member has carried out.
    held: AtomicU32,
    /// Bytes charged to the budget: resident, pool and metadata, together.
    pub charged: AtomicU64,
    /// What it may use at most, in bytes: it says so before it does, so that no two members take the
    /// same free part.
    pub claim: AtomicU64,
    /// What its pool may take at most, in bytes: said before it does, too.
    pub pool_claim: AtomicU64,
    /// Largest value of `charged` so far.
    pub charged_peak: AtomicU64,
    /// Which [`RunDevices::drop_kept`] it has heeded.
    pub kept_dropped: AtomicU32,
    /// The swap devices that it has in use, one bit each.
    pub devices: AtomicU32,
    /// Bytes that it has on each of them.
    pub on_device: [AtomicU64; DEVICES_MAX],
    /// Objects that could not be moved off each of them, of those that were tried.
    pub stuck_on_device: [AtomicU64; DEVICES_MAX],
    counters: [AtomicU64; COUNTER_SLOTS],
    gauges: [AtomicU64; GAUGE_SLOTS],
    peaks: [AtomicU64; GAUGE_SLOTS],
}

impl Member {
    /// Its group.
    pub fn group(&self) -> GroupIndex {
        GroupIndex::new(self.group.load(Ordering::Relaxed)).unwrap_or(GroupIndex::ROOT)
    }

    /// Puts it into a group, before it is live. For the coordinator.
    pub fn set_group(&self, group: GroupIndex) {
        self.group.store(group.raw(), Ordering::Relaxed);
    }

    /// Whether a process counts here.
    pub fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) == MemberState::Live as u32
    }

    /// Adds `n` to a counter.
    pub fn count(&self, counter: Counter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// Sets a counter that is kept elsewhere.
    pub fn set_counter(&self, counter: Counter, value: u64) {
        self.counters[counter as usize].store(value, Ordering::Relaxed);
    }

    /// Value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Publishes what is held now; keeps the peak.
    pub fn set_gauge(&self, gauge: Gauge, bytes: u64) {
        self.gauges[gauge as usize].store(bytes, Ordering::Relaxed);
        self.peaks[gauge as usize].fetch_max(bytes, Ordering::Relaxed);
    }

    /// What is held now, in bytes.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Ordering::Relaxed)
    }

    /// The most that was ever held, in bytes.
    pub fn peak(&self, gauge: Gauge) -> u64 {
        self.peaks[gauge as usize].load(Ordering::Relaxed)
    }

    /// Asks for eviction of `bytes`.
    pub fn ask_to_reclaim(&self, bytes: u64) {
        self.reclaim_end.store(ReclaimEnd::Done as u32, Ordering::Relaxed);
        self.reclaim_request.store(bytes, Ordering::Release);
    }

    /// Ends a request early.
    pub fn give_up_reclaim(&self, end: ReclaimEnd) {
        self.reclaim_end.store(end as u32, Ordering::Relaxed);
        self.reclaim_request.store(0, Ordering::Release);
    }

    /// What became of the last request; `None` while it is worked on.
    pub fn reclaim_end(&self) -> Option<ReclaimEnd> {
        if self.reclaim_request.load(Ordering::Acquire) > 0 {
            return None;
        }
        Some(match self.reclaim_end.load(Ordering::Relaxed) {
            0 => ReclaimEnd::Done,
            1 => ReclaimEnd::NothingLeft,
            _ => ReclaimEnd::NoRoom,
        })
    }

    /// Asks for all pages, until [`release`](Self::release).
    pub fn ask_to_hold(&self) {
        let before = self.hold.load(Ordering::Relaxed).max(self.held.load(Ordering::Relaxed));
        self.hold.store(before.checked_add(1).unwrap_or(1), Ordering::Release);
    }

    /// Lets the budget hold again.
    pub fn release(&self) {
        self.hold.store(0, Ordering::Release);
    }

    /// The request for all pages; 0 if there is none.
    pub fn hold(&self) -> u32 {
        self.hold.load(Ordering::Acquire)
    }

    /// Whether the last request for all pages is carried out.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire) == self.hold()
    }

    /// Says that this request is carried out.
    pub fn set_held(&self, hold: u32) {
        self.held.store(hold, Ordering::Release);
    }

    /// Forgets everything, for the next process in this slot.
    pub fn reset(&self) {
        for word in self.counters.iter().chain(&self.gauges).chain(&self.peaks) {
            word.store(0, Ordering::Relaxed);
        }
        self.reclaim_end.store(ReclaimEnd::Done as u32, Ordering::Relaxed);
        self.group.store(0, Ordering::Relaxed);
        let amounts = [&self.charged, &self.claim, &self.pool_claim, &self.charged_peak];
        for word in amounts.into_iter().chain([&self.reclaim_request]) {
            word.store(0, Ordering::Relaxed);
        }
        for word in self.on_device.iter().chain(&self.stuck_on_device) {
            word.store(0, Ordering::Relaxed);
        }
        for word in [&self.devices, &self.hold, &self.held, &self.kept_dropped] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The shared memory of one run.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct RunPage {
    /// The groups of its members and their limits; the root is the run itself.
    pub groups: SharedGroups,
    /// Members ever used: slots at or beyond this index were never handed out.
    pub members_used: AtomicU32,
    /// The members. The coordinator hands out slots.
    pub members: [Member; MEMBERS_MAX],
    /// The swap devices.
    pub devices: RunDevices,
}

/// Bytes to reserve for the memfd.
pub const RUN_PAGE_SIZE: usize = size_of::<RunPage>();

impl RunPage {
    /// The index of a member of this run.
    pub fn number_of(&self, member: &Member) -> Option<usize> {
        self.members.iter().position(|other| ptr::eq(other, member))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;

    use super::*;

    fn run() -> Box<RunPage> {
        // SAFETY: all-zero bytes are a valid page.
        unsafe { Box::new_zeroed().assume_init() }
    }

    #[test]
    fn a_hold_is_carried_out_each_time_that_it_is_asked_for() {
        let run = run();
        let member = &run.members[0];
        assert_eq!(member.hold(), 0);
        member.ask_to_hold();
        let first = member.hold();
        assert!(first != 0 && !member.is_held());
        member.set_held(first);
        assert!(member.is_held());
        member.release();
        assert_eq!(member.hold(), 0);
        member.ask_to_hold();
        assert!(!member.is_held(), "held by the request before it");
        member.reset();
        assert_eq!(member.hold(), 0);
    }

    #[test]
    fn a_request_to_reclaim_ends_done_or_given_up() {
        let run = run();
        let member = &run.members[0];
        member.ask_to_reclaim(4096);
        assert_eq!(member.reclaim_end(), None);
        member.give_up_reclaim(ReclaimEnd::NoRoom);
        assert_eq!(member.reclaim_end(), Some(ReclaimEnd::NoRoom));
        member.ask_to_reclaim(4096);
        member.reclaim_request.fetch_sub(4096, Ordering::Relaxed);
        assert_eq!(member.reclaim_end(), Some(ReclaimEnd::Done));
        member.give_up_reclaim(ReclaimEnd::NothingLeft);
        member.reset();
        assert_eq!(member.reclaim_end(), Some(ReclaimEnd::Done));
    }
}
