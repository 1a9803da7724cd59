//! Atomics of `core` that let shuttle switch threads before each access.

use core::sync::atomic as plain;
pub use core::sync::atomic::Ordering;

/// A point at which shuttle may run another thread; outside a shuttle test, nothing.
fn switch_point() {
    if shuttle::current::get_current_task().is_some() {
        shuttle::thread::yield_now();
    }
}

/// A fence; shuttle runs one thread at a time, so that it only has to be a switch point.
pub fn fence(order: Ordering) {
    switch_point();
    plain::fence(order);
}

macro_rules! switching {
    ($name:ident $(<$t:ident>)?, $value:ty) => {
        /// The atomic of the same name in `core`, with a switch point before each access.
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub struct $name $(<$t>)? (plain::$name $(<$t>)?);

        #[allow(missing_docs, clippy::missing_errors_doc, reason = "see the atomics of `core`")]
        impl $(<$t>)? $name $(<$t>)? {
            pub const fn new(value: $value) -> Self {
                Self(plain::$name::new(value))
            }
            pub fn load(&self, order: Ordering) -> $value {
                switch_point();
                self.0.load(order)
            }
            pub fn store(&self, value: $value, order: Ordering) {
                switch_point();
                self.0.store(value, order);
            }
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                switch_point();
                self.0.swap(value, order)
            }
            pub fn compare_exchange(
                &self, old: $value, new: $value, done: Ordering, failed: Ordering,
            ) -> Result<$value, $value> {
                switch_point();
                self.0.compare_exchange(old, new, done, failed)
            }
            pub fn compare_exchange_weak(
                &self, old: $value, new: $value, done: Ordering, failed: Ordering,
            ) -> Result<$value, $value> {
                switch_point();
                self.0.compare_exchange(old, new, done, failed)
            }
            pub fn fetch_update<F: FnMut($value) -> Option<$value>>(
                &self, done: Ordering, failed: Ordering, update: F,
            ) -> Result<$value, $value> {
                switch_point();
                self.0.fetch_update(done, failed, update)
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty, $($op:ident)*) => {
        #[allow(missing_docs, reason = "see the atomics of `core`")]
        impl $name {
            $(pub fn $op(&self, value: $value, order: Ordering) -> $value {
                switch_point();
                self.0.$op(value, order)
            })*
        }
    };
}

switching!(AtomicBool, bool);
switching!(AtomicPtr<T>, *mut T);
switching!(AtomicU8, u8);
switching!(AtomicU16, u16);
switching!(AtomicU32, u32);
switching!(AtomicU64, u64);
switching!(AtomicUsize, usize);
arithmetic!(AtomicBool, bool, fetch_and fetch_or fetch_xor);
arithmetic!(AtomicU8, u8, fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
arithmetic!(AtomicU16, u16, fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
arithmetic!(AtomicU32, u32, fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
arithmetic!(AtomicU64, u64, fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
arithmetic!(AtomicUsize, usize, fetch_add fetch_sub fetch_and fetch_or fetch_max fetch_min);
