//! The pool against a simple model: a list of what was stored, with contents.

mod common;

use std::sync::Mutex;

use common::Random;
use vswap_core::PAGE_SIZE;
use vswap_core::platform::MmapPlatform;
use vswap_core::pool::class::CLASSES;
use vswap_core::pool::{LOCATION_BITS, Pool, PoolFull, PoolLocal, Stored};

/// An object of the model: contents are derived from the seed.
#[derive(Clone, Copy)]
struct Object {
    stored: Stored,
    seed: u64,
    len: usize,
}

fn contents(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes: Vec<u8> =
        (0..len.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn some_len(random: &mut Random) -> usize {
    match random.below(10) {
        0 => 1 + random.below(64),
        1 => PAGE_SIZE,
        _ => 300 + random.below(3000),
    }
}

fn store(
    pool: &Pool<MmapPlatform>,
    local: &mut PoolLocal,
    random: &mut Random,
) -> Result<Object, PoolFull> {
    let (seed, len) = (random.next(), some_len(random));
    let stored = pool.store(local, &contents(seed, len))?;
    assert!(stored.location >> LOCATION_BITS == 0 && stored.slack < 64);
    Ok(Object { stored, seed, len })
}

fn verify(pool: &Pool<MmapPlatform>, object: &Object) {
    assert_eq!(pool.len(object.stored), object.len);
    // SAFETY: the object is in the model, so it is alive.
    let bytes = unsafe { pool.bytes(object.stored) };
    assert!(bytes == contents(object.seed, object.len), "contents of {:?}", object.stored);
}

/// Moves every object that lies on a victim.
fn compact(pool: &Pool<MmapPlatform>, local: &mut PoolLocal, objects: &mut [Object]) {
    for object in objects.iter_mut().filter(|object| pool.is_victim(object.stored.location)) {
        // SAFETY: the object is alive until it is freed below.
        let Ok(moved) = pool.store(local, unsafe { pool.bytes(object.stored) }) else { return };
        assert!(!pool.is_victim(moved.location));
        pool.free(std::mem::replace(&mut object.stored, moved));
    }
    pool.release_victims();
}

#[test]
fn random_operations_match_a_model() {
    for seed in 1..=8 {
        println!("seed {seed}");
        let pool = Pool::new(MmapPlatform);
        let mut local = pool.local();
        let mut random = Random::new(seed);
        let mut objects: Vec<Object> = Vec::new();
        let mut grow = true;
        for step in 0..30_000 {
            if random.below(3000) == 0 {
                grow = !grow;
            }
            if objects.is_empty() || random.below(10) < if grow { 7 } else { 3 } {
                objects.push(store(&pool, &mut local, &mut random).unwrap());
            } else {
                let object = objects.swap_remove(random.below(objects.len()));
                verify(&pool, &object);
                pool.free(object.stored);
            }
            match random.below(4000) {
                0 => {
                    let expected = pool.choose_victims(random.below(1 << 22));
                    let before = pool.memory();
                    compact(&pool, &mut local, &mut objects);
                    // What moved may have begun a page in each class.
                    assert!(pool.memory() + expected <= before + CLASSES * PAGE_SIZE);
                }
                1 => pool.settle_all(&mut local),
                2 => {
                    pool.choose_victims(1 << 20);
                    pool.release_victims();
                    assert!(objects.iter().all(|object| !pool.is_victim(object.stored.location)));
                }
                _ => {}
            }
            if step % 1000 == 0 {
                pool.check().unwrap();
                let payload: usize = objects.iter().map(|object| object.len).sum();
                assert_eq!(pool.payload(), payload);
                assert!(pool.memory() >= payload);
            }
        }
        for object in objects {
            verify(&pool, &object);
            pool.free(object.stored);
        }
        pool.check().unwrap();
        pool.retire(local);
        pool.check().unwrap();
        assert_eq!((pool.payload(), pool.memory()), (0, 0));
    }
}

/// Each worker frees what others stored, one of them compacts all the time.
#[test]
fn concurrent_operations_match_a_model() {
    let pool = Pool::new(MmapPlatform);
    let shared: Vec<Mutex<Vec<Object>>> = (0..16).map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for worker in 0..3u64 {
            let (pool, shared) = (&pool, &shared);
            scope.spawn(move || {
                let mut random = Random::new(worker);
                let mut local = pool.local();
                for step in 0..60_000 {
                    let mut objects = shared[random.below(shared.len())].lock().unwrap();
                    let draining = step % 20_000 > 12_000;
                    if objects.is_empty() || random.below(10) < if draining { 2 } else { 6 } {
                        objects.push(store(pool, &mut local, &mut random).unwrap());
                    } else {
                        let at = random.below(objects.len());
                        let object = objects.swap_remove(at);
                        drop(objects);
                        verify(pool, &object);
                        pool.free(object.stored);
                        continue;
                    }
                    if worker == 0 && step % 1024 == 0 {
                        pool.choose_victims(1 << 20);
                        compact(pool, &mut local, &mut objects);
                    }
                    if random.below(2000) == 0 {
                        pool.settle_all(&mut local);
                    }
                }
                pool.retire(local);
            });
        }
    });
    pool.check().unwrap();
    let objects: Vec<Object> = shared.into_iter().flat_map(|o| o.into_inner().unwrap()).collect();
    assert_eq!(pool.payload(), objects.iter().map(|object| object.len).sum::<usize>());
    for object in objects {
        verify(&pool, &object);
        pool.free(object.stored);
    }
    pool.check().unwrap();
    assert_eq!((pool.payload(), pool.memory()), (0, 0));
}
