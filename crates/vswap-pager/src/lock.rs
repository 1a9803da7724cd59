//! Locks that work where libc does not: a spin lock and a gate, both in plain memory.
//!
//! A waiter spins briefly and then yields its CPU, since the holder may have been preempted. No
//! holder ever waits for a page fault, so waits are short, but for a fork of many mappings: then
//! waiters sleep, so that they do not keep the CPUs from it. All holders block signals or run in the
//! pager, so that no signal handler finds a lock held by its own thread.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::sys::task;

const SPINS_BEFORE_YIELD: u32 = 64;

/// Some 100 µs of yielding, if nobody else wants the CPU.
const SPINS_BEFORE_SLEEP: u32 = 256;

/// The kernel adds its slack of 50 µs.
const SLEEP_US: u64 = 20;

/// Waits a moment; `spins` counts the calls so far.
pub fn relax(spins: u32) {
    match spins {
        ..SPINS_BEFORE_YIELD => core::hint::spin_loop(),
        SPINS_BEFORE_YIELD..SPINS_BEFORE_SLEEP => task::yield_now(),
        _ => task::sleep_us(SLEEP_US),
    }
}

/// Mutual exclusion for a value.
#[derive(Debug)]
pub struct SpinLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard only, and there is one guard at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// Access to the value of a [`SpinLock`], until dropped.
#[derive(Debug)]
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> SpinLock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self { held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> SpinGuard<'_, T> {
        let mut spins = 0;
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            while self.held.load(Ordering::Relaxed) {
                relax(spins);
                spins += 1;
            }
        }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // Acquire pairs with the Release of the guard's drop, so that the last holder's writes
        // are seen.
        let taken =
            self.held.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Not `then_some`: a guard made in vain would free the lock when dropped.
        taken.then(|| SpinGuard { lock: self })
    }

    /// Frees the lock in the child of a fork, whose holder exists in the parent only.
    pub fn reset_after_fork(&self) {
        self.held.store(false, Ordering::Release);
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard is the only one.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.held.store(false, Ordering::Release);
    }
}

/// Set while somebody holds the gate alone or waits to.
const CLOSED: u32 = 1 << 31;

/// Lets many pass, or one alone: a read-write lock that prefers the one.
///
/// Those who serve faults or commit an eviction pass; who changes the layout of memory, or forks,
/// closes it.
#[derive(Debug)]
pub struct Gate {
    state: AtomicU32,
}

/// A passage through a [`Gate`], until dropped.
#[derive(Debug)]
pub struct Passage<'a>(&'a Gate);

/// A closed [`Gate`], until dropped.
#[derive(Debug)]
pub struct Closed<'a>(&'a Gate);

impl Gate {
    /// An open gate.
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(0) }
    }

    /// Passes; waits while the gate is closed.
    pub fn pass(&self) -> Passage<'_> {
        let mut spins = 0;
        loop {
            // The count goes up first. Either the closer's wait for zero sees it, or this load
            // sees CLOSED; both are on one word, so there is no third outcome.
            if self.state.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
                return Passage(self);
            }
            self.state.fetch_sub(1, Ordering::Release);
            while self.state.load(Ordering::Relaxed) & CLOSED != 0 {
                relax(spins);
                spins += 1;
            }
        }
    }

    /// Closes the gate and waits until nobody is inside.
    pub fn close(&self) -> Closed<'_> {
        let mut spins = 0;
        while self.state.fetch_or(CLOSED, Ordering::Acquire) & CLOSED != 0 {
            relax(spins);
            spins += 1;
        }
        while self.state.load(Ordering::Acquire) != CLOSED {
            relax(spins);
            spins += 1;
        }
        Closed(self)
    }

    /// Opens the gate in the child of a fork, where nobody is inside.
    pub fn reset_after_fork(&self) {
        self.state.store(0, Ordering::Release);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!CLOSED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn the_lock_excludes() {
        static COUNT: SpinLock<u64> = SpinLock::new(0);
        let threads: [_; 3] = core::array::from_fn(|_| {
            std::thread::spawn(|| (0..10_000).for_each(|_| *COUNT.lock() += 1))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*COUNT.lock(), 30_000);
    }

    #[test]
    fn a_closed_gate_is_empty() {
        static GATE: Gate = Gate::new();
        static INSIDE: AtomicU32 = AtomicU32::new(0);
        let passers: [_; 2] = core::array::from_fn(|_| {
            std::thread::spawn(|| {
                for _ in 0..20_000 {
                    let _passage = GATE.pass();
                    INSIDE.fetch_add(1, Ordering::SeqCst);
                    INSIDE.fetch_sub(1, Ordering::SeqCst);
                }
            })
        });
        for _ in 0..2_000 {
            let _closed = GATE.close();
            assert_eq!(INSIDE.load(Ordering::SeqCst), 0);
        }
        for passer in passers {
            passer.join().unwrap();
        }
    }
}
