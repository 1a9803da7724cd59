//! Requests of the program's threads to the pager's reclaimer, and the bell that wakes it.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::address::{PageNumber, PageRange};
use crate::lock::SpinLock;
use crate::sys::task;

/// What a thread of the program asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// Evict a range now (MADV_PAGEOUT).
    PageOut = 1,
    /// Bring a range back (MADV_WILLNEED).
    Prefetch = 2,
    /// Register a range: the program has closed its own userfaultfd.
    Register = 3,
    /// Stop reporting on a range, for the same reason.
    Unregister = 4,
    /// End the program: without its userfaultfd it cannot resolve its own faults.
    Stranded = 5,
    /// Tell the user that a page is lost.
    Lost = 6,
}

const DONE: u32 = 0;

/// The reclaimer works.
const AWAKE: u32 = 0;
/// It has no work and stays on its CPU.
const LINGERING: u32 = 1;
/// It lingered, and is on its way to sleep because somebody asked for that.
const LEAVING: u32 = 2;
/// It sleeps, or is about to.
const ASLEEP: u32 = 3;

/// Spins until the reclaimer, which looks several times a microsecond, must have left.
const LEAVING_SPINS: usize = 2000;

/// One request at a time, and the bell.
#[derive(Debug)]
pub struct Mailbox {
    sender: SpinLock<()>,
    request: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    bell: AtomicU32,
    state: AtomicU32,
}

impl Mailbox {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            sender: SpinLock::new(()),
            request: AtomicU32::new(DONE),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            bell: AtomicU32::new(0),
            state: AtomicU32::new(AWAKE),
        }
    }

    /// Wakes the reclaimer if it sleeps.
    pub fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        // Either the reclaimer's last look at the bell sees the new count, or this sees it asleep:
        // both sides write first and read then, sequentially consistent.
        let asleep =
            self.state.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::Relaxed);
        if asleep.is_ok() {
            task::futex_wake(&self.bell, 1);
        }
    }

    /// Makes the reclaimer leave its CPU unless it has work; `false` if it has.
    pub fn quiesce(&self) -> bool {
        match self.state.compare_exchange(LINGERING, LEAVING, Ordering::Acquire, Ordering::Acquire)
        {
            Err(ASLEEP) => return true,
            Ok(_) | Err(LEAVING) => {}
            Err(_) => return false,
        }
        for _ in 0..LEAVING_SPINS {
            core::hint::spin_loop();
            match self.state.load(Ordering::Relaxed) {
                LEAVING => {}
                state => return state == ASLEEP,
            }
        }
        false
    }

    /// What the bell shows; a value for [`sleep`](Self::sleep).
    pub fn bell(&self) -> u32 {
        self.bell.load(Ordering::SeqCst)
    }

    /// Sleeps until the bell rings after it showed `seen`, or some time has passed.
    pub fn sleep(&self, seen: u32, timeout_ms: i64) {
        self.state.store(ASLEEP, Ordering::SeqCst);
        if self.bell.load(Ordering::SeqCst) == seen {
            task::futex_wait(&self.bell, seen, timeout_ms);
        }
        self.state.store(AWAKE, Ordering::SeqCst);
    }

    /// Stays on the CPU until the bell rings after it showed `seen`, `stay` says no, or somebody
    /// wants the reclaimer to leave. Gives whether the bell rang.
    pub fn linger(&self, seen: u32, mut stay: impl FnMut() -> bool) -> bool {
        self.state.store(LINGERING, Ordering::SeqCst);
        while self.bell.load(Ordering::SeqCst) == seen
            && self.state.load(Ordering::Relaxed) == LINGERING
            && stay()
        {
            for _ in 0..16 {
                core::hint::spin_loop();
            }
        }
        // Who wants it to leave waits for it to sleep, and rings the bell if it does not.
        let rang = self.bell.load(Ordering::SeqCst) != seen;
        if rang {
            self.state.store(AWAKE, Ordering::SeqCst);
        }
        rang
    }

    /// Asks for something and waits until it is done. The caller holds no lock of the engine.
    pub fn ask(&self, request: Request, range: PageRange) {
        let _sender = self.sender.lock();
        self.start.store(range.start.0, Ordering::Relaxed);
        self.end.store(range.end.0, Ordering::Relaxed);
        self.request.store(request as u32, Ordering::Release);
        self.ring();
        while self.request.load(Ordering::Acquire) != DONE {
            task::futex_wait(&self.request, request as u32, 100);
        }
    }

    /// The request that waits.
    pub fn waiting(&self) -> Option<(Request, PageRange)> {
        let request = match self.request.load(Ordering::Acquire) {
            1 => Request::PageOut,
            2 => Request::Prefetch,
            3 => Request::Register,
            4 => Request::Unregister,
            5 => Request::Stranded,
            6 => Request::Lost,
            _ => return None,
        };
        let start = PageNumber(self.start.load(Ordering::Relaxed));
        Some((request, PageRange { start, end: PageNumber(self.end.load(Ordering::Relaxed)) }))
    }

    /// Tells the sender that its request is done.
    pub fn done(&self) {
        self.request.store(DONE, Ordering::Release);
        task::futex_wake(&self.request, 1);
    }

    /// Forgets the parent's request in the child of a fork.
    pub fn reset_after_fork(&self) {
        self.sender.reset_after_fork();
        self.request.store(DONE, Ordering::Relaxed);
        self.state.store(AWAKE, Ordering::Relaxed);
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}
