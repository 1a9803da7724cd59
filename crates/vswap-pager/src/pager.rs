//! The pager: a process of its own that shares the program's memory, and nothing else of it.
//!
//! It is no thread of the program (those deadlock `strace -f`, fail `unshare`, keep old credentials
//! and hide ends of file; design, section 3): own descriptor table, own session, all signals
//! blocked, no exit signal, and not even its child. Its threads are
//!
//! - the *watcher*, its first: sees the end of the program, follows its credentials, measures and
//!   publishes;
//! - *handlers*, which serve faults;
//! - the *reclaimer*, which keeps memory free ahead of need;
//! - the *registrar*, which takes no lock and does what a thread of the program that holds some needs
//!   a descriptor of the pager for: it registers memory for a program that has closed its userfaultfd,
//!   and speaks for threads that resolve faults themselves. It also ends a pager whose watcher cannot.

use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as k;
use vswap_core::device::set::DEVICES_MAX;
use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::arena::Arena;
use crate::engine::{Engine, Side};
use crate::swap::SWAP_DEVICES;
use crate::swap::fingerprints::FINGERPRINTS;
use crate::swap::sealing::SEALING;
use crate::sys::fd::{self, Fd};
use crate::sys::uffd::{self, Uffd};
use crate::sys::{Errno, arch, result, task};
use crate::{core_dump, counters, handler, hook_stack, inline, link, reclaimer, watcher};

const STACK_BYTES: usize = 128 << 10;

/// Shares memory and nothing else, sends no signal when it ends, and is not traced along.
const PROCESS_FLAGS: usize = (k::CLONE_VM | k::CLONE_UNTRACED | k::CLONE_SETTLS) as usize;

/// Handlers and everybody else.
const THREADS_MAX: usize = 8;

/// Milliseconds between two looks of the registrar at whether the program lives.
const LOOK_UP_MS: i64 = 250;

/// What the watcher has to end the pager in good order.
const GRACE_US: u64 = 200_000;

/// How long a page of those that a core dump lacks may take.
const PAGE_US: u64 = 10_000_000;

/// A program's own descriptors are low; ours start here where its limit allows.
const KEPT_FD_MIN: i32 = 1000;

/// Why there is no pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No userfaultfd that serves faults inside system calls.
    #[error(
        "userfaultfd is not permitted here ({0}); allow /dev/userfaultfd or set \
         vm.unprivileged_userfaultfd=1 (see `vswap doctor`)"
    )]
    Userfaultfd(Errno),
    /// The kernel cannot move pages.
    #[error("this kernel has no UFFDIO_MOVE (Linux 6.8)")]
    Move,
    /// A file of /proc is missing.
    #[error("/proc is not usable ({0})")]
    Proc(Errno),
    /// No address space.
    #[error("no address space for the engine ({0})")]
    Memory(Errno),
    /// No process: RLIMIT_NPROC or a pids cgroup.
    #[error("no process for the pager ({0}); raise the process limit")]
    Process(Errno),
}

impl StartError {
    /// What fork(2) says of it, if something has run out. What is not permitted is no error that
    /// fork knows, and does not pass.
    pub fn of_fork(self) -> Option<Errno> {
        match self {
            Self::Process(_) => Some(Errno::EAGAIN),
            Self::Memory(_) => Some(Errno::ENOMEM),
            Self::Userfaultfd(error) | Self::Proc(error) => match error {
                Errno::EMFILE | Errno::ENFILE => Some(Errno::EAGAIN),
                Errno::ENOMEM => Some(Errno::ENOMEM),
                _ => None,
            },
            Self::Move => None,
        }
    }
}

/// How far the pager has come; waited for by who started it.
static PROGRESS: AtomicU32 = AtomicU32::new(STARTING);
const STARTING: u32 = 0;
const READY: u32 = 1;
const FAILED: u32 = 2;

