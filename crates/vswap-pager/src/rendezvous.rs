//! Gathers the threads that fault inline, for the time of one move.
//!
//! Scattered pages are dear to move while the memory is live on another CPU (see
//! [`batch`](crate::batch)), and with several threads that fault inline it always is. But they fault
//! often, or nothing would have to be moved. So who wants to move asks the others to sleep at their
//! next fault, and goes on when they do. It waits for them for no longer than a few flushes take.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::{arch, task};

/// Threads that are looked for; a program with more of them finds its others awake more often.
const THREADS: usize = 16;

/// A thread that has not faulted for this long is not waited for: 0.1 to 0.5 ms on x86-64.
const RECENT_TICKS: u64 = 500_000;

/// The longest wait for the others, some 40 µs.
const SPINS_MAX: usize = 1000;

/// The longest sleep of who was asked to: longer than any move.
const SLEEP_MS: i64 = 5;

const OPEN: u32 = 0;
const CALLED: u32 = 1;

static CALL: AtomicU32 = AtomicU32::new(OPEN);
static ASLEEP: AtomicU32 = AtomicU32::new(0);
/// When a thread faulted last, in ticks, by thread pointer.
static FAULTED: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

/// The others sleep, as far as they came, until this is dropped.
#[derive(Debug)]
pub struct Gathering(());

/// Notes that the calling thread faults, and sleeps while another one moves pages.
pub fn pass(thread: usize) {
    slot(thread).store(arch::ticks(), Ordering::Relaxed);
    if CALL.load(Ordering::Relaxed) == CALLED {
        ASLEEP.fetch_add(1, Ordering::AcqRel);
        task::futex_wait(&CALL, CALLED, SLEEP_MS);
        ASLEEP.fetch_sub(1, Ordering::AcqRel);
        slot(thread).store(arch::ticks(), Ordering::Relaxed);
    }
}

/// Calls the others; `None` if another thread has, or not all came.
pub fn gather(thread: usize) -> Option<Gathering> {
    CALL.compare_exchange(OPEN, CALLED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
    let gathering = Gathering(());
    let now = arch::ticks();
    let own = slot(thread);
    let expected = FAULTED
        .iter()
        .filter(|faulted| !core::ptr::eq(*faulted, own))
        .filter(|faulted| now.saturating_sub(faulted.load(Ordering::Relaxed)) < RECENT_TICKS)
        .count();
    for _ in 0..SPINS_MAX {
        if ASLEEP.load(Ordering::Acquire) as usize >= expected {
            return Some(gathering);
        }
        core::hint::spin_loop();
    }
    None
}

fn slot(thread: usize) -> &'static AtomicU64 {
    // Thread pointers differ by the size of a stack, mostly.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    &FAULTED[((thread as u64).wrapping_mul(SPREAD) >> 32) as usize % THREADS]
}

impl Drop for Gathering {
    fn drop(&mut self) {
        CALL.store(OPEN, Ordering::Release);
        if ASLEEP.load(Ordering::Acquire) > 0 {
            task::futex_wake(&CALL, u32::MAX >> 1);
        }
    }
}

/// In the child of a fork there is one thread, and nobody who called.
pub fn reset_after_fork() {
    CALL.store(OPEN, Ordering::Relaxed);
    ASLEEP.store(0, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::thread;

    use super::*;

    #[test]
    fn who_faults_while_another_moves_sleeps_until_it_has() {
        static MOVING: AtomicU32 = AtomicU32::new(0);
        static GATHERED: AtomicU32 = AtomicU32::new(0);
        let faulter = |thread: usize| {
            for _ in 0..2_000 {
                pass(thread);
                assert_eq!(CALL.load(Ordering::SeqCst) & MOVING.load(Ordering::SeqCst), 0);
            }
        };
        let mover = || {
            for _ in 0..200 {
                pass(3);
                if let Some(_gathering) = gather(3) {
                    GATHERED.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(move || faulter(1));
            scope.spawn(move || faulter(2));
            scope.spawn(mover);
        });
        assert!(GATHERED.load(Ordering::SeqCst) > 0);
        assert_eq!((CALL.load(Ordering::SeqCst), ASLEEP.load(Ordering::SeqCst)), (OPEN, 0));
    }
}
