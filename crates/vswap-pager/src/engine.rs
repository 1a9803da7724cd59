//! The engine of one address space: all its state, in one place.
//!
//! Three kinds of code meet here: hooks on the program's threads, the threads of the pager process,
//! and (inline) signal handlers. The order of locks is
//!
//! 1. the *mapping lock*: who changes or reads the layout of memory over several steps: a hook, the
//!    application of userfaultfd events, and the moving of pages to staging. Events are read and
//!    applied in one piece under it, so no page moves between the two (design, section 5);
//! 2. the *gate*: passed by who serves a fault or commits an evicted page, closed by who changes
//!    regions or forks. A closed gate means that no operation on the swap space is under way;
//! 3. a leaf of the page table.
//!
//! Nobody who holds one of them touches the program's memory directly or waits for a fault.

use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};

use vswap_core::group::shared::GroupIndex;
use vswap_core::page::PAGE_SIZE;
use vswap_core::{Limits, VirtualSwap};

use crate::address::PageRange;
use crate::arena::Arena;
use crate::budget::Budget;
use crate::config::Config;
use crate::context::{Context, Contexts};
use crate::lock::{self, Closed, Gate, Passage, SpinGuard, SpinLock};
use crate::mailbox::Mailbox;
use crate::regions::{Attributes, Regions};
use crate::relief::Relief;
use crate::run_page::{Counter, Member, RunPage};
use crate::staging::Staging;
use crate::streams::Streams;
use crate::swap::{SWAP_DEVICES, fingerprints};
use crate::swap_cache::SwapCache;
use crate::sys::fd::Fd;
use crate::sys::uffd::Uffd;
use crate::sys::{arch, task};
use crate::table::Table;

/// How far the engine has come in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Phase {
    /// The program is small: mapping calls are counted, nothing else.
    Idle = 0,
    /// A pager exists and watches how much is resident.
    Watching = 1,
    /// Memory is registered and paged.
    Active = 2,
    /// The engine cannot work here; the program runs as it would without.
    Off = 3,
}

/// What the mapping lock protects besides the layout.
#[derive(Debug)]
pub struct Maps {
    /// Ranges that are never paged: stacks and thread control blocks.
    pub excluded: Regions,
    /// Ranges that are registered but not taken over yet; see [`commit`](crate::commit).
    pub deferred: Regions,
}

/// The mapping lock, held.
pub type MapsGuard<'a> = SpinGuard<'a, Maps>;

/// Proof that regions do not change while it lives.
pub trait Stable {}
impl Stable for Passage<'_> {}
impl Stable for Closed<'_> {}
impl Stable for MapsGuard<'_> {}

const NO_FD: i32 = -1;

/// What the pool may exceed its limit by for a moment, in bytes: some pages for each size class.
const ROOM_TO_MOVE: usize = 2 << 20;

/// Whose descriptor table a caller has: program and pager share memory, but not their files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A thread of the pager.
    Pager,
    /// A thread of the program.
    Program,
}

/// What pages are moved with, by the numbers of one descriptor table; -1 for what it does not have.
#[derive(Debug)]
pub struct PagingFds {
    /// The program's memory, with mapping events.
    pub uffd: AtomicI32,
    /// /proc/self/pagemap.
    pub pagemap: AtomicI32,
}

impl PagingFds {
    const fn new() -> Self {
        Self { uffd: AtomicI32::new(NO_FD), pagemap: AtomicI32::new(NO_FD) }
    }
}

/// What only the pager has, by the numbers of its own table.
#[derive(Debug)]
pub struct PagerFds {
    /// /proc/self/statm.
    pub statm: AtomicI32,
    /// The coordinator; -1 if there is none.
    pub coordinator: AtomicI32,
    /// The program; readable when it has ended.
    pub program: AtomicI32,
}