/// Says why memory is not paged.
pub fn say_not_started(engine: &Engine, error: StartError) {
    // There is no pager to hold a connection, so one is made for the line.
    if let Ok(joined) = link::join(engine, None) {
        if let Some(coordinator) = &joined.coordinator {
            engine.fds.coordinator.store(coordinator.raw(), Ordering::Relaxed);
            let pid = task::process_id();
            link::say(engine, format_args!("process {pid} runs unmanaged: {error}"));
            link::say_bye(engine);
        }
        engine.fds.coordinator.store(-1, Ordering::Relaxed);
    }
}

/// Descriptors on their way from the program, which opens them, to the pager.
struct Opened {
    uffd: Uffd,
    pagemap: Fd,
    statm: Fd,
    program: Fd,
    joined: link::Joined,
}

/// Makes the pager. Called on a thread of the program, with signals blocked.
///
/// # Errors
/// [`StartError`]; the program goes on without the engine.
pub fn start(engine: &Engine) -> Result<(), StartError> {
    engine.program.store(task::process_id(), Ordering::Relaxed);
    let refused = take_sigbus(engine);
    let opened = open_all(engine)?;
    publish(engine, &opened);
    if let Err(error) = start_with(engine, &opened) {
        link::say_bye(engine);
        return Err(error);
    }
    if let Err(refused) = refused {
        let pid = task::process_id();
        link::say(
            engine,
            format_args!("no inline faults in process {pid}: {refused}; its faults are handed off"),
        );
    }
    Ok(())
}

fn start_with(engine: &Engine, opened: &Opened) -> Result<(), StartError> {
    engine.staging.open().map_err(StartError::Memory)?;
    attach_devices(engine, &opened.joined)?;
    engine.divide_budget();
    counters::start(engine);
    PROGRESS.store(STARTING, Ordering::Release);
    engine.pager.store(0, Ordering::Release);
    let parent = start_task(PROCESS_FLAGS, parent_main, 0).map_err(StartError::Process)?;
    task::reap(parent);
    let pager = engine.pager.load(Ordering::Acquire);
    if pager == 0 {
        return Err(StartError::Process(Errno::EAGAIN));
    }
    keep_all(engine, opened)?;
    loop {
        match PROGRESS.load(Ordering::Acquire) {
            READY => return Ok(()),
            FAILED => return Err(StartError::Process(Errno::EAGAIN)),
            _ => task::futex_wait(&PROGRESS, STARTING, 100),
        }
        // It can be killed.
        if task::pidfd(pager).is_err() {
            return Err(StartError::Process(Errno::ESRCH));
        }
    }
}

/// Takes the run's swap devices into use. In the child of a fork it holds what it has inherited there.
fn attach_devices(engine: &Engine, joined: &link::Joined) -> Result<(), StartError> {
    if let Some(run) = engine.run_page() {
        // SAFETY: this thread makes the pager, and no device was used yet; in the child of a fork the
        // pager that writes is not there yet.
        unsafe {
            SEALING.begin(&run.devices);
            FINGERPRINTS.begin();
        }
    }
    for (number, fd) in joined.devices.iter().enumerate() {
        if let Some(fd) = fd
            && !SWAP_DEVICES.attach(engine, number, fd.raw(), None)
        {
            return Err(StartError::Memory(Errno::ENOMEM));
        }
    }
    if SWAP_DEVICES.inherit() { Ok(()) } else { Err(StartError::Process(Errno::EAGAIN)) }
}

/// Takes over SIGBUS if the run asks for inline faults; without it, faults are handed off.
fn take_sigbus(engine: &Engine) -> Result<(), inline::Refused> {
    if !engine.inline.load(Ordering::Relaxed) {
        return Ok(());
    }
    let taken = inline::install(hook_stack::caller_signal_mask().unwrap_or(0));
    engine.inline.store(taken.is_ok(), Ordering::Relaxed);
    taken
}

