//! From a small program to a paged one.
//!
//! A process that stays small and has one thread never gets a pager: hooks count what it commits,
//! and as long as that is less than half of the budget nothing else happens. Then, or when a second
//! thread starts, a pager is made, which at first only *watches*: mappings beyond that half are
//! deferred (see [`commit`]). When it is used up the pager takes over all mappings.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use linux_raw_sys::general as k;
use vswap_core::page::PAGE_SIZE;

use crate::address::{PageNumber, PageRange};
use crate::engine::{Engine, Phase, Side};
use crate::lock::SpinLock;
use crate::mapping::{self, Call};
use crate::sys::{arch, fd};
use crate::{adopt, commit, events, exclude, pager, watcher};

/// Ticks of the constant-rate counter between two looks of an idle engine at what is resident: 10 ms at
/// 3.3 GHz.
const LOOK_TICKS: u64 = 1 << 25;

/// When an idle engine looked last.
static LOOKED: AtomicU64 = AtomicU64::new(0);

/// A pager is wanted, and could not be made where that was found.
static WANTED: AtomicBool = AtomicBool::new(false);

static STARTING: SpinLock<()> = SpinLock::new(());

/// Whether `bytes` more may be mapped without being registered; starts the pager when they may not.
/// The caller holds no lock.
pub fn may_commit(engine: &Engine, bytes: usize) -> bool {
    match engine.phase() {
        Phase::Active => return false,
        Phase::Off => return true,
        Phase::Idle | Phase::Watching => {}
    }
    if commit::take(engine, &engine.lock_maps(), bytes) {
        return true;
    }
    if engine.phase() == Phase::Idle {
        watch(engine);
    }
    false
}

/// Takes over if `bytes` more could exceed what may be resident unseen. The caller holds no lock.
pub fn make_way(engine: &Engine, bytes: usize) {
    if engine.phase() != Phase::Active && !may_commit(engine, bytes) {
        take_over(engine);
    }
}

/// Starts the pager and takes over at once: the program asks for what only a pager can do.
pub fn start_now(engine: &Engine) {
    if engine.phase() == Phase::Idle {
        watch(engine);
    }
    take_over(engine);
}

/// The program begins: there is nothing to look at yet.
pub fn begin() {
    LOOKED.store(arch::ticks(), Ordering::Relaxed);
}

/// Asks for a pager from where none can be made.
pub fn want_to_watch() {
    WANTED.store(true, Ordering::Relaxed);
}

/// Whether somebody did.
pub fn is_watch_wanted(engine: &Engine) -> bool {
    WANTED.load(Ordering::Relaxed) && engine.phase() == Phase::Idle
}

/// Makes it. The caller holds no lock.
pub fn watch_if_wanted(engine: &Engine) {
    if is_watch_wanted(engine) {
        watch(engine);
    }
}

/// Whether so much is resident, although hooks counted less, that memory came from calls that no hook
/// saw. Looks rarely; on a thread of the program, before there is a pager.
fn has_outgrown(engine: &Engine) -> bool {
    let (now, last) = (arch::ticks(), LOOKED.load(Ordering::Relaxed));
    if now.wrapping_sub(last) < LOOK_TICKS {
        return WANTED.load(Ordering::Relaxed);
    }
    LOOKED.store(now, Ordering::Relaxed);
    let statm = fd::open(c"/proc/self/statm", k::O_RDONLY);
    if statm.is_ok_and(|statm| watcher::anonymous(statm.raw()) >= commit::limit(engine)) {
        want_to_watch();
    }
    WANTED.load(Ordering::Relaxed)
}

/// Makes the pager, which only watches at first.
pub fn watch(engine: &Engine) {
    let Some(config) = engine.config() else { return };
    if engine.phase() != Phase::Idle {
        return;
    }
    WANTED.store(false, Ordering::Relaxed);
    let _starting = STARTING.lock();
    if engine.phase() != Phase::Idle {
        return;
    }
    match pager::start(engine) {
        Ok(()) => {
            engine.set_phase(Phase::Watching);
            if config.chaos.is_some() {
                take_over(engine);
            }
        }
        Err(error) => {
            engine.set_phase(Phase::Off);
            pager::say_not_started(engine, error);
        }
    }
}

/// Whether a call concerns nothing that the engine keeps: the program is small and stays so.
pub fn is_simple(engine: &Engine, call: &Call) -> bool {
    if engine.config().is_none() {
        return true;
    }
    match engine.phase() {
        Phase::Off => true,
        Phase::Watching | Phase::Active => false,
        Phase::Idle if has_outgrown(engine) => false,
        Phase::Idle => match call.number as u32 {
            k::__NR_mmap => {
                let [_, len, prot, flags, ..] = call.args;
                let (prot, flags) = (prot as u32, flags as u32);
                let plain = !mapping::is_stack(flags) && !engine.has_exclusions();
                plain && (!commit::concerns(flags, prot) || commit::take_quickly(engine, len))
            }
            k::__NR_mprotect | k::__NR_pkey_mprotect => {
                let [_, len, prot, ..] = call.args;
                let writable = prot as u32 & k::PROT_WRITE != 0;
                !writable || (!engine.has_exclusions() && commit::take_quickly(engine, len))
            }
            k::__NR_munmap => !engine.has_exclusions(),
            k::__NR_madvise => call.args[2] as u32 != k::MADV_PAGEOUT,
            k::__NR_mremap | k::__NR_brk | k::__NR_sigaltstack => false,
            _ => true,
        },
    }
}

/// Whether so much is resident that it is time to take over, although no more was committed than
/// may be: the others of the run have left less, or memory came from calls that no hook saw.
pub fn is_time_to_take_over(engine: &Engine, anonymous: u64) -> bool {
    anonymous >= commit::limit(engine)
}

/// Takes over every mapping that can be paged. Called on a thread of the program or of the pager.
pub fn take_over(engine: &Engine) {
    let (mut maps, _) = events::settle(engine, engine.lock_maps(), engine.side());
    if engine.phase() != Phase::Watching {
        return;
    }
    engine.set_phase(Phase::Active);
    // Whichever thread takes over: the kernel kills a thread whose rseq area it cannot write.
    let first = exclude::control_block(engine.main_thread.load(Ordering::Relaxed));
    engine.note_exclusion(&mut maps, first, true);
    let read = adopt::everything(engine, &mut maps);
    // A region now, or of a kind that is never paged.
    let _ = maps.deferred.remove(PageRange::EVERYTHING);
    if read.is_err() {
        crate::link::say(
            engine,
            format_args!("/proc/self/maps cannot be read; only new memory is paged"),
        );
    }
}

/// A fault in a deferred mapping. On a thread of the pager.
fn grant(engine: &Engine, page: PageNumber) {
    let mut maps = engine.lock_maps();
    crate::events::drain(engine, &mut maps, Side::Pager);
    let goes_on = engine.phase() != Phase::Watching || commit::grant(engine, &mut maps, page);
    drop(maps);
    if !goes_on {
        take_over(engine);
    }
    engine.with_uffd(Side::Pager, |uffd| uffd.wake(page.address(), PAGE_SIZE));
}

/// A page that is registered but unknown: deferred, or of a mapping that grew without a hook seeing it.
/// On a thread of the pager.
pub fn adopt_unknown(engine: &Engine, address: usize) {
    let page = PageNumber::containing(address);
    if engine.phase() == Phase::Watching {
        return grant(engine, page);
    }
    adopt::mapping_of(engine, page);
    // The thread tries again, and finds the page managed, or gone.
    engine.with_uffd(Side::Pager, |uffd| uffd.wake(page.address(), PAGE_SIZE));
}
