//! The watcher: the pager's first thread. It sees the end of the program, follows its credentials,
//! measures what is resident, and publishes.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::page::PAGE_SIZE;

use crate::adopt::Newcomers;
use crate::credentials::FOLLOWED;
use crate::engine::{Engine, Phase, engine};
use crate::run_page::Gauge;
use crate::swap::{SWAP_DEVICES, draining};
use crate::sys::{arch, fd, task};
use crate::text::{self, Line};
use crate::unpageable::{self, Unpageable};
use crate::{core_dump, counters, link, pager, proactive, start, swap_in};

/// Milliseconds between two looks.
const TICK_MS: i64 = 10;

/// Looks between two checks of what changes rarely: credentials, and whether the program has
/// replaced itself.
const RARE: u32 = 10;

/// Nanoseconds in 2^20 ticks of the constant-rate counter.
static NS_PER_MEGATICK: AtomicU64 = AtomicU64::new(0);

/// Converts ticks of the constant-rate counter.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(NS_PER_MEGATICK.load(Ordering::Relaxed))) >> 20) as u64
}

/// The body of the pager's first thread.
pub extern "C" fn main(_argument: usize) -> ! {
    let engine = engine();
    if pager::become_pager(engine).is_err() {
        task::exit_process(1);
    }
    core_dump::prepare(engine);
    let mut watcher = Watcher::new(engine);
    loop {
        watcher.look();
    }
}

struct Watcher {
    engine: &'static Engine,
    started: (u64, u64),
    looks: u32,
    credentials: u32,
    unpageable: Unpageable,
    newcomers: Newcomers,
}

impl Watcher {
    fn new(engine: &'static Engine) -> Self {
        Self {
            engine,
            started: (task::now_ns(), arch::ticks()),
            looks: 0,
            credentials: 0,
            unpageable: Unpageable::default(),
            newcomers: Newcomers::default(),
        }
    }

    fn look(&mut self) {
        let program = self.engine.fds.program.load(Ordering::Relaxed);
        let ended = fd::wait_readable([program], TICK_MS);
        if !matches!(ended, Ok([false])) {
            self.finish_with_program();
        }
        self.looks += 1;
        self.calibrate();
        if self.looks % RARE == 1 {
            if self.program_is_elsewhere() {
                self.finish();
            }
            self.follow_credentials();
        }
        self.engine.update_engine_bytes();
        let known = self.engine.budget.known();
        let anonymous = measure(self.engine);
        self.engine.budget.measured(anonymous, known);
        self.engine.divide_budget();
        let requested = proactive::requested(self.engine) > 0;
        if self.engine.phase() == Phase::Watching
            && (requested || start::is_time_to_take_over(self.engine, anonymous))
        {
            start::take_over(self.engine);
        }
        self.newcomers.look(self.engine);
        draining::follow(self.engine);
        swap_in::follow(self.engine);
        publish(self.engine, anonymous);
        if let Some(member) = self.engine.member() {
            self.unpageable.look(self.engine, member);
        }
        crate::handler::ring_if_low(self.engine);
        if requested {
            self.engine.mailbox.ring();
        }
    }

    fn calibrate(&self) {
        let (ns, ticks) = (task::now_ns() - self.started.0, arch::ticks() - self.started.1);
        if ticks > 0 {
            let rate = (u128::from(ns) << 20) / u128::from(ticks);
            NS_PER_MEGATICK.store(rate as u64, Ordering::Relaxed);
        }
    }

    /// Whether the program has replaced its memory by exec: then this memory is nobody's.
    fn program_is_elsewhere(&self) -> bool {
        let program = self.engine.program.load(Ordering::Relaxed);
        let same = task::same_memory(task::process_id(), program);
        if same == Some(true) {
            return false;
        }
        let mut path = Line::<32>::format(format_args!("/proc/{program}/statm"));
        match total_pages(path.as_c_str()) {
            // Its first thread has ended: the others may go on, and if not it is about to be seen.
            None | Some(0) => false,
            // kcmp needs a privilege in some containers. The sizes of the two differ if the
            // memories do; that they agree by chance is noticed at the next look.
            theirs => same.is_some() || theirs != total_pages(c"/proc/self/statm"),
        }
    }