/// The engine's state.
#[derive(Debug)]
pub struct Engine {
    config: UnsafeCell<Option<Config>>,
    phase: AtomicU32,
    maps: SpinLock<Maps>,
    regions: UnsafeCell<Regions>,
    run_page: AtomicPtr<RunPage>,
    member: AtomicPtr<Member>,
    /// Memory that the program can make resident unseen, in bytes; see [`commit`](crate::commit).
    pub committed: AtomicU64,
    /// Closed by who changes regions or forks.
    pub gate: Gate,
    /// The page table.
    pub table: Table,
    /// Ordered accesses.
    pub streams: Streams,
    /// The virtual swap space.
    pub space: VirtualSwap<Arena>,
    /// Pages on their way out.
    pub staging: Staging,
    /// Entries of resident pages.
    pub swap_cache: SwapCache,
    /// How much may be resident.
    pub budget: Budget,
    /// Codec state and buffers for who serves faults.
    pub contexts: Contexts,
    /// Requests to the reclaimer.
    pub mailbox: Mailbox,
    /// Requests to the registrar, which takes no lock: their sender holds some.
    pub registrar: Mailbox,
    /// Descriptors that only the pager has.
    pub fds: PagerFds,
    /// What the pager pages with.
    pub pager_fds: PagingFds,
    /// What the program's threads page with.
    pub program_fds: PagingFds,
    /// Where the program's first thread has its control block: the loader made it before any hook
    /// could see it.
    pub main_thread: AtomicUsize,
    /// Process ID of the program.
    pub program: AtomicU32,
    /// Process ID of the pager.
    pub pager: AtomicU32,
    /// Faults raise SIGBUS in the faulting thread.
    pub inline: AtomicBool,
    exclusions: AtomicBool,
    /// Threads of the program that wait for the reclaimer to make room.
    pub starved: AtomicU32,
    /// Where threads wait for a tray to be emptied.
    pub relief: Relief,
}

// SAFETY: the configuration is written once before any other thread runs; the regions follow the
// proofs that `regions` and `regions_mut` ask for; everything else is atomic or locked.
unsafe impl Sync for Engine {}

static ENGINE: Engine = Engine::new();

/// The engine of this process.
pub fn engine() -> &'static Engine {
    &ENGINE
}

impl Engine {
    const fn new() -> Self {
        Self {
            config: UnsafeCell::new(None),
            phase: AtomicU32::new(Phase::Idle as u32),
            maps: SpinLock::new(Maps { excluded: Regions::new(), deferred: Regions::new() }),
            regions: UnsafeCell::new(Regions::new()),
            run_page: AtomicPtr::new(core::ptr::null_mut()),
            member: AtomicPtr::new(core::ptr::null_mut()),
            committed: AtomicU64::new(0),
            gate: Gate::new(),
            table: Table::new(),
            streams: Streams::new(),
            space: VirtualSwap::new(Arena, Limits::NONE),
            staging: Staging::new(),
            swap_cache: SwapCache::new(),
            budget: Budget::new(),
            contexts: Contexts::new(),
            mailbox: Mailbox::new(),
            registrar: Mailbox::new(),
            fds: PagerFds {
                statm: AtomicI32::new(NO_FD),
                coordinator: AtomicI32::new(NO_FD),
                program: AtomicI32::new(NO_FD),
            },
            pager_fds: PagingFds::new(),
            program_fds: PagingFds::new(),
            main_thread: AtomicUsize::new(0),
            program: AtomicU32::new(0),
            pager: AtomicU32::new(0),
            inline: AtomicBool::new(false),
            exclusions: AtomicBool::new(false),
            starved: AtomicU32::new(0),
            relief: Relief::new(),
        }
    }

    /// Sets the configuration.
    ///
    /// # Safety
    /// Once, on the program's first thread, before any other thread runs.
    pub unsafe fn configure(&self, config: Config) {
        // SAFETY: nobody else is there yet.
        unsafe { *self.config.get() = Some(config) };
        self.main_thread.store(arch::thread_pointer(), Ordering::Relaxed);
        self.program.store(task::process_id(), Ordering::Relaxed);
    }

    /// The configuration; `None` if the program does not run under vswap.
    pub fn config(&self) -> Option<&Config> {
        // SAFETY: written before any other thread ran.
        unsafe { (*self.config.get()).as_ref() }
    }

