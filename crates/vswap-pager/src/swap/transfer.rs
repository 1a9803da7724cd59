//! Who carries out the transfers of swap devices, and for how long a device may take over them.
//!
//! Threads of the pager have an io_uring each where that may be used: the kernel has a whole batch at
//! once, and a device that does not answer does not hold the thread for good. Threads of the *program*,
//! and the pager's where io_uring is refused, use plain system calls, which nobody can give up: they
//! are held for as long as the kernel holds them.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::engine::{Side, engine};
use crate::io::{
    Choice, DeviceIo as _, DirectBuffers, Direction, IoError, Late, PlainIo, Request, ThreadIo,
};
use crate::lock::SpinLock;
use crate::sys::task;

/// How long a device may take over a batch.
const TIMEOUT_NS: u64 = 60_000_000_000;

/// The part of that which one gets that has left a request without an answer.
const SUSPECT_PART: u64 = 60;

/// Threads of the pager that have an engine of their own: handlers, the reclaimer, the watcher.
const THREADS: usize = 4;

const NOBODY: u32 = 0;

/// The engine of one thread.
#[derive(Debug)]
struct Own {
    thread: AtomicU32,
    io: SpinLock<Option<ThreadIo<'static>>>,
    /// Requests that were given up and are not over.
    unanswered: AtomicU32,
}

/// The engines of this process.
#[derive(Debug)]
pub struct Transfers {
    own: [Own; THREADS],
}

// SAFETY: a ring is used by the thread that made it and no other: `own` compares.
unsafe impl Sync for Transfers {}

impl Transfers {
    /// None made yet.
    #[expect(clippy::large_stack_arrays, reason = "the value of a static")]
    pub const fn new() -> Self {
        let own = [const {
            Own {
                thread: AtomicU32::new(NOBODY),
                io: SpinLock::new(None),
                unanswered: AtomicU32::new(0),
            }
        }; THREADS];
        Self { own }
    }

    /// The calling thread's, if it is one of the pager's that has or gets one.
    fn own(&self) -> Option<&Own> {
        if engine().side() != Side::Pager {
            return None;
        }
        let thread = task::thread_id();
        let is_mine = |own: &&Own| own.thread.load(Ordering::Relaxed) == thread;
        self.own.iter().find(is_mine).or_else(|| {
            self.own.iter().find(|own| {
                let (ours, free) = (thread, NOBODY);
                own.thread
                    .compare_exchange(free, ours, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            })
        })
    }

    /// Carries out all requests, and gives each its result. What comes in late from earlier ones is
    /// reported.
    pub fn transfer(
        &self,
        buffers: &'static DirectBuffers,
        direction: Direction,
        requests: &mut [Request<'_, 'static>],
        report: &mut dyn FnMut(Late),
    ) {
        let Some(own) = self.own() else {
            return PlainIo::new(buffers).transfer(direction, requests);
        };
        own.settle(report);
        own.transfer(buffers, TIMEOUT_NS, direction, requests);
    }

    /// Whether something was given up and is not over, as far as is known.
    pub fn is_any_unanswered(&self) -> bool {
        self.own.iter().any(|own| own.unanswered.load(Ordering::Relaxed) > 0)
    }

    /// Reports what the calling thread had given up and is over now.
    pub fn settle(&self, report: &mut dyn FnMut(Late)) {
        if let Some(own) = self.own() {
            own.settle(report);
        }
    }

    /// In the child of a fork: the rings are the parent's.
    pub fn reset_after_fork(&self) {
        for own in &self.own {
            own.io.reset_after_fork();
            core::mem::forget(own.io.lock().take());
            own.thread.store(NOBODY, Ordering::Relaxed);
            own.unanswered.store(0, Ordering::Relaxed);
        }
    }
}

impl Default for Transfers {
    fn default() -> Self {
        Self::new()
    }
}

impl Own {
    fn transfer(
        &self,
        buffers: &'static DirectBuffers,
        timeout_ns: u64,
        direction: Direction,
        requests: &mut [Request<'_, 'static>],
    ) {
        let mut io = self.io.lock();
        let io = io.get_or_insert_with(|| ThreadIo::new(buffers, Choice::Best, timeout_ns));
        let is_suspect = requests.iter().any(|request| request.device().health.is_suspect());
        io.set_timeout(timeout_ns / if is_suspect { SUSPECT_PART } else { 1 });
        io.transfer(direction, requests);
        for request in requests.iter() {
            match request.result() {
                Err(IoError::TimedOut) => drop(self.unanswered.fetch_add(1, Ordering::Relaxed)),
                // It answers again.
                Ok(()) if is_suspect => request.device().health.clear(),
                _ => {}
            }
        }
    }

    fn settle(&self, report: &mut dyn FnMut(Late)) {
        if self.unanswered.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(io) = &mut *self.io.lock() {
            let open = io.settle(report) as u32;
            self.unanswered.store(open, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::{AsRawFd as _, OwnedFd};
    use std::vec::Vec;

    use super::*;
    use crate::arena::Arena;
    use crate::io::{Device, Geometry, Health};
    use crate::sys::io_uring;

    const BLOCK: usize = 512;

    /// A pipe is a device that does not answer until somebody writes to it.
    #[test]
    fn a_device_that_does_not_answer_costs_its_time_once() {
        let probe = DirectBuffers::reserve(&Arena, 1).expect("memory");
        if io_uring::calls_are_filtered() || !ThreadIo::new(&probe, Choice::Best, 1).start() {
            std::eprintln!("skipped: no io_uring");
            return;
        }
        let buffers = probe.leak(&Arena).expect("memory");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let reader = File::from(OwnedFd::from(reader));
        let health = Health::new();
        let geometry = Geometry { direct: false, block: BLOCK as u32 };
        let device = Device { fd: reader.as_raw_fd(), id: 3, geometry, health: &health };
        let transfers = Transfers::new();
        let own = &transfers.own[0];
        let mut late = Vec::new();
        let read = |late: &mut Vec<Late>| {
            let buffer = buffers.take(BLOCK).expect("a buffer");
            let mut request = [Request::new(&device, 0, buffer)];
            let began = task::now_ns();
            own.settle(&mut |one| late.push(one));
            own.transfer(buffers, 600_000_000, Direction::Read, &mut request);
            (request[0].result(), task::now_ns() - began)
        };
        let (result, first) = read(&mut late);
        assert_eq!(result, Err(IoError::TimedOut));
        assert!(first >= 600_000_000 && health.is_suspect());
        let (result, second) = read(&mut late);
        assert_eq!(result, Err(IoError::TimedOut));
        assert!(second >= 10_000_000 && second < first, "{second} ns");
        assert!(late.is_empty());
        // It answers all three.
        writer.write_all(&[7; 3 * BLOCK]).expect("room");
        assert_eq!(read(&mut late).0, Ok(()));
        assert!(!health.is_suspect());
        while own.unanswered.load(Ordering::Relaxed) > 0 {
            own.settle(&mut |one| late.push(one));
            task::sleep_us(1000);
        }
        assert_eq!(late.len(), 2);
        assert!(late.iter().all(|one| one.device == 3 && one.result.is_ok()), "{late:?}");
        assert_eq!(buffers.taken(), 0);
    }
}
