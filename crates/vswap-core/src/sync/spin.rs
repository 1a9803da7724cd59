//! A spin lock that leaves waiting to the [`Platform`].
//!
//! The critical sections of this crate are a few dozen instructions with no system call, so a
//! waiter spins; when the holder lost its CPU, [`Platform::relax`] gives it back. There is no
//! queue and no owner field: an unlocked lock is the number zero, which is what a copy of the
//! address space made by fork needs.

use core::ops::{Deref, DerefMut};

use super::{AtomicU32, Ordering};
use crate::platform::Platform;

#[cfg(loom)]
use loom::cell::UnsafeCell;

#[cfg(not(loom))]
mod cell {
    /// The subset of loom's cell that the lock uses.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub(super) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(super) const fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        pub(super) fn get(&self) -> *mut T {
            self.0.get()
        }
    }
}
#[cfg(not(loom))]
use cell::UnsafeCell;

const UNLOCKED: u32 = 0;
const LOCKED: u32 = 1;

/// A lock without data, for places that protect several fields.
#[derive(Debug)]
#[repr(transparent)]
pub struct RawSpinLock(AtomicU32);

impl RawSpinLock {
    /// An unlocked lock.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU32::new(UNLOCKED))
    }

    /// An unlocked lock.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU32::new(UNLOCKED))
    }

    /// Waits until the lock is ours.
    #[inline]
    pub fn acquire<P: Platform + ?Sized>(&self, platform: &P) {
        let mut spins = 0;
        while !self.try_acquire() {
            platform.relax(spins);
            spins = spins.saturating_add(1);
        }
    }

    /// Takes the lock if nobody has it.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        // Acquire pairs with the release below: what the last holder wrote is visible to us.
        self.0.compare_exchange(UNLOCKED, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Gives the lock back. Only its holder may call this.
    #[inline]
    pub fn release(&self) {
        debug_assert_eq!(self.0.load(Ordering::Relaxed), LOCKED);
        self.0.store(UNLOCKED, Ordering::Release);
    }
}

impl Default for RawSpinLock {
    fn default() -> Self {
        Self::new()
    }
}

/// A value that one thread at a time may use.
#[derive(Debug, Default)]
pub struct SpinLock<T> {
    lock: RawSpinLock,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one thread at a time, so it needs to be Send and no more.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// An unlocked lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { lock: RawSpinLock::new(), value: UnsafeCell::new(value) }
    }

    /// An unlocked lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { lock: RawSpinLock::new(), value: UnsafeCell::new(value) }
    }

    /// Waits until the value is ours.
    #[inline]
    pub fn lock<P: Platform + ?Sized>(&self, platform: &P) -> SpinGuard<'_, T> {
        self.lock.acquire(platform);
        SpinGuard::new(self)
    }

    /// Frees the lock in a copy of the address space: who holds it is in the original only.
    pub fn reset_after_fork(&self) {
        // Held by somebody there or by us now: free afterwards in both cases.
        let _ = self.lock.try_acquire();
        self.lock.release();
    }

    /// The value, if nobody has it.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        self.lock.try_acquire().then(|| SpinGuard::new(self))
    }
}

/// Exclusive use of a [`SpinLock`]'s value, until dropped.
#[derive(Debug)]
pub struct SpinGuard<'a, T> {
    owner: &'a SpinLock<T>,
    #[cfg(loom)]
    pointer: Option<loom::cell::MutPtr<T>>,
}

impl<'a, T> SpinGuard<'a, T> {
    #[inline]
    fn new(owner: &'a SpinLock<T>) -> Self {
        Self {
            owner,
            #[cfg(loom)]
            pointer: Some(owner.value.get_mut()),
        }
    }

    #[inline]
    fn pointer(&self) -> *mut T {
        #[cfg(loom)]
        return self.pointer.as_ref().unwrap().with(|pointer| pointer);
        #[cfg(not(loom))]
        self.owner.value.get()
    }
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a guard exists only while its thread holds the lock.
        unsafe { &*self.pointer() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: a guard exists only while its thread holds the lock.
        unsafe { &mut *self.pointer() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        #[cfg(loom)]
        drop(self.pointer.take());
        self.owner.lock.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_nobody_can_give_back_is_freed_after_a_fork() {
        let lock = SpinLock::new(3);
        lock.reset_after_fork();
        core::mem::forget(lock.try_lock());
        assert!(lock.try_lock().is_none());
        lock.reset_after_fork();
        assert_eq!(lock.try_lock().map(|value| *value), Some(3));
    }
}