    /// Asks for inline faults; decided when the pager starts.
    pub fn wants_inline(&self, inline: bool) {
        self.inline.store(inline, Ordering::Relaxed);
    }

    /// How far the engine has come.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Idle,
            1 => Phase::Watching,
            2 => Phase::Active,
            _ => Phase::Off,
        }
    }

    /// Moves on.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    /// Takes the mapping lock. Hooks call it with signals blocked.
    pub fn lock_maps(&self) -> MapsGuard<'_> {
        self.maps.lock()
    }

    /// The same for the watcher, which has to see the end of a program whose threads may have died with the lock.
    pub fn lock_maps_patiently(&self) -> Option<MapsGuard<'_>> {
        const TRIES: u32 = 1000;
        (0..TRIES).find_map(|tries| {
            let guard = self.maps.try_lock();
            if guard.is_none() {
                lock::relax(tries);
            }
            guard
        })
    }

    /// Whether anything is excluded from paging. A hint when the mapping lock is not held.
    pub fn has_exclusions(&self) -> bool {
        self.exclusions.load(Ordering::Relaxed)
    }

    /// Excludes a range from paging, or says that it was unmapped.
    pub fn note_exclusion(&self, maps: &mut MapsGuard<'_>, range: PageRange, excluded: bool) {
        // Too many of them: what is not noted is paged, which is wrong for stacks only when a
        // thread ends while its control block is out; the hook for new threads brings that back.
        let _ = if excluded {
            maps.excluded.insert(range, Attributes::default())
        } else {
            maps.excluded.remove(range)
        };
        self.exclusions.store(!maps.excluded.all().is_empty(), Ordering::Relaxed);
    }

    /// The regions, which stay as they are while `proof` lives.
    pub fn regions<'a>(&'a self, _proof: &'a impl Stable) -> &'a Regions {
        // SAFETY: a writer holds the mapping lock and has closed the gate, which no proof allows.
        unsafe { &*self.regions.get() }
    }

    /// The regions, to change them.
    pub fn regions_mut<'a>(
        &'a self,
        _maps: &'a mut MapsGuard<'_>,
        _closed: &'a Closed<'_>,
    ) -> &'a mut Regions {
        // SAFETY: the mapping lock excludes other writers and its own readers, the closed gate all
        // others.
        unsafe { &mut *self.regions.get() }
    }

    /// Shares counters and budget with the run; set before the pager starts.
    pub fn join_run(&self, run_page: &'static RunPage, member: &'static Member) {
        self.run_page.store(core::ptr::from_ref(run_page).cast_mut(), Ordering::Release);
        self.member.store(core::ptr::from_ref(member).cast_mut(), Ordering::Release);
    }

    /// The memory shared with the run.
    pub fn run_page(&self) -> Option<&'static RunPage> {
        // SAFETY: a run page stays mapped for as long as the process lives.
        unsafe { self.run_page.load(Ordering::Acquire).as_ref() }
    }

    /// This process's part of it.
    pub fn member(&self) -> Option<&'static Member> {
        // SAFETY: as for the run page, which holds the member.
        unsafe { self.member.load(Ordering::Acquire).as_ref() }
    }

    /// Whether the run has other members with a pager.
    pub fn is_one_of_many(&self) -> bool {
        match (self.run_page(), self.member()) {
            (Some(run), Some(member)) => run.others_in_ram(member, GroupIndex::ROOT).members > 0,
            _ => false,
        }
    }

    /// Takes this member's part of the run's budget.
    pub fn divide_budget(&self) {
        let (Some(run), Some(member)) = (self.run_page(), self.member()) else { return };
        let share = run.divide(member, self.budget.used());
        self.budget.set_share(share, run.ram(member.group()));
        self.limit_pool();
    }

    /// With a device, the pages of one tray may be in the pool for the moment until they are written.
    pub fn limit_pool(&self) {
        let limit = self.pool_limit();
        // A pool that may not be is none for a moment either.
        let waits = limit > 0 && SWAP_DEVICES.any();
        let waiting = if waits { self.budget.batch_pages() * PAGE_SIZE } else { 0 };
        self.space.set_pool_limit(limit + waiting);
    }

    /// Runs `work`, which makes the pool smaller, with room in the pool for what it moves: a full one
    /// has none for the new copy of an object beside the old one.
    pub fn with_room_in_pool<T>(&self, work: impl FnOnce(&VirtualSwap<Arena>) -> T) -> T {
        let taken = self.space.usage().pool_memory;
        if taken > 0 {
            self.space.set_pool_limit(self.pool_limit().max(taken) + ROOM_TO_MOVE);
        }
        let done = work(&self.space);
        self.limit_pool();
        done
    }

    /// Moves objects of the pool closer together, up to so many bytes; gives how many bytes that freed. With a
    /// passage through the gate.
    pub fn compact_pool(&self, context: &mut Context, bytes_moved_max: usize) -> usize {
        let started = task::thread_cpu_ns();
        let freed =
            self.with_room_in_pool(|space| space.compact(&mut context.worker, bytes_moved_max));
        self.count(Counter::PoolCompactNs, task::thread_cpu_ns() - started);
        freed
    }

    /// What the pool may grow to; claims that.
    pub fn pool_limit(&self) -> usize {
        let by_budget = self.budget.pool_limit(SWAP_DEVICES.take_objects());
        let by_run = match (self.run_page(), self.member()) {
            (Some(run), Some(member)) => {
                run.claim_pool(member, self.space.usage().pool_memory as u64)
            }
            _ => None,
        };
        by_run.map_or(by_budget, |max| max.min(by_budget)) as usize
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, n: u64) {
        if let Some(member) = self.member() {
            member.count(counter, n);
        }
    }

    /// What a counter shows.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.member().map_or(0, |member| member.counter(counter))
    }

    /// Whose descriptor table the calling thread has.
    pub fn side(&self) -> Side {
        let in_pager = task::process_id() == self.pager.load(Ordering::Relaxed);
        if in_pager { Side::Pager } else { Side::Program }
    }

    /// What a caller on `side` pages with.
    pub fn paging_fds(&self, side: Side) -> &PagingFds {
        match side {
            Side::Pager => &self.pager_fds,
            Side::Program => &self.program_fds,
        }
    }

    /// Runs `call` with the main userfaultfd as `side` knows it.
    pub fn with_uffd<T>(&self, side: Side, call: impl FnOnce(&Uffd) -> T) -> T {
        borrow(self.paging_fds(side).uffd.load(Ordering::Relaxed), call)
    }

    /// Bytes that the pager's own tables take.
    pub fn tables_memory(&self) -> u64 {
        let kept = if SWAP_DEVICES.any() { self.swap_cache.pages() as usize } else { 0 };
        let fingerprints = kept * fingerprints::BYTES;
        let swap = self.swap_cache.memory() + SWAP_DEVICES.memory() + fingerprints;
        (self.table.memory() + swap) as u64
    }

    /// Takes the pool's and the tables' size into the budget.
    pub fn update_engine_bytes(&self) {
        let usage = self.space.usage();
        self.swap_cache.set_pooled(usage.live_slots.saturating_sub(usage.device_objects));
        let bytes = usage.pool_memory as u64 + usage.metadata.total() as u64 + self.tables_memory();
        self.budget.set_engine(bytes);
    }

    /// Frees all locks in the child of a fork, and nothing but the forking thread lives there.
    pub fn reset_locks_after_fork(&self) {
        self.maps.reset_after_fork();
        self.gate.reset_after_fork();
        self.table.reset_after_fork();
        self.contexts.reset_after_fork();
        self.staging.reset_after_fork();
        self.mailbox.reset_after_fork();
        self.registrar.reset_after_fork();
        self.relief.reset_after_fork();
        // Budget and statistics ask for its usage without passing the gate.
        self.space.reset_after_fork();
        Arena::reset_after_fork();
    }
}

fn borrow<T>(fd: i32, call: impl FnOnce(&Uffd) -> T) -> T {
    let uffd = core::mem::ManuallyDrop::new(Uffd::from_fd(Fd::new(fd)));
    call(&uffd)
}