fn open_all(engine: &Engine) -> Result<Opened, StartError> {
    let inline = engine.inline.load(Ordering::Relaxed);
    let wanted = uffd::FEATURES_EVENTS
        | uffd::FEATURE_THREAD_ID
        | uffd::FEATURE_MOVE
        | uffd::FEATURE_POISON
        | if inline { uffd::FEATURE_SIGBUS } else { 0 };
    let opened = Uffd::open(wanted).map_err(|error| match error {
        Errno::EINVAL => StartError::Move,
        error => StartError::Userfaultfd(error),
    })?;
    Ok(Opened {
        pagemap: fd::open(c"/proc/self/pagemap", k::O_RDONLY).map_err(StartError::Proc)?,
        statm: fd::open(c"/proc/self/statm", k::O_RDONLY).map_err(StartError::Proc)?,
        program: task::pidfd(task::process_id()).map_err(StartError::Process)?,
        // Last: a connection that is dropped without a goodbye is the death of a pager.
        joined: link::join(engine, Some(opened.raw())).map_err(StartError::Memory)?,
        uffd: opened,
    })
}

fn publish(engine: &Engine, opened: &Opened) {
    let number = |fd: &Option<Fd>| fd.as_ref().map_or(-1, Fd::raw);
    let (fds, paging) = (&engine.fds, &engine.pager_fds);
    fds.statm.store(opened.statm.raw(), Ordering::Relaxed);
    fds.program.store(opened.program.raw(), Ordering::Relaxed);
    fds.coordinator.store(number(&opened.joined.coordinator), Ordering::Relaxed);
    paging.uffd.store(opened.uffd.raw(), Ordering::Relaxed);
    paging.pagemap.store(opened.pagemap.raw(), Ordering::Relaxed);
}

/// Duplicates for the program's threads. All but those of inline faults leave moving to the pager.
fn keep_all(engine: &Engine, opened: &Opened) -> Result<(), StartError> {
    let kept = &engine.program_fds;
    kept.uffd.store(keep(opened.uffd.raw()).map_err(StartError::Userfaultfd)?, Ordering::Release);
    for (_, device) in SWAP_DEVICES.all() {
        let fd = device.fd(Side::Pager).load(Ordering::Relaxed);
        // The parent's, which has nothing of this process, and which the run has not given it.
        if fd < 0 {
            continue;
        }
        let kept = keep(fd).map_err(StartError::Proc)?;
        // The child of a fork had its parent's until now.
        drop(Fd::new(device.fd(Side::Program).swap(kept, Ordering::AcqRel)));
    }
    if engine.inline.load(Ordering::Relaxed) {
        kept.pagemap
            .store(keep(opened.pagemap.raw()).map_err(StartError::Proc)?, Ordering::Release);
    }
    Ok(())
}

/// A duplicate that the program keeps, out of the way of its own descriptors. As long as that of
/// the userfaultfd is open, evicted pages do not turn to zeros when the pager dies.
///
/// # Errors
/// As fcntl(F_DUPFD).
pub fn keep(fd: i32) -> Result<i32, Errno> {
    let high = fd::duplicate(fd, KEPT_FD_MIN);
    high.or_else(|_| fd::duplicate(fd, 0)).map(Fd::into_raw)
}

/// The pager's parent, for a moment: when it has ended the pager is no child of the program, and
/// no `wait` of the program ever finds it.
extern "C" fn parent_main(_argument: usize) -> ! {
    if let Ok(pager) = start_task(PROCESS_FLAGS, watcher::main, 0) {
        crate::engine::engine().pager.store(pager, Ordering::Release);
    }
    task::exit_process(0)
}

/// Starts a task on a stack of its own with a TLS block of its own, which nothing but a stray
/// stack protector would read.
fn start_task(
    flags: usize,
    entry: extern "C" fn(usize) -> !,
    argument: usize,
) -> Result<u32, Errno> {
    let stack = Arena.reserve(STACK_BYTES + PAGE_SIZE, PAGE_SIZE).ok_or(Errno::ENOMEM)?;
    let stack_top = stack.as_ptr().wrapping_add(STACK_BYTES);
    let tls = stack_top.wrapping_add(PAGE_SIZE / 2);
    // SAFETY: the stack is fresh, 16-byte aligned and the task's alone, the TLS block lies behind
    // it, and the entries never return.
    let id = result(unsafe { arch::clone_task(flags, stack_top, tls, entry, argument) });
    if id.is_err() {
        // SAFETY: no task runs on it.
        unsafe { Arena.unreserve(stack, STACK_BYTES + PAGE_SIZE) };
    }
    id.map(|id| id as u32)
}

