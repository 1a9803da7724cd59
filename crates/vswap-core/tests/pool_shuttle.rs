//! The whole pool under random schedules: shuttle may switch threads at every atomic access.
//!
//!     RUSTFLAGS="--cfg shuttle" cargo test -p vswap-core --test pool_shuttle

#![cfg(shuttle)]

use std::sync::Arc;

use shuttle::sync::Mutex;
use shuttle::thread;
use vswap_core::platform::MmapPlatform;
use vswap_core::pool::{Pool, Stored};

/// Two threads store and free each other's objects while a third one compacts.
#[test]
fn stores_frees_and_compaction_lose_nothing() {
    shuttle::check_random(
        || {
            let pool = Arc::new(Pool::new(MmapPlatform));
            let shared: Arc<Mutex<Vec<(Stored, u8)>>> = Arc::default();
            let workers = (1..=2u8).map(|worker| {
                let (pool, shared) = (pool.clone(), shared.clone());
                thread::spawn(move || {
                    let mut local = pool.local();
                    for i in 0..12 {
                        let byte = 16 * worker + i;
                        // Two classes of two objects to a page, so that pages and segments empty.
                        let len = if i % 3 == 0 { 2048 } else { 1984 };
                        let stored = pool.store(&mut local, &vec![byte; len]).unwrap();
                        shared.lock().unwrap().push((stored, byte));
                        let taken = if i % 4 == 3 { 4 } else { usize::from(i % 2) };
                        for _ in 0..taken {
                            let Some((stored, byte)) = shared.lock().unwrap().pop() else { break };
                            verify(&pool, stored, byte);
                            pool.free(stored);
                        }
                    }
                    pool.retire(local);
                })
            });
            let compactor = {
                let (pool, shared) = (pool.clone(), shared.clone());
                thread::spawn(move || {
                    let mut local = pool.local();
                    for _ in 0..4 {
                        pool.choose_victims(usize::MAX);
                        for (stored, byte) in shared.lock().unwrap().iter_mut() {
                            if pool.is_victim(stored.location) {
                                verify(&pool, *stored, *byte);
                                // SAFETY: the object is freed below, by whoever holds the lock.
                                let bytes = unsafe { pool.bytes(*stored) };
                                let moved = pool.store(&mut local, bytes).unwrap();
                                pool.free(std::mem::replace(stored, moved));
                            }
                        }
                        pool.release_victims();
                    }
                    pool.retire(local);
                })
            };
            let threads: Vec<_> = workers.chain([compactor]).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            pool.check().unwrap();
            for (stored, byte) in shared.lock().unwrap().drain(..) {
                verify(&pool, stored, byte);
                pool.free(stored);
            }
            pool.check().unwrap();
            assert_eq!((pool.payload(), pool.memory()), (0, 0));
        },
        300,
    );
}

fn verify(pool: &Pool<MmapPlatform>, stored: Stored, byte: u8) {
    // SAFETY: the object is alive: whoever verifies it is the one who would free it.
    let bytes = unsafe { pool.bytes(stored) };
    assert!(bytes.iter().all(|&b| b == byte), "object {byte} is gone");
}