    fn follow_credentials(&mut self) {
        let program = self.engine.program.load(Ordering::Relaxed);
        let mut path = Line::<32>::format(format_args!("/proc/{program}/status"));
        FOLLOWED.look(path.as_c_str());
        FOLLOWED.follow(&mut self.credentials);
    }

    /// The program has ended.
    fn finish_with_program(&self) -> ! {
        core_dump::save(self.engine);
        self.finish()
    }

    fn finish(&self) -> ! {
        publish(self.engine, measure(self.engine));
        if let Some(member) = self.engine.member() {
            unpageable::publish(self.engine, member);
        }
        leave_run(self.engine);
        task::exit_process(0)
    }
}

/// Gives back this process's part of the budget, and says goodbye.
pub fn leave_run(engine: &Engine) {
    if let Some(member) = engine.member() {
        member.charged.store(0, Ordering::Relaxed);
        member.claim.store(0, Ordering::Relaxed);
    }
    link::say_last_words(engine);
    link::say_bye(engine);
}

fn total_pages(path: &core::ffi::CStr) -> Option<u64> {
    let file = fd::open(path, linux_raw_sys::general::O_RDONLY).ok()?;
    let mut buffer = [0; 128];
    let len = fd::read(file.raw(), &mut buffer).ok()?;
    text::number(&buffer[..len]).map(|(pages, _)| pages)
}

fn measure(engine: &Engine) -> u64 {
    anonymous(engine.fds.statm.load(Ordering::Relaxed))
}

/// Anonymous memory of a process in bytes, by its open statm: resident less shared, proc(5).
pub fn anonymous(statm: i32) -> u64 {
    let mut buffer = [0; 128];
    let Ok(len) = fd::pread(statm, &mut buffer, 0) else { return 0 };
    let numbers = text::number(&buffer[..len])
        .and_then(|(_, rest)| text::number(rest))
        .and_then(|(resident, rest)| text::number(rest).map(|(shared, _)| (resident, shared)));
    numbers.map_or(0, |(resident, shared)| resident.saturating_sub(shared) * PAGE_SIZE as u64)
}

fn publish(engine: &Engine, anonymous: u64) {
    let Some(member) = engine.member() else { return };
    let usage = engine.space.usage();
    let resident = engine.budget.resident_pages() * PAGE_SIZE as u64;
    let metadata = usage.metadata.total() as u64 + engine.tables_memory();
    let slots = usage.metadata.descriptors + usage.metadata.headers + usage.metadata.side_tables;
    let swapped = usage.live_slots * PAGE_SIZE as u64;
    let swap_used = SWAP_DEVICES.used();
    for (gauge, bytes) in [
        (Gauge::Resident, resident),
        (Gauge::Pool, usage.pool_memory as u64),
        (Gauge::Payload, usage.payload as u64),
        (Gauge::Metadata, metadata),
        (Gauge::Slots, slots as u64),
        (Gauge::Swapped, swapped),
        (Gauge::Pooled, swapped.saturating_sub(usage.device_objects * PAGE_SIZE as u64)),
        (Gauge::SwapUsed, swap_used),
        (Gauge::SwapCached, engine.swap_cache.pages() * PAGE_SIZE as u64),
        (Gauge::Unmanaged, engine.budget.unmanaged()),
        (Gauge::ProcessAnon, anonymous),
    ] {
        member.set_gauge(gauge, bytes);
    }
    counters::publish(member, &usage);
    let charged = engine.budget.used();
    member.charged.store(charged, Ordering::Relaxed);
    member.charged_peak.fetch_max(charged, Ordering::Relaxed);
}