/// Makes the calling task, just started, a pager: nothing of the program but its memory is left.
///
/// # Errors
/// As clone(2).
pub fn become_pager(engine: &Engine) -> Result<(), Errno> {
    // Its parent says so too, but may not have run yet, and a thread that does not count as the pager's
    // uses the program's descriptors, which are closed here.
    engine.pager.store(task::process_id(), Ordering::Release);
    close_all_but_own(engine);
    // SAFETY: no memory is passed. A session of its own: signals for the program's process group
    // are not for the pager.
    unsafe { crate::syscall!(k::__NR_setsid) };
    task::set_name(c"vswap-pager");
    let started = start_threads();
    PROGRESS.store(if started.is_ok() { READY } else { FAILED }, Ordering::Release);
    task::futex_wake(&PROGRESS, 1);
    started
}

fn start_threads() -> Result<(), Errno> {
    let flags = (k::CLONE_VM
        | k::CLONE_FS
        | k::CLONE_FILES
        | k::CLONE_SIGHAND
        | k::CLONE_THREAD
        | k::CLONE_SYSVSEM
        | k::CLONE_UNTRACED
        | k::CLONE_SETTLS) as usize;
    start_task(flags, registrar_main, 0)?;
    start_task(flags, reclaimer::main, 0)?;
    for index in 0..handler::count().min(THREADS_MAX) {
        start_task(flags, handler::main, index)?;
    }
    Ok(())
}

const NO_FD: i32 = -1;

/// Descriptors of the pager other than those of devices.
const FEW_FDS: usize = 5;

/// Whoever waits for an end of file must not wait for the pager.
fn close_all_but_own(engine: &Engine) {
    let (fds, paging) = (&engine.fds, &engine.pager_fds);
    let mut own = [NO_FD; FEW_FDS + DEVICES_MAX];
    let few = [&paging.uffd, &paging.pagemap, &fds.statm, &fds.program, &fds.coordinator];
    let devices = SWAP_DEVICES.all().map(|(_, device)| device.fd(Side::Pager));
    for (own, fd) in own.iter_mut().zip(few.into_iter().chain(devices)) {
        *own = fd.load(Ordering::Relaxed);
    }
    own.sort_unstable();
    let mut first = 0;
    for fd in own.into_iter().filter(|fd| *fd >= 0).map(|fd| fd as u32) {
        if fd > first {
            fd::close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    fd::close_range(first, u32::MAX);
}

extern "C" fn registrar_main(_argument: usize) -> ! {
    use crate::mailbox::Request;
    let engine = crate::engine::engine();
    loop {
        let bell = engine.registrar.bell();
        match engine.registrar.waiting() {
            Some((request, range)) => {
                let (start, len) = (range.address(), range.bytes());
                match request {
                    Request::Lost => link::say_lost_page(engine, start),
                    Request::Stranded => {
                        link::die(engine, "it closed the descriptor that inline faults need")
                    }
                    // What cannot be registered stays unmanaged.
                    Request::Register => {
                        let _ = engine.with_uffd(Side::Pager, |uffd| uffd.register(start, len));
                    }
                    _ => {
                        let _ = engine.with_uffd(Side::Pager, |uffd| uffd.unregister(start, len));
                    }
                }
                engine.registrar.done();
            }
            None => {
                engine.registrar.sleep(bell, LOOK_UP_MS);
                end_with_program(engine);
            }
        }
    }
}

/// The watcher ends the pager, but not if it waits for a lock that the program was killed with. This
/// thread takes none.
fn end_with_program(engine: &Engine) {
    let program = engine.fds.program.load(Ordering::Relaxed);
    if matches!(fd::wait_readable([program], 0), Ok([false])) {
        return;
    }
    let mut steps = 0;
    task::sleep_us(GRACE_US);
    while core_dump::is_under_way(&mut steps) {
        task::sleep_us(PAGE_US);
    }
    core_dump::say_if_missed(engine);
    watcher::leave_run(engine);
    task::exit_process(0)
}
